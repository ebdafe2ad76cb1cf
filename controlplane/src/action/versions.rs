//! Versions of models.

use super::{ActionError, Checks, Operator, audit};
use crate::context::Context;
use crate::feed::Edit;
use crate::store::models;
use crate::store::versions::{self, ACTIVE, DEPRECATED, ModelVersion, PENDING};
use chrono::Utc;
use serde::Deserialize;
use serde_json::{Value, json};
use turnpike_config::Change;
use utoipa::ToSchema;
use uuid::Uuid;

/// A new version of a model.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct CreateVersion {
    /// Name, unique within the model.
    #[schema(example = "2026-01-15")]
    version: String,
    /// Where the weights lie.
    model_artifact_path: String,
    /// Free configuration, an object.
    config: Option<Value>,
    /// Takes requests at once.
    #[serde(default)]
    activate: bool,
    /// Takes the model's requests that name no version; activates it too.
    #[serde(default)]
    make_default: bool,
}

/// What can be done to a version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum VersionAct {
    /// It takes requests.
    Activate,
    /// It is the one that requests naming only the model go to; activates it too.
    MakeDefault,
    /// It takes no requests any more.
    Deprecate,
}

impl VersionAct {
    const fn name(self) -> &'static str {
        match self {
            Self::Activate => "model_version.activate",
            Self::MakeDefault => "model_version.make_default",
            Self::Deprecate => "model_version.deprecate",
        }
    }
}

fn check(version: &ModelVersion) -> Result<(), ActionError> {
    let mut checks = Checks::default();
    let clean = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    let name = (1..=50).contains(&version.version.len()) && version.version.chars().all(clean);
    checks.require(name, "version", "expected 1 to 50 of letters, digits and . - _");
    checks.text("model_artifact_path", &version.model_artifact_path, 1000);
    checks.object("config", &version.config);
    checks.finish()
}

fn activate(version: &mut ModelVersion) {
    if version.deployment_status != ACTIVE {
        version.deployment_status = ACTIVE.to_owned();
        version.deployed_at = version.deployed_at.or_else(|| Some(Utc::now()));
        version.deprecated_at = None;
    }
}

/// Tells the edges of a model as it is now.
async fn push(edit: &mut Edit<'_>, model: &str) -> Result<(), ActionError> {
    let row = models::get(edit.connection(), model).await?;
    let row = row.ok_or_else(|| ActionError::not_found("model", model))?;
    let record = models::record(edit.connection(), &row).await?;
    edit.push(Change::PutModel(record));
    Ok(())
}

/// Makes a version of a model.
pub(crate) async fn create(
    context: &Context,
    operator: Operator,
    model: &str,
    input: CreateVersion,
) -> Result<ModelVersion, ActionError> {
    let mut edit = context.feed.edit(operator.name()).await?;
    let version = create_in(&mut edit, operator, model, input).await?;
    edit.commit().await?;
    Ok(version)
}

/// Makes a version of a model as part of a larger change.
pub(super) async fn create_in(
    edit: &mut Edit<'_>,
    operator: Operator,
    model: &str,
    input: CreateVersion,
) -> Result<ModelVersion, ActionError> {
    let mut version = ModelVersion {
        id: Uuid::now_v7(),
        model_id: model.to_owned(),
        version: input.version,
        is_default: input.make_default,
        model_artifact_path: input.model_artifact_path,
        config: input.config.unwrap_or_else(|| json!({})),
        performance_metrics: json!({}),
        deployment_status: PENDING.to_owned(),
        created_at: Utc::now(),
        deployed_at: None,
        deprecated_at: None,
    };
    check(&version)?;
    if input.activate || input.make_default {
        activate(&mut version);
    }
    if models::get(edit.connection(), model).await?.is_none() {
        return Err(ActionError::not_found("model", model));
    }
    if version.is_default {
        versions::clear_default(edit.connection(), model).await?;
    }
    versions::insert(edit.connection(), &version).await?;
    let details = json!({"model": model, "version": version.version});
    audit(edit, operator, "model_version.create", ("model_version", &version.id.to_string()), details).await?;
    push(edit, model).await?;
    Ok(version)
}

/// Activates, defaults or deprecates a version.
pub(crate) async fn act(
    context: &Context,
    operator: Operator,
    model: &str,
    name: &str,
    act: VersionAct,
) -> Result<ModelVersion, ActionError> {
    let mut edit = context.feed.edit(operator.name()).await?;
    let version = act_in(&mut edit, operator, (model, name), act).await?;
    edit.commit().await?;
    Ok(version)
}

/// The same as part of a larger change.
pub(super) async fn act_in(
    edit: &mut Edit<'_>,
    operator: Operator,
    (model, name): (&str, &str),
    act: VersionAct,
) -> Result<ModelVersion, ActionError> {
    let version = versions::get(edit.connection(), model, name).await?;
    let mut version = version.ok_or_else(|| ActionError::not_found("model version", format!("{model}@{name}")))?;
    match act {
        VersionAct::Activate => activate(&mut version),
        VersionAct::MakeDefault => {
            versions::clear_default(edit.connection(), model).await?;
            activate(&mut version);
            version.is_default = true;
        }
        VersionAct::Deprecate if version.is_default => {
            return Err(ActionError::Conflict(format!(
                "{model}@{name} is the model's default: make another version the default first"
            )));
        }
        VersionAct::Deprecate => {
            version.deployment_status = DEPRECATED.to_owned();
            version.deprecated_at = Some(Utc::now());
        }
    }
    versions::update(edit.connection(), &version).await?;
    let details = json!({"model": model, "version": name});
    audit(edit, operator, act.name(), ("model_version", &version.id.to_string()), details).await?;
    push(edit, model).await?;
    Ok(version)
}

/// One version.
pub(crate) async fn get(context: &Context, model: &str, name: &str) -> Result<ModelVersion, ActionError> {
    let version = versions::get(&mut *context.store.read().await?, model, name).await?;
    version.ok_or_else(|| ActionError::not_found("model version", format!("{model}@{name}")))
}

/// A page of a model's versions.
pub(crate) async fn list(
    context: &Context,
    model: &str,
    after: Option<Uuid>,
    limit: i64,
) -> Result<Vec<ModelVersion>, ActionError> {
    let mut connection = context.store.read().await?;
    if models::get(&mut connection, model).await?.is_none() {
        return Err(ActionError::not_found("model", model));
    }
    Ok(versions::list(&mut connection, model, after, limit).await?)
}
