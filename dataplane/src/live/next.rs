//! From one snapshot to the next: applied, checked and tried out beside the requests, which go on with the one before.

use super::key::Key;
use super::model::Model;
use super::node::{Node, Resolve};
use super::org::Org;
use super::route::Route;
use super::snapshot::Snapshot;
use crate::image::{MAX_KEYS, MAX_RECORDS, within};
use crate::keys::{KeyTable, Packed};
use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use turnpike_config::change::net;
use turnpike_config::log::Position;
use turnpike_config::routing::purge;
use turnpike_config::{Change, KeyDigest, KeyRecord, NodeRecord, RouteId, RouteRecord, Tokens, World};

/// Keys and models that are looked up to see whether a new snapshot works.
const TRIED: usize = 16;

/// A snapshot that could be served by.
pub(crate) struct Next {
    pub(crate) snapshot: Snapshot,
    /// Nodes among those that changed whose addresses are not known.
    pub(crate) unreachable: Vec<String>,
}

impl Snapshot {
    /// The state after some changes, or why they are not to be made.
    pub(crate) fn after(&self, changes: &[Change], at: Position, resolve: Resolve<'_>) -> Result<Next, String> {
        guarded(|| {
            let net = net(changes);
            let next = Draft::of(self).with(net.iter().copied(), resolve).finish(at)?;
            net.iter().find_map(|change| next.snapshot.fault(change)).map_or(Ok(()), Err)?;
            next.snapshot.try_out(net.iter().filter_map(|change| match change {
                Change::PutKey(record) => Some(record.clone()),
                _ => None,
            }))?;
            net.iter().try_for_each(|change| next.snapshot.try_absence(change))?;
            Ok(next)
        })
    }

    /// A whole other state in place of this one, with what is in use kept.
    pub(crate) fn replaced(
        &self,
        records: &[Change],
        keys: Arc<Packed>,
        at: Position,
        resolve: Resolve<'_>,
    ) -> Result<Next, String> {
        guarded(|| {
            let next = Draft::afresh(self, KeyTable::new(keys)).with(records.iter(), resolve).finish(at)?;
            records.iter().find_map(|change| next.snapshot.fault(change)).map_or(Ok(()), Err)?;
            let keys = next.snapshot.keys.witnesses().map(Change::PutKey);
            keys.filter_map(|key| next.snapshot.fault(&key)).next().map_or(Ok(()), Err)?;
            next.snapshot.try_out(next.snapshot.keys.samples(TRIED))?;
            Ok(next)
        })
    }

    /// The state with those of some changes on top that fit it, at the same position.
    pub(crate) fn with_fitting(self, changes: Vec<Change>, resolve: Resolve<'_>) -> (Self, Vec<Change>) {
        let (mut state, mut fitting) = (self, Vec::new());
        for change in changes {
            match state.after(std::slice::from_ref(&change), state.at, resolve) {
                Ok(next) => {
                    state = next.snapshot;
                    fitting.push(change);
                }
                Err(reason) => tracing::info!(reason, "an urgent change has to wait for its turn"),
            }
        }
        (state, fitting)
    }

    /// Looks some keys and models up as a request would.
    fn try_out(&self, keys: impl Iterator<Item = KeyRecord>) -> Result<(), String> {
        let models: Vec<_> = self.active().take(TRIED).collect();
        for record in keys.take(TRIED) {
            let Some(key) = self.unseated(&record.digest).filter(|key| key.record.id == record.id) else {
                return Err(format!("key {} is not found where it was put", record.id));
            };
            let _ = models.iter().filter(|model| key.may_use(model)).count();
        }
        for model in models {
            let _ = model.cost(0, Tokens::default());
            if self.model(&model.record.id).is_none() {
                return Err(format!("model {} is not found where it was put", model.record.id));
            }
        }
        Ok(())
    }

    /// What was dropped is not there.
    fn try_absence(&self, change: &Change) -> Result<(), String> {
        match change {
            Change::DropKey(digest) if self.keys.get(digest).is_some() => {
                Err("a key that was dropped is there".to_owned())
            }
            Change::DropModel(id) if self.models.contains_key(id) => {
                Err(format!("model {id} was dropped and is there"))
            }
            _ => Ok(()),
        }
    }

    /// The key as a request would get it, without keeping it ready.
    fn unseated(&self, digest: &KeyDigest) -> Option<Key> {
        let record = self.keys.get(digest)?;
        let org = Arc::clone(self.orgs.get(&record.organization)?);
        Some(Key::new(record, org, None))
    }
}

/// What panics is refused like everything else that is wrong.
fn guarded(make: impl FnOnce() -> Result<Next, String>) -> Result<Next, String> {
    // Snapshots are immutable: one that is half made is seen by nobody.
    catch_unwind(AssertUnwindSafe(make)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
        Err(format!("this edge panics over it: {}", text.unwrap_or("no message")))
    })
}

/// A snapshot that is being made.
struct Draft<'b> {
    before: &'b Snapshot,
    next: Snapshot,
    /// Models whose nodes are to be found anew.
    undeployed: BTreeSet<String>,
    /// Routes whose models are to be found anew.
    unled: BTreeMap<RouteId, RouteRecord>,
    unreachable: Vec<String>,
}

impl<'b> Draft<'b> {
    fn of(before: &'b Snapshot) -> Self {
        Self {
            before,
            next: before.clone(),
            undeployed: BTreeSet::new(),
            unled: BTreeMap::new(),
            unreachable: Vec::new(),
        }
    }

    fn afresh(before: &'b Snapshot, keys: KeyTable) -> Self {
        let next = Snapshot { keys, seats: Arc::clone(&before.seats), ..Snapshot::nothing(&before.region) };
        Self { before, next, undeployed: BTreeSet::new(), unled: BTreeMap::new(), unreachable: Vec::new() }
    }

