//! `edges`: what each edge holds, for the operator.

use super::{PgConnection, StoreError};
use crate::roster::EdgeLive;
use crate::watermarks::Mark;
use chrono::{DateTime, Utc};
use serde::Serialize;
use std::collections::BTreeMap;
use utoipa::ToSchema;
use uuid::Uuid;

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
    /// The version that it refused then.
    pub(crate) nacked_version: Option<i64>,
    /// Whether its push link is up.
    pub(crate) connected: bool,
    /// Last sign of life on the push link.
    pub(crate) last_seen_at: Option<DateTime<Utc>>,
    /// Usage of every request that had ended by then is in the books.
    pub(crate) complete_to: DateTime<Utc>,
    /// Usage of every request that had begun by then is in the books, by the edge's own clock.
    pub(crate) began_to: Option<DateTime<Utc>>,
    /// When its push link last came up.
    #[serde(skip)]
    pub(crate) linked_at: DateTime<Utc>,
    /// What carries its push link, or carried the last one: `quic`, or `tcp` where UDP is blocked.
    pub(crate) transport: Option<String>,
}

/// An edge, and how far it is behind the log.
#[derive(Clone, Debug, sqlx::FromRow)]
pub(crate) struct Listed {
    /// As last seen.
    #[sqlx(flatten)]
    pub(crate) edge: Edge,
    /// Versions that it does not serve by yet.
    pub(crate) behind: i64,
    /// When the first of them was made.
    pub(crate) behind_since: Option<DateTime<Utc>>,
}

/// What is new of an edge.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct News {
    /// It connected.
    pub(crate) hello: Option<EdgeLive>,
    /// Whether its push link is up.
    pub(crate) connected: Option<bool>,
    /// The version that it serves by.
    pub(crate) holds: Option<u64>,
    /// How it answered the last time: what it refused and why, or `None` if it did not.
    pub(crate) answer: Option<Option<(u64, String)>>,
}

impl News {
    /// An edge has connected.
    pub(crate) fn hello(live: &EdgeLive) -> Self {
        Self { hello: Some(live.clone()), connected: Some(true), holds: Some(live.holds), answer: None }
    }

    fn nack(&self) -> Option<&(u64, String)> {
        self.answer.as_ref()?.as_ref()
    }

    /// Takes in what is newer.
    pub(crate) fn update(&mut self, newer: Self) {
        self.hello = newer.hello.or(self.hello.take());
        self.connected = newer.connected.or(self.connected);
        self.holds = newer.holds.or(self.holds);
        self.answer = newer.answer.or(self.answer.take());
    }
}

/// Notes what is new of some edges that are or were linked to `this` process.
pub(crate) async fn note(
    connection: &mut PgConnection,
    this: Uuid,
    news: &BTreeMap<String, News>,
) -> Result<(), StoreError> {
    let hellos: Vec<_> = news.iter().filter_map(|(name, news)| Some((name.as_str(), news.hello.as_ref()?))).collect();
    if !hellos.is_empty() {
        greet(connection, this, &hellos).await?;
    }
    let holds = |news: &News| news.holds.map(|holds| i64::try_from(holds).unwrap_or(i64::MAX));
    sqlx::query(
        "UPDATE edges SET connected = coalesce(new.connected, edges.connected), holds = coalesce(new.holds, edges.holds),
             last_nack = CASE WHEN new.answered THEN new.nack ELSE edges.last_nack END,
             nacked_version = CASE WHEN new.answered THEN new.version ELSE edges.nacked_version END, last_seen_at = now()
         FROM unnest($1::text[], $2::boolean[], $3::bigint[], $4::boolean[], $5::text[], $6::bigint[])
             AS new (name, connected, holds, answered, nack, version)
         WHERE edges.name = new.name AND edges.linked_to IS NOT DISTINCT FROM $7",
    )
    .bind(news.keys().map(String::as_str).collect::<Vec<_>>())
    .bind(news.values().map(|news| news.connected).collect::<Vec<_>>())
    .bind(news.values().map(holds).collect::<Vec<_>>())
    .bind(news.values().map(|news| news.answer.is_some()).collect::<Vec<_>>())
    .bind(news.values().map(|news| news.nack().map(|(_, reason)| reason.as_str())).collect::<Vec<_>>())
    .bind(news.values().map(|news| news.nack().and_then(|(at, _)| i64::try_from(*at).ok())).collect::<Vec<_>>())
    .bind(this)
    .execute(connection)
    .await?;
    Ok(())
}

/// Notes that edges have come.
async fn greet(connection: &mut PgConnection, this: Uuid, hellos: &[(&str, &EdgeLive)]) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO edges (name, region, build, complete_to, transport, linked_to)
         SELECT name, region, build, least(now(), since), transport, $6
         FROM unnest($1::text[], $2::text[], $3::text[], $4::timestamptz[], $5::text[])
             AS new (name, region, build, since, transport)
         ON CONFLICT (name) DO UPDATE SET region = excluded.region, build = excluded.build, linked_at = now(),
             transport = excluded.transport, linked_to = excluded.linked_to",
    )
    .bind(hellos.iter().map(|(name, _)| *name).collect::<Vec<_>>())
    .bind(hellos.iter().map(|(_, live)| live.region.as_str()).collect::<Vec<_>>())
    .bind(hellos.iter().map(|(_, live)| live.build.as_str()).collect::<Vec<_>>())
    .bind(hellos.iter().map(|(_, live)| live.since).collect::<Vec<_>>())
    .bind(hellos.iter().map(|(_, live)| live.transport).collect::<Vec<_>>())
    .bind(this)
    .execute(&mut *connection)
    .await?;
    Ok(())
}

