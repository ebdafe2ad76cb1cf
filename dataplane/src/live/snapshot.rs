//! What a request sees: one consistent world.

use super::key::Key;
use super::model::Model;
use super::node::{Node, Resolve};
use super::org::Org;
use super::route::Route;
use super::seats::Seats;
use crate::keys::{KeyTable, short_of};
use rpds::HashTrieMapSync;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use turnpike_config::log::Position;
use turnpike_config::routing::Map;
use turnpike_config::{
    CacheKey, Change, KeyDigest, KeyRecord, ModelRecord, NodeRecord, OrgId, OrgRecord, RouteId, RouteRecord, World,
};

/// Numbers of snapshots; 0 is the empty one's.
static SERIALS: AtomicU64 = AtomicU64::new(1);

/// The state at one position of the log, indexed for lookups. The next one shares all that did not change.
#[derive(Clone, Debug, Default)]
pub(crate) struct Snapshot {
    pub(crate) at: Position,
    /// Greater in newer ones; several can be at one position.
    pub(super) serial: u64,
    pub(super) orgs: HashTrieMapSync<OrgId, Arc<Org>>,
    pub(super) keys: KeyTable,
    pub(super) models: Map<String, Arc<Model>>,
    pub(super) nodes: Map<String, Arc<Node>>,
    /// Nodes whose addresses are not known.
    pub(super) astray: Map<String, NodeRecord>,
    pub(super) routes: Map<RouteId, Arc<Route>>,
    /// The same by name, and then by organization.
    pub(super) names: HashTrieMapSync<String, HashTrieMapSync<Option<OrgId>, Arc<Route>>>,
    /// Models with the routes that lead there.
    pub(super) leads: Map<(String, RouteId), ()>,
    /// Purged answers, with the Unix milliseconds of their purge.
    pub(super) purged: Map<CacheKey, u64>,
    pub(super) seats: Arc<Seats>,
    /// The edge's own.
    pub(super) region: Arc<str>,
}

impl Snapshot {
    /// Of nothing yet, at an edge of this region.
    pub(crate) fn nothing(region: &str) -> Self {
        Self { region: region.into(), ..Self::default() }
    }

    /// The key that is known by a digest, with what it needs to be used.
    pub(crate) fn key(&self, digest: &KeyDigest) -> Option<Arc<Key>> {
        let short = short_of(digest);
        if let Some(key) = self.seats.get(short, self.serial) {
            return Some(key);
        }
        let record = self.keys.get(digest)?;
        let org = self.orgs.get(&record.organization)?;
        Some(self.seats.renew(short, self.serial, |before| match before {
            Some(key) if key.record == record && Arc::ptr_eq(&key.org, org) => Arc::clone(key),
            before => Arc::new(Key::new(record, Arc::clone(org), before.map(|key| &**key))),
        }))
    }

    /// The record of a key.
    pub(crate) fn key_record(&self, digest: &KeyDigest) -> Option<KeyRecord> {
        self.keys.get(digest)
    }

    pub(crate) fn org(&self, id: &OrgId) -> Option<&Arc<Org>> {
        self.orgs.get(id)
    }

    /// A switched-on model.
    pub(crate) fn model(&self, id: &str) -> Option<&Arc<Model>> {
        self.models.get(id).filter(|model| model.record.active)
    }

    /// Switched-on models, by id.
    pub(crate) fn active(&self) -> impl Iterator<Item = &Arc<Model>> {
        self.models.values().filter(|model| model.record.active)
    }

    /// Switched-on models that have a version to answer, by id.
    pub(crate) fn listing(&self) -> impl Iterator<Item = &Arc<Model>> {
        self.active().filter(|model| model.default.is_some())
    }

    /// Where requests of an organization for a name go, if not just to the model of that name.
    pub(crate) fn route(&self, name: &str, organization: &OrgId) -> Option<&Arc<Route>> {
        if self.names.is_empty() {
            return None;
        }
        own_or_everybodys(self.names.get(name)?, organization)
    }

    /// All routes that an organization has.
    pub(crate) fn routes_of(&self, organization: &OrgId) -> impl Iterator<Item = &Arc<Route>> {
        self.names.values().filter_map(|routes| own_or_everybodys(routes, organization))
    }

    /// Whether the model is known and switched off.
    pub(crate) fn is_off(&self, id: &str) -> bool {
        self.models.get(id).is_some_and(|model| !model.record.active)
    }

    /// Unix milliseconds of when an answer was purged; 0 if it was not.
    pub(crate) fn purged_at_ms(&self, key: &CacheKey) -> u64 {
        self.purged.get(key).copied().unwrap_or(0)
    }

