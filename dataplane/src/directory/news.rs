//! What is new in a routing, and still to be told. Pure.

use super::records::{Entry, KeyEntry, Listing, ModelEntry, RECORD_TTL};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;
use turnpike_config::{KeyDigest, KeyRecord, NodeRecord, OrgId, OrgRecord, Routing};

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
    /// Takes in a routing. Of keys only the changes are told: all of them may be a million.
    pub(super) fn take(&mut self, before: &Routing, now: &Routing, at: Instant) {
        self.version = now.version;
        if before.version > 0 {
            self.take_keys(before, now, at);
        }
        let listings = listings(now);
        let ids: BTreeSet<_> = listings.keys().chain(self.listings.keys()).cloned().collect();
        let changed = ids.into_iter().filter(|id| self.listings.get(id) != listings.get(id));
        self.unwritten.extend(changed.collect::<Vec<_>>());
        self.listings = listings;
    }

    fn take_keys(&mut self, before: &Routing, now: &Routing, at: Instant) {
        self.told.retain(|_, told| at.duration_since(*told) < RECORD_TTL);
        let kept = |key: &&KeyRecord| now.keys.get(&key.id).is_some_and(|kept| kept.digest == key.digest);
        for key in before.keys.values().filter(|key| !kept(key)) {
            self.tell(key.digest, now.version, None, at);
        }
        let changed_orgs: BTreeSet<OrgId> = now
            .orgs
            .values()
            .filter(|org| before.orgs.get(&org.id).is_some_and(|was| lasting(was) != lasting(org)))
            .map(|org| org.id)
            .collect();
        for key in now.keys.values() {
            let changed = before.keys.get(&key.id) != Some(key);
            let again = changed_orgs.contains(&key.organization) && self.told.contains_key(&key.digest);
            let Some(organization) = now.orgs.get(&key.organization).filter(|_| changed || again) else { continue };
            let entry = KeyEntry { key: key.clone(), organization: organization.clone() };
            self.tell(key.digest, now.version, Some(entry), at);
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

fn listings(routing: &Routing) -> BTreeMap<String, Listing> {
    let servers = |id: &str| {
        let serves = |node: &&NodeRecord| node.serves.iter().any(|served| served.model == id);
        routing.nodes.values().filter(serves).cloned().collect()
    };
    let active = routing.models.values().filter(|model| model.active);
    active.map(|model| (model.id.clone(), Listing { model: model.clone(), servers: servers(&model.id) })).collect()
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

    fn next_version(routing: &Routing, change: impl FnOnce(&mut Routing)) -> Routing {
        let mut next = routing.clone();
        next.version += 1;
        change(&mut next);
        next
    }

    #[test]
    fn keys_are_told_when_they_change_or_go_and_again_when_their_organization_changes() {
        let (mut news, at) = (News::default(), Instant::now());
        let first = fixtures::routing();
        news.take(&Routing::default(), &first, at);
        assert_eq!(keys(&mut news), [], "all keys of a first routing may be a million");
        let second = next_version(&first, |r| r.keys.values_mut().for_each(|key| key.active = false));
        news.take(&first, &second, at);
        assert_eq!(keys(&mut news), [(true, 2)]);
        let spent = |amount| {
            move |r: &mut Routing| {
                let budget = Budget { monthly: Usd { pico: 9 }, month: 1, spent: Usd { pico: amount }, as_of_ms: 1 };
                r.orgs.values_mut().for_each(|org| org.budget = Some(budget));
            }
        };
        let third = next_version(&second, spent(1));
        news.take(&second, &third, at);
        assert_eq!(keys(&mut news), [(true, 3)], "its organization has a budget now");
        let fourth = next_version(&third, spent(2));
        news.take(&third, &fourth, at);
        assert_eq!(keys(&mut news), [], "spending is no news");
        let fifth = next_version(&fourth, |r| r.keys.clear());
        news.take(&fourth, &fifth, at);
        assert_eq!(keys(&mut news), [(false, 5)]);
    }

    #[test]
    fn models_are_told_once_and_what_changed_while_it_was_written_again() {
        let (mut news, at) = (News::default(), Instant::now());
        let first = fixtures::routing();
        news.take(&Routing::default(), &first, at);
        let item = news.next().unwrap();
        assert!(matches!(&item, Item::Model(id, 1, Some(listing)) if id == "m" && listing.servers.len() == 2));
        let second = next_version(&first, |r| r.models.values_mut().for_each(|model| model.active = false));
        news.take(&first, &second, at);
        news.written(&item);
        let item = news.next().unwrap();
        assert!(matches!(&item, Item::Model(id, 2, None) if id == "m"));
        news.written(&item);
        assert!(news.next().is_none());
        news.refresh();
        assert!(news.next().is_none(), "there is no model any more");
    }
}