/// Edges after `after` in the order of their names, at most `limit`.
pub(crate) async fn list(
    connection: &mut PgConnection,
    after: Option<&str>,
    limit: i64,
) -> Result<Vec<Listed>, StoreError> {
    let sql = "SELECT edges.*, greatest(head.version - edges.holds, 0) AS behind,
            (SELECT created_at FROM config_log WHERE version > edges.holds ORDER BY version LIMIT 1) AS behind_since
        FROM edges, config_head AS head WHERE $1::text IS NULL OR name > $1 ORDER BY name LIMIT $2";
    Ok(sqlx::query_as(sql).bind(after).bind(limit).fetch_all(connection).await?)
}

/// Edges with a link, in the order of their names.
pub(crate) async fn connected(connection: &mut PgConnection) -> Result<Vec<Edge>, StoreError> {
    Ok(sqlx::query_as("SELECT * FROM edges WHERE connected ORDER BY name").fetch_all(connection).await?)
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

/// Makes an edge known before any of its usage is taken in, so that whoever closes books waits for it. Nothing changes if
/// it is known. `since`: none of its usage is older than that, or it is taken in by now.
pub(crate) async fn meet(
    connection: &mut PgConnection,
    name: &str,
    region: &str,
    since: DateTime<Utc>,
) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO edges (name, region, build, complete_to) VALUES ($1, $2, '', least(now(), $3))
         ON CONFLICT DO NOTHING",
    )
    .bind(name)
    .bind(region)
    .bind(since)
    .execute(connection)
    .await?;
    Ok(())
}

/// An edge with a link.
#[derive(Clone, Debug)]
pub(crate) struct Live {
    /// Its name.
    pub(crate) name: String,
    /// Region it serves.
    pub(crate) region: String,
    /// Its build.
    pub(crate) build: String,
    /// Config version it serves by.
    pub(crate) holds: u64,
    /// When its link came up.
    pub(crate) since: DateTime<Utc>,
    /// What carries it.
    pub(crate) transport: &'static str,
    /// How far its usage is stored.
    pub(crate) mark: Mark,
}

/// Notes that these edges' push links with `this` process are up, also if the database was away when they came up, and how far their usage is
/// in the books. Books that were complete stay so; by an edge's own clock they may go back, as it may.
pub(crate) async fn touch(connection: &mut PgConnection, this: Uuid, edges: &[Live]) -> Result<(), StoreError> {
    // In two steps: an edge that is new is complete up to when it came, one that is known is not.
    for sql in [MEET, TOUCH] {
        sqlx::query(sql)
            .bind(edges.iter().map(|edge| edge.name.as_str()).collect::<Vec<_>>())
            .bind(edges.iter().map(|edge| edge.region.as_str()).collect::<Vec<_>>())
            .bind(edges.iter().map(|edge| edge.build.as_str()).collect::<Vec<_>>())
            .bind(edges.iter().map(|edge| i64::try_from(edge.holds).unwrap_or(i64::MAX)).collect::<Vec<_>>())
            .bind(edges.iter().map(|edge| edge.since).collect::<Vec<_>>())
            .bind(edges.iter().map(|edge| edge.mark.ended_to).collect::<Vec<_>>())
            .bind(edges.iter().map(|edge| edge.mark.began_to).collect::<Vec<_>>())
            .bind(edges.iter().map(|edge| edge.mark.settled_to).collect::<Vec<_>>())
            .bind(edges.iter().map(|edge| edge.transport).collect::<Vec<_>>())
            .bind(this)
            .execute(&mut *connection)
            .await?;
    }
    Ok(())
}

const MEET: &str = "
INSERT INTO edges (name, region, build, holds, complete_to, transport, linked_to)
SELECT name, region, build, holds, least(now(), since), transport, $10
FROM unnest($1::text[], $2::text[], $3::text[], $4::bigint[], $5::timestamptz[], $6::timestamptz[], $7::timestamptz[],
    $8::timestamptz[], $9::text[])
    AS live (name, region, build, holds, since, ended_to, began_to, settled_to, transport)
ON CONFLICT DO NOTHING";

const TOUCH: &str = "
UPDATE edges SET connected = true, last_seen_at = now(), transport = live.transport, linked_to = $10,
    region = live.region, build = live.build, holds = live.holds,
    linked_at = greatest(edges.linked_at, least(now(), live.since)),
    complete_to = greatest(edges.complete_to, least(now(), coalesce(live.ended_to, edges.complete_to))),
    began_to = coalesce(least(now(), live.began_to), edges.began_to),
    settled_to = coalesce(least(now(), live.settled_to), edges.settled_to)
FROM unnest($1::text[], $2::text[], $3::text[], $4::bigint[], $5::timestamptz[], $6::timestamptz[], $7::timestamptz[],
    $8::timestamptz[], $9::text[])
    AS live (name, region, build, holds, since, ended_to, began_to, settled_to, transport)
WHERE edges.name = live.name";

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
