//! Models.

use super::{ActionError, Checks, Operator, audit, nullable, prices};
use crate::context::Context;
use crate::feed::Edit;
use crate::store::models::{self, CacheSettings, Model};
use chrono::Utc;
use serde::Deserialize;
use serde_json::{Value, json};
use turnpike_config::caching::MAX_TTL_S;
use turnpike_config::{CachePolicy, Change, Price};
use utoipa::ToSchema;

const CATEGORIES: [&str; 5] = ["text-generation", "chat", "embedding", "image-generation", "moderation"];
const SIZES: [&str; 4] = ["small", "medium", "large", "xl"];
/// Most entries of a list of texts.
const MAX_LIST: usize = 64;
/// The usual price, in thousandths of itself: more would make an answer from the cache dearer than a new one.
const FULL_PRICE_PERMILLE: u32 = 1000;

/// A new model.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct CreateModel {
    /// The name that clients send.
    #[schema(example = "smollm2-135m-instruct")]
    id: String,
    /// Display name; the id if absent.
    name: Option<String>,
    /// `owned_by` in the OpenAI API.
    provider: String,
    /// `text-generation`, `chat`, `embedding`, `moderation` or `image-generation`.
    category: String,
    /// For people.
    description: Option<String>,
    /// Tokens that prompt and answer may have together, at least 1.
    context_length: i32,
    /// Most tokens it generates, at least 1.
    max_output_tokens: Option<i32>,
    /// Number of parameters.
    parameter_count: Option<i64>,
    /// `small`, `medium`, `large` or `xl`.
    model_size: Option<String>,
    /// What it can do.
    #[serde(default)]
    capabilities: Vec<String>,
    /// Languages it knows.
    #[serde(default)]
    supported_languages: Vec<String>,
    /// Such as `{"input_tokens": "0.01", "output_tokens": "0.03", "currency": "USD", "per_tokens": 1000}`, and if wanted
    /// `"cached_input_tokens"` and `"per_request"`.
    #[schema(value_type = Object)]
    pricing: Value,
    /// False: known but switched off. Default true.
    is_active: Option<bool>,
    /// False: only for keys whose allow-list names it. Default true.
    is_public: Option<bool>,
    /// Free data, an object.
    metadata: Option<Value>,
    /// Whether and how its answers are cached; not unless a request asks for it if absent.
    #[schema(value_type = Option<CacheSettings>)]
    cache: Option<CachePolicy>,
}

/// What to change; absent fields stay, null clears.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct PatchModel {
    /// Display name.
    name: Option<String>,
    /// Provider.
    provider: Option<String>,
    /// Category.
    category: Option<String>,
    /// For people.
    #[serde(default, deserialize_with = "nullable")]
    #[schema(value_type = Option<String>)]
    description: Option<Option<String>>,
    /// Tokens that prompt and answer may have together.
    context_length: Option<i32>,
    /// Most tokens it generates.
    #[serde(default, deserialize_with = "nullable")]
    #[schema(value_type = Option<i32>)]
    max_output_tokens: Option<Option<i32>>,
    /// Number of parameters.
    #[serde(default, deserialize_with = "nullable")]
    #[schema(value_type = Option<i64>)]
    parameter_count: Option<Option<i64>>,
    /// `small`, `medium`, `large` or `xl`.
    #[serde(default, deserialize_with = "nullable")]
    #[schema(value_type = Option<String>)]
    model_size: Option<Option<String>>,
    /// What it can do.
    capabilities: Option<Vec<String>>,
    /// Languages it knows.
    supported_languages: Option<Vec<String>>,
    /// Price from now on: a further version of it. For one that begins later: `POST /admin/v1/models/{id}/prices`.
    #[schema(value_type = Option<Object>)]
    pricing: Option<Value>,
    /// Switches it off or on.
    is_active: Option<bool>,
    /// Who may use it.
    is_public: Option<bool>,
    /// Free data.
    metadata: Option<Value>,
    /// Whether and how its answers are cached; replaces all of it.
    #[schema(value_type = Option<CacheSettings>)]
    cache: Option<CachePolicy>,
}

fn check(model: &Model) -> Result<(), ActionError> {
    let mut checks = Checks::default();
    let clean = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | '/' | ':');
    let id = (1..=100).contains(&model.id.len()) && model.id.chars().all(clean);
    checks.require(id, "id", "expected 1 to 100 of letters, digits and . - _ / :");
    checks.text("name", &model.name, 255);
    checks.text("provider", &model.provider, 100);
    checks.one_of("category", &model.category, &CATEGORIES);
    checks.optional_text("description", model.description.as_deref(), 10_000);
    checks.require(model.context_length >= 1, "context_length", "expected 1 or more");
    checks.require(model.max_output_tokens.is_none_or(|n| n >= 1), "max_output_tokens", "expected 1 or more");
    checks.require(model.parameter_count.is_none_or(|n| n >= 1), "parameter_count", "expected 1 or more");
    if let Some(size) = &model.model_size {
        checks.one_of("model_size", size, &SIZES);
    }
    for (field, list) in [("capabilities", &model.capabilities), ("supported_languages", &model.supported_languages)] {
        checks.require(list.len() <= MAX_LIST, field, "expected at most 64 entries");
        for (index, text) in list.iter().enumerate() {
            checks.text(&format!("{field}[{index}]"), text, 100);
        }
    }
    if let Err(error) = Price::from_pricing(&model.pricing) {
        checks.require(false, "pricing", &error.to_string());
    }
    checks.object("metadata", &model.metadata);
    check_cache(&mut checks, "cache", model.cache);
    checks.finish()
}

