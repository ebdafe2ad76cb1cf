//! `usage_ledger`: which ledger is the one, and how far the request log has been copied into it.

use super::{PgConnection, Store, StoreError};
use chrono::{DateTime, Utc};
use uuid::Uuid;

/// Key of the advisory lock under which it changes which ledger is the one («u_ledger» in ASCII). Whoever writes events
/// that are in no other ledger shares it.
const LEDGER_LOCK: i64 = 0x755f_6c65_6467_6572;

/// Down to where the request log has been copied, the newest first: the time of a request, and its id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Reached {
    /// Into which table.
    pub(crate) clickhouse: Uuid,
    /// Of this time, requests of lesser ids are not copied.
    pub(crate) at: DateTime<Utc>,
    /// That id.
    pub(crate) id: Uuid,
}

/// From now on the ledger is the table in ClickHouse that has this UUID, or the request log. If that is another one than
/// before, what the request log has is to be copied; no event that is in it alone is committed afterwards.
pub(crate) async fn switch(store: &Store, clickhouse: Option<Uuid>) -> Result<(), StoreError> {
    let mut tx = store.begin().await?;
    sqlx::query("SELECT pg_advisory_xact_lock($1)").bind(LEDGER_LOCK).execute(&mut *tx).await?;
    // A year ahead: beyond what an edge made whose clock is ahead.
    sqlx::query(
        "UPDATE usage_ledger SET clickhouse = $1, copied_from = CASE WHEN is_due THEN now() + interval '1 year' END,
             copied_id = CASE WHEN is_due THEN $2 END
         FROM (SELECT $1 IS NOT NULL AND EXISTS (SELECT 1 FROM inference_requests) AS is_due) AS log
         WHERE clickhouse IS DISTINCT FROM $1",
    )
    .bind(clickhouse)
    .bind(Uuid::max())
    .execute(&mut *tx)
    .await?;
    Ok(tx.commit().await?)
}

/// Holds the request log as the ledger until the transaction ends; says whether it is.
pub(crate) async fn hold_log(connection: &mut PgConnection) -> Result<bool, StoreError> {
    // In two statements: the second one sees what was committed while the first one waited.
    sqlx::query("SELECT pg_advisory_xact_lock_shared($1)").bind(LEDGER_LOCK).execute(&mut *connection).await?;
    Ok(sqlx::query_scalar("SELECT clickhouse IS NULL FROM usage_ledger").fetch_one(connection).await?)
}

/// How far copying has come; `None` if there is nothing left to copy.
pub(crate) async fn reached(connection: &mut PgConnection) -> Result<Option<Reached>, StoreError> {
    let found: Option<(Uuid, DateTime<Utc>, Uuid)> =
        sqlx::query_as("SELECT clickhouse, copied_from, copied_id FROM usage_ledger WHERE copied_from IS NOT NULL")
            .fetch_optional(connection)
            .await?;
    Ok(found.map(|(clickhouse, at, id)| Reached { clickhouse, at, id }))
}

/// Notes that what the log has from `to` on is copied into a table, or all of it. Never goes back, should two control
/// planes copy.
pub(crate) async fn note(
    connection: &mut PgConnection,
    clickhouse: Uuid,
    to: Option<(DateTime<Utc>, Uuid)>,
) -> Result<(), StoreError> {
    sqlx::query(
        "UPDATE usage_ledger SET copied_from = $1, copied_id = $2
         WHERE clickhouse = $3 AND ($1 IS NULL OR (copied_from, copied_id) > ($1, $2))",
    )
    .bind(to.map(|(at, _)| at))
    .bind(to.map(|(_, id)| id))
    .bind(clickhouse)
    .execute(connection)
    .await?;
    Ok(())
}
