//! Changes of what an edge must know.

use crate::records::{KeyRecord, ModelRecord, NodeRecord, OrgRecord};
use crate::route::{RouteId, RouteRecord};
use crate::{CacheKey, KeyDigest, OrgId};
use minicbor::{Decode, Encode};
use serde::{Deserialize, Serialize};
use std::collections::HashSet;

/// One change to the routing state. Puts carry the whole new record, so that applying a change twice is harmless.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    /// Adds or replaces an organization.
    #[n(0)]
    PutOrg(#[n(0)] OrgRecord),
    /// Removes an organization.
    #[n(1)]
    DropOrg(#[n(0)] OrgId),
    /// Adds or replaces a key.
    #[n(2)]
    PutKey(#[n(0)] KeyRecord),
    /// Removes a key.
    #[n(3)]
    DropKey(#[n(0)] KeyDigest),
    /// Adds or replaces a model.
    #[n(4)]
    PutModel(#[n(0)] ModelRecord),
    /// Removes a model.
    #[n(5)]
    DropModel(#[n(0)] String),
    /// Adds or replaces a node.
    #[n(6)]
    PutNode(#[n(0)] NodeRecord),
    /// Removes a node.
    #[n(7)]
    DropNode(#[n(0)] String),
    /// Cached answers of this key that are older than this must not be given out any more.
    #[n(8)]
    PurgeAnswer {
        /// Which answers.
        #[n(0)]
        key: CacheKey,
        /// Unix milliseconds of the purge.
        #[n(1)]
        at_ms: u64,
    },
    /// Adds or replaces a route.
    #[n(9)]
    PutRoute(#[n(0)] RouteRecord),
    /// Removes a route.
    #[n(10)]
    DropRoute(#[n(0)] RouteId),
}

/// What a change is about: a later change with the same subject supersedes an earlier one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Subject {
    /// An organization.
    Org(OrgId),
    /// A key.
    Key(KeyDigest),
    /// A model.
    Model(String),
    /// A node.
    Node(String),
    /// A purged answer.
    Purge(CacheKey),
    /// A route.
    Route(RouteId),
}

impl Subject {
    /// The change that drops its record; `None` for a purge, which only time ends.
    pub fn dropped(&self) -> Option<Change> {
        match self {
            Self::Org(id) => Some(Change::DropOrg(*id)),
            Self::Key(digest) => Some(Change::DropKey(*digest)),
            Self::Model(id) => Some(Change::DropModel(id.clone())),
            Self::Node(name) => Some(Change::DropNode(name.clone())),
            Self::Route(id) => Some(Change::DropRoute(id.clone())),
            Self::Purge(_) => None,
        }
    }
}

impl std::fmt::Display for Subject {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Org(id) => write!(f, "organization {id}"),
            Self::Key(digest) => write!(f, "key {digest}"),
            Self::Model(id) => write!(f, "model {id}"),
            Self::Node(name) => write!(f, "node {name}"),
            Self::Route(id) => write!(f, "route {id}"),
            Self::Purge(key) => write!(f, "cached answer {key}"),
        }
    }
}

impl Change {
    /// What it is about.
    pub fn subject(&self) -> Subject {
        match self {
            Self::PutOrg(org) => Subject::Org(org.id),
            Self::DropOrg(id) => Subject::Org(*id),
            Self::PutKey(key) => Subject::Key(key.digest),
            Self::DropKey(digest) => Subject::Key(*digest),
            Self::PutModel(model) => Subject::Model(model.id.clone()),
            Self::DropModel(id) => Subject::Model(id.clone()),
            Self::PutNode(node) => Subject::Node(node.name.clone()),
            Self::DropNode(name) => Subject::Node(name.clone()),
            Self::PurgeAnswer { key, .. } => Subject::Purge(*key),
            Self::PutRoute(route) => Subject::Route(route.id.clone()),
            Self::DropRoute(id) => Subject::Route(id.clone()),
        }
    }

    /// Whether it takes something away that must not be served a moment longer: a key or a model that is switched off or
    /// gone, a name under maintenance. It overtakes what is on its way to an edge, and waits for no stage of a rollout.
    pub const fn is_urgent(&self) -> bool {
        match self {
            Self::PutKey(key) => !key.active,
            Self::PutModel(model) => !model.active,
            Self::PutRoute(route) => route.policy.maintenance.is_some(),
            Self::DropKey(_) | Self::DropModel(_) | Self::DropOrg(_) => true,
            Self::PutOrg(_) | Self::PutNode(_) | Self::DropNode(_) | Self::PurgeAnswer { .. } | Self::DropRoute(_) => {
                false
            }
        }
    }
}

/// The last change of each subject, in order: what was changed again on the way, such as a key that was made and dropped
/// together with its organization, is not looked at.
pub fn net<'c, I: IntoIterator<Item = &'c Change, IntoIter: DoubleEndedIterator>>(changes: I) -> Vec<&'c Change> {
    let mut seen = HashSet::new();
    let mut net: Vec<_> = changes.into_iter().rev().filter(|change| seen.insert(change.subject())).collect();
    net.reverse();
    net
}
