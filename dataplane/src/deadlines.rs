//! Until when a node may take.

use pingora::ErrorType;
use pingora::time::fast_timeout::fast_sleep;
use std::time::{Duration, Instant};

/// The first timer, which stays for so long if it is given up; who waits longer has others, each twice as long.
const FIRST: Duration = Duration::from_secs(1);

/// Passes at an instant, or up to 10 ms later. For what is nearly always given up: tokio's own timers are more exact, but
/// beginning one may cost a system call to tell the thread's driver of it.
pub(crate) async fn until(due: Instant) {
    let mut step = FIRST;
    loop {
        let left = due.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return;
        }
        fast_sleep(left.min(step)).await;
        step *= 2;
    }
}

/// `None` is forever.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Deadlines {
    pub(crate) first_byte: Option<Instant>,
    pub(crate) end: Option<Instant>,
}

/// A node did not begin its answer in time.
pub(crate) const LATE_FIRST_BYTE: ErrorType = ErrorType::Custom("the node did not begin in time");
/// A node did not end its answer in time.
pub(crate) const LATE_END: ErrorType = ErrorType::Custom("the node did not end in time");

impl Deadlines {
    /// What comes first of these and of a node's silence until `silent`, and what that is then.
    pub(crate) fn first(&self, silent: Instant) -> (Instant, ErrorType) {
        let late = [(self.first_byte, LATE_FIRST_BYTE), (self.end, LATE_END)];
        let known = late.into_iter().filter_map(|(at, what)| Some((at?, what)));
        known.fold((silent, ErrorType::ReadTimedout), |first, other| if other.0 <= first.0 { other } else { first })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_instant_passes_no_earlier_than_it_is() {
        for millis in [0, 1, 30, 1_010] {
            let due = Instant::now() + Duration::from_millis(millis);
            until(due).await;
            assert!(Instant::now() >= due, "{millis}");
        }
    }

    #[test]
    fn what_passes_first_is_what_is_late() {
        let now = Instant::now();
        let after = |seconds| now + Duration::from_secs(seconds);
        let first = |first_byte: Option<u64>, end: Option<u64>| {
            Deadlines { first_byte: first_byte.map(after), end: end.map(after) }.first(after(5))
        };
        assert_eq!(first(None, None), (after(5), ErrorType::ReadTimedout));
        assert_eq!(first(Some(9), Some(9)), (after(5), ErrorType::ReadTimedout));
        assert_eq!(first(Some(1), Some(2)), (after(1), LATE_FIRST_BYTE));
        assert_eq!(first(Some(2), Some(1)), (after(1), LATE_END));
        assert_eq!(first(Some(1), Some(1)), (after(1), LATE_END), "the end is for all tries");
    }
}
