//! Purging the edges' response caches.

use super::{ActionError, Operator, audit};
use crate::context::Context;
use crate::feed::Edit;
use crate::store::{models, organizations, purges};
use chrono::{DateTime, SubsecRound as _, Utc};
use serde::{Deserialize, Serialize};
use serde_json::json;
use turnpike_config::{CacheKey, Change};
use utoipa::ToSchema;
use uuid::Uuid;

/// What to purge: exactly one of the three.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct PurgeCache {
    /// All answers given to this organization.
    organization_id: Option<Uuid>,
    /// All answers of this model.
    model_id: Option<String>,
    /// The answer of this key: 64 hexadecimal digits, as in `x-turnpike-cache-key`.
    key: Option<String>,
}

/// What was purged.
#[derive(Debug, Default, Serialize, ToSchema)]
pub(crate) struct Purged {
    /// The organization whose answers are gone.
    #[serde(skip_serializing_if = "Option::is_none")]
    organization_id: Option<Uuid>,
    /// The model whose answers are gone.
    #[serde(skip_serializing_if = "Option::is_none")]
    model_id: Option<String>,
    /// The key whose answer is gone.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    key: Option<CacheKey>,
    /// How often the organization's or the model's answers were purged, this time included.
    #[serde(skip_serializing_if = "Option::is_none")]
    generation: Option<i32>,
    /// Answers of the key that are older are gone.
    #[serde(skip_serializing_if = "Option::is_none")]
    purged_at: Option<DateTime<Utc>>,
    /// Config version from which on edges give out none of it; compare with `holds` of /admin/v1/edges.
    version: u64,
}

/// Makes cached answers unfindable on every edge. To purge again purges also what was cached meanwhile.
pub(crate) async fn purge(context: &Context, operator: Operator, input: PurgeCache) -> Result<Purged, ActionError> {
    let mut edit = context.feed.edit(operator.name()).await?;
    let (purged, kind, id) = match input {
        PurgeCache { organization_id: Some(id), model_id: None, key: None } => {
            (organization(&mut edit, id).await?, "organization", id.to_string())
        }
        PurgeCache { organization_id: None, model_id: Some(id), key: None } => {
            (model(&mut edit, &id).await?, "model", id)
        }
        PurgeCache { organization_id: None, model_id: None, key: Some(key) } => {
            let key =
                CacheKey::from_hex(&key).ok_or_else(|| ActionError::field("key", "expected 64 hexadecimal digits"))?;
            (answer(&mut edit, key).await?, "cached_answer", key.to_string())
        }
        _ => return Err(ActionError::field("body", "expected exactly one of organization_id, model_id and key")),
    };
    audit(&mut edit, operator, "cache.purge", (kind, &id), json!({"generation": purged.generation})).await?;
    let version = edit.commit().await?;
    Ok(Purged { version, ..purged })
}

async fn organization(edit: &mut Edit<'_>, id: Uuid) -> Result<Purged, ActionError> {
    let org = organizations::purge_answers(edit.connection(), id).await?;
    let org = org.ok_or_else(|| ActionError::not_found("organization", id))?;
    edit.push(Change::PutOrg(org.record()));
    Ok(Purged { organization_id: Some(id), generation: Some(org.cache_generation), ..Purged::default() })
}

async fn model(edit: &mut Edit<'_>, id: &str) -> Result<Purged, ActionError> {
    let model = models::purge_answers(edit.connection(), id).await?;
    let model = model.ok_or_else(|| ActionError::not_found("model", id))?;
    let record = models::record(edit.connection(), &model).await?;
    edit.push(Change::PutModel(record));
    Ok(Purged { generation: Some(model.cache_generation), model_id: Some(model.id), ..Purged::default() })
}

async fn answer(edit: &mut Edit<'_>, key: CacheKey) -> Result<Purged, ActionError> {
    // Edges are told milliseconds; what is stored must be the same time.
    let at = purges::put(edit.connection(), key, Utc::now().trunc_subsecs(3)).await?;
    purges::trim(edit.connection()).await?;
    edit.push(Change::PurgeAnswer { key, at_ms: u64::try_from(at.timestamp_millis()).unwrap_or_default() });
    Ok(Purged { key: Some(key), purged_at: Some(at), ..Purged::default() })
}
