//! `nodes`.

use super::{PgConnection, StoreError};
use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::Value;
use turnpike_config::{NodeRecord, NodeState};
use utoipa::ToSchema;
use uuid::Uuid;

/// A node agent.
#[derive(Clone, Debug, Serialize, ToSchema, sqlx::FromRow)]
pub(crate) struct Node {
    /// Identity.
    pub(crate) id: Uuid,
    /// Unique name, from its certificate.
    pub(crate) name: String,
    /// Region.
    pub(crate) region: String,
    /// Where edges reach it.
    pub(crate) url: String,
    /// Engine behind it.
    pub(crate) engine: String,
    /// What it last reported, or `lost`: `ready`, `draining`, `unhealthy`, `lost`.
    pub(crate) state: String,
    /// Requests it works on at once.
    pub(crate) slots: i32,
    /// List of `{"model", "version"}`.
    pub(crate) serves: Value,
    /// Its GPUs.
    pub(crate) gpus: Value,
    /// Its build among others.
    pub(crate) metadata: Value,
    /// False: switched off by an operator, whatever it reports.
    pub(crate) enabled: bool,
    /// When its link was last known to be up.
    pub(crate) last_seen_at: Option<DateTime<Utc>>,
    /// The process of a control plane that it is or was registered with.
    #[serde(skip)]
    pub(crate) linked_to: Option<Uuid>,
    /// First registration.
    pub(crate) created_at: DateTime<Utc>,
    /// When its registration or state last changed.
    pub(crate) updated_at: DateTime<Utc>,
}

impl Node {
    /// As the edges know it.
    pub(crate) fn record(&self) -> Result<NodeRecord, StoreError> {
        let corrupt = |reason: String| StoreError::corrupt(format!("nodes row {}", self.name), reason);
        Ok(NodeRecord {
            name: self.name.clone(),
            region: self.region.clone(),
            url: self.url.clone(),
            state: if self.enabled { self.reported()? } else { NodeState::Disabled },
            serves: serde_json::from_value(self.serves.clone()).map_err(|e| corrupt(format!("serves: {e}")))?,
            slots: u32::try_from(self.slots).map_err(|_| corrupt("slots is negative".to_owned()))?,
        })
    }

    /// The stored state, whether or not an operator switched the node off.
    pub(crate) fn reported(&self) -> Result<NodeState, StoreError> {
        serde_json::from_value(Value::String(self.state.clone()))
            .map_err(|e| StoreError::corrupt(format!("nodes row {}", self.name), e))
    }
}

/// Stores a registration. An operator's switch and the identity of a known node are kept.
pub(crate) async fn upsert(connection: &mut PgConnection, node: &Node) -> Result<Node, StoreError> {
    Ok(sqlx::query_as(
        "INSERT INTO nodes (id, name, region, url, engine, state, slots, serves, gpus, metadata, last_seen_at, linked_to)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, now(), $11)
         ON CONFLICT (name) DO UPDATE SET region = excluded.region, url = excluded.url, engine = excluded.engine,
             state = excluded.state, slots = excluded.slots, serves = excluded.serves, gpus = excluded.gpus,
             metadata = excluded.metadata, last_seen_at = now(), linked_to = excluded.linked_to,
             updated_at = now()
         RETURNING *",
    )
    .bind(node.id)
    .bind(&node.name)
    .bind(&node.region)
    .bind(&node.url)
    .bind(&node.engine)
    .bind(&node.state)
    .bind(node.slots)
    .bind(&node.serves)
    .bind(&node.gpus)
    .bind(&node.metadata)
    .bind(node.linked_to)
    .fetch_one(connection)
    .await?)
}

/// Writes a node's state.
pub(crate) async fn set_state(
    connection: &mut PgConnection,
    name: &str,
    state: NodeState,
) -> Result<Option<Node>, StoreError> {
    Ok(sqlx::query_as("UPDATE nodes SET state = $2, updated_at = now() WHERE name = $1 RETURNING *")
        .bind(name)
        .bind(state.name())
        .fetch_optional(connection)
        .await?)
}

/// Switches a node on or off.
pub(crate) async fn set_enabled(
    connection: &mut PgConnection,
    name: &str,
    enabled: bool,
) -> Result<Option<Node>, StoreError> {
    Ok(sqlx::query_as("UPDATE nodes SET enabled = $2, updated_at = now() WHERE name = $1 RETURNING *")
        .bind(name)
        .bind(enabled)
        .fetch_optional(connection)
        .await?)
}

/// Notes that these nodes' links with `this` process are up.
pub(crate) async fn touch(connection: &mut PgConnection, this: Uuid, names: &[String]) -> Result<(), StoreError> {
    sqlx::query("UPDATE nodes SET last_seen_at = now(), linked_to = $2 WHERE name = ANY($1)")
        .bind(names)
        .bind(this)
        .execute(connection)
        .await?;
    Ok(())
}

/// Names of nodes that are not `lost` although no control plane has seen them for `silence_s` seconds.
pub(crate) async fn silent(connection: &mut PgConnection, silence_s: f64) -> Result<Vec<String>, StoreError> {
    Ok(sqlx::query_scalar(
        "SELECT name FROM nodes WHERE state <> 'lost'
             AND (last_seen_at IS NULL OR last_seen_at < now() - make_interval(secs => $1))
         ORDER BY name",
    )
    .bind(silence_s)
    .fetch_all(connection)
    .await?)
}

/// One node.
pub(crate) async fn get(connection: &mut PgConnection, name: &str) -> Result<Option<Node>, StoreError> {
    Ok(sqlx::query_as("SELECT * FROM nodes WHERE name = $1").bind(name).fetch_optional(connection).await?)
}

/// Nodes after `after` in the order of their names, at most `limit`.
pub(crate) async fn list(
    connection: &mut PgConnection,
    after: Option<&str>,
    limit: i64,
) -> Result<Vec<Node>, StoreError> {
    Ok(sqlx::query_as("SELECT * FROM nodes WHERE $1::text IS NULL OR name > $1 ORDER BY name LIMIT $2")
        .bind(after)
        .bind(limit)
        .fetch_all(connection)
        .await?)
}

/// Every node.
pub(crate) async fn all(connection: &mut PgConnection) -> Result<Vec<Node>, StoreError> {
    Ok(sqlx::query_as("SELECT * FROM nodes").fetch_all(connection).await?)
}
