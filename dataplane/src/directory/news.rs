//! What is new, and still to be told. Pure.

use super::records::{Entry, KeyEntry, Listing, ModelEntry, RECORD_TTL};
use crate::live::Snapshot;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Instant;
use turnpike_config::{Change, KeyDigest, ModelRecord, NodeRecord, OrgId, OrgRecord};

/// From one snapshot to the next.
#[derive(Clone, Copy)]
pub(crate) struct Step<'s> {
    pub(crate) before: &'s Snapshot,
    pub(crate) now: &'s Snapshot,
    /// What made the difference, as far as it is known.
    pub(crate) changes: &'s [Change],
    /// There may be more differences: all of it was replaced.
    pub(crate) is_whole: bool,
}

/// What is still to be written.
#[derive(Default)]
pub(super) struct News {
    version: u64,
    keys: BTreeMap<KeyDigest, Entry<KeyEntry>>,
    /// Keys that were told of lately, with when: they are told of again when their organization changes.
    told: BTreeMap<KeyDigest, Instant>,
    /// All models by id, as the routing has them now.
    listings: BTreeMap<String, Listing>,
    /// Those that are not yet written as they are, or not yet taken away.
    unwritten: BTreeSet<String>,
}

/// One thing to write.
pub(super) enum Item {
    Key(KeyDigest, Entry<KeyEntry>),
    Model(String, u64, Option<Listing>),
}

impl News {
    /// Takes in the step from one snapshot to the next. Of keys only what changed is told: all of them may be a million.
    pub(super) fn take(&mut self, step: &Step<'_>, at: Instant) {
        self.version = step.now.at.version;
        if step.before.at.version > 0 {
            self.take_keys(step, at);
        }
        let is_of_models = |change: &Change| {
            matches!(change, Change::PutModel(_) | Change::DropModel(_) | Change::PutNode(_) | Change::DropNode(_))
        };
        if step.changes.iter().any(is_of_models) || step.is_whole {
            let listings = listings(step.now);
            let ids: BTreeSet<_> = listings.keys().chain(self.listings.keys()).cloned().collect();
            let changed = ids.into_iter().filter(|id| self.listings.get(id) != listings.get(id));
            self.unwritten.extend(changed.collect::<Vec<_>>());
            self.listings = listings;
        }
    }

    fn take_keys(&mut self, step: &Step<'_>, at: Instant) {
        let Step { before, now, changes, is_whole } = *step;
        self.told.retain(|_, told| at.duration_since(*told) < RECORD_TTL);
        let mut digests = BTreeSet::new();
        let mut orgs = HashMap::new();
        let mut changed = |id: &OrgId| *orgs.entry(*id).or_insert_with(|| has_changed(before, now, id));
        let mut are_all_told = is_whole;
        for change in changes {
            match change {
                Change::PutKey(key) => drop(digests.insert(key.digest)),
                Change::DropKey(digest) => drop(digests.insert(*digest)),
                Change::PutOrg(org) => are_all_told |= changed(&org.id),
                _ => {}
            }
        }
        if are_all_told {
            digests.extend(self.told.keys());
        }
        for digest in digests {
            let record = now.key_record(&digest);
            let told = || self.told.contains_key(&digest);
            let again = record.as_ref().is_some_and(|key| told() && changed(&key.organization));
            if !again && before.key_record(&digest) == record {
                continue;
            }
            let entry = record.and_then(|key| {
                let organization = now.org(&key.organization)?.record.clone();
                Some(KeyEntry { key, organization })
            });
            self.tell(digest, now.at.version, entry, at);
        }
    }

    fn tell(&mut self, digest: KeyDigest, routing_version: u64, record: Option<KeyEntry>, at: Instant) {
        self.keys.insert(digest, Entry { routing_version, record });
        self.told.insert(digest, at);
    }

    /// Everything about models is to be written anew.
    pub(super) fn refresh(&mut self) {
        self.unwritten = self.listings.keys().cloned().collect();
    }

    /// Something to write.
    pub(super) fn next(&self) -> Option<Item> {
        if let Some((digest, entry)) = self.keys.first_key_value() {
            return Some(Item::Key(*digest, entry.clone()));
        }
        let id = self.unwritten.first()?.clone();
        let listing = self.listings.get(&id).cloned();
        Some(Item::Model(id, self.version, listing))
    }

    /// It was written: no news any more, unless it has changed meanwhile.
    pub(super) fn written(&mut self, item: &Item) {
        match item {
            Item::Key(digest, entry) if self.keys.get(digest) == Some(entry) => drop(self.keys.remove(digest)),
            Item::Model(id, _, listing) if self.listings.get(id) == listing.as_ref() => {
                self.unwritten.remove(id);
            }
            _ => {}
        }
    }
}

impl Item {
    /// The entry of a model.
    pub(super) fn metadata(version: u64, listing: Option<&Listing>) -> Entry<ModelEntry> {
        let record = listing.map(|listing| ModelEntry { model: listing.model.clone() });
        Entry { routing_version: version, record }
    }
}

/// Whether an organization is another than before, but for what moves with every request.
fn has_changed(before: &Snapshot, now: &Snapshot, id: &OrgId) -> bool {
    match (before.org(id), now.org(id)) {
        (Some(before), Some(now)) => !Arc::ptr_eq(before, now) && lasting(&before.record) != lasting(&now.record),
        (before, now) => before.is_some() != now.is_some(),
    }
}

