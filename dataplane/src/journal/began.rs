//! When the requests began, or ended, whose usage is not in the journal yet: how far usage is complete.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// Requests are counted by the step of time that they belong to, milliseconds: a coarse answer, and no lock.
const STEP_MS: u64 = 1_000;
/// Steps told apart. A request that runs longer than all of them (three days) looks like one that has just begun.
const STEPS: usize = 1 << 18;

/// Steps that are looked at together: most are empty.
const GROUP: usize = 1 << 9;

/// Requests by a moment of theirs.
#[derive(Debug)]
pub(crate) struct Began {
    steps: Box<[AtomicU32]>,
    /// Sums of [`GROUP`] steps each, never less than what those say.
    groups: Box<[AtomicU32]>,
}

/// A request that is counted until this is dropped.
#[derive(Debug)]
pub(crate) struct Running {
    began: Arc<Began>,
    at: usize,
}

impl Began {
    pub(crate) fn new() -> Arc<Self> {
        let none = |number| (0..number).map(|_| AtomicU32::new(0)).collect();
        Arc::new(Self { steps: none(STEPS), groups: none(STEPS / GROUP) })
    }

    /// Counts a request at a moment, milliseconds of any clock.
    pub(crate) fn enter(self: &Arc<Self>, ms: u64) -> Running {
        let at = slot(ms / STEP_MS);
        self.groups[at / GROUP].fetch_add(1, Ordering::SeqCst);
        self.steps[at].fetch_add(1, Ordering::SeqCst);
        Running { began: Arc::clone(self), at }
    }

    /// No request is counted at a moment before this, milliseconds of the same clock; at most `now_ms`.
    pub(crate) fn complete_to(&self, now_ms: u64) -> u64 {
        let now = now_ms / STEP_MS;
        // From the oldest step that the ring tells apart up to now. A clock that was set back leaves requests in steps of
        // the future: those count as well, as the oldest there is.
        let mut step = (now + 1).saturating_sub(STEPS as u64);
        while step < now {
            let at = slot(step);
            if self.groups[at / GROUP].load(Ordering::SeqCst) == 0 {
                step += (GROUP - at % GROUP) as u64;
            } else if self.steps[at].load(Ordering::SeqCst) == 0 {
                step += 1;
            } else {
                return step * STEP_MS;
            }
        }
        now * STEP_MS
    }
}

fn slot(step: u64) -> usize {
    usize::try_from(step % STEPS as u64).unwrap_or(0)
}

impl Drop for Running {
    fn drop(&mut self) {
        self.began.steps[self.at].fetch_sub(1, Ordering::SeqCst);
        self.began.groups[self.at / GROUP].fetch_sub(1, Ordering::SeqCst);
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
    fn the_mark_is_found_in_whatever_group_it_is() {
        let group_ms = GROUP as u64 * STEP_MS;
        let began = Began::new();
        let now = 1_000 * group_ms + 77_000;
        let running: Vec<_> = [300, 2, 1, 0].map(|groups| began.enter(now - groups * group_ms)).into();
        for (groups, running) in [300, 2, 1, 0].into_iter().zip(running) {
            assert_eq!(began.complete_to(now + 999), now - groups * group_ms);
            drop(running);
        }
        assert_eq!(began.complete_to(now + 999), now);
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
