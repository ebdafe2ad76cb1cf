//! How busy the engine is.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crate::engine::EngineLoad;

/// Counted by the requests themselves.
#[derive(Debug, Default)]
pub(super) struct Load {
    running: AtomicU32,
    waiting: AtomicU32,
    cached_tokens: AtomicU64,
    generated_tokens: AtomicU64,
}

impl Load {
    /// Counts a request as waiting until the guard is dropped.
    pub(super) fn wait(&self) -> Counted<'_> {
        Counted::new(&self.waiting)
    }

    /// Counts a request as running until the guard is dropped.
    pub(super) fn run(&self) -> Counted<'_> {
        Counted::new(&self.running)
    }

    /// One more token was sampled.
    pub(super) fn token_generated(&self) {
        self.generated_tokens.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a sequence's tokens in the key-value cache until it is dropped.
    pub(super) fn tokens_in_cache(&self) -> TokensInCache<'_> {
        TokensInCache { load: self, tokens: 0 }
    }

    /// The figures, for an engine of `slots` sequences of up to `context_length` tokens (at least 1) each.
    pub(super) fn report(&self, slots: u32, context_length: u32) -> EngineLoad {
        let capacity = u64::from(slots.max(1)) * u64::from(context_length.max(1));
        let used = self.cached_tokens.load(Ordering::Relaxed).min(capacity);
        EngineLoad {
            running: Some(self.running.load(Ordering::Relaxed)),
            waiting: Some(self.waiting.load(Ordering::Relaxed)),
            kv_cache_permille: u16::try_from(used * 1000 / capacity).ok(),
            generated_tokens: Some(self.generated_tokens.load(Ordering::Relaxed)),
        }
    }
}

/// A request that counts as long as this lives.
#[derive(Debug)]
pub(super) struct Counted<'l>(&'l AtomicU32);

impl<'l> Counted<'l> {
    fn new(count: &'l AtomicU32) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// One sequence's share of the key-value cache.
#[derive(Debug)]
pub(super) struct TokensInCache<'l> {
    load: &'l Load,
    tokens: u64,
}

impl TokensInCache<'_> {
    /// `tokens` more.
    pub(super) fn add(&mut self, tokens: usize) {
        let tokens = u64::try_from(tokens).unwrap_or(u64::MAX);
        self.tokens += tokens;
        self.load.cached_tokens.fetch_add(tokens, Ordering::Relaxed);
    }
}

impl Drop for TokensInCache<'_> {
    fn drop(&mut self) {
        self.load.cached_tokens.fetch_sub(self.tokens, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONTEXT: u32 = 4096;

    #[test]
    fn what_ends_is_no_longer_counted_but_generated_tokens_stay() {
        let load = Load::default();
        {
            let (_running, _waiting) = (load.run(), load.wait());
            let mut cached = load.tokens_in_cache();
            cached.add(CONTEXT as usize);
            load.token_generated();
            let report = load.report(2, CONTEXT);
            assert_eq!((report.running, report.waiting, report.kv_cache_permille), (Some(1), Some(1), Some(500)));
        }
        let report = load.report(2, CONTEXT);
        assert_eq!((report.running, report.waiting, report.kv_cache_permille), (Some(0), Some(0), Some(0)));
        assert_eq!(report.generated_tokens, Some(1));
    }
}
