//! `api_keys`. Only digests are stored; a key itself is shown once, by the action that makes it.

use super::{PgConnection, StoreError};
use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::Value;
use turnpike_config::{KeyDigest, KeyId, KeyRecord, LimitSettings, OrgId, Permissions};
use utoipa::ToSchema;
use uuid::Uuid;

/// An API key, without the key.
#[derive(Clone, Debug, Serialize, ToSchema, sqlx::FromRow)]
pub(crate) struct ApiKey {
    /// Identity; not secret.
    pub(crate) id: Uuid,
    /// The organization that owns it and pays for it.
    pub(crate) organization_id: Uuid,
    /// Who holds it.
    pub(crate) user_id: Uuid,
    /// Display name.
    pub(crate) name: String,
    #[serde(skip)]
    pub(crate) key_hash: String,
    /// How the key begins, to tell keys apart.
    pub(crate) key_prefix: String,
    /// `inference`, `models.read`, `fine_tuning`, `files`.
    pub(crate) permissions: Vec<String>,
    /// `requests_per_minute`, `tokens_per_minute`, `concurrent_requests` and the same within `models`; absent is
    /// unlimited.
    pub(crate) rate_limits: Value,
    /// Models it may use; null is every public one.
    pub(crate) allowed_models: Option<Vec<String>>,
    /// False while disabled.
    pub(crate) is_active: bool,
    /// Start of the last request that was metered with it.
    pub(crate) last_used_at: Option<DateTime<Utc>>,
    /// When it was made.
    pub(crate) created_at: DateTime<Utc>,
    /// From then on it is refused.
    pub(crate) expires_at: Option<DateTime<Utc>>,
    /// Set once revoked, for good.
    pub(crate) revoked_at: Option<DateTime<Utc>>,
    /// The key that this one replaces.
    pub(crate) rotated_from: Option<Uuid>,
}

impl ApiKey {
    /// What edges know it by, whatever else is wrong with it.
    pub(crate) fn digest(&self) -> Result<KeyDigest, StoreError> {
        let corrupt = || StoreError::corrupt(format!("api_keys row {}", self.id), "key_hash is no digest");
        KeyDigest::from_hex(&self.key_hash).ok_or_else(corrupt)
    }

    /// As the edges know it.
    pub(crate) fn record(&self) -> Result<KeyRecord, StoreError> {
        let corrupt = |reason: String| StoreError::corrupt(format!("api_keys row {}", self.id), reason);
        let limits = serde_json::from_value::<LimitSettings>(self.rate_limits.clone())
            .map_err(|e| corrupt(format!("rate_limits: {e}")))?;
        Ok(KeyRecord {
            id: KeyId(self.id),
            organization: OrgId(self.organization_id),
            digest: self.digest()?,
            permissions: Permissions::from_names(&self.permissions)
                .map_err(|name| corrupt(format!("unknown permission {name}")))?,
            limits: limits.own(),
            model_limits: limits.models,
            models: self.allowed_models.clone(),
            active: self.is_active && self.revoked_at.is_none(),
            expires_at_ms: self.expires_at.map(|at| u64::try_from(at.timestamp_millis()).unwrap_or_default()),
        })
    }
}

/// Stores a new key.
pub(crate) async fn insert(connection: &mut PgConnection, key: &ApiKey) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO api_keys (id, organization_id, user_id, name, key_hash, key_prefix, permissions, rate_limits,
             allowed_models, is_active, created_at, expires_at, rotated_from)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)",
    )
    .bind(key.id)
    .bind(key.organization_id)
    .bind(key.user_id)
    .bind(&key.name)
    .bind(&key.key_hash)
    .bind(&key.key_prefix)
    .bind(&key.permissions)
    .bind(&key.rate_limits)
    .bind(&key.allowed_models)
    .bind(key.is_active)
    .bind(key.created_at)
    .bind(key.expires_at)
    .bind(key.rotated_from)
    .execute(connection)
    .await?;
    Ok(())
}

/// Writes the fields that an operator may change.
pub(crate) async fn update(connection: &mut PgConnection, key: &ApiKey) -> Result<(), StoreError> {
    sqlx::query(
        "UPDATE api_keys SET name = $2, permissions = $3, rate_limits = $4, allowed_models = $5, is_active = $6,
             expires_at = $7, revoked_at = $8 WHERE id = $1",
    )
    .bind(key.id)
    .bind(&key.name)
    .bind(&key.permissions)
    .bind(&key.rate_limits)
    .bind(&key.allowed_models)
    .bind(key.is_active)
    .bind(key.expires_at)
    .bind(key.revoked_at)
    .execute(connection)
    .await?;
    Ok(())
}

/// One key.
pub(crate) async fn get(connection: &mut PgConnection, id: Uuid) -> Result<Option<ApiKey>, StoreError> {
    Ok(sqlx::query_as("SELECT * FROM api_keys WHERE id = $1").bind(id).fetch_optional(connection).await?)
}

/// The key with a digest.
pub(crate) async fn by_digest(connection: &mut PgConnection, digest: KeyDigest) -> Result<Option<ApiKey>, StoreError> {
    Ok(sqlx::query_as("SELECT * FROM api_keys WHERE key_hash = $1")
        .bind(digest.to_string())
        .fetch_optional(connection)
        .await?)
}

/// Keys after `after` in the order of their ids, at most `limit`, of one organization if given. Revoked ones too.
pub(crate) async fn list(
    connection: &mut PgConnection,
    organization: Option<Uuid>,
    after: Option<Uuid>,
    limit: i64,
) -> Result<Vec<ApiKey>, StoreError> {
    Ok(sqlx::query_as(
        "SELECT * FROM api_keys WHERE ($1::uuid IS NULL OR organization_id = $1) AND ($2::uuid IS NULL OR id > $2)
         ORDER BY id LIMIT $3",
    )
    .bind(organization)
    .bind(after)
    .bind(limit)
    .fetch_all(connection)
    .await?)
}

/// Digests of the keys of an organization that edges still know.
pub(crate) async fn digests_of(
    connection: &mut PgConnection,
    organization: Uuid,
) -> Result<Vec<KeyDigest>, StoreError> {
    let sql = "SELECT key_hash FROM api_keys WHERE organization_id = $1 AND revoked_at IS NULL ORDER BY id";
    let stored: Vec<String> = sqlx::query_scalar(sql).bind(organization).fetch_all(connection).await?;
    let parse = |hex: &String| KeyDigest::from_hex(hex).ok_or_else(|| StoreError::corrupt("api_keys.key_hash", hex));
    stored.iter().map(parse).collect()
}

/// Every key that edges must know.
pub(crate) async fn all_live(connection: &mut PgConnection) -> Result<Vec<ApiKey>, StoreError> {
    Ok(sqlx::query_as("SELECT * FROM api_keys WHERE revoked_at IS NULL").fetch_all(connection).await?)
}
