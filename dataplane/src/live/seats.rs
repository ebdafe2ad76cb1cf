//! Keys that are in use. What a key needs to be used is made when it is first asked for, shared by successive snapshots,
//! and forgotten some minutes after it was last used.

use super::key::Key;
use crate::keys::Short;
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockWriteGuard};

/// So many that requests hardly ever meet at one.
const SHARDS: usize = 256;
/// Sweeps without a use until a key is forgotten.
const KEPT: u32 = 5;

/// The keys in use.
#[derive(Debug)]
pub(crate) struct Seats {
    shards: Box<[RwLock<Shard>]>,
    /// Counts sweeps.
    now: AtomicU32,
}

type Shard = HashMap<Short, Seat, BuildHasherDefault<Spread>>;

#[derive(Debug)]
struct Seat {
    key: Arc<Key>,
    /// The newest snapshot in which the key is known to be like this.
    serial: AtomicU64,
    used: AtomicU32,
}

impl Default for Seats {
    fn default() -> Self {
        Self { shards: (0..SHARDS).map(|_| RwLock::default()).collect(), now: AtomicU32::new(0) }
    }
}

impl Seats {
    fn shard(&self, short: Short) -> &RwLock<Shard> {
        // The hash takes other bits.
        let low = usize::try_from(short & (SHARDS as u128 - 1)).unwrap_or(0);
        &self.shards[low]
    }

    /// The key, if it is known to be like this in the snapshot.
    pub(super) fn get(&self, short: Short, serial: u64) -> Option<Arc<Key>> {
        let shard = self.shard(short).read().unwrap_or_else(PoisonError::into_inner);
        let seat = shard.get(&short).filter(|seat| seat.serial.load(Ordering::Acquire) == serial)?;
        seat.touch(self.now.load(Ordering::Relaxed));
        Some(Arc::clone(&seat.key))
    }

    /// Has the key looked at anew for a snapshot. `renew` is given the one that is there.
    pub(super) fn renew(
        &self,
        short: Short,
        serial: u64,
        renew: impl FnOnce(Option<&Arc<Key>>) -> Arc<Key>,
    ) -> Arc<Key> {
        let now = self.now.load(Ordering::Relaxed);
        let mut shard: RwLockWriteGuard<'_, Shard> = self.shard(short).write().unwrap_or_else(PoisonError::into_inner);
        let Some(seat) = shard.get_mut(&short) else {
            let key = renew(None);
            let seat = Seat { key: Arc::clone(&key), serial: AtomicU64::new(serial), used: AtomicU32::new(now) };
            shard.insert(short, seat);
            return key;
        };
        let key = renew(Some(&seat.key));
        // A request that still sees an older snapshot goes by it alone.
        if serial >= *seat.serial.get_mut() {
            seat.key = Arc::clone(&key);
            *seat.serial.get_mut() = serial;
            seat.touch(now);
        }
        key
    }

    /// Forgets keys that nobody used lately, unless something of them is still outstanding; says how many are left. To be
    /// called once a minute.
    pub(crate) fn sweep(&self) -> usize {
        let mut left = 0;
        let now = self.now.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
        for shard in &self.shards {
            let mut shard = shard.write().unwrap_or_else(PoisonError::into_inner);
            shard.retain(|_, seat| {
                let idle = now.wrapping_sub(*seat.used.get_mut()) >= KEPT;
                !(idle && Arc::strong_count(&seat.key) == 1 && seat.key.limits.is_settled())
            });
            if shard.capacity() > 2 * shard.len() + 64 {
                shard.shrink_to_fit();
            }
            left += shard.len();
        }
        left
    }
}

impl Seat {
    fn touch(&self, now: u32) {
        // Read first: on the usual path nothing is written, so the cache line stays shared.
        if self.used.load(Ordering::Relaxed) != now {
            self.used.store(now, Ordering::Relaxed);
        }
    }
}

/// Digests are spread already.
#[derive(Default)]
struct Spread(u64);

impl Hasher for Spread {
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.0 = self.0.rotate_left(8) ^ u64::from(*byte));
    }

    fn write_u128(&mut self, short: u128) {
        self.0 = (short >> 64) as u64;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}
