//! Keys in the order of their digests, packed.

use super::entry::{Entry, Fields, Rest, Short, digest_of, rest_of, short_at, short_of};
use super::profile::{Numbers, Profile};
use minicbor::{Decode, Encode};
use turnpike_config::{KeyRecord, OrgId};

/// Probes by interpolation; digests that are not spread evenly are searched for by halves after that.
const PROBES: u32 = 12;

/// What entries refer to by index.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub(crate) struct Tables {
    #[n(0)]
    pub(super) profiles: Vec<Profile>,
    #[n(1)]
    pub(super) orgs: Vec<OrgId>,
}

/// Keys that are never changed.
#[derive(Clone, Debug, Default)]
pub(crate) struct Packed {
    entries: Vec<Entry>,
    tables: Tables,
    /// How many keys each organization has, in the order of the table.
    owned: Vec<u32>,
    /// Indexes of organizations in the order of their ids.
    by_id: Vec<u32>,
}

impl Packed {
    /// Of parts that were written down; `None` if they do not hold together.
    pub(crate) fn from_parts(entries: Vec<Entry>, tables: Tables) -> Option<Self> {
        let mut owned = vec![0_u32; tables.orgs.len()];
        let mut before = None;
        for entry in &entries {
            let Fields { short, org, profile, .. } = Fields::unpack(entry);
            if before.is_some_and(|before| before >= short) || profile as usize >= tables.profiles.len() {
                return None;
            }
            before = Some(short);
            *owned.get_mut(org as usize)? += 1;
        }
        let mut by_id: Vec<u32> = (0..u32::try_from(tables.orgs.len()).ok()?).collect();
        by_id.sort_unstable_by_key(|index| tables.orgs[*index as usize]);
        Some(Self { entries, tables, owned, by_id })
    }

    pub(crate) fn entries(&self) -> &[Entry] {
        &self.entries
    }

