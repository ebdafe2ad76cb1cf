//! Prices of models, and when they begin.

use super::{ActionError, Operator, audit};
use crate::context::Context;
use crate::feed::Edit;
use crate::store::models::{self, Model};
use crate::store::prices::{self, ModelPrice};
use chrono::{DateTime, SubsecRound as _, TimeDelta, Utc};
use serde::Deserialize;
use serde_json::{Value, json};
use turnpike_config::{Change, Price};
use utoipa::ToSchema;

/// Prices of a model that may be set and not have begun: every edge holds them.
const MAX_COMING: i64 = 100;
/// How far ahead a price may be set.
const FARTHEST: TimeDelta = TimeDelta::days(5 * 366);

/// A price that is to begin.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct CreatePrice {
    /// Such as `{"input_tokens": "0.01", "cached_input_tokens": "0.001", "output_tokens": "0.03", "per_tokens": 1000,
    /// "per_request": "0.0001", "currency": "USD"}`; without `cached_input_tokens` they cost as others, without
    /// `per_request` a request costs its tokens.
    #[schema(value_type = Object)]
    pricing: Value,
    /// When it begins, now or later; now if absent. At the same time as another one it takes its place.
    effective_from: Option<DateTime<Utc>>,
}

/// Adds a price to a model.
pub(crate) async fn create(
    context: &Context,
    operator: Operator,
    id: &str,
    input: CreatePrice,
    now: DateTime<Utc>,
) -> Result<ModelPrice, ActionError> {
    // Edges know milliseconds; what is stored must be the same time.
    let later = input.effective_from.map(|from| from.trunc_subsecs(3));
    if later.is_some_and(|from| from < now.trunc_subsecs(3)) {
        let detail = "is in the past: usage may have been charged by the price of then; leave it out for now";
        return Err(ActionError::field("effective_from", detail));
    }
    if later.is_some_and(|from| from.signed_duration_since(now) > FARTHEST) {
        return Err(ActionError::field("effective_from", "expected at most five years ahead"));
    }
    let mut edit = context.feed.edit(operator.name()).await?;
    let model = models::get(edit.connection(), id).await?;
    let model = model.ok_or_else(|| ActionError::not_found("model", id))?;
    // Under the lock: of two that begin now, the later one begins later.
    let now = Utc::now();
    let from = later.unwrap_or(now);
    if from > now && prices::coming(edit.connection(), id).await? >= MAX_COMING {
        return Err(ActionError::Conflict(format!("{MAX_COMING} prices of {id} wait to begin already")));
    }
    let price = add(&mut edit, operator, id, &input.pricing, from).await?;
    if from <= now {
        models::update(edit.connection(), &Model { pricing: input.pricing, ..model }).await?;
    }
    tell(&mut edit, id).await?;
    edit.commit().await?;
    Ok(price)
}

/// Adds the next version of a model's price, in the transaction that tells edges.
pub(super) async fn add(
    edit: &mut Edit<'_>,
    operator: Operator,
    model: &str,
    pricing: &Value,
    from: DateTime<Utc>,
) -> Result<ModelPrice, ActionError> {
    let price = Price::from_pricing(pricing).map_err(|error| ActionError::field("pricing", error.to_string()))?;
    let added = prices::add(edit.connection(), model, from.trunc_subsecs(3), pricing, price, &operator.name()).await?;
    let details = json!({"version": added.version, "effective_from": added.effective_from, "pricing": pricing});
    audit(edit, operator, "model_price.create", ("model", model), details).await?;
    Ok(added)
}

async fn tell(edit: &mut Edit<'_>, id: &str) -> Result<(), ActionError> {
    let model = models::get(edit.connection(), id).await?.ok_or_else(|| ActionError::not_found("model", id))?;
    let record = models::record(edit.connection(), &model).await?;
    edit.push(Change::PutModel(record));
    Ok(())
}

/// A page of a model's prices, the newest version first.
pub(crate) async fn list(
    context: &Context,
    id: &str,
    before: Option<i32>,
    limit: i64,
) -> Result<Vec<ModelPrice>, ActionError> {
    let mut connection = context.store.read().await?;
    if models::get(&mut connection, id).await?.is_none() {
        return Err(ActionError::not_found("model", id));
    }
    Ok(prices::list(&mut connection, id, before, limit).await?)
}
