//! Packed keys, with what changed since they were packed.

use super::entry::{Short, rest_of, short_of};
use super::packed::{Packed, merge};
use rpds::HashTrieMapSync;
use std::sync::Arc;
use turnpike_config::routing::Map;
use turnpike_config::{KeyDigest, KeyRecord, OrgId};

/// Changes that are kept beside the packed keys, at most: so many, and one for so many packed ones. A change takes some
/// hundred bytes, packing a million keys anew some ten milliseconds.
const CHANGES: usize = 1_024;
const PACKED_FOR_CHANGE: usize = 1_024;

/// Keys by digest. A changed copy shares all but what changed.
#[derive(Clone, Debug, Default)]
pub(crate) struct KeyTable {
    packed: Arc<Packed>,
    /// `None` has gone.
    changed: HashTrieMapSync<Short, Option<Arc<KeyRecord>>>,
    /// Keys that organizations have more, or fewer, than among the packed ones.
    owned: Map<OrgId, i64>,
    count: usize,
}

impl KeyTable {
    pub(crate) fn new(packed: Arc<Packed>) -> Self {
        Self { count: packed.len(), packed, ..Self::default() }
    }

    pub(crate) const fn len(&self) -> usize {
        self.count
    }

    /// The key that is known by a digest.
    pub(crate) fn get(&self, digest: &KeyDigest) -> Option<KeyRecord> {
        let short = short_of(digest);
        match self.changed.get(&short) {
            Some(changed) => changed.as_deref().filter(|record| record.digest == *digest).cloned(),
            None => self.packed.record(self.packed.find(short)?, rest_of(digest)),
        }
    }

    /// Whether an organization has keys.
    pub(crate) fn owns(&self, org: &OrgId) -> bool {
        i64::from(self.packed.owned(org)) + self.owned.get(org).copied().unwrap_or(0) > 0
    }

    pub(crate) fn put(&mut self, record: KeyRecord) {
        let short = short_of(&record.digest);
        let before = self.owner(short);
        self.count += usize::from(before.is_none());
        if before != Some(record.organization) {
            before.iter().for_each(|org| self.count_owned(*org, -1));
            self.count_owned(record.organization, 1);
        }
        self.changed.insert_mut(short, Some(Arc::new(record)));
    }

    pub(crate) fn remove(&mut self, digest: &KeyDigest) {
        let short = short_of(digest);
        let Some(org) = self.owner(short) else { return };
        self.count -= 1;
        self.count_owned(org, -1);
        if self.packed.find(short).is_some() {
            self.changed.insert_mut(short, None);
        } else {
            self.changed.remove_mut(&short);
        }
    }

    fn owner(&self, short: Short) -> Option<OrgId> {
        match self.changed.get(&short) {
            Some(changed) => changed.as_ref().map(|record| record.organization),
            None => self.packed.organization(self.packed.find(short)?),
        }
    }

    fn count_owned(&mut self, org: OrgId, more: i64) {
        match self.owned.get(&org).copied().unwrap_or(0) + more {
            0 => drop(self.owned.remove_mut(&org)),
            sum => self.owned.insert_mut(org, sum),
        }
    }

    /// Keys that together have everything in them that a key can have, as far as they are packed.
    pub(crate) fn witnesses(&self) -> impl Iterator<Item = KeyRecord> + '_ {
        self.packed.witnesses().into_iter().filter_map(|at| self.packed.record(at, [0; 16]))
    }

    /// Some of the packed keys, from all over.
    pub(crate) fn samples(&self, count: usize) -> impl Iterator<Item = KeyRecord> + '_ {
        let step = self.packed.len().div_ceil(count.max(1)).max(1);
        (0..self.packed.len()).step_by(step).filter_map(|at| self.packed.record(at, [0; 16]))
    }

    /// Whether so much has changed that it is to be packed.
    pub(crate) fn is_due(&self) -> bool {
        self.changed.size() > CHANGES + self.packed.len() / PACKED_FOR_CHANGE
    }

    /// The same keys, all packed.
    #[must_use]
    pub(crate) fn repacked(&self) -> Self {
        let mut changes: Vec<_> = self.changed.iter().map(|(short, record)| (*short, record.as_deref())).collect();
        changes.sort_unstable_by_key(|(short, _)| *short);
        let (packed, _) = merge(&self.packed, &[], changes.into_iter());
        Self::new(Arc::new(packed))
    }
}
