//! Limits as operators write them, for keys and for organizations alike.

use super::{ActionError, Checks, FieldError};
use crate::store::{PgConnection, models};
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::collections::BTreeMap;
use turnpike_config::{LimitSettings, RateLimits};
use utoipa::ToSchema;

/// Most models that one set of limits names: all of them travel to every edge.
const MAX_MODELS: usize = 256;

/// Limits of a key or of all keys of an organization together; what is absent is unlimited.
#[derive(ToSchema)]
#[schema(example = json!({"requests_per_minute": 600, "models": {"smollm2-135m": {"concurrent_requests": 4}}}))]
#[expect(dead_code, reason = "describes LimitSettings, which lives in a crate without OpenAPI")]
pub(crate) struct Limits {
    /// Requests per minute, at least 1.
    #[schema(minimum = 1)]
    requests_per_minute: Option<u32>,
    /// Prompt and completion tokens per minute, at least 1.
    #[schema(minimum = 1)]
    tokens_per_minute: Option<u32>,
    /// Requests that run at the same time, at least 1.
    #[schema(minimum = 1)]
    concurrent_requests: Option<u32>,
    /// Limits within models, by model id, which hold beside the ones above. At most 256.
    models: Option<BTreeMap<String, LimitsWithin>>,
}

/// Limits within a model; what is absent is unlimited.
#[derive(ToSchema)]
#[expect(dead_code, reason = "describes RateLimits, which lives in a crate without OpenAPI")]
pub(crate) struct LimitsWithin {
    /// Requests per minute, at least 1.
    #[schema(minimum = 1)]
    requests_per_minute: Option<u32>,
    /// Prompt and completion tokens per minute, at least 1.
    #[schema(minimum = 1)]
    tokens_per_minute: Option<u32>,
    /// Requests that run at the same time, at least 1.
    #[schema(minimum = 1)]
    concurrent_requests: Option<u32>,
}

/// Reads a typed part of a free document. An error names the path below `field`.
pub(super) fn read<T: DeserializeOwned>(field: &str, value: &Value) -> Result<T, FieldError> {
    serde_path_to_error::deserialize(value).map_err(|error| {
        let path = error.path().to_string();
        let field = if path == "." { field.to_owned() } else { format!("{field}.{path}") };
        FieldError { field, detail: error.inner().to_string() }
    })
}

/// Notes limits of zero and models that do not exist. `field` is where the limits stand.
pub(super) async fn check(
    checks: &mut Checks,
    connection: &mut PgConnection,
    field: &str,
    limits: &LimitSettings,
) -> Result<(), ActionError> {
    require_positive(checks, field, limits.own());
    for (model, within) in &limits.models {
        require_positive(checks, &format!("{field}.models.{model}"), *within);
    }
    let named = format!("{field}.models");
    if limits.models.len() > MAX_MODELS {
        checks.require(false, &named, "expected at most 256 models");
        return Ok(());
    }
    let ids: Vec<String> = limits.models.keys().cloned().collect();
    for id in models::unknown(connection, &ids).await? {
        checks.require(false, &format!("{named}.{id}"), "no such model; expected the id of one in /admin/v1/models");
    }
    Ok(())
}

fn require_positive(checks: &mut Checks, field: &str, limits: RateLimits) {
    let RateLimits { requests_per_minute, tokens_per_minute, concurrent_requests } = limits;
    let named = [
        ("requests_per_minute", requests_per_minute),
        ("tokens_per_minute", tokens_per_minute),
        ("concurrent_requests", concurrent_requests),
    ];
    for (name, limit) in named {
        let detail = "expected 1 or more; disable the key to admit nothing, leave it out to admit everything";
        checks.require(limit != Some(0), &format!("{field}.{name}"), detail);
    }
}
