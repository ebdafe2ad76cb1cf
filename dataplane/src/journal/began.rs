//! When the requests began, or ended, whose usage is not in the journal yet: how far usage is complete.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// Requests are counted by the step of time that they belong to, milliseconds: a coarse answer, and no lock.
const STEP_MS: u64 = 1_000;
/// Steps told apart. A request that runs longer than all of them (three days) looks like one that has just begun.
const STEPS: usize = 1 << 18;

/// Requests by a moment of theirs.
#[derive(Debug)]
pub(crate) struct Began(Box<[AtomicU32]>);

/// A request that is counted until this is dropped.
#[derive(Debug)]
pub(crate) struct Running {
    began: Arc<Began>,
    at: usize,
}

impl Began {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self((0..STEPS).map(|_| AtomicU32::new(0)).collect()))
    }

    /// Counts a request at a moment, milliseconds of any clock.
    pub(crate) fn enter(self: &Arc<Self>, ms: u64) -> Running {
        let at = slot(ms / STEP_MS);
        self.0[at].fetch_add(1, Ordering::SeqCst);
        Running { began: Arc::clone(self), at }
    }

    /// No request is counted at a moment before this, milliseconds of the same clock; at most `now_ms`.
    pub(crate) fn complete_to(&self, now_ms: u64) -> u64 {
        let now = now_ms / STEP_MS;
        // From the oldest step that the ring tells apart up to now. A clock that was set back leaves requests in steps of
        // the future: those count as well, as the oldest there is.
        let oldest = (1..=STEPS as u64).rev().map(|ago| (now + 1).saturating_sub(ago));
        let found = oldest.into_iter().find(|step| self.0[slot(*step)].load(Ordering::SeqCst) > 0);
        found.unwrap_or(now) * STEP_MS
    }
}

fn slot(step: u64) -> usize {
    usize::try_from(step % STEPS as u64).unwrap_or(0)
}

impl Drop for Running {
    fn drop(&mut self) {
        self.began.0[self.at].fetch_sub(1, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_running_request_holds_the_mark() {
        let began = Began::new();
        assert_eq!(began.complete_to(5_000_500), 5_000_000);
        let old = began.enter(4_990_999);
        let young = began.enter(4_995_000);
        assert_eq!(began.complete_to(5_000_500), 4_990_000);
        drop(old);
        assert_eq!(began.complete_to(5_000_500), 4_995_000);
        drop(young);
        assert_eq!(began.complete_to(5_001_000), 5_001_000);
    }

    #[test]
    fn a_clock_set_back_does_not_lose_a_running_request() {
        let began = Began::new();
        let running = began.enter(10_000_000_000);
        assert!(began.complete_to(9_999_000_000) <= 9_999_000_000);
        assert_ne!(began.complete_to(9_999_000_000), 9_999_000_000, "it runs: the mark stays behind");
        drop(running);
        assert_eq!(began.complete_to(9_999_000_000), 9_999_000_000);
    }
}
