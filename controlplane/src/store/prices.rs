//! `model_prices`: what models cost from when on. Versions are only ever added.

use super::amounts::decimal;
use super::{PgConnection, StoreError};
use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::Value;
use turnpike_config::{Price, PriceVersion};
use utoipa::ToSchema;

/// A price and when it begins.
#[derive(Clone, Debug, Serialize, ToSchema, sqlx::FromRow)]
pub(crate) struct ModelPrice {
    /// The model.
    pub(crate) model_id: String,
    /// Its number within the model, from 1 on.
    pub(crate) version: i32,
    /// Requests that begin then or later are asked it, until a later price begins.
    pub(crate) effective_from: DateTime<Utc>,
    /// As `pricing` of the model.
    #[schema(value_type = Object)]
    pub(crate) pricing: Value,
    /// Who set it.
    pub(crate) actor: String,
    /// When it was set.
    pub(crate) created_at: DateTime<Utc>,
}

impl ModelPrice {
    /// As the edges know it.
    pub(crate) fn record(&self) -> Result<PriceVersion, StoreError> {
        let corrupt = |reason: String| {
            StoreError::corrupt(format!("model_prices row {} version {}", self.model_id, self.version), reason)
        };
        Ok(PriceVersion {
            version: u32::try_from(self.version).map_err(|e| corrupt(e.to_string()))?,
            from_ms: u64::try_from(self.effective_from.timestamp_millis()).unwrap_or_default(),
            price: Price::from_pricing(&self.pricing).map_err(|e| corrupt(e.to_string()))?,
        })
    }
}

/// Adds the next version of a model's price. The caller holds the lock under which the routing changes.
pub(crate) async fn add(
    connection: &mut PgConnection,
    model: &str,
    effective_from: DateTime<Utc>,
    pricing: &Value,
    price: Price,
    actor: &str,
) -> Result<ModelPrice, StoreError> {
    Ok(sqlx::query_as(
        "INSERT INTO model_prices (model_id, version, effective_from, pricing, input_token, output_token,
             cached_input_token, request, actor)
         VALUES ($1, (SELECT coalesce(max(version), 0) + 1 FROM model_prices WHERE model_id = $1), $2, $3, $4, $5, $6,
             $7, $8)
         RETURNING *",
    )
    .bind(model)
    .bind(effective_from)
    .bind(pricing)
    .bind(decimal(price.input_token)?)
    .bind(decimal(price.output_token)?)
    .bind(price.cached_input_token.map(decimal).transpose()?)
    .bind(price.request.map(decimal).transpose()?)
    .bind(actor)
    .fetch_one(connection)
    .await?)
}

/// What edges need: prices in effect, those that follow, and those that were in effect within the last hour. Of `model`,
/// or of all; ascending by model and time.
pub(crate) async fn pushed(connection: &mut PgConnection, model: Option<&str>) -> Result<Vec<ModelPrice>, StoreError> {
    Ok(sqlx::query_as(
        "SELECT * FROM (
             SELECT *, lead(effective_from) OVER (PARTITION BY model_id ORDER BY effective_from, version) AS until
             FROM model_prices WHERE $1::text IS NULL OR model_id = $1
         ) AS spans
         WHERE until IS NULL OR until > now() - interval '1 hour' ORDER BY model_id, effective_from, version",
    )
    .bind(model)
    .fetch_all(connection)
    .await?)
}

/// Versions before `before`, the newest first, at most `limit`.
pub(crate) async fn list(
    connection: &mut PgConnection,
    model: &str,
    before: Option<i32>,
    limit: i64,
) -> Result<Vec<ModelPrice>, StoreError> {
    Ok(sqlx::query_as(
        "SELECT * FROM model_prices WHERE model_id = $1 AND ($2::integer IS NULL OR version < $2)
         ORDER BY version DESC LIMIT $3",
    )
    .bind(model)
    .bind(before)
    .bind(limit)
    .fetch_all(connection)
    .await?)
}

/// How many prices of a model begin only later.
pub(crate) async fn coming(connection: &mut PgConnection, model: &str) -> Result<i64, StoreError> {
    Ok(sqlx::query_scalar("SELECT count(*) FROM model_prices WHERE model_id = $1 AND effective_from > now()")
        .bind(model)
        .fetch_one(connection)
        .await?)
}

/// Brings `models.pricing` in line with the price in effect; gives the models that it was not of. With `write` unset
/// nothing is changed.
pub(crate) async fn set_current(connection: &mut PgConnection, write: bool) -> Result<Vec<String>, StoreError> {
    let sql = if write {
        "UPDATE models m SET pricing = p.pricing, updated_at = now()
         FROM (SELECT DISTINCT ON (model_id) model_id, pricing FROM model_prices WHERE effective_from <= now()
             ORDER BY model_id, effective_from DESC, version DESC) AS p
         WHERE m.id = p.model_id AND m.pricing <> p.pricing RETURNING m.id::text"
    } else {
        "SELECT m.id::text FROM models m
         JOIN (SELECT DISTINCT ON (model_id) model_id, pricing FROM model_prices WHERE effective_from <= now()
             ORDER BY model_id, effective_from DESC, version DESC) AS p ON m.id = p.model_id
         WHERE m.pricing <> p.pricing"
    };
    Ok(sqlx::query_scalar(sql).fetch_all(connection).await?)
}
