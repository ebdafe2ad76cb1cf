//! `rollouts`: changes that reach some edges before they reach all.

use super::{PgConnection, StoreError};
use crate::staging::{Health, Rules, Stage};
use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::Value;
use sqlx::types::Json;
use turnpike_config::Change;
use turnpike_config::log::Audience;
use utoipa::ToSchema;
use uuid::Uuid;

/// `state` of one that goes on by itself.
pub(crate) const RUNNING: &str = "running";
/// `state` of one that was stopped where it is.
pub(crate) const PAUSED: &str = "paused";
/// `state` of one that was taken back because it did harm.
pub(crate) const HALTED: &str = "halted";
/// `state` of one that an operator took back.
pub(crate) const ABORTED: &str = "aborted";
/// `state` of one that reached all edges.
pub(crate) const DONE: &str = "done";

/// A rollout.
#[derive(Clone, Debug, Serialize, ToSchema, sqlx::FromRow)]
pub(crate) struct Rollout {
    /// Identity.
    pub(crate) id: Uuid,
    /// Who started it.
    pub(crate) author: String,
    /// Why, if they said.
    pub(crate) reason: Option<String>,
    /// The documents that are applied at the end.
    #[schema(value_type = Object)]
    pub(crate) documents: Value,
    /// Whether what they do not name is taken away.
    pub(crate) prune: bool,
    /// What edges are told.
    #[schema(value_type = Vec<Object>)]
    pub(crate) changes: Json<Vec<Change>>,
    /// Who is told, one after the other.
    #[schema(value_type = Vec<Stage>)]
    pub(crate) stages: Json<Vec<Stage>>,
    /// When it is halted.
    #[schema(value_type = Rules)]
    pub(crate) rules: Json<Rules>,
    /// `running`, `paused`, `halted`, `aborted` or `done`.
    pub(crate) state: String,
    /// Index of the newest stage that was told.
    pub(crate) stage: i32,
    /// The version at which it was told.
    pub(crate) told_version: i64,
    /// When it was told.
    pub(crate) told_at: DateTime<Utc>,
    /// Since when all edges of it serve by it.
    pub(crate) held_since: Option<DateTime<Utc>>,
    /// What it waits for, or why it was halted.
    pub(crate) note: Option<String>,
    /// When it was started.
    pub(crate) created_at: DateTime<Utc>,
    /// When it last changed.
    pub(crate) updated_at: DateTime<Utc>,
}

impl Rollout {
    /// Whether it may still reach further edges.
    pub(crate) fn is_under_way(&self) -> bool {
        self.state == RUNNING || self.state == PAUSED
    }

    /// The newest stage that was told.
    pub(crate) fn present(&self) -> Option<&Stage> {
        self.stages.get(usize::try_from(self.stage).ok()?)
    }

    /// The stage after it; `None` is all edges.
    pub(crate) fn next(&self) -> Option<&Stage> {
        self.stages.get(usize::try_from(self.stage).ok()? + 1)
    }

    /// What was told so far, and whom.
    pub(crate) fn staged(&self) -> Vec<(Audience, Change)> {
        let told = usize::try_from(self.stage).unwrap_or(0) + 1;
        let stages = self.stages.iter().take(told).map(Stage::audience);
        stages.flat_map(|to| self.changes.iter().map(move |change| (to.clone(), change.clone()))).collect()
    }

    /// Everybody who was told so far.
    pub(crate) fn told(&self) -> Audience {
        let mut all = Audience::default();
        for stage in self.stages.iter().take(usize::try_from(self.stage).unwrap_or(0) + 1) {
            all.edges.extend(stage.edges.iter().cloned());
            all.regions.extend(stage.regions.iter().cloned());
        }
        all
    }
}

