//! The log of config changes. Its versions are positions: whoever holds version n has seen every change up to n.
//!
//! Sequence numbers would not do: they are drawn before they commit, so that a reader could see 7 while 6 is still on
//! its way. Here one lock, held until commit, makes the order of versions the order of commits.
//!
//! What operators change is kept. What is told of budgets and of nodes is trimmed, see [`trim_passing`]: the only gaps there are.

use super::connect::CONFIG_CHANNEL;
use super::{PgConnection, StoreError};
use chrono::{DateTime, Utc};
use minicbor::bytes::ByteVec;
use serde_json::Value;
use sqlx::types::Json;
use turnpike_config::Change;
use turnpike_config::log::{Audience, Entry, Hash, Position};
use turnpike_config::push::MAX_DELTA;

/// Key of the advisory lock that serialises config changes in one database («turnpike» in ASCII).
const CONFIG_LOCK: i64 = 0x7475_726e_7069_6b65;

/// Author of the changes that tell of budgets. Also written in [`trim_passing`] and in the index that serves it.
pub(crate) const BILLING: &str = "billing";

/// Where the log is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Head {
    /// After its last entry.
    pub(crate) at: Position,
    /// Edges that hold another log's version up to this may come back to this log; 0 if none may.
    pub(crate) rewinds_from: u64,
}

/// An entry to be written.
#[derive(Clone, Debug)]
pub(crate) struct NewEntry {
    /// What changes, and for whom.
    pub(crate) entry: Entry,
    /// What brings back the record before it, if there was one.
    pub(crate) before: Option<Change>,
}

/// An entry that was written.
#[derive(Clone, Debug)]
pub(crate) struct Logged {
    /// The position after it.
    pub(crate) at: Position,
    /// As hashed and sent.
    pub(crate) bytes: ByteVec,
    /// The same, understood.
    pub(crate) entry: Entry,
    /// When its transaction began.
    pub(crate) made_at: DateTime<Utc>,
}

/// Waits for the right to append; held until the transaction ends.
pub(crate) async fn lock(connection: &mut PgConnection) -> Result<(), StoreError> {
    sqlx::query("SELECT pg_advisory_xact_lock($1)").bind(CONFIG_LOCK).execute(connection).await?;
    Ok(())
}

/// Where the log is.
pub(crate) async fn head(connection: &mut PgConnection) -> Result<Head, StoreError> {
    let (version, chain, rewinds_from): (i64, Vec<u8>, i64) =
        sqlx::query_as("SELECT version, chain, rewinds_from FROM config_head").fetch_one(connection).await?;
    Ok(Head { at: position(version, &chain)?, rewinds_from: rewinds_from.unsigned_abs() })
}

fn position(version: i64, chain: &[u8]) -> Result<Position, StoreError> {
    let chain = chain.try_into().map_err(|_| StoreError::corrupt("config log chain", "it has not 32 bytes"))?;
    Ok(Position { version: version.unsigned_abs(), chain: Hash(chain) })
}

fn stored(version: u64) -> Result<i64, StoreError> {
    i64::try_from(version).map_err(|e| StoreError::corrupt("config_log.version", e))
}

/// Appends entries and returns the new head. The caller holds [`lock`] and read `head` under it.
pub(crate) async fn append(
    connection: &mut PgConnection,
    head: Position,
    entries: &[NewEntry],
    (author, reason): (&str, Option<&str>),
) -> Result<Position, StoreError> {
    let mut at = head;
    let mut columns: (Vec<i64>, Vec<Vec<u8>>, Vec<Vec<u8>>) = Default::default();
    let (mut changes, mut audiences, mut befores) = (Vec::new(), Vec::new(), Vec::new());
    for new in entries {
        let bytes = new.entry.to_bytes();
        at = at.then(Hash::of(&bytes));
        columns.0.push(stored(at.version)?);
        columns.1.push(bytes.into());
        columns.2.push(at.chain.0.to_vec());
        changes.push(Json(&new.entry.change));
        audiences.push(new.entry.audience.as_ref().map(Json));
        befores.push(new.before.as_ref().map(Json));
    }
    sqlx::query(
        "INSERT INTO config_log (version, entry, chain, change, audience, before, author, reason)
         SELECT version, entry, chain, change, audience, before, $7, $8
         FROM unnest($1::bigint[], $2::bytea[], $3::bytea[], $4::jsonb[], $5::jsonb[], $6::jsonb[])
             AS new (version, entry, chain, change, audience, before)",
    )
    .bind(columns.0)
    .bind(columns.1)
    .bind(columns.2)
    .bind(changes)
    .bind(audiences)
    .bind(befores)
    .bind(author)
    .bind(reason)
    .execute(&mut *connection)
    .await?;
    sqlx::query("UPDATE config_head SET version = $1, chain = $2, updated_at = now()")
        .bind(stored(at.version)?)
        .bind(at.chain.0.as_slice())
        .execute(&mut *connection)
        .await?;
    // Delivered by PostgreSQL only if and when the transaction commits.
    sqlx::query("SELECT pg_notify($1, $2)")
        .bind(CONFIG_CHANNEL)
        .bind(at.version.to_string())
        .execute(connection)
        .await?;
    Ok(at)
}