/// An organization without what moves with every request.
fn lasting(org: &OrgRecord) -> OrgRecord {
    let mut org = org.clone();
    if let Some(budget) = &mut org.budget {
        budget.spent = turnpike_config::Usd::ZERO;
        budget.as_of_ms = 0;
    }
    if let Some(prepaid) = &mut org.prepaid {
        *prepaid = turnpike_config::Prepaid::default();
    }
    org
}

fn listings(snapshot: &Snapshot) -> BTreeMap<String, Listing> {
    let servers = |id: &str| {
        let serves = |node: &&NodeRecord| node.serves.iter().any(|served| served.model == id);
        snapshot.node_records().filter(serves).cloned().collect()
    };
    let listing = |model: &ModelRecord| Listing { model: model.clone(), servers: servers(&model.id) };
    snapshot.active().map(|model| (model.record.id.clone(), listing(&model.record))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::live::fixtures;
    use turnpike_config::{Budget, Usd};

    fn keys(news: &mut News) -> Vec<(bool, u64)> {
        let mut told = Vec::new();
        while let Some(item @ Item::Key(..)) = news.next() {
            let Item::Key(_, entry) = &item else { break };
            told.push((entry.record.is_some(), entry.routing_version));
            news.written(&item);
        }
        told
    }

    /// What a change makes of the fixtures' snapshot, and so on; told of step by step.
    struct Told {
        news: News,
        held: Snapshot,
        at: Instant,
    }

    impl Told {
        fn new() -> Self {
            let (mut news, held, at) = (News::default(), fixtures::snapshot(), Instant::now());
            news.take(&Step { before: &Snapshot::default(), now: &held, changes: &[], is_whole: true }, at);
            Self { news, held, at }
        }

        fn take(&mut self, change: Change) {
            let changes = [change];
            let to = fixtures::at(self.held.at.version + 1);
            let now = self.held.after(&changes, to, &fixtures::loopback).unwrap().snapshot;
            self.news.take(&Step { before: &self.held, now: &now, changes: &changes, is_whole: false }, self.at);
            self.held = now;
        }
    }

    #[test]
    fn keys_are_told_when_they_change_or_go_and_again_when_their_organization_changes() {
        let mut told = Told::new();
        assert_eq!(keys(&mut told.news), [], "all keys of a first state may be a million");
        let digest = KeyDigest::of(fixtures::KEY);
        let key = told.held.key_record(&digest).unwrap();
        told.take(Change::PutKey(key.clone()));
        assert_eq!(keys(&mut told.news), [], "it is what it was");
        told.take(Change::PutKey(turnpike_config::KeyRecord { active: false, ..key.clone() }));
        assert_eq!(keys(&mut told.news), [(true, 3)]);
        let org = told.held.org(&key.organization).unwrap().record.clone();
        let spent = |amount| {
            let budget = Budget { monthly: Usd { pico: 9 }, month: 1, spent: Usd { pico: amount }, as_of_ms: 1 };
            Change::PutOrg(OrgRecord { budget: Some(budget), ..org.clone() })
        };
        told.take(spent(1));
        assert_eq!(keys(&mut told.news), [(true, 4)], "its organization has a budget now");
        told.take(spent(2));
        assert_eq!(keys(&mut told.news), [], "spending is no news");
        told.take(Change::DropKey(digest));
        assert_eq!(keys(&mut told.news), [(false, 6)]);
    }

    #[test]
    fn a_whole_state_tells_keys_again_whose_organization_it_changes() {
        let mut told = Told::new();
        let key = told.held.key_record(&KeyDigest::of(fixtures::KEY)).unwrap();
        told.take(Change::PutKey(turnpike_config::KeyRecord { active: false, ..key.clone() }));
        assert_eq!(keys(&mut told.news), [(true, 2)]);
        let mut routing = fixtures::routing();
        routing.apply(Change::PutKey(turnpike_config::KeyRecord { active: false, ..key.clone() }));
        let org = told.held.org(&key.organization).unwrap().record.clone();
        for (version, cache_generation, expected) in [(3, 0, &[][..]), (4, 1, &[(true, 4)]), (5, 1, &[])] {
            routing.version = version;
            routing.apply(Change::PutOrg(OrgRecord { cache_generation, ..org.clone() }));
            let now = fixtures::after(&told.held, &routing).unwrap().snapshot;
            told.news.take(&Step { before: &told.held, now: &now, changes: &[], is_whole: true }, told.at);
            told.held = now;
            assert_eq!(keys(&mut told.news), expected, "version {version}");
        }
    }

    #[test]
    fn models_are_told_once_and_what_changed_while_it_was_written_again() {
        let mut told = Told::new();
        let item = told.news.next().unwrap();
        assert!(matches!(&item, Item::Model(id, 1, Some(listing)) if id == "m" && listing.servers.len() == 2));
        let model = told.held.model("m").unwrap().record.clone();
        told.take(Change::PutModel(ModelRecord { active: false, ..model }));
        told.news.written(&item);
        let item = told.news.next().unwrap();
        assert!(matches!(&item, Item::Model(id, 2, None) if id == "m"));
        told.news.written(&item);
        assert!(told.news.next().is_none());
        told.news.refresh();
        assert!(told.news.next().is_none(), "there is no model any more");
    }
}
