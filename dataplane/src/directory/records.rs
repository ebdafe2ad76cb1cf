//! The names and forms of what is written, as the platform's schema has them.
//!
//! Everything says by which version of the routing it is so. An edge believes only what is newer than its own routing,
//! which otherwise knows better, and what is newer is never written over by what is older.

use serde::{Deserialize, Serialize};
use std::time::Duration;
use turnpike_config::{KeyDigest, KeyRecord, ModelRecord, NodeRecord, OrgRecord};

/// How long keys, models and versions are kept.
pub(super) const RECORD_TTL: Duration = Duration::from_secs(3_600);
/// How long it is kept who serves a model.
pub(super) const SERVERS_TTL: Duration = Duration::from_secs(300);

/// What is so by a version of the routing; `None` is gone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Entry<T> {
    pub(super) routing_version: u64,
    #[serde(flatten)]
    pub(super) record: Option<T>,
}

/// `api_key:{key_hash}`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct KeyEntry {
    pub(super) key: KeyRecord,
    pub(super) organization: OrgRecord,
}

/// `model:{model_id}:metadata`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ModelEntry {
    pub(super) model: ModelRecord,
}

/// A model with the nodes that have it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Listing {
    pub(super) model: ModelRecord,
    pub(super) servers: Vec<NodeRecord>,
}

pub(super) fn key_name(digest: &KeyDigest) -> String {
    format!("api_key:{digest}")
}

pub(super) fn metadata_name(model: &str) -> String {
    format!("model:{model}:metadata")
}

pub(super) fn version_name(model: &str, version: &str) -> String {
    format!("model:{model}:version:{version}")
}

pub(super) fn servers_name(model: &str) -> String {
    format!("model_servers:{model}")
}
