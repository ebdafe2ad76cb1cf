//! Each kind of document: how its record is found, made, changed and written down as a document again.

use super::document::{Fields, missing};
use crate::action::versions::VersionAct;
use crate::action::{ActionError, FieldError, Operator, keys, models, nodes, organizations, routes, users, versions};
use crate::feed::Edit;
use crate::store;
use crate::store::keys::ApiKey;
use crate::store::models::Model;
use crate::store::organizations::Organization;
use crate::store::routes::Route;
use crate::store::users::User;
use crate::store::versions::{ACTIVE, DEPRECATED, ModelVersion, PENDING};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::collections::HashMap;
use turnpike_config::KeyDigest;
use uuid::Uuid;

/// What a document makes of its record.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Made {
    /// The record as a document, before; `None` if it was not there.
    pub(super) before: Option<Fields>,
    /// The fields that were set.
    pub(super) set: Fields,
}

/// Short names that documents refer to each other by, looked up once.
#[derive(Debug, Default)]
pub(super) struct Names {
    slugs: HashMap<Uuid, String>,
    emails: HashMap<Uuid, String>,
}

impl Names {
    pub(super) fn know_org(&mut self, org: &Organization) {
        self.slugs.insert(org.id, org.slug.clone());
    }

    pub(super) fn know_user(&mut self, user: &User) {
        self.emails.insert(user.id, user.email.clone());
    }

    fn slug(&self, id: Uuid) -> String {
        self.slugs.get(&id).cloned().unwrap_or_else(|| id.to_string())
    }

    fn email(&self, id: Uuid) -> String {
        self.emails.get(&id).cloned().unwrap_or_else(|| id.to_string())
    }
}

/// A record as a document, without what is empty.
fn document(value: Value) -> Fields {
    match value {
        Value::Object(fields) => fields.into_iter().filter(|(_, value)| !value.is_null()).collect(),
        _ => Fields::new(),
    }
}

pub(super) fn of_org(org: &Organization) -> Fields {
    document(json!({
        "slug": org.slug, "name": org.name, "plan_type": org.plan_type, "billing_email": org.billing_email,
        "tax_id": org.tax_id, "address": org.address, "settings": org.settings,
    }))
}

pub(super) fn of_user(user: &User, names: &Names) -> Fields {
    document(json!({
        "email": user.email, "organization": names.slug(user.organization_id), "first_name": user.first_name,
        "last_name": user.last_name, "role": user.role, "is_active": user.is_active,
    }))
}

pub(super) fn of_model(model: &Model) -> Fields {
    document(json!({
        "id": model.id, "name": model.name, "provider": model.provider, "category": model.category,
        "description": model.description, "context_length": model.context_length,
        "max_output_tokens": model.max_output_tokens, "parameter_count": model.parameter_count,
        "model_size": model.model_size, "capabilities": model.capabilities,
        "supported_languages": model.supported_languages, "pricing": model.pricing, "is_active": model.is_active,
        "is_public": model.is_public, "metadata": model.metadata, "cache": model.cache,
    }))
}

pub(super) fn of_version(version: &ModelVersion) -> Fields {
    document(json!({
        "model": version.model_id, "version": version.version, "model_artifact_path": version.model_artifact_path,
        "config": version.config, "status": version.deployment_status, "default": version.is_default,
    }))
}

pub(super) fn of_key(key: &ApiKey, names: &Names) -> Fields {
    document(json!({
        "digest": key.key_hash, "organization": names.slug(key.organization_id), "user": names.email(key.user_id),
        "name": key.name, "prefix": key.key_prefix, "permissions": key.permissions, "rate_limits": key.rate_limits,
        "allowed_models": key.allowed_models, "expires_at": key.expires_at, "is_active": key.is_active,
    }))
}

pub(super) fn of_route(route: &Route, names: &Names) -> Fields {
    document(json!({
        "name": route.name, "organization": route.organization_id.map(|id| names.slug(id)), "policy": route.policy.0,
    }))
}

pub(super) fn of_node(node: &store::nodes::Node) -> Fields {
    document(json!({"name": node.name, "enabled": node.enabled}))
}

/// A field that a document must have.
fn required<'f>(fields: &'f Fields, name: &str) -> Result<&'f str, ActionError> {
    let text = fields.get(name).and_then(Value::as_str);
    text.ok_or_else(|| ActionError::field(name, "expected a text: it says which record is meant"))
}

/// The rest of a document as the admin API takes it.
fn input<T: DeserializeOwned>(fields: Fields) -> Result<T, ActionError> {
    serde_path_to_error::deserialize(Value::Object(fields)).map_err(|error| {
        let detail = error.inner().to_string();
        ActionError::Invalid(vec![FieldError { field: error.path().to_string(), detail }])
    })
}

