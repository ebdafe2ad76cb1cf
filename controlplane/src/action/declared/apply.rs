//! From documents to changes: all of them in one transaction, or none.

use super::document::{Documents, Fields, normal};
use super::export::names;
use super::kinds::{self, Made, Names};
use crate::action::config::{FieldDiff, diff};
use crate::action::{ActionError, FieldError, Operator, keys, models, routes, sound_reason};
use crate::context::Context;
use crate::feed::Edit;
use crate::store;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use utoipa::ToSchema;

/// What is to be, and how it is to come.
#[derive(Clone, Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Apply {
    /// What there is to be.
    pub(crate) documents: Documents,
    /// Also take away what is not declared: routes are removed, keys revoked for good, models switched off. Organizations,
    /// users and nodes stay.
    #[serde(default)]
    pub(crate) prune: bool,
    /// Only say what would be done.
    #[serde(default)]
    pub(crate) dry_run: bool,
    /// Why, for whoever reads the log.
    pub(crate) reason: Option<String>,
}

/// What was done, or would be.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct Outcome {
    /// Version at which edges know; the present one if nothing changed or it was a dry run.
    pub(crate) version: u64,
    /// Records that differ, in the order in which they are changed.
    pub(crate) steps: Vec<PlannedStep>,
    /// Documents that say what is so already.
    pub(crate) unchanged: usize,
}

/// One record that differs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub(crate) struct PlannedStep {
    /// `organization`, `user`, `model`, `version`, `key`, `route` or `node`.
    kind: &'static str,
    /// What documents call it.
    name: String,
    /// `create`, `update` or `remove`.
    action: &'static str,
    /// What changes, field by field.
    diff: Vec<FieldDiff>,
}

/// Brings about what is declared.
pub(crate) async fn apply(context: &Context, operator: Operator, input: Apply) -> Result<Outcome, ActionError> {
    let reason = sound_reason(input.reason.as_deref())?;
    let mut edit = context.feed.edit(operator.name()).await?;
    if let Some(reason) = reason {
        edit.because(reason);
    }
    let (steps, unchanged) = plan(&mut edit, operator, &input).await?;
    let version = if input.dry_run { edit.check().await? } else { edit.commit().await? };
    Ok(Outcome { version, steps, unchanged })
}

/// Makes the changes inside an edit, and says what they are.
pub(crate) async fn plan(
    edit: &mut Edit<'_>,
    operator: Operator,
    input: &Apply,
) -> Result<(Vec<PlannedStep>, usize), ActionError> {
    let mut run = Run { names: names(edit.connection()).await?, ..Run::default() };
    let Documents { organization, user, model, version, key, route, node } = &input.documents;
    for fields in organization {
        run.note("organization", &["slug"], fields, kinds::put_org(edit, operator, fields).await)?;
    }
    if !organization.is_empty() || !user.is_empty() {
        // Those that were just made are referred to.
        run.names = names(edit.connection()).await?;
    }
    for fields in user {
        run.note("user", &["email"], fields, kinds::put_user(edit, operator, fields, &run.names).await)?;
    }
    for fields in model {
        run.note("model", &["id"], fields, kinds::put_model(edit, operator, fields).await)?;
    }
    for fields in version {
        run.note("version", &["model", "version"], fields, kinds::put_version(edit, operator, fields).await)?;
    }
    for fields in route {
        let made = kinds::put_route(edit, operator, fields, &run.names).await;
        run.note("route", &["name", "organization"], fields, made)?;
    }
    for fields in key {
        run.note("key", &["digest"], fields, kinds::put_key(edit, operator, fields, &run.names).await)?;
    }
    for fields in node {
        run.note("node", &["name"], fields, kinds::put_node(edit, operator, fields).await)?;
    }
    if input.prune {
        prune(edit, operator, &mut run).await?;
    }
    Ok((run.steps, run.unchanged))
}

/// What has been done so far.
#[derive(Debug, Default)]
struct Run {
    names: Names,
    steps: Vec<PlannedStep>,
    unchanged: usize,
    /// Kind and name of what was declared.
    declared: BTreeSet<(&'static str, String)>,
}

impl Run {
    fn note(
        &mut self,
        kind: &'static str,
        identity: &[&str],
        fields: &Fields,
        made: Result<Made, ActionError>,
    ) -> Result<(), ActionError> {
        let name = called(fields, identity);
        let Made { before, set } = made.map_err(|error| placed(error, kind, &name))?;
        if !self.declared.insert((kind, name.clone())) {
            return Err(placed(ActionError::field("", "it is declared twice"), kind, &name));
        }
        if before.is_some() && set.is_empty() {
            self.unchanged += 1;
            return Ok(());
        }
        let action = if before.is_some() { "update" } else { "create" };
        let was: Option<Value> = before.map(|before| {
            let changed = before.iter().filter(|(field, _)| set.contains_key(*field));
            Value::Object(changed.map(|(field, value)| (field.clone(), normal(field, value))).collect())
        });
        let is = set.iter().map(|(field, value)| (field.clone(), normal(field, value))).collect();
        let diff = diff(was.as_ref(), Some(&Value::Object(is)));
        self.steps.push(PlannedStep { kind, name, action, diff });
        Ok(())
    }

    fn remove(&mut self, kind: &'static str, name: String, diff: Vec<FieldDiff>) {
        self.steps.push(PlannedStep { kind, name, action: "remove", diff });
    }

    fn is_declared(&self, kind: &'static str, name: &str) -> bool {
        self.declared.contains(&(kind, name.to_owned()))
    }
}

/// What people call a record.
fn called(fields: &Fields, identity: &[&str]) -> String {
    let parts = identity.iter().filter_map(|name| fields.get(*name)?.as_str());
    parts.collect::<Vec<_>>().join("@")
}

/// An error with the document that it is about.
fn placed(error: ActionError, kind: &str, name: &str) -> ActionError {
    let ActionError::Invalid(fields) = error else { return error };
    let place = |FieldError { field, detail }: FieldError| {
        let dot = if field.is_empty() { "" } else { "." };
        FieldError { field: format!("{kind}[{name}]{dot}{field}"), detail }
    };
    ActionError::Invalid(fields.into_iter().map(place).collect())
}

/// Takes away what is not declared: routes first, which refer to models.
async fn prune(edit: &mut Edit<'_>, operator: Operator, run: &mut Run) -> Result<(), ActionError> {
    for route in store::routes::all(edit.connection()).await? {
        let fields = kinds::of_route(&route, &run.names);
        let name = called(&fields, &["name", "organization"]);
        if !run.is_declared("route", &name) {
            routes::delete_in(edit, operator, &route).await?;
            run.remove("route", name, diff(Some(&Value::Object(fields)), None));
        }
    }
    for key in store::keys::all_live(edit.connection()).await? {
        if !run.is_declared("key", &key.key_hash) {
            let name = key.key_hash.clone();
            let was = json!({"name": key.name, "prefix": key.key_prefix});
            keys::revoke_in(edit, operator, key).await?;
            run.remove("key", name, diff(Some(&was), None));
        }
    }
    for model in store::models::all(edit.connection()).await? {
        if model.is_active && !run.is_declared("model", &model.id) {
            let name = model.id.clone();
            let off = serde_json::from_value(json!({"is_active": false}));
            let off = off.map_err(|error| ActionError::Internal(error.to_string()))?;
            models::patch_in(edit, operator, model, off).await?;
            run.remove("model", name, diff(Some(&json!({"is_active": true})), Some(&json!({"is_active": false}))));
        }
    }
    Ok(())
}
