//! Documents as they come, and what their fields mean.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use turnpike_config::{CachePolicy, LimitSettings, RoutePolicy};
use utoipa::ToSchema;

/// The fields of a record.
pub(super) type Fields = Map<String, Value>;

/// What there is to be. Each document is an object.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Documents {
    /// By `slug`.
    #[schema(value_type = Vec<Object>)]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) organization: Vec<Map<String, Value>>,
    /// By `email`; `organization` is a slug.
    #[schema(value_type = Vec<Object>)]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) user: Vec<Map<String, Value>>,
    /// By `id`.
    #[schema(value_type = Vec<Object>)]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) model: Vec<Map<String, Value>>,
    /// By `model` and `version`; `status` is `active`, `deprecated` or `pending`, `default` true or false.
    #[schema(value_type = Vec<Object>)]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) version: Vec<Map<String, Value>>,
    /// By `digest`, the SHA-256 of the key as 64 hexadecimal digits; `organization` is a slug, `user` an email.
    #[schema(value_type = Vec<Object>)]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) key: Vec<Map<String, Value>>,
    /// By `name` and, for one that is an organization's own, its slug as `organization`.
    #[schema(value_type = Vec<Object>)]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) route: Vec<Map<String, Value>>,
    /// By `name`; a node makes itself known, only `enabled` is declared.
    #[schema(value_type = Vec<Object>)]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) node: Vec<Map<String, Value>>,
}

/// A field as it is compared: what means the same looks the same.
pub(super) fn normal(field: &str, value: &Value) -> Value {
    fn read<T: serde::de::DeserializeOwned + Serialize>(value: &Value) -> Option<Value> {
        serde_json::from_value::<T>(value.clone()).ok().map(|read| json!(read))
    }
    let read = match field {
        "rate_limits" => read::<LimitSettings>(value),
        "policy" => read::<RoutePolicy>(value),
        "cache" => read::<CachePolicy>(value),
        "expires_at" => read::<DateTime<Utc>>(value),
        _ => None,
    };
    // What cannot be read is refused where it is written.
    read.unwrap_or_else(|| value.clone())
}

/// The fields of `wanted` that are not yet so.
pub(super) fn missing(present: &Fields, wanted: &Fields) -> Fields {
    let differs = |(field, value): &(&String, &Value)| {
        let present = present.get(*field).unwrap_or(&Value::Null);
        normal(field, present) != normal(field, value)
    };
    wanted.iter().filter(differs).map(|(field, value)| (field.clone(), value.clone())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(value: Value) -> Fields {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn what_means_the_same_is_not_missing() {
        let present = fields(json!({
            "rate_limits": {"requests_per_minute": 5},
            "expires_at": "2026-01-01T00:00:00Z",
            "policy": {"targets": [{"model": "m", "weight": 1}], "sticky": "request"},
            "name": "a",
        }));
        let same = fields(json!({
            "rate_limits": {"requests_per_minute": 5, "models": {}},
            "expires_at": "2026-01-01T01:00:00+01:00",
            "policy": {"targets": [{"model": "m", "weight": 1}]},
            "description": null,
        }));
        assert_eq!(missing(&present, &same), Fields::new());
        let other = fields(json!({"name": "b", "rate_limits": {}, "expires_at": null}));
        assert_eq!(missing(&present, &other), other);
    }
}
