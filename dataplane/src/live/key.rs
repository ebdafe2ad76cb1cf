//! A key that is used, with its limits and its organization.

use super::model::Model;
use super::org::Org;
use super::route::Route;
use crate::limit::{Limits, Owner};
use std::sync::Arc;
use turnpike_config::KeyRecord;

/// A key with its limits and its organization.
#[derive(Debug)]
pub(crate) struct Key {
    pub(crate) record: KeyRecord,
    pub(crate) limits: Limits,
    pub(crate) org: Arc<Org>,
}

impl Key {
    /// Limits that did not change are kept from `previous`.
    pub(super) fn new(record: KeyRecord, org: Arc<Org>, previous: Option<&Self>) -> Self {
        let owner = Owner::Key(record.id);
        let limits = Limits::compile(owner, record.limits, &record.model_limits, previous.map(|key| &key.limits));
        Self { record, limits, org }
    }

    /// Whether the key may use the model.
    pub(crate) fn may_use(&self, model: &Model) -> bool {
        match &self.record.models {
            Some(allowed) => allowed.contains(&model.record.id),
            None => model.record.public,
        }
    }

    /// Whether the key may use the route's name: its allow-list has it or a model that the route leads to, or without one
    /// everybody may use all of those.
    pub(crate) fn may_use_route(&self, route: &Route) -> bool {
        match &self.record.models {
            Some(_) => route.targets.iter().any(|target| self.may_reach(route, &target.model)),
            None => route.public,
        }
    }

    /// Whether the key gets answers of a model by a route that it may use.
    pub(crate) fn may_reach(&self, route: &Route, model: &str) -> bool {
        let allowed = |allowed: &Vec<String>| allowed.iter().any(|id| *id == route.record.id.name || id == model);
        self.record.models.as_ref().is_none_or(allowed)
    }
}
