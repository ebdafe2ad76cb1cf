//! The first organization with its owner, key and models, made through the admin API like anybody else's.
//!
//! Each step looks first or takes "it is there" for an answer, so all of it is run at every start, also after one that
//! was interrupted.

use super::engine::{Engine, Model};
use super::layout::DataDir;
use crate::{admin, private};
use anyhow::Context as _;
use reqwest::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};
use tracing::{info, warn};

const ORGANIZATION: &str = "default";
const OWNER_EMAIL: &str = "owner@turnpike.internal";
const KEY_NAME: &str = "turnpike up";
/// Characters of a key that the admin API shows.
const SHOWN: usize = 12;

/// The first organization's credentials.
pub(super) struct Owner {
    /// The key itself.
    pub(super) api_key: String,
    /// Whether it was made just now.
    pub(super) key_is_new: bool,
}

#[derive(Debug, Deserialize)]
struct Organization {
    id: String,
    slug: String,
}

#[derive(Debug, Deserialize)]
struct User {
    id: String,
    email: String,
}

#[derive(Debug, Deserialize)]
struct Key {
    key_prefix: String,
    is_active: bool,
    revoked_at: Option<String>,
}

#[derive(Debug, Deserialize)]
struct NewKey {
    key: String,
}

/// Sees to it that all is there.
pub(super) async fn run(admin: &admin::Client, dir: &DataDir, engine: Engine) -> anyhow::Result<Owner> {
    for model in engine.models() {
        ensure_model(admin, model).await.with_context(|| format!("model {}", model.id))?;
    }
    let organization = ensure_organization(admin).await.context("organization")?;
    let user = ensure_owner(admin, &organization).await.context("owner")?;
    ensure_key(admin, dir, &organization, &user).await.context("API key")
}

async fn ensure_organization(admin: &admin::Client) -> anyhow::Result<String> {
    let body = json!({"name": "Default", "slug": ORGANIZATION});
    if let Some(made) = create::<Organization>(admin, "/organizations", &body).await? {
        return Ok(made.id);
    }
    let found = admin.find("/organizations", |org: &Organization| org.slug == ORGANIZATION).await?;
    Ok(found.context("it is there and yet is not listed")?.id)
}

async fn ensure_owner(admin: &admin::Client, organization: &str) -> anyhow::Result<String> {
    let body = json!({"organization_id": organization, "email": OWNER_EMAIL, "role": "owner"});
    if let Some(made) = create::<User>(admin, "/users", &body).await? {
        return Ok(made.id);
    }
    let list = format!("/users?organization={organization}");
    let found = admin.find(&list, |user: &User| user.email == OWNER_EMAIL).await?;
    Ok(found.with_context(|| format!("{OWNER_EMAIL} belongs to another organization"))?.id)
}

async fn ensure_key(admin: &admin::Client, dir: &DataDir, organization: &str, user: &str) -> anyhow::Result<Owner> {
    let file = dir.api_key_file();
    if let Some(api_key) = private::read(&file)?.filter(|key| !key.is_empty()) {
        let prefix: String = api_key.chars().take(SHOWN).collect();
        let list = format!("/api_keys?organization={organization}");
        let usable = |key: &Key| key.key_prefix == prefix && key.is_active && key.revoked_at.is_none();
        if admin.find(&list, usable).await?.is_some() {
            return Ok(Owner { api_key, key_is_new: false });
        }
        warn!(file = %file.display(), "the API key kept there does not work any more; making a new one");
    }
    let body = json!({"organization_id": organization, "user_id": user, "name": KEY_NAME});
    let new: NewKey = admin.post("/api_keys", &body).await?;
    private::write(&file, format!("{}\n", new.key))?;
    Ok(Owner { api_key: new.key, key_is_new: true })
}

async fn ensure_model(admin: &admin::Client, model: &Model) -> anyhow::Result<()> {
    let body = json!({
        "id": model.id,
        "name": model.name,
        "provider": model.provider,
        "category": model.category,
        "context_length": model.context_length,
        "pricing": {"input_tokens": "0.01", "output_tokens": "0.03", "currency": "USD", "per_tokens": 1000},
    });
    if create::<Value>(admin, "/models", &body).await?.is_some() {
        info!(model = model.id, "model registered");
    }
    let version = json!({"version": model.version, "model_artifact_path": "builtin", "make_default": true});
    create::<Value>(admin, &format!("/models/{}/versions", model.id), &version).await?;
    Ok(())
}

/// Creates something; `None` if one of that name is there.
async fn create<T: serde::de::DeserializeOwned>(
    admin: &admin::Client,
    path: &str,
    body: &Value,
) -> Result<Option<T>, admin::Error> {
    match admin.post(path, body).await {
        Ok(made) => Ok(Some(made)),
        Err(e) if e.is(StatusCode::CONFLICT) => Ok(None),
        Err(e) => Err(e),
    }
}
