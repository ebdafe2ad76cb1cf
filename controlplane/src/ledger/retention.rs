//! For how long what is kept.

use crate::partitions;
use chrono::{DateTime, NaiveTime, TimeDelta, Utc};

/// So long before a ledger forgets an event, no more of its time are taken: by then the rollup has seen to all others.
const FORGETTING: TimeDelta = TimeDelta::days(2);

/// How much of usage is kept, and for how long. Sums are kept for ever.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Retention {
    /// Months of the request log that are kept beside the current one.
    pub(crate) log_months: u32,
    /// Which part of all requests is in the request log, 0 to 1. With the ledger in PostgreSQL it is 1.
    pub(crate) log_sample: f64,
    /// Days for which a ledger outside of PostgreSQL keeps events.
    pub(crate) ledger_days: Option<u32>,
}

impl Retention {
    /// The beginning of the request log.
    pub(crate) fn logs_from(self, now: DateTime<Utc>) -> DateTime<Utc> {
        partitions::oldest_kept(now, self.log_months).start()
    }

    /// The beginning of the ledger. What was before is not to be summed anew: it may be gone.
    pub(crate) fn holds_from(self, now: DateTime<Utc>) -> DateTime<Utc> {
        let Some(days) = self.ledger_days else { return self.logs_from(now) };
        (now - TimeDelta::days(days.into())).date_naive().and_time(NaiveTime::MIN).and_utc() + TimeDelta::days(1)
    }

    /// Events from before then are not taken any more.
    pub(crate) fn takes_from(self, now: DateTime<Utc>) -> DateTime<Utc> {
        self.holds_from(now) + if self.ledger_days.is_some() { FORGETTING } else { TimeDelta::zero() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_taken_that_could_not_be_summed() {
        let at = |text: &str| text.parse::<DateTime<Utc>>().expect("a time");
        let now = at("2026-03-15T12:34:56Z");
        let log = Retention { log_months: 2, log_sample: 1.0, ledger_days: None };
        assert_eq!((log.logs_from(now), log.holds_from(now)), (at("2026-01-01T00:00:00Z"), at("2026-01-01T00:00:00Z")));
        assert_eq!(log.takes_from(now), at("2026-01-01T00:00:00Z"));
        let apart = Retention { ledger_days: Some(100), ..log };
        // Rows go 100 days after their day began: those of the day before are all there until today is over.
        assert_eq!(apart.holds_from(now), at("2025-12-06T00:00:00Z"));
        assert_eq!(apart.takes_from(now), at("2025-12-08T00:00:00Z"));
        assert_eq!(apart.logs_from(now), log.logs_from(now));
    }
}
