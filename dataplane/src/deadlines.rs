//! Until when a node may take.

use pingora::ErrorType;
use pingora::time::fast_timeout::fast_sleep;
use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

/// The first timer of a wait, which stays for so long if it is given up; who waits longer has others, each twice as long.
const FIRST: Duration = Duration::from_secs(1);

/// Passes at an instant, or up to 10 ms later. For what is nearly always given up: tokio's own timers are more exact, but
/// beginning one may cost a system call to tell the thread's driver of it.
pub(crate) async fn until(due: Instant) {
    Alarm::default().until(due).await;
}

/// One wait after the other, of which few last: a timer that was begun for one serves the next.
#[derive(Default)]
pub(crate) struct Alarm {
    timer: Option<Timer>,
    /// How long it lasted.
    step: Duration,
}

struct Timer {
    /// It passes then at the earliest.
    at: Instant,
    passes: Pin<Box<dyn Future<Output = ()> + Send + Sync>>,
}

impl Alarm {
    /// Passes at an instant, or up to 10 ms later.
    pub(crate) async fn until(&mut self, due: Instant) {
        poll_fn(|context| self.poll(due, context)).await;
    }

    fn poll(&mut self, due: Instant, context: &mut Context<'_>) -> Poll<()> {
        loop {
            if self.timer.as_ref().is_none_or(|timer| timer.at > due) {
                self.begin(due);
            }
            let Some(timer) = &mut self.timer else { return Poll::Ready(()) };
            ready!(timer.passes.as_mut().poll(context));
            self.timer = None;
        }
    }

    /// Begins a timer that passes at `due` or earlier; none if it is no earlier now.
    fn begin(&mut self, due: Instant) {
        let now = Instant::now();
        // Anew where the last one was too late.
        self.step = if self.timer.is_none() { FIRST.max(self.step * 2) } else { FIRST };
        let left = due.saturating_duration_since(now).min(self.step);
        let timer = || Timer { at: now + left, passes: Box::pin(fast_sleep(left)) };
        self.timer = (!left.is_zero()).then(timer);
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
    use futures::poll;
    use std::pin::pin;

    #[tokio::test]
    async fn an_instant_passes_no_earlier_than_it_is() {
        for millis in [0, 1, 30, 1_010] {
            let due = Instant::now() + Duration::from_millis(millis);
            until(due).await;
            assert!(Instant::now() >= due, "{millis}");
        }
    }

    #[tokio::test]
    async fn a_timer_serves_all_waits_that_it_is_not_too_late_for() {
        let in_future = |millis| Instant::now() + Duration::from_millis(millis);
        let mut alarm = Alarm::default();
        let mut wait = async |due| {
            assert!(poll!(pin!(alarm.until(due))).is_pending());
            alarm.timer.as_ref().map(|timer| timer.at)
        };
        let first = wait(in_future(2_000)).await;
        assert_eq!(wait(in_future(100_000)).await, first);
        let earlier = wait(in_future(30)).await;
        assert!(earlier < first);
        assert_eq!(wait(in_future(2_000)).await, earlier);
        // Each wait is as long as it is, whichever timers it had.
        for millis in [0, 40, 10, 1_010] {
            let due = in_future(millis);
            alarm.until(due).await;
            assert!((due..due + Duration::from_millis(500)).contains(&Instant::now()), "{millis}");
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
