//! Answers kept in this process, bounded by the bytes they take.

use crate::cache::answer::StoredAnswer;
use foldhash::fast::RandomState;
use moka::Expiry;
use moka::sync::Cache;
use std::sync::Arc;
use std::time::{Duration, Instant};
use turnpike_config::CacheKey;

/// What an answer takes beside its body, bytes: the key twice, moka's entry and timers, reference counts. An estimate.
const OVERHEAD: usize = 512;
/// No answer may push out more than this share of the others.
const LARGEST_SHARE: u64 = 16;

/// Kept answers. Which stay when there is no room is TinyLFU's choice: those asked for most.
#[derive(Debug)]
pub(crate) struct Memory {
    answers: Cache<CacheKey, Entry, RandomState>,
    max_bytes: u64,
}

#[derive(Clone, Debug)]
struct Entry {
    answer: Arc<StoredAnswer>,
    ttl: Duration,
}

/// Each answer has a life of its own, counted from when it was put in.
#[derive(Debug)]
struct OwnLife;

impl Expiry<CacheKey, Entry> for OwnLife {
    fn expire_after_create(&self, _: &CacheKey, entry: &Entry, _: Instant) -> Option<Duration> {
        Some(entry.ttl)
    }

    fn expire_after_update(&self, _: &CacheKey, entry: &Entry, _: Instant, _: Option<Duration>) -> Option<Duration> {
        Some(entry.ttl)
    }
}

impl Memory {
    /// Room for answers of `max_bytes` together; 0 keeps none.
    pub(crate) fn new(max_bytes: u64) -> Self {
        let answers = Cache::builder()
            .max_capacity(max_bytes)
            .weigher(|_, entry: &Entry| u32::try_from(weight_of(&entry.answer)).unwrap_or(u32::MAX))
            .expire_after(OwnLife)
            .build_with_hasher(RandomState::default());
        Self { answers, max_bytes }
    }

    /// The answer, unless its time is over.
    pub(crate) fn get(&self, key: &CacheKey) -> Option<Arc<StoredAnswer>> {
        if self.max_bytes == 0 {
            return None;
        }
        self.answers.get(key).map(|entry| entry.answer)
    }

    /// Keeps an answer for `ttl`, in place of an older one. One larger than a sixteenth of the room is not kept, nor is
    /// what it would have replaced.
    pub(crate) fn insert(&self, key: CacheKey, answer: Arc<StoredAnswer>, ttl: Duration) {
        if weight_of(&answer) > self.max_bytes / LARGEST_SHARE || ttl.is_zero() {
            self.answers.invalidate(&key);
            return;
        }
        self.answers.insert(key, Entry { answer, ttl });
    }

    pub(crate) fn remove(&self, key: &CacheKey) {
        self.answers.invalidate(key);
    }

    /// Brings the figures up to date.
    pub(crate) fn settle(&self) {
        self.answers.run_pending_tasks();
    }

    /// Bytes that the answers take, when last settled.
    pub(crate) fn weight(&self) -> u64 {
        self.answers.weighted_size()
    }

    /// Answers kept, when last settled.
    pub(crate) fn len(&self) -> u64 {
        self.answers.entry_count()
    }
}

fn weight_of(answer: &StoredAnswer) -> u64 {
    (answer.body.len() + OVERHEAD) as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    const HOUR: Duration = Duration::from_secs(3_600);

    fn answer(size: usize) -> Arc<StoredAnswer> {
        let body = Bytes::from(vec![b'x'; size]);
        Arc::new(StoredAnswer { stored_at_ms: 0, streamed: false, prompt_tokens: 1, completion_tokens: 1, body })
    }

    fn key(n: u32) -> CacheKey {
        CacheKey::of(&n.to_le_bytes())
    }

    #[test]
    fn an_answer_is_kept_replaced_and_removed() {
        let memory = Memory::new(1 << 20);
        assert!(memory.get(&key(1)).is_none());
        memory.insert(key(1), answer(10), HOUR);
        memory.insert(key(1), answer(20), HOUR);
        assert_eq!(memory.get(&key(1)).unwrap().body.len(), 20);
        memory.settle();
        assert_eq!((memory.len(), memory.weight()), (1, 20 + OVERHEAD as u64));
        memory.remove(&key(1));
        assert!(memory.get(&key(1)).is_none());
        memory.settle();
        assert_eq!((memory.len(), memory.weight()), (0, 0));
    }

    #[test]
    fn every_answer_has_its_own_life() {
        let memory = Memory::new(1 << 20);
        memory.insert(key(1), answer(10), Duration::from_millis(30));
        memory.insert(key(2), answer(10), HOUR);
        memory.insert(key(3), answer(10), Duration::ZERO);
        memory.insert(key(4), answer(10), HOUR);
        memory.insert(key(4), answer(10), Duration::from_millis(30));
        assert!(memory.get(&key(3)).is_none());
        std::thread::sleep(Duration::from_millis(60));
        assert!(memory.get(&key(1)).is_none() && memory.get(&key(4)).is_none());
        assert!(memory.get(&key(2)).is_some());
    }

    #[test]
    fn the_bound_holds() {
        let memory = Memory::new(100_000);
        for n in 0..1_000 {
            memory.insert(key(n), answer(2_000), HOUR);
            if n % 50 == 0 {
                memory.settle();
                assert!(memory.weight() <= 100_000);
            }
        }
        memory.settle();
        assert!(memory.weight() <= 100_000 && memory.len() > 10);
    }

    #[test]
    fn what_is_too_large_is_not_kept_and_leaves_nothing_old() {
        let memory = Memory::new(100_000);
        memory.insert(key(1), answer(100), HOUR);
        memory.insert(key(1), answer(100_000 / 16), HOUR);
        assert!(memory.get(&key(1)).is_none());
        let none = Memory::new(0);
        none.insert(key(1), answer(0), HOUR);
        assert!(none.get(&key(1)).is_none());
    }
}
