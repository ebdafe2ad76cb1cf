//! `edges`: what each edge holds, for the operator.

use super::{PgConnection, StoreError};
use crate::watermarks::Mark;
use chrono::{DateTime, Utc};
use serde::Serialize;
use utoipa::ToSchema;

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
    /// Usage of every request that had begun by then is in the books, by the edge's own clock.
    pub(crate) began_to: Option<DateTime<Utc>>,
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

/// Removes an edge without a link; says whether it did.
pub(crate) async fn delete(connection: &mut PgConnection, name: &str) -> Result<bool, StoreError> {
    let removed = sqlx::query("DELETE FROM edges WHERE name = $1 AND NOT connected").bind(name).execute(connection);
    Ok(removed.await?.rows_affected() > 0)
}

/// An edge, if it is known.
pub(crate) async fn get(connection: &mut PgConnection, name: &str) -> Result<Option<Edge>, StoreError> {
    Ok(sqlx::query_as("SELECT * FROM edges WHERE name = $1").bind(name).fetch_optional(connection).await?)
}

/// An edge with a link.
#[derive(Clone, Debug)]
pub(crate) struct Live {
    /// Its name.
    pub(crate) name: String,
    /// How far its usage is stored.
    pub(crate) mark: Mark,
}

/// Notes that these edges' push links are up, and how far their usage is in the books. Books that were complete stay so;
/// by an edge's own clock they may go back, as it may.
pub(crate) async fn touch(connection: &mut PgConnection, edges: &[Live]) -> Result<(), StoreError> {
    sqlx::query(
        "UPDATE edges SET connected = true, last_seen_at = now(),
             complete_to = greatest(edges.complete_to, least(now(), coalesce(live.ended_to, edges.complete_to))),
             began_to = coalesce(least(now(), live.began_to), edges.began_to),
             settled_to = coalesce(least(now(), live.settled_to), edges.settled_to)
         FROM unnest($1::text[], $2::timestamptz[], $3::timestamptz[], $4::timestamptz[])
             AS live (name, ended_to, began_to, settled_to)
         WHERE edges.name = live.name",
    )
    .bind(edges.iter().map(|edge| edge.name.as_str()).collect::<Vec<_>>())
    .bind(edges.iter().map(|edge| edge.mark.ended_to).collect::<Vec<_>>())
    .bind(edges.iter().map(|edge| edge.mark.began_to).collect::<Vec<_>>())
    .bind(edges.iter().map(|edge| edge.mark.settled_to).collect::<Vec<_>>())
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
