//! Whether the region's buckets can be reached: a circuit breaker, and what the edge knows of the server's clock.
//!
//! Pure: time comes in, nothing goes out.

use super::clock::{ServerClock, ServerTime, Vouch};
use super::share::Reach;

/// So many asks in a row that were not answered in time open the circuit.
const SLOW_IN_A_ROW: u32 = 3;

/// See the module.
#[derive(Debug)]
pub(crate) struct Region {
    clock: ServerClock,
    alone_since_ns: Option<u64>,
    slow_in_a_row: u32,
    edges: u32,
}

impl Region {
    /// Alone until the server is heard for the first time. `edges`: so many share the limits until the server says more.
    pub(crate) fn new(edges: u32, now_ns: u64) -> Self {
        Self { clock: ServerClock::default(), alone_since_ns: Some(now_ns), slow_in_a_row: 0, edges: edges.max(1) }
    }

    /// The server answered. After a time alone the clock is vouched for only from here on: what refilled meanwhile the
    /// edges have spent on their own.
    pub(crate) fn heard(&mut self, server: ServerTime, sent_ns: u64, received_ns: u64) {
        if self.alone_since_ns.take().is_some() {
            self.clock.forget();
        }
        self.slow_in_a_row = 0;
        self.clock.heard(server, sent_ns, received_ns);
    }

    /// There is somebody to ask, whose clock is not known yet.
    pub(crate) fn reachable(&mut self) {
        self.alone_since_ns = None;
        self.slow_in_a_row = 0;
    }

    /// An ask was not answered in time.
    pub(crate) fn slow(&mut self, now_ns: u64) {
        self.slow_in_a_row += 1;
        if self.slow_in_a_row >= SLOW_IN_A_ROW {
            self.failed(now_ns);
        }
    }

    /// The server cannot be reached.
    pub(crate) fn failed(&mut self, now_ns: u64) {
        self.alone_since_ns.get_or_insert(now_ns);
    }

    /// For [`super::share::Share::take`].
    pub(crate) const fn reach(&self) -> Reach {
        Reach { alone_since_ns: self.alone_since_ns, edges: self.edges }
    }

    /// For an ask that is sent now. Who went its own way knows nothing: it must not help to vouch for that time.
    pub(crate) fn vouch(&self, now_ns: u64) -> Vouch {
        if self.alone_since_ns.is_some() { Vouch::NOTHING } else { self.clock.vouch(now_ns) }
    }
}
