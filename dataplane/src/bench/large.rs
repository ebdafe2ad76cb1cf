//! A large state.

use crate::image::Image;
use crate::live::{Snapshot, literal};
use crate::store::{self, Base};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use turnpike_config::log::{Hash, Position};
use turnpike_config::{Change, KeyDigest, KeyId, KeyRecord, ModelLimits, OrgId, OrgRecord, Permissions, RateLimits};
use uuid::Uuid;

/// Organizations of a large state.
const ORGS: u128 = 1_000;

/// A large state, as an edge holds it and keeps it.
#[derive(Debug)]
pub struct Large {
    snapshot: Snapshot,
    base: Option<Base>,
}

fn org(n: u128) -> OrgId {
    OrgId(Uuid::from_u128(n % ORGS))
}

/// A key like many.
pub fn key(n: u32) -> KeyRecord {
    let per_minute = |some: u32| Some(60 * (1 + n % some));
    KeyRecord {
        id: KeyId(Uuid::from_u128(u128::from(n) | 1 << 100)),
        organization: org(n.into()),
        digest: KeyDigest::of(&n.to_string()),
        permissions: Permissions(u16::MAX),
        limits: RateLimits {
            requests_per_minute: per_minute(20),
            tokens_per_minute: per_minute(5),
            ..RateLimits::default()
        },
        models: None,
        active: true,
        expires_at_ms: None,
        model_limits: ModelLimits::default(),
    }
}

/// Everything of a large state in the order in which it is sent.
fn changes(keys: u32) -> impl Iterator<Item = Change> {
    let orgs = (0..ORGS).map(|n| {
        Change::PutOrg(OrgRecord {
            id: org(n),
            slug: n.to_string(),
            limits: RateLimits::default(),
            model_limits: ModelLimits::default(),
            budget: None,
            prepaid: None,
            cache_generation: 0,
        })
    });
    let mut order: Vec<(KeyDigest, u32)> = (0..keys).map(|n| (KeyDigest::of(&n.to_string()), n)).collect();
    order.sort_unstable();
    orgs.chain(order.into_iter().map(|(_, n)| Change::PutKey(key(n))))
}

impl Large {
    /// Takes so many keys as one whole state, or says why not.
    pub fn fetched(keys: u32) -> Result<Self, String> {
        let mut image = Image::default();
        changes(keys).try_for_each(|change| image.build(change))?;
        let at = Position { version: 1, chain: Hash::default() };
        let base = Base::new(at, image.finish());
        let next = Snapshot::default().replaced(&base.records, Arc::clone(&base.keys), at, &literal)?;
        Ok(Self { snapshot: next.snapshot, base: Some(base) })
    }

    /// Writes it down, after which only what is served by is left.
    pub fn keep(&mut self, directory: &Path) -> Result<(), String> {
        let keeper = store::open(directory, 0).map_err(|e| e.to_string())?.keeper;
        self.base.take().into_iter().for_each(|base| keeper.whole(base));
        keeper.succeeded();
        keeper.flush(Duration::from_secs(600));
        Ok(())
    }

    /// Starts from what was written down.
    pub fn restarted(directory: &Path) -> Result<Self, String> {
        let base = store::open(directory, 0).map_err(|e| e.to_string())?.state.ok_or("nothing was kept")?;
        let next = Snapshot::default().replaced(&base.records, base.keys, base.at, &literal)?;
        Ok(Self { snapshot: next.snapshot, base: None })
    }

    /// Changes one key.
    pub fn change(&mut self, record: KeyRecord) -> Result<(), String> {
        let at = Position { version: self.snapshot.at.version + 1, chain: Hash::default() };
        self.snapshot = self.snapshot.after(&[Change::PutKey(record)], at, &literal)?.snapshot;
        Ok(())
    }

    /// Packs what has changed, if it is time.
    pub fn tidy(&mut self) -> bool {
        let repacked = self.snapshot.repacked();
        let is_due = repacked.is_some();
        repacked.into_iter().for_each(|snapshot| self.snapshot = snapshot);
        is_due
    }

    /// Finds a key as a request does.
    pub fn find(&self, digest: &KeyDigest) -> bool {
        self.snapshot.key(digest).is_some()
    }

    /// How many keys there are.
    pub const fn len(&self) -> usize {
        self.snapshot.key_count()
    }

    /// Whether there is none.
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
