//! API keys: made, shown once, changed, rotated, revoked.

use super::limits::{self, Limits};
use super::{ActionError, Checks, Operator, audit, nullable};
use crate::context::Context;
use crate::feed::Edit;
use crate::store::keys::{self, ApiKey};
use crate::store::{models, users};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use chrono::{DateTime, Duration, Utc};
use serde::{Deserialize, Serialize};
use serde_json::json;
use turnpike_config::{Change, KeyDigest, LimitSettings, Permissions};
use utoipa::ToSchema;
use uuid::Uuid;

/// How every key begins.
const PREFIX: &str = "sk-tp-";
/// Random bytes of a key.
const KEY_BYTES: usize = 32;
/// Characters of a key that are kept to tell keys apart.
const SHOWN: usize = 12;
/// Longest overlap at a rotation, seconds: 30 days.
const MAX_OVERLAP_S: u32 = 30 * 24 * 3600;
/// Most entries of a model allow-list.
const MAX_MODELS: usize = 256;

/// A new key.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct CreateKey {
    /// The organization that owns it and pays for it.
    organization_id: Uuid,
    /// Who holds it; a user of the organization.
    user_id: Uuid,
    /// Display name.
    name: String,
    /// `inference`, `models.read`, `fine_tuning`, `files`; `inference` and `models.read` if absent.
    permissions: Option<Vec<String>>,
    /// Its limits; unlimited if absent.
    #[schema(value_type = Option<Limits>)]
    rate_limits: Option<LimitSettings>,
    /// Models it may use; every public one if absent.
    allowed_models: Option<Vec<String>>,
    /// From then on it is refused.
    expires_at: Option<DateTime<Utc>>,
}

/// What to change; absent fields stay, null clears.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct PatchKey {
    /// Display name.
    name: Option<String>,
    /// Permissions.
    permissions: Option<Vec<String>>,
    /// Its limits; replaces all of them, so that `{}` lifts them.
    #[schema(value_type = Option<Limits>)]
    rate_limits: Option<LimitSettings>,
    /// Models it may use; null is every public one.
    #[serde(default, deserialize_with = "nullable")]
    #[schema(value_type = Option<Vec<String>>)]
    allowed_models: Option<Option<Vec<String>>>,
    /// From then on it is refused; null is never.
    #[serde(default, deserialize_with = "nullable")]
    #[schema(value_type = Option<DateTime<Utc>>)]
    expires_at: Option<Option<DateTime<Utc>>>,
    /// False switches it off, true on again.
    is_active: Option<bool>,
}

/// How to rotate a key.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct RotateKey {
    /// Seconds for which the old key goes on working, at most 30 days; 0 ends it at once.
    #[serde(default)]
    overlap_seconds: u32,
}

/// A key that was just made. The only answer that ever holds the key itself.
#[derive(Serialize, ToSchema)]
pub(crate) struct NewKey {
    /// Everything else about it.
    #[serde(flatten)]
    pub(crate) api_key: ApiKey,
    /// The key. It is not stored and cannot be shown again.
    #[schema(example = "sk-tp-…")]
    pub(crate) key: String,
}

/// The organization that owns a key, if the key is alive.
pub(crate) async fn owner(context: &Context, key: &str, now: DateTime<Utc>) -> Result<Option<Uuid>, ActionError> {
    if !key.starts_with(PREFIX) {
        return Ok(None);
    }
    let found = keys::by_digest(&mut *context.store.read().await?, KeyDigest::of(key)).await?;
    let is_alive = |key: &ApiKey| {
        key.is_active && key.revoked_at.is_none() && key.expires_at.is_none_or(|expires_at| now < expires_at)
    };
    Ok(found.filter(is_alive).map(|key| key.organization_id))
}

fn generate() -> Result<String, ActionError> {
    let mut bytes = [0; KEY_BYTES];
    getrandom::fill(&mut bytes).map_err(|e| ActionError::Internal(format!("the system's random source: {e}")))?;
    Ok(format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(bytes)))
}