    /// All purged answers.
    pub(crate) fn purged(&self) -> impl Iterator<Item = (&CacheKey, &u64)> {
        self.purged.iter()
    }

    pub(crate) const fn key_count(&self) -> usize {
        self.keys.len()
    }

    pub(crate) fn nodes(&self) -> impl Iterator<Item = &Arc<Node>> {
        self.nodes.values()
    }

    /// A node by its name.
    pub(crate) fn node(&self, name: &str) -> Option<&Arc<Node>> {
        self.nodes.get(name)
    }

    /// Records of all nodes, those among them whose addresses are not known.
    pub(crate) fn node_records(&self) -> impl Iterator<Item = &NodeRecord> {
        self.nodes.values().map(|node| &node.record).chain(self.astray.values())
    }

    /// Nodes whose addresses are not known.
    pub(crate) fn astray(&self) -> impl Iterator<Item = &NodeRecord> {
        self.astray.values()
    }

    /// Keys in use.
    pub(crate) const fn seats(&self) -> &Arc<Seats> {
        &self.seats
    }

    /// The same with all keys packed, if so many have changed that it is time.
    pub(crate) fn repacked(&self) -> Option<Self> {
        self.keys.is_due().then(|| Self { keys: self.keys.repacked(), ..self.clone() })
    }

    /// The same, newer than all others.
    #[must_use]
    pub(crate) fn renewed(self) -> Self {
        Self { serial: SERIALS.fetch_add(1, Ordering::Relaxed), ..self }
    }

    /// It is served by from now on. What its organizations and nodes share with those before is set as `changes` want it;
    /// `None` if all of it was replaced.
    pub(crate) fn take_effect(&self, changes: Option<&[Change]>) {
        let Some(changes) = changes else {
            self.orgs.values().for_each(|org| org.limits.take_effect());
            return self.nodes.values().for_each(|node| node.take_effect());
        };
        for change in changes {
            match change {
                Change::PutOrg(org) => drop(self.orgs.get(&org.id).map(|org| org.limits.take_effect())),
                Change::PutNode(node) => drop(self.nodes.get(&node.name).map(|node| node.take_effect())),
                _ => {}
            }
        }
    }

    /// A key that this state does not have yet.
    pub(crate) fn adopt_key(&self, record: &KeyRecord, organization: &OrgRecord) -> Arc<Key> {
        let org = self.orgs.get(&organization.id).cloned();
        let org = org.unwrap_or_else(|| Arc::new(Org::new(organization.clone(), None, None)));
        Arc::new(Key::new(record.clone(), org, None))
    }

    /// A model that this state does not have yet.
    pub(crate) fn adopt_model(
        &self,
        record: &ModelRecord,
        servers: Vec<NodeRecord>,
        resolve: Resolve<'_>,
    ) -> Arc<Model> {
        let node = |record: NodeRecord| {
            let before = self.nodes.get(&record.name).map(|node| &**node);
            Node::new(record, before, resolve).map(Arc::new)
        };
        let nodes: Vec<Arc<Node>> = servers.into_iter().filter_map(node).collect();
        let before = self.models.get(&record.id).map(|model| &**model);
        Arc::new(Model::new(record.clone(), before).deployed(nodes.iter()))
    }
}

impl Snapshot {
    /// Routes that lead to a model.
    pub(super) fn leading_to<'a>(&'a self, model: &'a str) -> impl Iterator<Item = &'a RouteId> {
        let first = (model.to_owned(), RouteId { name: String::new(), organization: None });
        self.leads.range(first..).map(|(lead, ())| lead).take_while(move |(to, _)| to == model).map(|(_, id)| id)
    }
}

fn own_or_everybodys<'r>(
    routes: &'r HashTrieMapSync<Option<OrgId>, Arc<Route>>,
    organization: &OrgId,
) -> Option<&'r Arc<Route>> {
    routes.get(&Some(*organization)).or_else(|| routes.get(&None))
}

impl World for Snapshot {
    fn has_org(&self, id: &OrgId) -> bool {
        self.orgs.contains_key(id)
    }

    fn owns_keys(&self, id: &OrgId) -> bool {
        self.keys.owns(id)
    }

    fn model(&self, id: &str) -> Option<&ModelRecord> {
        self.models.get(id).map(|model| &model.record)
    }

    fn routes_to<'a>(&'a self, model: &'a str) -> impl Iterator<Item = &'a RouteRecord> {
        self.leading_to(model).filter_map(|id| self.routes.get(id)).map(|route| &route.record)
    }

    fn route_of(&self, organization: &OrgId) -> Option<&RouteId> {
        self.routes.keys().find(|id| id.organization.as_ref() == Some(organization))
    }
}
