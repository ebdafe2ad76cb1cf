//! `edges`: what each edge holds, for the operator.

use super::{PgConnection, StoreError};
use chrono::{DateTime, Utc};
use serde::Serialize;
use std::time::Duration;
use utoipa::ToSchema;

/// How far the books may be behind an edge that is connected: its link is missed after 6 s of silence, and syncing,
/// shipping and storing an event takes the rest.
pub(crate) const BEHIND: Duration = Duration::from_secs(15);

/// An edge proxy as last seen.
#[derive(Clone, Debug, Serialize, ToSchema, sqlx::FromRow)]
pub(crate) struct Edge {
    /// Unique name, from its certificate.
    pub(crate) name: String,
    /// Region it serves.
    pub(crate) region: String,
    /// Its build.
    pub(crate) build: String,
    /// Config version it serves by.
    pub(crate) holds: i64,
    /// Why it refused the last version it was given, if it did.
    pub(crate) last_nack: Option<String>,
    /// Whether its push link is up.
    pub(crate) connected: bool,
    /// Last sign of life on the push link.
    pub(crate) last_seen_at: Option<DateTime<Utc>>,
    /// Usage of every request that had ended by then is in the books.
    pub(crate) complete_to: DateTime<Utc>,
}

/// Notes that an edge connected.
pub(crate) async fn connected(
    connection: &mut PgConnection,
    name: &str,
    region: &str,
    build: &str,
    holds: u64,
) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO edges (name, region, build, holds, connected, last_seen_at) VALUES ($1, $2, $3, $4, true, now())
         ON CONFLICT (name) DO UPDATE SET region = excluded.region, build = excluded.build, holds = excluded.holds,
             connected = true, last_seen_at = now(), linked_at = now()",
    )
    .bind(name)
    .bind(region)
    .bind(build)
    .bind(i64::try_from(holds).unwrap_or(i64::MAX))
    .execute(connection)
    .await?;
    Ok(())
}

/// Notes what an edge serves by now.
pub(crate) async fn acked(connection: &mut PgConnection, name: &str, holds: u64) -> Result<(), StoreError> {
    sqlx::query("UPDATE edges SET holds = $2, last_nack = NULL, last_seen_at = now() WHERE name = $1")
        .bind(name)
        .bind(i64::try_from(holds).unwrap_or(i64::MAX))
        .execute(connection)
        .await?;
    Ok(())
}

/// Notes that an edge refused a version.
pub(crate) async fn nacked(connection: &mut PgConnection, name: &str, reason: &str) -> Result<(), StoreError> {
    sqlx::query("UPDATE edges SET last_nack = $2, last_seen_at = now() WHERE name = $1")
        .bind(name)
        .bind(reason)
        .execute(connection)
        .await?;
    Ok(())
}

/// Notes that an edge's push link ended.
pub(crate) async fn disconnected(connection: &mut PgConnection, name: &str) -> Result<(), StoreError> {
    sqlx::query("UPDATE edges SET connected = false, last_seen_at = now() WHERE name = $1")
        .bind(name)
        .execute(connection)
        .await?;
    Ok(())
}

/// Edges after `after` in the order of their names, at most `limit`.
pub(crate) async fn list(
    connection: &mut PgConnection,
    after: Option<&str>,
    limit: i64,
) -> Result<Vec<Edge>, StoreError> {
    Ok(sqlx::query_as("SELECT * FROM edges WHERE $1::text IS NULL OR name > $1 ORDER BY name LIMIT $2")
        .bind(after)
        .bind(limit)
        .fetch_all(connection)
        .await?)
}

/// An edge with a link.
#[derive(Clone, Debug)]
pub(crate) struct Live {
    /// Its name.
    pub(crate) name: String,
    /// Its link is up for [`BEHIND`] at least: had it a journal to ship, some of it would have come.
    pub(crate) steady: bool,
    /// When the oldest of its events that was received and is not stored yet had ended.
    pub(crate) waiting: Option<DateTime<Utc>>,
}

/// Notes that these edges' push links are up, and how far their usage is in the books: up to [`BEHIND`] ago, unless
/// events wait to be stored, or were older than that when they came and came so recently that more are to be expected.
pub(crate) async fn touch(connection: &mut PgConnection, edges: &[Live]) -> Result<(), StoreError> {
    sqlx::query(
        "UPDATE edges SET connected = true, last_seen_at = now(),
             complete_to = CASE WHEN live.steady THEN greatest(edges.complete_to, least(
                 now() - make_interval(secs => $4), live.waiting, (
                     SELECT CASE WHEN updated_at > now() - make_interval(secs => $4)
                         AND events_to < updated_at - make_interval(secs => $4) THEN events_to END
                     FROM usage_ingest WHERE usage_ingest.edge = live.name ORDER BY updated_at DESC LIMIT 1
                 ))) ELSE edges.complete_to END
         FROM unnest($1::text[], $2::boolean[], $3::timestamptz[]) AS live (name, steady, waiting)
         WHERE edges.name = live.name",
    )
    .bind(edges.iter().map(|edge| edge.name.as_str()).collect::<Vec<_>>())
    .bind(edges.iter().map(|edge| edge.steady).collect::<Vec<_>>())
    .bind(edges.iter().map(|edge| edge.waiting).collect::<Vec<_>>())
    .bind(BEHIND.as_secs_f64())
    .execute(connection)
    .await?;
    Ok(())
}

/// Notes that edges are gone which no control plane has seen for `silence_s` seconds.
pub(crate) async fn give_up_silent(connection: &mut PgConnection, silence_s: f64) -> Result<(), StoreError> {
    sqlx::query(
        "UPDATE edges SET connected = false
         WHERE connected AND (last_seen_at IS NULL OR last_seen_at < now() - make_interval(secs => $1))",
    )
    .bind(silence_s)
    .execute(connection)
    .await?;
    Ok(())
}