async fn check(edit: &mut Edit<'_>, key: &ApiKey, limits: &LimitSettings) -> Result<(), ActionError> {
    let mut checks = Checks::default();
    checks.text("name", &key.name, 255);
    if let Err(unknown) = Permissions::from_names(&key.permissions) {
        let known = Permissions::NAMES.map(|(name, _)| name).join(", ");
        checks.require(false, "permissions", &format!("«{unknown}» is unknown; expected some of {known}"));
    }
    limits::check(&mut checks, edit.connection(), "rate_limits", limits).await?;
    if let Some(models) = &key.allowed_models {
        checks.require(models.len() <= MAX_MODELS, "allowed_models", "expected at most 256 entries");
        let unknown = models::unknown(edit.connection(), models).await?;
        checks.require(unknown.is_empty(), "allowed_models", &format!("no such model: {}", unknown.join(", ")));
    }
    checks.finish()
}

/// Makes a key.
pub(crate) async fn create(context: &Context, operator: Operator, input: CreateKey) -> Result<NewKey, ActionError> {
    let secret = generate()?;
    let mut edit = context.feed.edit(operator.name()).await?;
    let api_key = create_in(&mut edit, operator, input, (KeyDigest::of(&secret), shown(&secret))).await?;
    edit.commit().await?;
    Ok(NewKey { api_key, key: secret })
}

/// How a key begins, to tell keys apart.
fn shown(secret: &str) -> String {
    secret.chars().take(SHOWN).collect()
}

/// Takes in a key that is known by its digest alone, as part of a larger change.
pub(super) async fn create_in(
    edit: &mut Edit<'_>,
    operator: Operator,
    input: CreateKey,
    (digest, prefix): (KeyDigest, String),
) -> Result<ApiKey, ActionError> {
    let limits = input.rate_limits.unwrap_or_default();
    let now = Utc::now();
    let api_key = ApiKey {
        id: Uuid::now_v7(),
        organization_id: input.organization_id,
        user_id: input.user_id,
        name: input.name,
        key_hash: digest.to_string(),
        key_prefix: prefix,
        permissions: input.permissions.unwrap_or_else(|| vec!["inference".to_owned(), "models.read".to_owned()]),
        rate_limits: json!(limits),
        allowed_models: input.allowed_models,
        is_active: true,
        last_used_at: None,
        created_at: now,
        expires_at: input.expires_at,
        revoked_at: None,
        rotated_from: None,
    };
    check(edit, &api_key, &limits).await?;
    if api_key.expires_at.is_some_and(|at| at <= now) {
        return Err(ActionError::field("expires_at", "expected a time to come"));
    }
    let user = users::get(edit.connection(), api_key.user_id).await?;
    if user.is_none_or(|user| user.organization_id != api_key.organization_id) {
        return Err(ActionError::field("user_id", "no such user in this organization"));
    }
    keys::insert(edit.connection(), &api_key).await?;
    let details = json!({"name": api_key.name});
    audit(edit, operator, "api_key.create", ("api_key", &api_key.id.to_string()), details).await?;
    edit.push(Change::PutKey(api_key.record()?));
    Ok(api_key)
}

/// The key inside an edit; a revoked one is gone for good.
async fn live(edit: &mut Edit<'_>, id: Uuid) -> Result<ApiKey, ActionError> {
    let key = keys::get(edit.connection(), id).await?.ok_or_else(|| ActionError::not_found("api key", id))?;
    if key.revoked_at.is_some() {
        return Err(ActionError::Conflict(format!("api key {id} is revoked for good; create a new one")));
    }
    Ok(key)
}

/// Changes a key.
pub(crate) async fn patch(
    context: &Context,
    operator: Operator,
    id: Uuid,
    patch: PatchKey,
) -> Result<ApiKey, ActionError> {
    let mut edit = context.feed.edit(operator.name()).await?;
    let before = live(&mut edit, id).await?;
    let key = patch_in(&mut edit, operator, before, patch).await?;
    edit.commit().await?;
    Ok(key)
}

