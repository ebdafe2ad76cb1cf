//! `model_routes`: where requests for a name go.

use super::{PgConnection, StoreError};
use chrono::{DateTime, Utc};
use serde::Serialize;
use sqlx::types::Json;
use turnpike_config::{OrgId, RouteId, RoutePolicy, RouteRecord};
use utoipa::ToSchema;
use uuid::Uuid;

/// A route as it is stored.
#[derive(Clone, Debug, Serialize, ToSchema, sqlx::FromRow)]
pub(crate) struct Route {
    /// Identity.
    pub(crate) id: Uuid,
    /// The name that clients send.
    pub(crate) name: String,
    /// Whose keys it is for; null is everybody's.
    pub(crate) organization_id: Option<Uuid>,
    /// Where requests go.
    #[schema(value_type = Object)]
    pub(crate) policy: Json<RoutePolicy>,
    /// When it was made.
    pub(crate) created_at: DateTime<Utc>,
    /// When it was last changed.
    pub(crate) updated_at: DateTime<Utc>,
}

impl Route {
    /// What edges know it by.
    pub(crate) fn edge_id(&self) -> RouteId {
        RouteId { name: self.name.clone(), organization: self.organization_id.map(OrgId) }
    }

    /// As edges know it.
    pub(crate) fn record(&self) -> RouteRecord {
        RouteRecord { id: self.edge_id(), policy: self.policy.0.clone() }
    }
}

/// Writes a new route, or one as it is now.
pub(crate) async fn put(connection: &mut PgConnection, route: &Route) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO model_routes (id, name, organization_id, policy, created_at, updated_at)
         VALUES ($1, $2, $3, $4, $5, $6)
         ON CONFLICT (id) DO UPDATE SET policy = excluded.policy, updated_at = excluded.updated_at",
    )
    .bind(route.id)
    .bind(&route.name)
    .bind(route.organization_id)
    .bind(&route.policy)
    .bind(route.created_at)
    .bind(route.updated_at)
    .execute(connection)
    .await?;
    Ok(())
}

/// Removes a route.
pub(crate) async fn delete(connection: &mut PgConnection, id: Uuid) -> Result<(), StoreError> {
    sqlx::query("DELETE FROM model_routes WHERE id = $1").bind(id).execute(connection).await?;
    Ok(())
}

/// A route by its identity.
pub(crate) async fn get(connection: &mut PgConnection, id: Uuid) -> Result<Option<Route>, StoreError> {
    Ok(sqlx::query_as("SELECT * FROM model_routes WHERE id = $1").bind(id).fetch_optional(connection).await?)
}

/// A route by its name.
pub(crate) async fn named(
    connection: &mut PgConnection,
    name: &str,
    organization: Option<Uuid>,
) -> Result<Option<Route>, StoreError> {
    let sql = "SELECT * FROM model_routes WHERE name = $1 AND organization_id IS NOT DISTINCT FROM $2";
    Ok(sqlx::query_as(sql).bind(name).bind(organization).fetch_optional(connection).await?)
}

/// Routes after `after`, at most `limit`, those of `organization` if it is given.
pub(crate) async fn list(
    connection: &mut PgConnection,
    organization: Option<Uuid>,
    after: Option<Uuid>,
    limit: i64,
) -> Result<Vec<Route>, StoreError> {
    let sql = "SELECT * FROM model_routes
        WHERE ($1::uuid IS NULL OR organization_id = $1) AND ($2::uuid IS NULL OR id > $2) ORDER BY id LIMIT $3";
    Ok(sqlx::query_as(sql).bind(organization).bind(after).bind(limit).fetch_all(connection).await?)
}

/// Every route.
pub(crate) async fn all(connection: &mut PgConnection) -> Result<Vec<Route>, StoreError> {
    Ok(sqlx::query_as("SELECT * FROM model_routes ORDER BY name, organization_id").fetch_all(connection).await?)
}
