//! `purged_answers`: single cached answers that must not be given out any more.

use super::{PgConnection, StoreError};
use chrono::{DateTime, Utc};
use turnpike_config::CacheKey;
use turnpike_config::caching::MAX_TTL_S;
use turnpike_config::routing::MAX_PURGED;

/// Notes that answers of this key are purged if they are older than `at`; a later purge of it stays as it is. Returns
/// the purge's time.
pub(crate) async fn put(
    connection: &mut PgConnection,
    key: CacheKey,
    at: DateTime<Utc>,
) -> Result<DateTime<Utc>, StoreError> {
    Ok(sqlx::query_scalar(
        "INSERT INTO purged_answers (cache_key, purged_at) VALUES ($1, $2)
         ON CONFLICT (cache_key) DO UPDATE SET purged_at = greatest(purged_answers.purged_at, excluded.purged_at)
         RETURNING purged_at",
    )
    .bind(key.to_string())
    .bind(at)
    .fetch_one(connection)
    .await?)
}

/// Forgets purges that every answer has expired since, and all but the [`MAX_PURGED`] newest.
pub(crate) async fn trim(connection: &mut PgConnection) -> Result<(), StoreError> {
    sqlx::query(
        "DELETE FROM purged_answers
         WHERE purged_at < now() - make_interval(secs => $1)
             OR cache_key IN (SELECT cache_key FROM purged_answers ORDER BY purged_at DESC, cache_key OFFSET $2)",
    )
    .bind(f64::from(MAX_TTL_S))
    .bind(most())
    .execute(connection)
    .await?;
    Ok(())
}

/// The purges that edges must know, with their times in Unix milliseconds.
pub(crate) async fn all(connection: &mut PgConnection) -> Result<Vec<(CacheKey, u64)>, StoreError> {
    let rows: Vec<(String, DateTime<Utc>)> = sqlx::query_as(
        "SELECT cache_key, purged_at FROM purged_answers WHERE purged_at >= now() - make_interval(secs => $1)
         ORDER BY purged_at DESC, cache_key LIMIT $2",
    )
    .bind(f64::from(MAX_TTL_S))
    .bind(most())
    .fetch_all(connection)
    .await?;
    rows.into_iter()
        .map(|(hex, at)| {
            let corrupt = || StoreError::corrupt("purged_answers row", format!("«{hex}» is no cache key"));
            Ok((
                CacheKey::from_hex(&hex).ok_or_else(corrupt)?,
                u64::try_from(at.timestamp_millis()).unwrap_or_default(),
            ))
        })
        .collect()
}

fn most() -> i64 {
    i64::try_from(MAX_PURGED).unwrap_or(i64::MAX)
}