/// Changes a key as part of a larger change.
pub(super) async fn patch_in(
    edit: &mut Edit<'_>,
    operator: Operator,
    before: ApiKey,
    patch: PatchKey,
) -> Result<ApiKey, ActionError> {
    let record = before.record()?;
    let kept = LimitSettings::new(record.limits, record.model_limits.clone());
    let limits = patch.rate_limits.unwrap_or(kept);
    let key = ApiKey {
        name: patch.name.unwrap_or(before.name),
        permissions: patch.permissions.unwrap_or(before.permissions),
        rate_limits: json!(limits),
        allowed_models: patch.allowed_models.unwrap_or(before.allowed_models),
        expires_at: patch.expires_at.unwrap_or(before.expires_at),
        is_active: patch.is_active.unwrap_or(before.is_active),
        ..before
    };
    check(edit, &key, &limits).await?;
    keys::update(edit.connection(), &key).await?;
    let details = json!({"is_active": key.is_active});
    audit(edit, operator, "api_key.update", ("api_key", &key.id.to_string()), details).await?;
    if key.record()? != record {
        edit.push(Change::PutKey(key.record()?));
    }
    Ok(key)
}

/// Switches a key off or on again.
pub(crate) async fn set_active(
    context: &Context,
    operator: Operator,
    id: Uuid,
    active: bool,
) -> Result<ApiKey, ActionError> {
    patch(context, operator, id, PatchKey { is_active: Some(active), ..PatchKey::default() }).await
}

/// Ends a key for good. Its row stays, because usage refers to it.
pub(crate) async fn revoke(context: &Context, operator: Operator, id: Uuid) -> Result<(), ActionError> {
    let mut edit = context.feed.edit(operator.name()).await?;
    let before = live(&mut edit, id).await?;
    revoke_in(&mut edit, operator, before).await?;
    edit.commit().await?;
    Ok(())
}

/// The same as part of a larger change.
pub(super) async fn revoke_in(edit: &mut Edit<'_>, operator: Operator, before: ApiKey) -> Result<(), ActionError> {
    let key = ApiKey { is_active: false, revoked_at: Some(Utc::now()), ..before };
    keys::update(edit.connection(), &key).await?;
    audit(edit, operator, "api_key.revoke", ("api_key", &key.id.to_string()), json!({})).await?;
    edit.push(Change::DropKey(key.digest()?));
    Ok(())
}

/// Makes a new key with the same rights; the old one ends after an overlap in which both work.
pub(crate) async fn rotate(
    context: &Context,
    operator: Operator,
    id: Uuid,
    input: RotateKey,
) -> Result<NewKey, ActionError> {
    if input.overlap_seconds > MAX_OVERLAP_S {
        return Err(ActionError::field("overlap_seconds", "expected at most 2592000 (30 days)"));
    }
    let secret = generate()?;
    let now = Utc::now();
    let mut edit = context.feed.edit(operator.name()).await?;
    let old = live(&mut edit, id).await?;
    if !old.is_active || old.expires_at.is_some_and(|at| at <= now) {
        return Err(ActionError::Conflict(format!("api key {id} is disabled or expired; create a new one")));
    }
    let api_key = ApiKey {
        id: Uuid::now_v7(),
        key_hash: KeyDigest::of(&secret).to_string(),
        key_prefix: shown(&secret),
        last_used_at: None,
        created_at: now,
        rotated_from: Some(old.id),
        ..old.clone()
    };
    let end = now + Duration::seconds(i64::from(input.overlap_seconds));
    // A rotation never prolongs the old key's life.
    let old = ApiKey { expires_at: Some(old.expires_at.map_or(end, |at| at.min(end))), ..old };
    keys::insert(edit.connection(), &api_key).await?;
    keys::update(edit.connection(), &old).await?;
    let details = json!({"new": api_key.id, "overlap_seconds": input.overlap_seconds});
    audit(&mut edit, operator, "api_key.rotate", ("api_key", &id.to_string()), details).await?;
    edit.push(Change::PutKey(api_key.record()?));
    edit.push(Change::PutKey(old.record()?));
    edit.commit().await?;
    Ok(NewKey { api_key, key: secret })
}

/// One key, without the key.
pub(crate) async fn get(context: &Context, id: Uuid) -> Result<ApiKey, ActionError> {
    let key = keys::get(&mut *context.store.read().await?, id).await?;
    key.ok_or_else(|| ActionError::not_found("api key", id))
}

/// A page of keys.
pub(crate) async fn list(
    context: &Context,
    organization: Option<Uuid>,
    after: Option<Uuid>,
    limit: i64,
) -> Result<Vec<ApiKey>, ActionError> {
    Ok(keys::list(&mut *context.store.read().await?, organization, after, limit).await?)
}