fn without(fields: &Fields, names: &[&str]) -> Fields {
    fields.iter().filter(|(name, _)| !names.contains(&name.as_str())).map(|(n, v)| (n.clone(), v.clone())).collect()
}

/// What cannot be changed must be as it is.
fn unchangeable(set: &Fields, names: &[&str]) -> Result<(), ActionError> {
    match names.iter().find(|name| set.contains_key(**name)) {
        Some(name) => Err(ActionError::field(name, "cannot be changed once the record is there")),
        None => Ok(()),
    }
}

async fn organization(edit: &mut Edit<'_>, fields: &Fields) -> Result<Uuid, ActionError> {
    let slug = required(fields, "organization")?;
    let org = store::organizations::named(edit.connection(), slug).await?;
    Ok(org.ok_or_else(|| ActionError::field("organization", format!("there is no organization {slug}")))?.id)
}

pub(super) async fn put_org(edit: &mut Edit<'_>, operator: Operator, fields: &Fields) -> Result<Made, ActionError> {
    let slug = required(fields, "slug")?;
    let Some(org) = store::organizations::named(edit.connection(), slug).await? else {
        organizations::create_in(edit, operator, input(fields.clone())?).await?;
        return Ok(Made { before: None, set: fields.clone() });
    };
    let before = of_org(&org);
    let set = missing(&before, fields);
    if !set.is_empty() {
        organizations::patch_in(edit, operator, org, input(set.clone())?).await?;
    }
    Ok(Made { before: Some(before), set })
}

pub(super) async fn put_user(
    edit: &mut Edit<'_>,
    operator: Operator,
    fields: &Fields,
    names: &Names,
) -> Result<Made, ActionError> {
    let email = required(fields, "email")?;
    let Some(user) = store::users::named(edit.connection(), email).await? else {
        let mut new = without(fields, &["organization", "is_active"]);
        new.insert("organization_id".to_owned(), json!(organization(edit, fields).await?));
        let user = users::create_in(edit, operator, input(new)?).await?;
        if is_off(fields)? {
            let off = document(json!({"is_active": false}));
            users::patch_in(edit, operator, user, input(off)?).await?;
        }
        return Ok(Made { before: None, set: fields.clone() });
    };
    let before = of_user(&user, names);
    let set = missing(&before, fields);
    unchangeable(&set, &["organization"])?;
    if !set.is_empty() {
        users::patch_in(edit, operator, user, input(set.clone())?).await?;
    }
    Ok(Made { before: Some(before), set })
}

pub(super) async fn put_model(edit: &mut Edit<'_>, operator: Operator, fields: &Fields) -> Result<Made, ActionError> {
    let id = required(fields, "id")?;
    let Some(model) = store::models::get(edit.connection(), id).await? else {
        models::create_in(edit, operator, input(fields.clone())?).await?;
        return Ok(Made { before: None, set: fields.clone() });
    };
    let before = of_model(&model);
    let set = missing(&before, fields);
    if !set.is_empty() {
        models::patch_in(edit, operator, model, input(set.clone())?).await?;
    }
    Ok(Made { before: Some(before), set })
}

/// What a version's document asks for can be brought about.
fn check_version(set: &Fields, is_there: bool) -> Result<(), ActionError> {
    let wrong = |field, detail: &str| Err(ActionError::field(field, detail));
    match set.get("status").map(Value::as_str) {
        None | Some(Some(ACTIVE | DEPRECATED)) => {}
        Some(Some(PENDING)) if !is_there => {}
        Some(Some(PENDING)) => return wrong("status", "a version that took requests is deprecated, not pending again"),
        Some(_) => return wrong("status", "expected active, deprecated or pending"),
    }
    match set.get("default") {
        None | Some(Value::Bool(true)) => Ok(()),
        Some(Value::Bool(false)) if !is_there => Ok(()),
        Some(Value::Bool(false)) => wrong("default", "make another version the default instead"),
        Some(_) => wrong("default", "expected true or false"),
    }
}

/// Whether a new record is to be switched off at once.
fn is_off(fields: &Fields) -> Result<bool, ActionError> {
    match fields.get("is_active") {
        None => Ok(false),
        Some(Value::Bool(active)) => Ok(!active),
        Some(_) => Err(ActionError::field("is_active", "expected true or false")),
    }
}

