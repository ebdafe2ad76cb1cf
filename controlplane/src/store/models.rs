//! `models`.

use super::prices::{self, ModelPrice};
use super::versions::{self, ModelVersion};
use super::{PgConnection, StoreError};
use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::Value;
use sqlx::types::Json;
use turnpike_config::{CachePolicy, ModelRecord, Price};
use utoipa::ToSchema;

/// A model that clients can ask for.
#[derive(Clone, Debug, Serialize, ToSchema, sqlx::FromRow)]
pub(crate) struct Model {
    /// The name that clients send.
    pub(crate) id: String,
    /// Display name.
    pub(crate) name: String,
    /// `owned_by` in the OpenAI API.
    pub(crate) provider: String,
    /// `text-generation`, `chat`, `embedding`, `moderation` or `image-generation`.
    pub(crate) category: String,
    /// For people.
    pub(crate) description: Option<String>,
    /// Tokens that prompt and answer may have together.
    pub(crate) context_length: i32,
    /// Most tokens it generates.
    pub(crate) max_output_tokens: Option<i32>,
    /// Number of parameters.
    pub(crate) parameter_count: Option<i64>,
    /// `small`, `medium`, `large` or `xl`.
    pub(crate) model_size: Option<String>,
    /// What it can do.
    pub(crate) capabilities: Vec<String>,
    /// Languages it knows.
    pub(crate) supported_languages: Vec<String>,
    /// Dollars per `per_tokens` tokens.
    pub(crate) pricing: Value,
    /// False: known but switched off.
    pub(crate) is_active: bool,
    /// Usable by every organization; otherwise only by keys whose allow-list names it.
    pub(crate) is_public: bool,
    /// When it was made.
    pub(crate) created_at: DateTime<Utc>,
    /// When it was last changed.
    pub(crate) updated_at: DateTime<Utc>,
    /// Free data.
    pub(crate) metadata: Value,
    /// Whether and how its answers are cached.
    #[sqlx(json)]
    #[schema(value_type = CacheSettings)]
    pub(crate) cache: CachePolicy,
    /// How often its cached answers were purged.
    pub(crate) cache_generation: i32,
}

/// Whether and how a model's answers are cached.
#[derive(ToSchema)]
#[expect(dead_code, reason = "describes CachePolicy, which lives in a crate without OpenAPI")]
pub(crate) struct CacheSettings {
    /// Answers are cached unless a request says otherwise; if false (default), only those of requests that ask for it.
    enabled: Option<bool>,
    /// How long an answer is kept, seconds: 1 to 2592000 (30 days); 3600 if absent.
    #[schema(minimum = 1, maximum = 2_592_000)]
    ttl_s: Option<u32>,
    /// Organizations share each other's answers. Default false.
    public: Option<bool>,
    /// What an answer from the cache costs, in thousandths of its usual price: 0 (default, free) to 1000.
    #[schema(maximum = 1000)]
    price_permille: Option<u32>,
}

impl Model {
    /// As the edges know it, with those of the versions and prices that are its own.
    pub(super) fn record(&self, versions: &[ModelVersion], prices: &[ModelPrice]) -> Result<ModelRecord, StoreError> {
        let corrupt = |reason: String| StoreError::corrupt(format!("models row {}", self.id), reason);
        let positive =
            |name: &str, value: i32| u32::try_from(value).map_err(|_| corrupt(format!("{name} is negative")));
        Ok(ModelRecord {
            id: self.id.clone(),
            provider: self.provider.clone(),
            created_s: u64::try_from(self.created_at.timestamp()).unwrap_or_default(),
            context_length: positive("context_length", self.context_length)?,
            max_output_tokens: self.max_output_tokens.map(|n| positive("max_output_tokens", n)).transpose()?,
            price: Price::from_pricing(&self.pricing).map_err(|e| corrupt(e.to_string()))?,
            active: self.is_active,
            public: self.is_public,
            versions: versions.iter().filter(|v| v.model_id == self.id).map(ModelVersion::record).collect(),
            cache: CachePolicy { generation: positive("cache_generation", self.cache_generation)?, ..self.cache },
            prices: prices
                .iter()
                .filter(|p| p.model_id == self.id)
                .map(ModelPrice::record)
                .collect::<Result<_, _>>()?,
        })
    }
}