pub(super) fn check_cache(checks: &mut Checks, field: &str, cache: CachePolicy) {
    let kept = (1..=MAX_TTL_S).contains(&cache.ttl_s);
    checks.require(kept, &format!("{field}.ttl_s"), &format!("expected 1 to {MAX_TTL_S} seconds"));
    let detail = "expected 0 (free) to 1000 (the usual price)";
    checks.require(cache.price_permille <= FULL_PRICE_PERMILLE, &format!("{field}.price_permille"), detail);
    let detail = "cannot be set; POST /admin/v1/cache/purge raises it";
    checks.require(cache.generation == 0, &format!("{field}.generation"), detail);
}

/// Makes a model, without any version yet.
pub(crate) async fn create(context: &Context, operator: Operator, input: CreateModel) -> Result<Model, ActionError> {
    let mut edit = context.feed.edit(operator.name()).await?;
    let model = create_in(&mut edit, operator, input).await?;
    edit.commit().await?;
    Ok(model)
}

/// Makes a model as part of a larger change.
pub(super) async fn create_in(
    edit: &mut Edit<'_>,
    operator: Operator,
    input: CreateModel,
) -> Result<Model, ActionError> {
    let now = Utc::now();
    let model = Model {
        name: input.name.unwrap_or_else(|| input.id.clone()),
        id: input.id,
        provider: input.provider,
        category: input.category,
        description: input.description,
        context_length: input.context_length,
        max_output_tokens: input.max_output_tokens,
        parameter_count: input.parameter_count,
        model_size: input.model_size,
        capabilities: input.capabilities,
        supported_languages: input.supported_languages,
        pricing: input.pricing,
        is_active: input.is_active.unwrap_or(true),
        is_public: input.is_public.unwrap_or(true),
        created_at: now,
        updated_at: now,
        metadata: input.metadata.unwrap_or_else(|| json!({})),
        cache: input.cache.unwrap_or_default(),
        cache_generation: 0,
    };
    check(&model)?;
    models::insert(edit.connection(), &model).await?;
    audit(edit, operator, "model.create", ("model", &model.id), json!({})).await?;
    prices::add(edit, operator, &model.id, &model.pricing, now).await?;
    let record = models::record(edit.connection(), &model).await?;
    edit.push(Change::PutModel(record));
    Ok(model)
}

/// Changes a model. A new price is a further version that begins now.
pub(crate) async fn patch(
    context: &Context,
    operator: Operator,
    id: &str,
    patch: PatchModel,
) -> Result<Model, ActionError> {
    let mut edit = context.feed.edit(operator.name()).await?;
    let before = models::get(edit.connection(), id).await?;
    let before = before.ok_or_else(|| ActionError::not_found("model", id))?;
    let model = patch_in(&mut edit, operator, before, patch).await?;
    edit.commit().await?;
    Ok(model)
}

/// Changes a model as part of a larger change.
pub(super) async fn patch_in(
    edit: &mut Edit<'_>,
    operator: Operator,
    before: Model,
    patch: PatchModel,
) -> Result<Model, ActionError> {
    let details = json!({"pricing_before": before.pricing});
    let record = models::record(edit.connection(), &before).await?;
    let pricing_before = before.pricing.clone();
    let model = Model {
        name: patch.name.unwrap_or(before.name),
        provider: patch.provider.unwrap_or(before.provider),
        category: patch.category.unwrap_or(before.category),
        description: patch.description.unwrap_or(before.description),
        context_length: patch.context_length.unwrap_or(before.context_length),
        max_output_tokens: patch.max_output_tokens.unwrap_or(before.max_output_tokens),
        parameter_count: patch.parameter_count.unwrap_or(before.parameter_count),
        model_size: patch.model_size.unwrap_or(before.model_size),
        capabilities: patch.capabilities.unwrap_or(before.capabilities),
        supported_languages: patch.supported_languages.unwrap_or(before.supported_languages),
        pricing: patch.pricing.unwrap_or(before.pricing),
        is_active: patch.is_active.unwrap_or(before.is_active),
        is_public: patch.is_public.unwrap_or(before.is_public),
        metadata: patch.metadata.unwrap_or(before.metadata),
        cache: patch.cache.unwrap_or(before.cache),
        updated_at: Utc::now(),
        ..before
    };
    check(&model)?;
    models::update(edit.connection(), &model).await?;
    audit(edit, operator, "model.update", ("model", &model.id), details).await?;
    if model.pricing != pricing_before {
        prices::add(edit, operator, &model.id, &model.pricing, model.updated_at).await?;
    }
    let changed = models::record(edit.connection(), &model).await?;
    if changed != record {
        edit.push(Change::PutModel(changed));
    }
    Ok(model)
}

/// One model.
pub(crate) async fn get(context: &Context, id: &str) -> Result<Model, ActionError> {
    let model = models::get(&mut *context.store.read().await?, id).await?;
    model.ok_or_else(|| ActionError::not_found("model", id))
}

/// A page of models.
pub(crate) async fn list(context: &Context, after: Option<&str>, limit: i64) -> Result<Vec<Model>, ActionError> {
    Ok(models::list(&mut *context.store.read().await?, after, limit).await?)
}
