//! What makes a record unfit to serve by. Pure, and the same for the control plane and the edges: the one refuses to
//! publish what the others would refuse to take.

use crate::change::Change;
use crate::limits::{ModelLimits, RateLimits};
use crate::records::{KeyRecord, ModelRecord, NodeRecord, OrgRecord};
use crate::route::{RouteId, RouteRecord};
use crate::routing::Routing;
use crate::{NodeUrl, OrgId};

/// What changes are checked against: the state as it is after all of them.
pub trait World {
    /// Whether there is such an organization.
    fn has_org(&self, id: &OrgId) -> bool;

    /// Whether there is a key of this organization, whether or not there is the organization.
    fn owns_keys(&self, id: &OrgId) -> bool;

    /// A model.
    fn model(&self, id: &str) -> Option<&ModelRecord>;

    /// Routes that lead to a model.
    fn routes_to<'a>(&'a self, model: &'a str) -> impl Iterator<Item = &'a RouteRecord>;

    /// A route of this organization, if there is one.
    fn route_of(&self, organization: &OrgId) -> Option<&RouteId>;

    /// What is wrong in this state with the record that a change puts, or with the absence of the one that it drops.
    fn fault(&self, change: &Change) -> Option<String> {
        match change {
            Change::PutOrg(org) => org_fault(org),
            Change::DropOrg(id) if !self.has_org(id) => self.dropped_org_fault(id),
            Change::PutKey(key) => key_fault(key, self.has_org(&key.organization)),
            Change::PutModel(model) => model_fault(model).or_else(|| self.versions_fault(model)),
            Change::DropModel(id) if self.model(id).is_none() => {
                let route = self.routes_to(id).next();
                route.map(|route| format!("model {id} is dropped, and route {} leads to it", route.id))
            }
            Change::PutNode(node) => node_fault(node),
            Change::PutRoute(route) => self.route_fault(route),
            Change::DropOrg(_)
            | Change::DropKey(_)
            | Change::DropModel(_)
            | Change::DropNode(_)
            | Change::DropRoute(_)
            | Change::PurgeAnswer { .. } => None,
        }
    }

    /// What is wrong with the absence of an organization.
    fn dropped_org_fault(&self, id: &OrgId) -> Option<String> {
        if self.owns_keys(id) {
            return Some(format!("organization {id} is dropped, and there are keys of it"));
        }
        self.route_of(id).map(|route| format!("organization {id} is dropped, and there is route {route}"))
    }

    /// What is wrong with a model's versions: those that routes lead to must be there.
    fn versions_fault(&self, model: &ModelRecord) -> Option<String> {
        self.routes_to(&model.id).find_map(|route| self.route_fault(route))
    }

    /// What is wrong with a route.
    fn route_fault(&self, route: &RouteRecord) -> Option<String> {
        let fault = |path: &str, reason: &str| Some(format!("route {}: {path}: {reason}", route.id));
        if let Some((path, reason)) = route.policy.mistakes().first() {
            return fault(path, reason);
        }
        if route.id.organization.is_some_and(|organization| !self.has_org(&organization)) {
            return fault("organization", "it does not exist");
        }
        for (path, model, version) in route.policy.destinations() {
            let Some(record) = self.model(model) else {
                return fault(&path, &format!("model {model} does not exist"));
            };
            let has = |name: &str| record.versions.iter().any(|version| version.version == name);
            if let Some(version) = version.filter(|version| !has(version)) {
                return fault(&path, &format!("model {model} has no version {version}"));
            }
        }
        None
    }
}

impl World for Routing {
    fn has_org(&self, id: &OrgId) -> bool {
        self.orgs.contains_key(id)
    }

    fn owns_keys(&self, id: &OrgId) -> bool {
        self.owned.contains_key(id)
    }

    fn model(&self, id: &str) -> Option<&ModelRecord> {
        self.models.get(id)
    }

    fn routes_to<'a>(&'a self, model: &'a str) -> impl Iterator<Item = &'a RouteRecord> {
        let leads = move |route: &&RouteRecord| route.policy.destinations().any(|(_, to, _)| to == model);
        self.routes.values().filter(leads)
    }

    fn route_of(&self, organization: &OrgId) -> Option<&RouteId> {
        self.routes.keys().find(|id| id.organization.as_ref() == Some(organization))
    }
}

impl Routing {
    /// Everything that makes this state unfit to serve, each with the record at fault; empty if it is fit. Looks at every
    /// record; after a few changes, [`World::fault`] looks at those.
    pub fn faults(&self) -> Vec<String> {
        self.changes().filter_map(|change| self.fault(&change)).collect()
    }
}

fn org_fault(org: &OrgRecord) -> Option<String> {
    let nothing = admits_nothing(org.limits, &org.model_limits);
    nothing.then(|| format!("organization {}: a limit of 0 admits nothing; disable its keys instead", org.id))
}

fn key_fault(key: &KeyRecord, has_org: bool) -> Option<String> {
    if !has_org {
        return Some(format!("key {}: organization {} does not exist", key.id, key.organization));
    }
    let nothing = admits_nothing(key.limits, &key.model_limits);
    nothing.then(|| format!("key {}: a limit of 0 admits nothing; disable the key instead", key.id))
}

fn model_fault(model: &ModelRecord) -> Option<String> {
    if model.context_length == 0 {
        return Some(format!("model {}: context_length is 0", model.id));
    }
    let defaults = model.versions.iter().filter(|version| version.is_default).count();
    (defaults > 1).then(|| format!("model {}: more than one default version", model.id))
}

/// A node that serves an unknown model is no fault: it registered before an operator added the model.
fn node_fault(node: &NodeRecord) -> Option<String> {
    let url = NodeUrl::parse(&node.url);
    url.is_none().then(|| format!("node {}: url «{}» is not http(s)://host:port", node.name, node.url))
}

fn admits_nothing(limits: RateLimits, models: &ModelLimits) -> bool {
    limits.has_zero() || models.values().any(|limits| limits.has_zero())
}
