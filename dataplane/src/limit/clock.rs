//! The region's clock, as far as an edge can vouch for it.
//!
//! Buckets refill by the time of the Redis server, which is a wall clock: it may be set back or forth by an hour. An edge
//! has a monotonic clock of its own, so it can tell how much time has certainly passed since it last heard the server's.
//! With every ask it says from when on it has seen no jump (`from`) and how far the server's clock can honestly have come
//! (`not_after`); the bucket refills for no moment outside of that. What is lost is at most the refill around a jump.

use serde::{Deserialize, Serialize};

/// Differences between the two clocks that are no jump: reading them takes time, and they drift.
const TOLERANCE_US: i64 = 2_000;
/// Drift between two clocks that are both in order, as a divisor of the time between two readings: 0.1 %.
const DRIFT: i64 = 1_000;

/// A moment of the server's clock, in microseconds since the Unix epoch as the server sees it.
pub(crate) type ServerTime = i64;

/// What an edge can say about the server's clock at the moment of an ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Vouch {
    /// Since then the clock has not jumped.
    pub(crate) from: ServerTime,
    /// The clock has come at least this far, if it has not jumped since it was last heard.
    pub(crate) not_after: ServerTime,
}

impl Vouch {
    /// Knows nothing: no time has passed for the bucket.
    pub(crate) const NOTHING: Self = Self { from: 1 << 52, not_after: 0 };
}

/// What an edge knows of a server's clock, in a form that outlives the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Track {
    from: ServerTime,
    last: Reading,
}

impl Track {
    /// Nanoseconds since the clock was heard.
    pub(crate) fn age_ns(&self, now_ns: u64) -> Option<u64> {
        now_ns.checked_sub(self.last.received_ns)
    }
}

/// A reading of the server's clock, between two readings of ours (nanoseconds of a monotonic clock).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Reading {
    server: ServerTime,
    sent_ns: u64,
    received_ns: u64,
}

/// Follows the clock of one server.
#[derive(Clone, Debug, Default)]
pub(crate) struct ServerClock {
    last: Option<Reading>,
    from: ServerTime,
}

impl ServerClock {
    /// Takes in a reading that was asked for at `sent_ns` and came at `received_ns`.
    pub(crate) fn heard(&mut self, server: ServerTime, sent_ns: u64, received_ns: u64) {
        let jumped = self.last.is_none_or(|last| {
            let least = elapsed_us(last.received_ns, sent_ns);
            let most = elapsed_us(last.sent_ns, received_ns);
            let slack = TOLERANCE_US + most.abs() / DRIFT;
            server < last.server + least - slack || server > last.server + most + slack
        });
        if jumped {
            self.from = server;
        }
        if self.last.is_none_or(|last| received_ns >= last.received_ns) {
            self.last = Some(Reading { server, sent_ns, received_ns });
        }
    }

    /// Nanoseconds since the last word; 0 if there was none yet.
    pub(crate) fn unheard_ns(&self, now_ns: u64) -> u64 {
        self.last.map_or(0, |last| now_ns.saturating_sub(last.received_ns))
    }

    /// Forgets what was seen: from the next reading on everything is new. For an edge that went its own way meanwhile.
    pub(crate) fn forget(&mut self) {
        self.last = None;
    }

    /// What is known, to go on by in another life.
    pub(crate) fn track(&self) -> Option<Track> {
        self.last.map(|last| Track { from: self.from, last })
    }

    /// Goes on by what is known.
    pub(crate) const fn resume(track: Track) -> Self {
        Self { last: Some(track.last), from: track.from }
    }

    /// What can be said at `now_ns`.
    pub(crate) fn vouch(&self, now_ns: u64) -> Vouch {
        self.last.map_or(Vouch::NOTHING, |last| Vouch {
            from: self.from,
            not_after: last.server + elapsed_us(last.received_ns, now_ns).max(0),
        })
    }
}

/// Microseconds from one moment to another, negative if it lies before.
fn elapsed_us(from_ns: u64, to_ns: u64) -> i64 {
    let micros = |ns: u64| i64::try_from(ns / 1_000).unwrap_or(i64::MAX);
    micros(to_ns) - micros(from_ns)
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: u64 = 1_000_000_000;
    const HOUR_US: i64 = 3_600_000_000;

    #[test]
    fn honest_readings_are_vouched_for_from_the_first_on() {
        let mut clock = ServerClock::default();
        assert_eq!(clock.vouch(5), Vouch::NOTHING);
        clock.heard(1_000_000, S, S + 1_000_000);
        clock.heard(2_000_500, 2 * S, 2 * S + 2_000_000);
        assert_eq!(clock.vouch(3 * S + 2_000_000), Vouch { from: 1_000_000, not_after: 3_000_500 });
    }

    #[test]
    fn a_jump_in_either_direction_starts_anew() {
        for jump in [HOUR_US, -HOUR_US] {
            let mut clock = ServerClock::default();
            clock.heard(10 * HOUR_US, S, S);
            clock.heard(10 * HOUR_US + jump, S + 1_000, S + 2_000);
            assert_eq!(clock.vouch(S + 2_000).from, 10 * HOUR_US + jump);
        }
    }

    #[test]
    fn replies_that_overtake_each_other_are_no_jump() {
        let mut clock = ServerClock::default();
        clock.heard(0, 0, 0);
        clock.heard(3_000_000, 3 * S - 1_000, 3 * S + 1_000);
        clock.heard(2_000_000, 2 * S - 1_000, 3 * S + 2_000);
        assert_eq!(clock.vouch(3 * S).from, 0);
    }
}
