//! A whole state that is being put together: from chunks that the control plane sent, or from files.
//!
//! It is bounded while it grows, and not when it is there: what is too much is refused before it fills the memory.

use crate::keys::{Builder, Packed, Rest, Short, merge, short_of};
use std::collections::BTreeMap;
use turnpike_config::routing::MAX_PURGED;
use turnpike_config::{Change, KeyDigest, KeyRecord, Routing};

/// Most keys that an edge takes.
pub(crate) const MAX_KEYS: usize = 4_000_000;
/// Most organizations, models, routes and nodes, each.
pub(crate) const MAX_RECORDS: usize = 100_000;
/// Most bytes of records other than keys, and of what keys have in common.
const MAX_WEIGHT: usize = 256 << 20;

/// Refuses what is over a limit.
pub(crate) fn within(what: &str, count: usize, limit: usize) -> Result<(), String> {
    if count > limit {
        return Err(format!("more than {limit} {what}: an edge takes no more"));
    }
    Ok(())
}

/// A state that grows.
#[derive(Default)]
pub(crate) struct Image {
    /// All but the keys.
    records: Routing,
    /// Bytes of those that were built.
    weight: usize,
    keys: Keys,
}

/// Keys as they come: in order, or as changes of those that came in order before.
#[derive(Default)]
struct Keys {
    building: Option<Builder>,
    packed: Packed,
    rests: Vec<Rest>,
    changes: BTreeMap<Short, Option<KeyRecord>>,
}

/// A whole state, packed.
#[derive(Debug, Default)]
pub(crate) struct State {
    /// Changes that make all of it but the keys.
    pub(crate) records: Vec<Change>,
    pub(crate) keys: Packed,
    /// The other halves of the keys' digests.
    pub(crate) rests: Vec<Rest>,
}

impl Image {
    /// Goes on from a state.
    pub(crate) fn of(state: State) -> Self {
        let mut records = Routing::default();
        state.records.into_iter().for_each(|change| records.apply(change));
        let keys = Keys { packed: state.keys, rests: state.rests, ..Keys::default() };
        Self { records, weight: 0, keys }
    }

    /// Takes the next record of a whole state: nothing is dropped there, and keys come in the order of their digests.
    pub(crate) fn build(&mut self, change: Change) -> Result<(), String> {
        match change {
            Change::PutKey(key) => {
                let builder = self.keys.building.get_or_insert_default();
                if !builder.push(&key) {
                    return Err(format!("key {}: out of order in a snapshot", key.id));
                }
                within("keys", builder.len(), MAX_KEYS)?;
                within("bytes of records", self.weight + builder.weight(), MAX_WEIGHT)
            }
            Change::PutOrg(_)
            | Change::PutModel(_)
            | Change::PutRoute(_)
            | Change::PutNode(_)
            | Change::PurgeAnswer { .. } => {
                // Writing into a Vec cannot fail.
                let mut bytes = Vec::with_capacity(256);
                let _ = minicbor::encode(&change, &mut bytes);
                self.weight += bytes.len();
                let shared = self.keys.building.as_ref().map_or(0, Builder::weight);
                within("bytes of records", self.weight + shared, MAX_WEIGHT)?;
                self.records.apply(change);
                self.within_bounds()
            }
            _ => Err("a snapshot drops something".to_owned()),
        }
    }

    fn within_bounds(&self) -> Result<(), String> {
        within("organizations", self.records.orgs.size(), MAX_RECORDS)?;
        within("models", self.records.models.size(), MAX_RECORDS)?;
        within("routes", self.records.routes.size(), MAX_RECORDS)?;
        within("nodes", self.records.nodes.size(), MAX_RECORDS)?;
        within("purged answers", self.records.purged.size(), MAX_PURGED)
    }

    /// Applies a change that was checked when it was written down.
    pub(crate) fn apply(&mut self, change: Change) {
        match change {
            Change::PutKey(key) => self.change_key(&key.digest.clone(), Some(key)),
            Change::DropKey(digest) => self.change_key(&digest, None),
            change => self.records.apply(change),
        }
    }

    fn change_key(&mut self, digest: &KeyDigest, record: Option<KeyRecord>) {
        self.keys.changes.insert(short_of(digest), record);
    }

    /// All of it.
    pub(crate) fn finish(self) -> State {
        let Keys { building, mut packed, mut rests, changes } = self.keys;
        if let Some(builder) = building {
            (packed, rests) = builder.finish();
        }
        if !changes.is_empty() {
            let changes = changes.iter().map(|(short, record)| (*short, record.as_ref()));
            (packed, rests) = merge(&packed, &rests, changes);
        }
        State { records: self.records.changes().collect(), keys: packed, rests }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::live::fixtures;
    use turnpike_config::{KeyDigest, KeyRecord, NodeRecord};

    fn nodes() -> impl Iterator<Item = Change> {
        let like = fixtures::routing().nodes.values().next().unwrap().clone();
        (0..).map(move |n: u32| Change::PutNode(NodeRecord { name: n.to_string(), ..like.clone() }))
    }

    #[test]
    fn too_many_records_and_too_large_ones_are_refused_while_they_come() {
        let mut image = Image::default();
        let refused = nodes().map(|node| image.build(node)).position(|built| built.is_err());
        assert_eq!(refused, Some(MAX_RECORDS));
        let mut image = Image::default();
        let huge = "x".repeat(MAX_WEIGHT / 8);
        let models = (0..9).map(|n| {
            let like = fixtures::routing().models.values().next().unwrap().clone();
            Change::PutModel(turnpike_config::ModelRecord { id: n.to_string(), provider: huge.clone(), ..like })
        });
        let outcomes: Vec<_> = models.map(|model| image.build(model)).collect();
        assert!(outcomes[..7].iter().all(Result::is_ok));
        assert!(outcomes.last().is_some_and(|last| last.as_ref().is_err_and(|reason| reason.contains("bytes"))));
    }

    #[test]
    fn what_keys_have_in_common_counts_once_and_too_much_of_it_is_refused() {
        let mut image = Image::default();
        let huge = "x".repeat(MAX_WEIGHT / 8);
        let like = fixtures::routing().keys.values().next().unwrap().clone();
        let mut keys: Vec<_> =
            (0..11).map(|n| KeyRecord { digest: KeyDigest::of(&n.to_string()), ..like.clone() }).collect();
        keys.sort_by_key(|key| key.digest);
        // The first four are allowed the same.
        let outcomes = (0..).zip(keys).map(|(n, key)| {
            let models = Some(vec![huge.clone(), usize::max(n, 3).to_string()]);
            image.build(Change::PutKey(KeyRecord { models, ..key }))
        });
        let outcomes: Vec<_> = outcomes.collect();
        let (last, others) = outcomes.split_last().unwrap();
        assert!(others.iter().all(Result::is_ok));
        assert!(last.as_ref().is_err_and(|reason| reason.contains("bytes")));
    }
}