    fn with<'c>(mut self, changes: impl Iterator<Item = &'c Change>, resolve: Resolve<'_>) -> Self {
        changes.for_each(|change| self.apply(change, resolve));
        self
    }

    fn apply(&mut self, change: &Change, resolve: Resolve<'_>) {
        let next = &mut self.next;
        match change {
            Change::PutOrg(record) => {
                let before = self.before.orgs.get(&record.id).map(|org| &**org);
                next.orgs.insert_mut(record.id, Arc::new(Org::new(record.clone(), Some(&next.region), before)));
            }
            Change::DropOrg(id) => drop(next.orgs.remove_mut(id)),
            Change::PutKey(record) => next.keys.put(record.clone()),
            Change::DropKey(digest) => next.keys.remove(digest),
            Change::PutModel(record) => {
                let before = self.before.models.get(&record.id).map(|model| &**model);
                next.models.insert_mut(record.id.clone(), Arc::new(Model::new(record.clone(), before)));
                self.undeployed.insert(record.id.clone());
            }
            Change::DropModel(id) => drop(next.models.remove_mut(id)),
            Change::PutNode(record) => self.put_node(record, resolve),
            Change::DropNode(name) => self.drop_node(name),
            Change::PurgeAnswer { key, at_ms } => purge(&mut next.purged, *key, *at_ms),
            Change::PutRoute(record) => {
                self.drop_route(&record.id);
                self.unled.insert(record.id.clone(), record.clone());
            }
            Change::DropRoute(id) => self.drop_route(id),
        }
    }

    fn put_node(&mut self, record: &NodeRecord, resolve: Resolve<'_>) {
        self.drop_node(&record.name);
        self.undeployed.extend(record.serves.iter().map(|served| served.model.clone()));
        let before = self.before.nodes.get(&record.name).map(|node| &**node);
        match Node::new(record.clone(), before, resolve) {
            Some(node) => self.next.nodes.insert_mut(record.name.clone(), Arc::new(node)),
            None => {
                self.unreachable.push(format!("{} ({})", record.name, record.url));
                self.next.astray.insert_mut(record.name.clone(), record.clone());
            }
        }
    }

    fn drop_node(&mut self, name: &str) {
        if let Some(node) = self.next.nodes.get(name) {
            self.undeployed.extend(node.record.serves.iter().map(|served| served.model.clone()));
        }
        self.next.nodes.remove_mut(name);
        self.next.astray.remove_mut(name);
    }

    fn drop_route(&mut self, id: &RouteId) {
        let next = &mut self.next;
        self.unled.remove(id);
        let Some(route) = next.routes.get(id).map(Arc::clone) else { return };
        next.routes.remove_mut(id);
        for (_, model, _) in route.record.policy.destinations() {
            next.leads.remove_mut(&(model.to_owned(), id.clone()));
        }
        let Some(routes) = next.names.get(&id.name) else { return };
        let routes = routes.remove(&id.organization);
        if routes.is_empty() {
            next.names.remove_mut(&id.name);
        } else {
            next.names.insert_mut(id.name.clone(), routes);
        }
    }

    /// Leads routes to their models as those are now.
    fn lead(&mut self) {
        let next = &mut self.next;
        for model in &self.undeployed {
            let ids: Vec<RouteId> = next.leading_to(model).cloned().collect();
            let records = ids.into_iter().filter_map(|id| next.routes.get(&id)).map(|route| &route.record);
            for record in records {
                self.unled.entry(record.id.clone()).or_insert_with(|| record.clone());
            }
        }
        for (id, record) in std::mem::take(&mut self.unled) {
            for (_, model, _) in record.policy.destinations() {
                next.leads.insert_mut((model.to_owned(), id.clone()), ());
            }
            let before = self.before.routes.get(&id).map(|route| &**route);
            let route = Arc::new(Route::new(record, before, |model| next.models.get(model)));
            let named = next.names.get(&id.name).cloned().unwrap_or_default();
            next.names.insert_mut(id.name.clone(), named.insert(id.organization, Arc::clone(&route)));
            next.routes.insert_mut(id, route);
        }
    }

    fn finish(mut self, at: Position) -> Result<Next, String> {
        let next = &mut self.next;
        within("keys", next.keys.len(), MAX_KEYS)?;
        within("organizations", next.orgs.size(), MAX_RECORDS)?;
        within("models", next.models.size(), MAX_RECORDS)?;
        within("nodes", next.nodes.size() + next.astray.size(), MAX_RECORDS)?;
        within("routes", next.routes.size() + self.unled.len(), MAX_RECORDS)?;
        let mut serving: BTreeMap<&str, Vec<&Arc<Node>>> = BTreeMap::new();
        if !self.undeployed.is_empty() {
            for node in next.nodes.values() {
                for served in node.record.serves.iter().filter(|served| self.undeployed.contains(&served.model)) {
                    let nodes = serving.entry(&served.model).or_default();
                    // A node may serve several versions.
                    if nodes.last().is_none_or(|last| !Arc::ptr_eq(last, node)) {
                        nodes.push(node);
                    }
                }
            }
        }
        for id in &self.undeployed {
            let Some(model) = next.models.get(id) else { continue };
            let nodes = serving.get(id.as_str()).into_iter().flatten().copied();
            let deployed = Arc::new(model.deployed(nodes));
            next.models.insert_mut(id.clone(), deployed);
        }
        self.lead();
        self.next.at = at;
        Ok(Next { snapshot: self.next.renewed(), unreachable: self.unreachable })
    }
}
