//! The log of config changes. Its versions are positions: whoever holds version n has seen every change up to n.
//!
//! Sequence numbers would not do: they are drawn before they commit, so that a reader could see 7 while 6 is still on
//! its way. Here one lock, held until commit, makes the order of versions the order of commits.
//!
//! What operators change is kept. What is told of budgets is trimmed, see [`trim_billing`]: the only gaps there are.

use super::connect::CONFIG_CHANNEL;
use super::{PgConnection, StoreError};
use sqlx::types::Json;
use turnpike_config::Change;

/// Key of the advisory lock that serialises config changes in one database («turnpike» in ASCII).
const CONFIG_LOCK: i64 = 0x7475_726e_7069_6b65;

/// Author of the changes that tell of budgets. Also written in [`trim_billing`] and in the index that serves it.
pub(crate) const BILLING: &str = "billing";

/// Waits for the right to append; held until the transaction ends.
pub(crate) async fn lock(connection: &mut PgConnection) -> Result<(), StoreError> {
    sqlx::query("SELECT pg_advisory_xact_lock($1)").bind(CONFIG_LOCK).execute(connection).await?;
    Ok(())
}

/// The last version; 0 when nothing was ever changed.
pub(crate) async fn head(connection: &mut PgConnection) -> Result<u64, StoreError> {
    let head: Option<i64> = sqlx::query_scalar("SELECT max(version) FROM config_log").fetch_one(connection).await?;
    Ok(head.unwrap_or_default().unsigned_abs())
}

/// Appends changes as `head + 1…` and returns the new head. The caller holds [`lock`] and read `head` under it.
pub(crate) async fn append(
    connection: &mut PgConnection,
    head: u64,
    changes: &[Change],
    author: &str,
) -> Result<u64, StoreError> {
    let mut version = i64::try_from(head).map_err(|e| StoreError::corrupt("config_log.version", e))?;
    for change in changes {
        version += 1;
        sqlx::query("INSERT INTO config_log (version, change, author) VALUES ($1, $2, $3)")
            .bind(version)
            .bind(Json(change))
            .bind(author)
            .execute(&mut *connection)
            .await?;
    }
    // Delivered by PostgreSQL only if and when the transaction commits.
    sqlx::query("SELECT pg_notify($1, $2)").bind(CONFIG_CHANNEL).bind(version.to_string()).execute(connection).await?;
    Ok(version.unsigned_abs())
}

/// Changes after `version` in order, at most `limit`.
pub(crate) async fn since(
    connection: &mut PgConnection,
    version: u64,
    limit: u32,
) -> Result<Vec<(u64, Change)>, StoreError> {
    let after = i64::try_from(version).map_err(|e| StoreError::corrupt("config_log.version", e))?;
    let rows: Vec<(i64, serde_json::Value)> =
        sqlx::query_as("SELECT version, change FROM config_log WHERE version > $1 ORDER BY version LIMIT $2")
            .bind(after)
            .bind(i64::from(limit))
            .fetch_all(connection)
            .await?;
    rows.into_iter()
        .map(|(version, change)| {
            let change = serde_json::from_value(change)
                .map_err(|e| StoreError::corrupt(format!("config_log version {version}"), e))?;
            Ok((version.unsigned_abs(), change))
        })
        .collect()
}

/// Deletes what was told of budgets more than `keep` versions ago: each is superseded within a minute, and an edge that
/// is that far behind is sent a snapshot anyway. Operators' changes are kept.
pub(crate) async fn trim_billing(connection: &mut PgConnection, keep: u32) -> Result<(), StoreError> {
    sqlx::query(
        "DELETE FROM config_log
         WHERE author = 'billing' AND version <= (SELECT max(version) FROM config_log) - $1",
    )
    .bind(i64::from(keep))
    .execute(connection)
    .await?;
    Ok(())
}