/// A model as the edges know it.
pub(crate) async fn record(connection: &mut PgConnection, model: &Model) -> Result<ModelRecord, StoreError> {
    let versions = versions::of_model(connection, &model.id).await?;
    let prices = prices::pushed(connection, Some(&model.id)).await?;
    model.record(&versions, &prices)
}

/// Stores a new model.
pub(crate) async fn insert(connection: &mut PgConnection, model: &Model) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO models (id, name, provider, category, description, context_length, max_output_tokens,
             parameter_count, model_size, capabilities, supported_languages, pricing, is_active, is_public, created_at,
             updated_at, metadata, cache)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18)",
    )
    .bind(&model.id)
    .bind(&model.name)
    .bind(&model.provider)
    .bind(&model.category)
    .bind(&model.description)
    .bind(model.context_length)
    .bind(model.max_output_tokens)
    .bind(model.parameter_count)
    .bind(&model.model_size)
    .bind(&model.capabilities)
    .bind(&model.supported_languages)
    .bind(&model.pricing)
    .bind(model.is_active)
    .bind(model.is_public)
    .bind(model.created_at)
    .bind(model.updated_at)
    .bind(&model.metadata)
    .bind(Json(model.cache))
    .execute(connection)
    .await?;
    Ok(())
}

/// Writes the fields that an operator may change.
pub(crate) async fn update(connection: &mut PgConnection, model: &Model) -> Result<(), StoreError> {
    sqlx::query(
        "UPDATE models SET name = $2, provider = $3, category = $4, description = $5, context_length = $6,
             max_output_tokens = $7, parameter_count = $8, model_size = $9, capabilities = $10,
             supported_languages = $11, pricing = $12, is_active = $13, is_public = $14, metadata = $15,
             cache = $16, updated_at = now() WHERE id = $1",
    )
    .bind(&model.id)
    .bind(&model.name)
    .bind(&model.provider)
    .bind(&model.category)
    .bind(&model.description)
    .bind(model.context_length)
    .bind(model.max_output_tokens)
    .bind(model.parameter_count)
    .bind(&model.model_size)
    .bind(&model.capabilities)
    .bind(&model.supported_languages)
    .bind(&model.pricing)
    .bind(model.is_active)
    .bind(model.is_public)
    .bind(&model.metadata)
    .bind(Json(model.cache))
    .execute(connection)
    .await?;
    Ok(())
}

/// One model.
pub(crate) async fn get(connection: &mut PgConnection, id: &str) -> Result<Option<Model>, StoreError> {
    Ok(sqlx::query_as("SELECT * FROM models WHERE id = $1").bind(id).fetch_optional(connection).await?)
}

/// Models after `after` in the order of their ids, at most `limit`.
pub(crate) async fn list(
    connection: &mut PgConnection,
    after: Option<&str>,
    limit: i64,
) -> Result<Vec<Model>, StoreError> {
    Ok(sqlx::query_as("SELECT * FROM models WHERE $1::text IS NULL OR id > $1 ORDER BY id LIMIT $2")
        .bind(after)
        .bind(limit)
        .fetch_all(connection)
        .await?)
}

/// Makes all cached answers of a model unfindable; `None` if there is no such model.
pub(crate) async fn purge_answers(connection: &mut PgConnection, id: &str) -> Result<Option<Model>, StoreError> {
    Ok(sqlx::query_as(
        "UPDATE models SET cache_generation = cache_generation + 1, updated_at = now() WHERE id = $1 RETURNING *",
    )
    .bind(id)
    .fetch_optional(connection)
    .await?)
}

/// Which of these names are neither a model's nor a route's.
pub(crate) async fn unknown(connection: &mut PgConnection, ids: &[String]) -> Result<Vec<String>, StoreError> {
    Ok(sqlx::query_scalar(
        "SELECT wanted FROM unnest($1::text[]) AS wanted
         WHERE NOT EXISTS (SELECT 1 FROM models WHERE id = wanted)
             AND NOT EXISTS (SELECT 1 FROM model_routes WHERE name = wanted)",
    )
    .bind(ids)
    .fetch_all(connection)
    .await?)
}

/// Every model.
pub(crate) async fn all(connection: &mut PgConnection) -> Result<Vec<Model>, StoreError> {
    Ok(sqlx::query_as("SELECT * FROM models").fetch_all(connection).await?)
}
