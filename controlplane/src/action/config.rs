//! The log of config changes, as the operator sees it.

use super::{ActionError, Operator, audit, sound_reason};
use crate::admission::Role;
use crate::context::Context;
use crate::store::config_log::{self, Written};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use turnpike_config::log::{Audience, Hash};
use utoipa::ToSchema;

/// Where the log of config changes stands.
#[derive(Serialize, ToSchema)]
pub(crate) struct ConfigHead {
    /// Version of the last committed change; 0 before the first. An edge whose `holds` is not below it knows them all.
    version: u64,
    /// The hash that ties it to every change before it.
    #[schema(value_type = String)]
    chain: Hash,
    /// Edges that hold another log's version up to this may come back to this log; 0 if none may.
    rewinds_from: u64,
}

/// One version.
#[derive(Serialize, ToSchema)]
pub(crate) struct ConfigVersion {
    /// Its number.
    pub(crate) version: u64,
    /// The hash that ties it to every version before it.
    #[schema(value_type = String)]
    chain: Hash,
    /// When it was made.
    at: DateTime<Utc>,
    /// Who made it.
    author: String,
    /// Why, if they said.
    reason: Option<String>,
    /// Who is told; null is every edge.
    #[schema(value_type = Option<Object>)]
    audience: Option<Audience>,
    /// What is put or dropped, as edges are told.
    #[schema(value_type = Object)]
    change: Value,
    /// What it changes, field by field.
    diff: Vec<FieldDiff>,
}

/// A field that differs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub(crate) struct FieldDiff {
    /// Dotted path inside the record.
    path: String,
    /// Before; absent if it was not there.
    #[serde(skip_serializing_if = "Option::is_none")]
    before: Option<Value>,
    /// After; absent if it is not there any more.
    #[serde(skip_serializing_if = "Option::is_none")]
    after: Option<Value>,
}

/// Which edges may go back.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Rewind {
    /// Edges that hold a version up to this one, of a log that is no more, take this log's state instead.
    from_version: u64,
    /// Why.
    #[schema(example = "database restored from Tuesday's backup")]
    reason: String,
}

/// The newest config version.
pub(crate) async fn head(context: &Context) -> Result<ConfigHead, ActionError> {
    let config_log::Head { at, rewinds_from } = config_log::head(&mut *context.store.read().await?).await?;
    Ok(ConfigHead { version: at.version, chain: at.chain, rewinds_from })
}

/// A page of versions, the newest first.
pub(crate) async fn log(context: &Context, before: Option<u64>, limit: i64) -> Result<Vec<ConfigVersion>, ActionError> {
    let written = config_log::newest(&mut *context.store.read().await?, before, limit).await?;
    Ok(written.into_iter().map(ConfigVersion::from).collect())
}

impl From<Written> for ConfigVersion {
    fn from(written: Written) -> Self {
        let Written { at, made_at, author, reason, audience, change, before } = written;
        let diff = diff(before.as_ref().map(record).as_ref(), is_put(&change).then(|| record(&change)).as_ref());
        Self { version: at.version, chain: at.chain, at: made_at, author, reason, audience, change, diff }
    }
}

fn is_put(change: &Value) -> bool {
    change.as_object().and_then(|object| object.keys().next()).is_some_and(|kind| !kind.starts_with("drop_"))
}

/// The record inside `{"put_…": record}`.
fn record(change: &Value) -> Value {
    change.as_object().and_then(|object| object.values().next()).cloned().unwrap_or_default()
}

/// Lets edges take this log's state although they hold a later version of a log that is no more. Owners only: what they
/// were told and is not in this log is gone with it.
pub(crate) async fn rewind(context: &Context, operator: Operator, input: Rewind) -> Result<ConfigHead, ActionError> {
    if operator.role < Role::Owner {
        return Err(ActionError::Forbidden(Role::Owner));
    }
    let reason = sound_reason(Some(&input.reason))?;
    let from_version = i64::try_from(input.from_version)
        .map_err(|_| ActionError::field("from_version", "expected a version that fits 63 bits"))?;
    let mut edit = context.feed.edit(operator.name()).await?;
    config_log::allow_rewind(edit.connection(), from_version).await?;
    let details = json!({"from_version": from_version, "reason": reason});
    audit(&mut edit, operator, "config.rewind", ("config", "log"), details).await?;
    edit.commit().await?;
    context.feed.nudge();
    head(context).await
}

/// Fields that differ between two records.
pub(crate) fn diff(before: Option<&Value>, after: Option<&Value>) -> Vec<FieldDiff> {
    let mut found = Vec::new();
    compare(&mut String::new(), before, after, &mut found);
    found
}

fn compare(path: &mut String, before: Option<&Value>, after: Option<&Value>, found: &mut Vec<FieldDiff>) {
    // What is null is not there.
    let (before, after) = (before.filter(|value| !value.is_null()), after.filter(|value| !value.is_null()));
    if before == after {
        return;
    }
    let nothing = Map::new();
    match (before, after) {
        (Some(Value::Object(old)), Some(Value::Object(new))) => compare_fields(path, old, new, found),
        (None, Some(Value::Object(new))) if !new.is_empty() => compare_fields(path, &nothing, new, found),
        (Some(Value::Object(old)), None) if !old.is_empty() => compare_fields(path, old, &nothing, found),
        _ => found.push(FieldDiff { path: path.clone(), before: before.cloned(), after: after.cloned() }),
    }
}

fn compare_fields(path: &mut String, old: &Map<String, Value>, new: &Map<String, Value>, found: &mut Vec<FieldDiff>) {
    let added = new.keys().filter(|name| !old.contains_key(*name));
    for name in old.keys().chain(added) {
        let length = path.len();
        if length > 0 {
            path.push('.');
        }
        path.push_str(name);
        compare(path, old.get(name), new.get(name), found);
        path.truncate(length);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_diff_names_the_fields_that_differ() {
        let before = json!({"id": "m", "price": {"input": 1, "output": 2}, "versions": [1]});
        let after = json!({"id": "m", "price": {"input": 1, "output": 3}, "versions": [1, 2], "public": true});
        let of =
            |path: &str, before: Option<Value>, after: Option<Value>| FieldDiff { path: path.into(), before, after };
        assert_eq!(
            diff(Some(&before), Some(&after)),
            [
                of("price.output", Some(json!(2)), Some(json!(3))),
                of("versions", Some(json!([1])), Some(json!([1, 2]))),
                of("public", None, Some(json!(true))),
            ]
        );
        assert_eq!(diff(Some(&before), Some(&before)), []);
        assert_eq!(diff(None, Some(&json!({"id": "m"}))), [of("id", None, Some(json!("m")))]);
        assert_eq!(diff(Some(&json!({"id": "m"})), None), [of("id", Some(json!("m")), None)]);
        assert_eq!(diff(None, Some(&json!({"id": null}))), []);
    }
}
