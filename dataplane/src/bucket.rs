//! A limit that one edge keeps on its own: the generic cell rate algorithm (ITU-T I.371), lock-free.
//!
//! A bucket is a single atomic: the theoretical arrival time, in nanoseconds of the caller's clock. Its burst is one
//! minute's worth, so over any window w at most `limit + limit·w/60 s` units are admitted.

use std::sync::atomic::{AtomicU64, Ordering};

const MINUTE_NS: u64 = 60_000_000_000;

/// A limit of so many units per minute. Time is passed in: nanoseconds of any monotonic clock.
#[derive(Debug)]
pub(crate) struct Bucket {
    per_minute: u64,
    /// When the bucket will be full again; in the past if it is full.
    full_at_ns: AtomicU64,
}

/// Not admitted; worth another try after this many nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RetryAfter(pub(crate) u64);

impl Bucket {
    /// A full bucket; `per_minute` is at least 1.
    pub(crate) const fn new(per_minute: u64) -> Self {
        Self { per_minute, full_at_ns: AtomicU64::new(0) }
    }

    /// Makes it a bucket that was empty at a moment.
    pub(crate) fn empty_at(&self, moment_ns: u64) {
        self.full_at_ns.store(moment_ns.saturating_add(MINUTE_NS), Ordering::Relaxed);
    }

    /// Takes `units` or nothing, from one of `parts` equal parts of the limit. More than a part's minute's worth is never
    /// admitted.
    pub(crate) fn take(&self, units: u64, parts: u32, now_ns: u64) -> Result<(), RetryAfter> {
        let cost = self.cost_ns(units, parts);
        let mut full_at = self.full_at_ns.load(Ordering::Relaxed);
        loop {
            let next = full_at.max(now_ns).saturating_add(cost);
            let horizon = now_ns.saturating_add(MINUTE_NS);
            if next > horizon {
                return Err(RetryAfter(next - horizon));
            }
            match self.full_at_ns.compare_exchange_weak(full_at, next, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return Ok(()),
                Err(seen) => full_at = seen,
            }
        }
    }

    /// Takes units that were used already, beyond the limit if need be: later requests wait the longer.
    pub(crate) fn take_anyway(&self, units: u64, parts: u32, now_ns: u64) {
        let cost = self.cost_ns(units, parts);
        // Relaxed: the value is its own only data. The closure never returns None.
        let _ = self.full_at_ns.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |full_at| {
            Some(full_at.max(now_ns).saturating_add(cost))
        });
    }

    /// Nanoseconds of refill that `units` are worth, rounded up so that rounding never admits more.
    fn cost_ns(&self, units: u64, parts: u32) -> u64 {
        let unit = u128::from(MINUTE_NS) * u128::from(parts.max(1));
        let cost = (u128::from(units) * unit).div_ceil(u128::from(self.per_minute.max(1)));
        u64::try_from(cost).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_minutes_worth_then_no_more_until_refilled() {
        let bucket = Bucket::new(3);
        let now = 5_000_000_000;
        assert!((0..3).all(|_| bucket.take(1, 1, now).is_ok()));
        assert_eq!(bucket.take(1, 1, now), Err(RetryAfter(20_000_000_000)));
        assert!(bucket.take(1, 1, now + 20_000_000_000).is_ok());
        assert!(bucket.take(1, 1, now + 20_000_000_001).is_err());
    }

    #[test]
    fn it_can_begin_with_nothing_and_be_a_part_of_a_limit() {
        let bucket = Bucket::new(600);
        bucket.empty_at(7);
        assert!(bucket.take(1, 2, 7).is_err());
        assert!(bucket.take(1, 2, 200_000_007).is_ok());
        assert!(bucket.take(1, 2, 200_000_007).is_err());
        bucket.take_anyway(1_000, 2, 200_000_007);
        assert!(bucket.take(1, 2, MINUTE_NS).is_err());
    }

    proptest! {
        /// Over every window, admitted ≤ burst + rate · window.
        #[test]
        fn never_more_than_burst_plus_rate(
            per_minute in 1_u64..2000,
            steps in proptest::collection::vec((0_u64..10_000_000_000, 1_u64..50), 1..200),
        ) {
            let bucket = Bucket::new(per_minute);
            let mut now = 0;
            let mut admitted = Vec::new();
            for (wait, units) in steps {
                now += wait;
                if bucket.take(units, 1, now).is_ok() {
                    admitted.push((now, units));
                }
            }
            for (i, (start, _)) in admitted.iter().enumerate() {
                let mut sum = 0;
                for (end, units) in &admitted[i..] {
                    sum += units;
                    let allowed = u128::from(per_minute)
                        + u128::from(per_minute) * u128::from(end - start) / u128::from(MINUTE_NS);
                    prop_assert!(u128::from(sum) <= allowed, "{sum} admitted, {allowed} allowed");
                }
            }
        }
    }
}