/// Stores a new rollout.
pub(crate) async fn insert(connection: &mut PgConnection, rollout: &Rollout) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO rollouts (id, author, reason, documents, prune, changes, stages, rules, state, stage, told_version)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)",
    )
    .bind(rollout.id)
    .bind(&rollout.author)
    .bind(&rollout.reason)
    .bind(&rollout.documents)
    .bind(rollout.prune)
    .bind(&rollout.changes)
    .bind(&rollout.stages)
    .bind(rollout.rules)
    .bind(&rollout.state)
    .bind(rollout.stage)
    .bind(rollout.told_version)
    .execute(connection)
    .await?;
    Ok(())
}

/// Writes how far a rollout is.
pub(crate) async fn update(connection: &mut PgConnection, rollout: &Rollout) -> Result<(), StoreError> {
    sqlx::query(
        "UPDATE rollouts SET state = $2, stage = $3, told_version = $4, told_at = $5, held_since = $6, note = $7,
             updated_at = now() WHERE id = $1",
    )
    .bind(rollout.id)
    .bind(&rollout.state)
    .bind(rollout.stage)
    .bind(rollout.told_version)
    .bind(rollout.told_at)
    .bind(rollout.held_since)
    .bind(&rollout.note)
    .execute(connection)
    .await?;
    Ok(())
}

/// The changes of the one under way, if there is one, and which it is: without its documents, which may be long.
pub(crate) async fn changes_under_way(
    connection: &mut PgConnection,
) -> Result<Option<(Uuid, Json<Vec<Change>>)>, StoreError> {
    let sql = "SELECT id, changes FROM rollouts WHERE state IN ('running', 'paused')";
    Ok(sqlx::query_as(sql).fetch_optional(connection).await?)
}

/// The one under way, if there is one.
pub(crate) async fn under_way(connection: &mut PgConnection) -> Result<Option<Rollout>, StoreError> {
    let sql = "SELECT * FROM rollouts WHERE state IN ('running', 'paused')";
    Ok(sqlx::query_as(sql).fetch_optional(connection).await?)
}

/// A rollout.
pub(crate) async fn get(connection: &mut PgConnection, id: Uuid) -> Result<Option<Rollout>, StoreError> {
    Ok(sqlx::query_as("SELECT * FROM rollouts WHERE id = $1").bind(id).fetch_optional(connection).await?)
}

/// Rollouts before `before`, the newest first, at most `limit`.
pub(crate) async fn newest(
    connection: &mut PgConnection,
    before: Option<Uuid>,
    limit: i64,
) -> Result<Vec<Rollout>, StoreError> {
    let sql = "SELECT * FROM rollouts WHERE $1::uuid IS NULL OR id < $1 ORDER BY id DESC LIMIT $2";
    Ok(sqlx::query_as(sql).bind(before).bind(limit).fetch_all(connection).await?)
}

/// How edges do since a moment: those of an audience, and the others.
pub(crate) async fn health(
    connection: &mut PgConnection,
    audience: &Audience,
    since: DateTime<Utc>,
) -> Result<(Health, Health), StoreError> {
    let rows: Vec<(bool, i64, i64, Option<f64>)> = sqlx::query_as(
        "SELECT edge = ANY($1) OR region = ANY($2) AS told, count(*),
             count(*) FILTER (WHERE http_status >= 500),
             percentile_cont(0.99) WITHIN GROUP (ORDER BY first_byte_ms) FILTER (WHERE first_byte_ms IS NOT NULL)
         FROM inference_requests WHERE created_at >= $3 AND edge IS NOT NULL AND NOT shadow GROUP BY 1",
    )
    .bind(&audience.edges)
    .bind(&audience.regions)
    .bind(since)
    .fetch_all(connection)
    .await?;
    let of = |told: bool| {
        let row = rows.iter().find(|row| row.0 == told);
        #[expect(clippy::cast_possible_truncation, reason = "milliseconds of one request")]
        let health = row.map(|(_, requests, failed, p99)| Health {
            requests: *requests,
            failed: *failed,
            first_byte_p99_ms: p99.map(|ms| ms as i64),
        });
        health.unwrap_or_default()
    };
    Ok((of(true), of(false)))
}
