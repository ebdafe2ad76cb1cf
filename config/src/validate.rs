//! What makes a record unfit to serve by. Pure, and the same for the control plane and the edges: the one refuses to
//! publish what the others would refuse to take.

use crate::limits::{ModelLimits, RateLimits};
use crate::routing::{Change, KeyRecord, ModelRecord, NodeRecord, OrgRecord};
use crate::{NodeUrl, OrgId};

/// What changes are checked against: the state as it is after all of them.
pub trait World {
    /// Whether there is such an organization.
    fn has_org(&self, id: &OrgId) -> bool;

    /// Whether there is a key of this organization, whether or not there is the organization.
    fn owns_keys(&self, id: &OrgId) -> bool;

    /// What is wrong in this state with the record that a change puts, or with the absence of the one that it drops.
    fn fault(&self, change: &Change) -> Option<String> {
        match change {
            Change::PutOrg(org) => org_fault(org),
            Change::DropOrg(id) if !self.has_org(id) && self.owns_keys(id) => {
                Some(format!("organization {id} is dropped, and there are keys of it"))
            }
            Change::PutKey(key) => key_fault(key, self.has_org(&key.organization)),
            Change::PutModel(model) => model_fault(model),
            Change::PutNode(node) => node_fault(node),
            Change::DropOrg(_)
            | Change::DropKey(_)
            | Change::DropModel(_)
            | Change::DropNode(_)
            | Change::PurgeAnswer { .. } => None,
        }
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