    pub(crate) const fn tables(&self) -> &Tables {
        &self.tables
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    /// How many keys an organization has.
    pub(crate) fn owned(&self, org: &OrgId) -> u32 {
        let found = self.by_id.binary_search_by_key(org, |index| self.tables.orgs[*index as usize]);
        found.ok().and_then(|at| self.owned.get(*self.by_id.get(at)? as usize)).copied().unwrap_or(0)
    }

    /// Where a key is.
    pub(crate) fn find(&self, short: Short) -> Option<usize> {
        let at = self.lower_bound(short);
        self.entries.get(at).is_some_and(|entry| short_at(entry) == short).then_some(at)
    }

    /// Where the first key is that is not before this one.
    fn lower_bound(&self, short: Short) -> usize {
        let (mut low, mut high) = (0, self.entries.len());
        // Everything before `low` is less than `floor`, everything from `high` on at least `ceiling`.
        let (mut floor, mut ceiling) = (0, Short::MAX);
        let mut probes = 0;
        while low < high {
            let middle = if probes < PROBES { between(low, high, floor, ceiling, short) } else { low.midpoint(high) };
            probes += 1;
            let seen = short_at(&self.entries[middle]);
            if seen < short {
                (low, floor) = (middle + 1, seen);
            } else {
                (high, ceiling) = (middle, seen);
            }
        }
        low
    }

    /// The record at a place; a digest's other half is not known here.
    pub(crate) fn record(&self, at: usize, rest: Rest) -> Option<KeyRecord> {
        let Fields { short, id, org, profile, expires_at_ms } = Fields::unpack(self.entries.get(at)?);
        let organization = *self.tables.orgs.get(org as usize)?;
        let Profile { permissions, limits, models, active, model_limits } =
            self.tables.profiles.get(profile as usize)?.clone();
        let digest = digest_of(short, rest);
        Some(KeyRecord { id, organization, digest, permissions, limits, models, active, expires_at_ms, model_limits })
    }

    /// Whose the key at a place is.
    pub(crate) fn organization(&self, at: usize) -> Option<OrgId> {
        self.tables.orgs.get(Fields::unpack(self.entries.get(at)?).org as usize).copied()
    }

    /// Places of keys that together refer to every profile and every organization there is.
    pub(crate) fn witnesses(&self) -> Vec<usize> {
        let (mut orgs, mut profiles) = (vec![false; self.tables.orgs.len()], vec![false; self.tables.profiles.len()]);
        let mut new = |entry: &Entry| {
            let fields = Fields::unpack(entry);
            let seen =
                |all: &mut [bool], at: u32| all.get_mut(at as usize).is_none_or(|seen| std::mem::replace(seen, true));
            let (org, profile) = (seen(&mut orgs, fields.org), seen(&mut profiles, fields.profile));
            !org || !profile
        };
        (0..).zip(&self.entries).filter(|(_, entry)| new(entry)).map(|(at, _)| at).collect()
    }
}

/// Where something is likely to be among entries from `low` to `high` that are spread evenly.
fn between(low: usize, high: usize, floor: Short, ceiling: Short, short: Short) -> usize {
    // 64 bits tell where; the product fits into 128.
    let scaled = |value: Short| (value.saturating_sub(floor) >> 64) as u64;
    let (part, whole) = (scaled(short), scaled(ceiling).max(1));
    let offset = u128::from(part.min(whole)) * (high - low) as u128 / u128::from(whole);
    (low + usize::try_from(offset).unwrap_or(usize::MAX)).min(high - 1)
}

/// Packs keys that come in order.
pub(crate) struct Builder {
    entries: Vec<Entry>,
    rests: Vec<Rest>,
    profiles: Numbers<Vec<u8>, Profile>,
    orgs: Numbers<OrgId, OrgId>,
    /// Bytes of what keys have in common, as far as it was pushed.
    weight: usize,
}

impl Default for Builder {
    fn default() -> Self {
        Self::new(Tables::default())
    }
}

impl Builder {
    fn new(tables: Tables) -> Self {
        let profiles = Numbers::new(tables.profiles, Profile::name);
        let orgs = Numbers::new(tables.orgs, |org| *org);
        Self { entries: Vec::new(), rests: Vec::new(), profiles, orgs, weight: 0 }
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(crate) const fn weight(&self) -> usize {
        self.weight
    }

    /// Adds a key; false if it does not come after those before it.
    pub(crate) fn push(&mut self, record: &KeyRecord) -> bool {
        let short = short_of(&record.digest);
        if self.entries.last().is_some_and(|last| short_at(last) >= short) {
            return false;
        }
        let profile = Profile::of(record);
        let (name, weight) = (profile.name(), &mut self.weight);
        let size = name.len();
        let profile = self.profiles.of(name, || {
            *weight += size;
            profile
        });
        let org = self.orgs.of(record.organization, || {
            *weight += size_of::<OrgId>();
            record.organization
        });
        self.entries.push(Fields { short, id: record.id, org, profile, expires_at_ms: record.expires_at_ms }.pack());
        self.rests.push(rest_of(&record.digest));
        true
    }

    /// The packed keys, with the other halves of their digests.
    pub(crate) fn finish(mut self) -> (Packed, Vec<Rest>) {
        self.forget_unused();
        self.entries.shrink_to_fit();
        let tables = Tables { profiles: self.profiles.all, orgs: self.orgs.all };
        // What was pushed is in order and refers to what there is.
        (Packed::from_parts(self.entries, tables).unwrap_or_default(), self.rests)
    }

    fn forget_unused(&mut self) {
        let (mut orgs, mut profiles) = (vec![false; self.orgs.all.len()], vec![false; self.profiles.all.len()]);
        for entry in &self.entries {
            let fields = Fields::unpack(entry);
            orgs[fields.org as usize] = true;
            profiles[fields.profile as usize] = true;
        }
        if orgs.iter().chain(&profiles).all(|used| *used) {
            return;
        }
        let (orgs, profiles) = (keep(&mut self.orgs.all, &orgs), keep(&mut self.profiles.all, &profiles));
        for entry in &mut self.entries {
            let fields = Fields::unpack(entry);
            *entry =
                Fields { org: orgs[fields.org as usize], profile: profiles[fields.profile as usize], ..fields }.pack();
        }
    }
}

/// Keeps what is used, and says which index each has then.
fn keep<T>(all: &mut Vec<T>, used: &[bool]) -> Vec<u32> {
    let mut flags = used.iter();
    all.retain(|_| flags.next().copied().unwrap_or_default());
    let mut next = 0;
    let index = |used: &bool| {
        let index = next;
        next += u32::from(*used);
        index
    };
    used.iter().map(index).collect()
}

/// Keys with changes, which come in order. The other halves of digests are kept if those of `base` are given.
pub(crate) fn merge<'c>(
    base: &Packed,
    rests: &[Rest],
    changes: impl Iterator<Item = (Short, Option<&'c KeyRecord>)>,
) -> (Packed, Vec<Rest>) {
    let mut builder = Builder::new(base.tables.clone());
    builder.entries.reserve_exact(base.len() + changes.size_hint().0);
    let mut done = 0;
    for (short, record) in changes {
        let until = base.lower_bound(short);
        builder.copy(base, rests, done..until);
        let replaced = base.entries.get(until).is_some_and(|entry| short_at(entry) == short);
        done = until + usize::from(replaced);
        record.map(|record| builder.push(record));
    }
    builder.copy(base, rests, done..base.len());
    let (packed, all) = builder.finish();
    (packed, if rests.len() == base.len() { all } else { Vec::new() })
}

impl Builder {
    /// Copies keys of which the tables are known.
    fn copy(&mut self, base: &Packed, rests: &[Rest], range: std::ops::Range<usize>) {
        self.entries.extend_from_slice(base.entries.get(range.clone()).unwrap_or_default());
        self.rests.extend_from_slice(rests.get(range).unwrap_or_default());
    }
}