pub(super) async fn put_version(edit: &mut Edit<'_>, operator: Operator, fields: &Fields) -> Result<Made, ActionError> {
    let (model, name) = (required(fields, "model")?, required(fields, "version")?);
    let found = store::versions::get(edit.connection(), model, name).await?;
    let before = found.as_ref().map(of_version);
    let set = before.as_ref().map_or_else(|| fields.clone(), |before| missing(before, fields));
    if found.is_none() {
        let new = without(fields, &["model", "status", "default"]);
        versions::create_in(edit, operator, model, input(new)?).await?;
    } else {
        unchangeable(&set, &["model_artifact_path", "config"])?;
    }
    check_version(&set, found.is_some())?;
    let acts = [
        (set.get("default") == Some(&json!(true)), VersionAct::MakeDefault),
        (set.get("status") == Some(&json!(ACTIVE)), VersionAct::Activate),
        (set.get("status") == Some(&json!(DEPRECATED)), VersionAct::Deprecate),
    ];
    for (_, act) in acts.into_iter().filter(|(wanted, _)| *wanted) {
        versions::act_in(edit, operator, (model, name), act).await?;
    }
    let known = ["model", "version", "model_artifact_path", "config", "status", "default"];
    match fields.keys().find(|field| !known.contains(&field.as_str())) {
        Some(field) => Err(ActionError::field(field, format!("unknown; expected some of {}", known.join(", ")))),
        None => Ok(Made { before, set }),
    }
}

pub(super) async fn put_key(
    edit: &mut Edit<'_>,
    operator: Operator,
    fields: &Fields,
    names: &Names,
) -> Result<Made, ActionError> {
    let hex = required(fields, "digest")?;
    // In one form only: documents are known by it.
    let digest = KeyDigest::from_hex(hex).filter(|digest| digest.to_string() == hex);
    let digest = digest.ok_or_else(|| {
        let detail = "expected the SHA-256 of the key as 64 hexadecimal digits in lower case, never the key itself";
        ActionError::field("digest", detail)
    })?;
    let Some(key) = store::keys::by_digest(edit.connection(), digest).await? else {
        let mut new = without(fields, &["organization", "user", "digest", "prefix", "is_active"]);
        new.insert("organization_id".to_owned(), json!(organization(edit, fields).await?));
        let email = required(fields, "user")?;
        let user = store::users::named(edit.connection(), email).await?;
        let user = user.ok_or_else(|| ActionError::field("user", format!("there is no user {email}")))?;
        new.insert("user_id".to_owned(), json!(user.id));
        let prefix = if fields.contains_key("prefix") { required(fields, "prefix")? } else { "" };
        let key = keys::create_in(edit, operator, input(new)?, (digest, prefix.to_owned())).await?;
        if is_off(fields)? {
            let off = document(json!({"is_active": false}));
            keys::patch_in(edit, operator, key, input(off)?).await?;
        }
        return Ok(Made { before: None, set: fields.clone() });
    };
    if key.revoked_at.is_some() {
        return Err(ActionError::field("digest", "this key was revoked for good; make a new one"));
    }
    let before = of_key(&key, names);
    let set = missing(&before, fields);
    unchangeable(&set, &["organization", "user", "prefix"])?;
    if !set.is_empty() {
        keys::patch_in(edit, operator, key, input(set.clone())?).await?;
    }
    Ok(Made { before: Some(before), set })
}

pub(super) async fn put_route(
    edit: &mut Edit<'_>,
    operator: Operator,
    fields: &Fields,
    names: &Names,
) -> Result<Made, ActionError> {
    let name = required(fields, "name")?;
    let owner = match fields.get("organization") {
        Some(_) => Some(organization(edit, fields).await?),
        None => None,
    };
    let Some(route) = store::routes::named(edit.connection(), name, owner).await? else {
        let mut new = without(fields, &["organization"]);
        new.insert("organization_id".to_owned(), json!(owner));
        routes::create_in(edit, operator, input(new)?).await?;
        return Ok(Made { before: None, set: fields.clone() });
    };
    let before = of_route(&route, names);
    let set = missing(&before, fields);
    if !set.is_empty() {
        let patch: routes::PatchRoute = input(set.clone())?;
        routes::patch_in(edit, operator, route, patch.policy).await?;
    }
    Ok(Made { before: Some(before), set })
}

pub(super) async fn put_node(edit: &mut Edit<'_>, operator: Operator, fields: &Fields) -> Result<Made, ActionError> {
    let name = required(fields, "name")?;
    let node = store::nodes::get(edit.connection(), name).await?;
    let node = node.ok_or_else(|| ActionError::field("name", format!("no node {name} has made itself known yet")))?;
    let before = of_node(&node);
    let set = missing(&before, fields);
    match set.get("enabled") {
        Some(Value::Bool(enabled)) => drop(nodes::set_enabled_in(edit, operator, node, *enabled).await?),
        Some(_) => return Err(ActionError::field("enabled", "expected true or false")),
        None => {}
    }
    match set.keys().find(|field| *field != "enabled") {
        Some(field) => Err(ActionError::field(field, "unknown; of a node only `enabled` can be declared")),
        None => Ok(Made { before: Some(before), set }),
    }
}
