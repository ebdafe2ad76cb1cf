//! The machine's monotonic clock.

use rustix::time::{ClockId, clock_gettime};

/// Counts nanoseconds from when the machine was started, so that two lives of a process can compare theirs; never 0.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Clock;

impl Clock {
    /// Now.
    pub(crate) fn now_ns(self) -> u64 {
        let now = clock_gettime(ClockId::Monotonic);
        let nanos = i128::from(now.tv_sec) * 1_000_000_000 + i128::from(now.tv_nsec);
        u64::try_from(nanos).unwrap_or(u64::MAX).max(1)
    }
}