/// Entries after `version` in order, at most `limit`.
pub(crate) async fn since(
    connection: &mut PgConnection,
    version: u64,
    limit: usize,
) -> Result<Vec<Logged>, StoreError> {
    type Row = (i64, Vec<u8>, Vec<u8>, DateTime<Utc>);
    let rows: Vec<Row> = sqlx::query_as(
        "SELECT version, entry, chain, created_at FROM config_log WHERE version > $1 ORDER BY version LIMIT $2",
    )
    .bind(stored(version)?)
    .bind(i64::try_from(limit).unwrap_or(i64::MAX))
    .fetch_all(connection)
    .await?;
    rows.into_iter()
        .map(|(version, bytes, chain, made_at)| {
            let entry = Entry::from_bytes(&bytes)
                .map_err(|e| StoreError::corrupt(format!("config_log version {version}"), e))?;
            Ok(Logged { at: position(version, &chain)?, bytes: bytes.into(), entry, made_at })
        })
        .collect()
}

/// A version as it is kept for people.
#[derive(Clone, Debug)]
pub(crate) struct Written {
    /// The position after it.
    pub(crate) at: Position,
    /// When its transaction began.
    pub(crate) made_at: DateTime<Utc>,
    /// Who made it.
    pub(crate) author: String,
    /// Why, if they said.
    pub(crate) reason: Option<String>,
    /// Who is told; `None` is all.
    pub(crate) audience: Option<Audience>,
    /// What changes.
    pub(crate) change: Value,
    /// What brings back the record before it, if there was one.
    pub(crate) before: Option<Value>,
}

#[derive(sqlx::FromRow)]
struct WrittenRow {
    version: i64,
    chain: Vec<u8>,
    created_at: DateTime<Utc>,
    author: String,
    reason: Option<String>,
    audience: Option<Json<Audience>>,
    change: Value,
    before: Option<Value>,
}

/// Versions below `before`, the newest first, at most `limit`.
pub(crate) async fn newest(
    connection: &mut PgConnection,
    before: Option<u64>,
    limit: i64,
) -> Result<Vec<Written>, StoreError> {
    let rows: Vec<WrittenRow> = sqlx::query_as(
        "SELECT version, chain, created_at, author, reason, audience, change, before FROM config_log
         WHERE $1::bigint IS NULL OR version < $1 ORDER BY version DESC LIMIT $2",
    )
    .bind(before.map(stored).transpose()?)
    .bind(limit)
    .fetch_all(connection)
    .await?;
    let written = |row: WrittenRow| {
        Ok(Written {
            at: position(row.version, &row.chain)?,
            made_at: row.created_at,
            author: row.author,
            reason: row.reason,
            audience: row.audience.map(|Json(audience)| audience),
            change: row.change,
            before: row.before,
        })
    };
    rows.into_iter().map(written).collect()
}

/// Lets edges that hold another log's version up to this one come back to this log.
pub(crate) async fn allow_rewind(connection: &mut PgConnection, from_version: i64) -> Result<(), StoreError> {
    let sql = "UPDATE config_head SET rewinds_from = greatest(rewinds_from, $1), updated_at = now()";
    sqlx::query(sql).bind(from_version).execute(connection).await?;
    Ok(())
}

/// Whether the log went through this position, as far as it is kept.
pub(crate) async fn went_through(connection: &mut PgConnection, at: Position) -> Result<bool, StoreError> {
    let sql = "SELECT EXISTS (SELECT 1 FROM config_log WHERE version = $1 AND chain = $2)
        OR EXISTS (SELECT 1 FROM config_head WHERE version = $1 AND chain = $2)";
    // A number that the column cannot hold was never given out.
    let Ok(version) = stored(at.version) else { return Ok(false) };
    Ok(sqlx::query_scalar(sql).bind(version).bind(at.chain.0.as_slice()).fetch_one(connection).await?)
}

/// Deletes what was told of budgets, and of nodes by themselves, more than [`MAX_DELTA`] versions ago: it is superseded
/// all the time, and an edge that is that far behind is sent a snapshot anyway. Operators' changes are kept.
pub(crate) async fn trim_passing(connection: &mut PgConnection) -> Result<(), StoreError> {
    sqlx::query(
        "DELETE FROM config_log
         WHERE (author = 'billing' OR author LIKE 'node:%') AND version <= (SELECT version FROM config_head) - $1",
    )
    .bind(i64::try_from(MAX_DELTA).unwrap_or(i64::MAX))
    .execute(connection)
    .await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_beyond_the_column_is_an_error_and_no_other_version() {
        assert!(stored(u64::MAX).is_err());
        assert!(position(1, &[0; 31]).is_err());
    }
}
