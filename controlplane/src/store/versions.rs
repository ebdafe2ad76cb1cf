//! `model_versions`.

use super::{PgConnection, StoreError};
use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::Value;
use turnpike_config::records::VersionRecord;
use utoipa::ToSchema;
use uuid::Uuid;

/// `deployment_status` of a version that takes requests.
pub(crate) const ACTIVE: &str = "active";
/// `deployment_status` of a version that takes none any more.
pub(crate) const DEPRECATED: &str = "deprecated";
/// `deployment_status` of a version that takes none yet.
pub(crate) const PENDING: &str = "pending";

/// One deployable version of a model.
#[derive(Clone, Debug, Serialize, ToSchema, sqlx::FromRow)]
pub(crate) struct ModelVersion {
    /// Identity.
    pub(crate) id: Uuid,
    /// The model.
    pub(crate) model_id: String,
    /// Name, unique within the model.
    pub(crate) version: String,
    /// Takes the model's requests; at most one version of a model.
    pub(crate) is_default: bool,
    /// Where the weights lie.
    pub(crate) model_artifact_path: String,
    /// Free configuration for whoever deploys it.
    pub(crate) config: Value,
    /// Measured figures.
    pub(crate) performance_metrics: Value,
    /// `pending`, `deploying`, `active` or `deprecated`.
    pub(crate) deployment_status: String,
    /// When it was made.
    pub(crate) created_at: DateTime<Utc>,
    /// When it was first activated.
    pub(crate) deployed_at: Option<DateTime<Utc>>,
    /// When it was deprecated.
    pub(crate) deprecated_at: Option<DateTime<Utc>>,
}

impl ModelVersion {
    /// As the edges know it.
    pub(crate) fn record(&self) -> VersionRecord {
        VersionRecord {
            version: self.version.clone(),
            is_default: self.is_default,
            active: self.deployment_status == ACTIVE,
        }
    }
}

/// Stores a new version.
pub(crate) async fn insert(connection: &mut PgConnection, version: &ModelVersion) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO model_versions (id, model_id, version, is_default, model_artifact_path, config,
             performance_metrics, deployment_status, created_at, deployed_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)",
    )
    .bind(version.id)
    .bind(&version.model_id)
    .bind(&version.version)
    .bind(version.is_default)
    .bind(&version.model_artifact_path)
    .bind(&version.config)
    .bind(&version.performance_metrics)
    .bind(&version.deployment_status)
    .bind(version.created_at)
    .bind(version.deployed_at)
    .execute(connection)
    .await?;
    Ok(())
}

/// Writes what activation, defaulting and deprecation change.
pub(crate) async fn update(connection: &mut PgConnection, version: &ModelVersion) -> Result<(), StoreError> {
    sqlx::query(
        "UPDATE model_versions SET is_default = $2, deployment_status = $3, deployed_at = $4, deprecated_at = $5
         WHERE id = $1",
    )
    .bind(version.id)
    .bind(version.is_default)
    .bind(&version.deployment_status)
    .bind(version.deployed_at)
    .bind(version.deprecated_at)
    .execute(connection)
    .await?;
    Ok(())
}

/// Takes the default mark off every version of a model.
pub(crate) async fn clear_default(connection: &mut PgConnection, model: &str) -> Result<(), StoreError> {
    sqlx::query("UPDATE model_versions SET is_default = false WHERE model_id = $1 AND is_default")
        .bind(model)
        .execute(connection)
        .await?;
    Ok(())
}

/// One version by its name.
pub(crate) async fn get(
    connection: &mut PgConnection,
    model: &str,
    version: &str,
) -> Result<Option<ModelVersion>, StoreError> {
    Ok(sqlx::query_as("SELECT * FROM model_versions WHERE model_id = $1 AND version = $2")
        .bind(model)
        .bind(version)
        .fetch_optional(connection)
        .await?)
}

/// All versions of a model in the order of their ids.
pub(crate) async fn of_model(connection: &mut PgConnection, model: &str) -> Result<Vec<ModelVersion>, StoreError> {
    Ok(sqlx::query_as("SELECT * FROM model_versions WHERE model_id = $1 ORDER BY id")
        .bind(model)
        .fetch_all(connection)
        .await?)
}

/// Versions of a model after `after` in the order of their ids, at most `limit`.
pub(crate) async fn list(
    connection: &mut PgConnection,
    model: &str,
    after: Option<Uuid>,
    limit: i64,
) -> Result<Vec<ModelVersion>, StoreError> {
    Ok(sqlx::query_as(
        "SELECT * FROM model_versions WHERE model_id = $1 AND ($2::uuid IS NULL OR id > $2) ORDER BY id LIMIT $3",
    )
    .bind(model)
    .bind(after)
    .bind(limit)
    .fetch_all(connection)
    .await?)
}

/// Every version of every model, in the order of ids.
pub(crate) async fn all(connection: &mut PgConnection) -> Result<Vec<ModelVersion>, StoreError> {
    Ok(sqlx::query_as("SELECT * FROM model_versions ORDER BY id").fetch_all(connection).await?)
}
