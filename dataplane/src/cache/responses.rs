//! The cache as the edge uses it: this process's memory, then the region's Redis, and who is getting what now.

use crate::cache::answer::StoredAnswer;
use crate::cache::flight::{Flights, Join};
use crate::cache::memory::Memory;
use crate::cache::shared::{Claim, Fence, Kept, SharedAnswers};
use std::sync::Arc;
use std::time::Duration;
use turnpike_config::CacheKey;

/// Answers, in memory and in the region.
pub(crate) struct ResponseCache {
    memory: Memory,
    shared: Option<Arc<SharedAnswers>>,
    flights: Arc<Flights>,
}

/// An answer that a request would be content with.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted {
    pub(crate) key: CacheKey,
    /// How long it is kept at all.
    pub(crate) ttl: Duration,
    /// Oldest that will do, seconds.
    pub(crate) max_age_s: Option<u32>,
    /// Unix milliseconds of the purge that it must have been made after; 0 if there was none.
    pub(crate) purged_at_ms: u64,
}

impl Wanted {
    /// Whether an answer will do.
    pub(crate) fn accepts(&self, answer: &StoredAnswer, now_ms: u64) -> bool {
        self.accepts_of(answer.stored_at_ms, now_ms)
    }

    /// Whether an answer will do that was asked for at that time, Unix milliseconds.
    pub(crate) fn accepts_of(&self, asked_at_ms: u64, now_ms: u64) -> bool {
        let age_ms = now_ms.saturating_sub(asked_at_ms);
        asked_at_ms > self.purged_at_ms
            && u128::from(age_ms) < self.ttl.as_millis()
            && self.max_age_s.is_none_or(|seconds| age_ms <= u64::from(seconds) * 1_000)
    }

    /// For how much longer an answer may be kept.
    fn left(&self, answer: &StoredAnswer, now_ms: u64) -> Duration {
        self.ttl.saturating_sub(Duration::from_millis(now_ms.saturating_sub(answer.stored_at_ms)))
    }
}

/// How much there is in this process.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Size {
    pub(crate) bytes: u64,
    pub(crate) answers: u64,
    /// Answers being made.
    pub(crate) flights: usize,
}

impl ResponseCache {
    /// Room for answers of `max_bytes` in this process; 0 keeps none here.
    pub(crate) fn new(max_bytes: u64, shared: Option<SharedAnswers>) -> Self {
        Self { memory: Memory::new(max_bytes), shared: shared.map(Arc::new), flights: Arc::default() }
    }

    /// An answer in this process.
    pub(crate) fn get(&self, wanted: &Wanted, now_ms: u64) -> Option<Arc<StoredAnswer>> {
        self.memory.get(&wanted.key).filter(|answer| wanted.accepts(answer, now_ms))
    }

    /// An answer of the region, or else leave to make it, with a fence if the other edges know.
    pub(crate) async fn claim(&self, wanted: &Wanted, now_ms: u64) -> Result<Arc<StoredAnswer>, Option<Fence>> {
        let Some(shared) = &self.shared else { return Err(None) };
        match shared.claim(wanted.key, |answer| wanted.accepts(answer, now_ms)).await {
            Claim::Found(answer) => {
                let answer = Arc::new(answer);
                self.memory.insert(wanted.key, Arc::clone(&answer), wanted.left(&answer, now_ms));
                Ok(answer)
            }
            Claim::Ours(fence) => Err(Some(fence)),
            Claim::None => Err(None),
        }
    }

    /// Takes part in the making of an answer.
    pub(crate) fn join(&self, key: CacheKey, now_ms: u64) -> Join {
        self.flights.join(key, now_ms)
    }

    /// Keeps an answer here at once, and in the region by and by; the fence falls when it is there.
    pub(crate) fn put(&self, wanted: &Wanted, answer: &Arc<StoredAnswer>, now_ms: u64, fence: Option<Fence>) {
        let ttl = wanted.left(answer, now_ms);
        self.memory.insert(wanted.key, Arc::clone(answer), ttl);
        if let Some(shared) = &self.shared {
            shared.put(Kept { key: wanted.key, answer: Arc::clone(answer), ttl, fence });
        }
    }

    /// Forgets an answer, here and in the region.
    pub(crate) fn purge(&self, key: CacheKey) {
        self.memory.remove(&key);
        let (Some(shared), Ok(runtime)) = (&self.shared, tokio::runtime::Handle::try_current()) else { return };
        let shared = Arc::clone(shared);
        drop(runtime.spawn(async move { shared.remove(key).await }));
    }

    /// What there is now.
    pub(crate) fn size(&self) -> Size {
        self.memory.settle();
        Size { bytes: self.memory.weight(), answers: self.memory.len(), flights: self.flights.len() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    #[test]
    fn age_life_and_purges_decide() {
        let wanted = Wanted { key: CacheKey::of(b"k"), ttl: Duration::from_secs(60), max_age_s: None, purged_at_ms: 0 };
        let body = Bytes::from_static(b"{}");
        let answer =
            StoredAnswer { stored_at_ms: 10_000, streamed: false, prompt_tokens: 1, completion_tokens: 1, body };
        for (wanted, now_ms, good) in [
            (wanted, 10_000, true),
            (wanted, 69_999, true),
            (wanted, 70_000, false),
            // Clocks of two edges differ.
            (wanted, 9_000, true),
            (Wanted { max_age_s: Some(5), ..wanted }, 15_000, true),
            (Wanted { max_age_s: Some(5), ..wanted }, 15_001, false),
            (Wanted { purged_at_ms: 9_999, ..wanted }, 10_000, true),
            (Wanted { purged_at_ms: 10_000, ..wanted }, 10_000, false),
        ] {
            assert_eq!(wanted.accepts(&answer, now_ms), good, "{wanted:?} {now_ms}");
        }
    }
}
