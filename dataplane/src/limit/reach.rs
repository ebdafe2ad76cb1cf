//! Whether the region's buckets can be reached: a circuit breaker, and what the edge knows of the server's clock.
//!
//! Pure: time comes in, nothing goes out.

use super::clock::{ServerClock, ServerTime, Track, Vouch};

/// How an edge stands to the region's buckets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Reach {
    /// Since when they cannot be reached, nanoseconds of the edge's clock.
    pub(crate) alone_since_ns: Option<u64>,
    /// Edges that share the limit, at least 1.
    pub(crate) edges: u32,
}

/// So many asks in a row that were not answered in time open the circuit.
pub(super) const SLOW_IN_A_ROW: u32 = 3;

/// Longer without a word, and other edges may have gone their own way meanwhile, and come back, without this one knowing.
/// Less than the second that they wait before they spend anything.
const UNHEARD_NS: u64 = 950_000_000;

/// How often is asked how a server is, unless it has spoken anyway: when limits depend on it, when none does, and at the
/// least, so that the other edges know of this one.
const PROBE_EVERY_NS: u64 = 250_000_000;
const IDLE_PROBE_EVERY_NS: u64 = 700_000_000;
const SHOW_UP_EVERY_NS: u64 = 2_000_000_000;

/// See the module.
#[derive(Debug)]
pub(crate) struct Region {
    clock: ServerClock,
    alone_since_ns: Option<u64>,
    /// It may have spent units without the server knowing.
    own_way: bool,
    /// No other edge was there lately that could have gone its own way unnoticed.
    only: bool,
    slow_in_a_row: u32,
    edges: u32,
    heard_ns: u64,
    probed_ns: u64,
}

impl Region {
    /// Alone until the server is heard for the first time. `edges`: so many share the limits until the server says more.
    pub(crate) fn new(edges: u32, now_ns: u64) -> Self {
        Self {
            clock: ServerClock::default(),
            alone_since_ns: Some(now_ns),
            own_way: false,
            only: edges <= 1,
            slow_in_a_row: 0,
            edges: edges.max(1),
            heard_ns: 0,
            probed_ns: 0,
        }
    }

    /// Goes on by what an earlier life of this edge knew, if nothing has been heard or spent yet.
    pub(crate) fn resume(&mut self, track: Track) {
        if !self.own_way && self.clock.track().is_none() {
            self.clock = ServerClock::resume(track);
        }
    }

    /// What a later life of this edge may go on by: nothing while it goes its own way.
    pub(crate) fn track(&self) -> Option<Track> {
        self.clock.track().filter(|_| self.alone_since_ns.is_none())
    }

    /// Whether units may be spent that the server does not know of.
    pub(crate) const fn goes_its_own_way(&self) -> bool {
        self.own_way
    }

    /// Whether other edges are there, or were a while ago.
    pub(crate) const fn is_only(&mut self, only: bool) {
        self.only = only;
    }

    /// The server answered. After a time alone, or one in which others may have been, the clock is vouched for only from
    /// here on: what refilled meanwhile the edges have spent on their own.
    pub(crate) fn heard(&mut self, server: ServerTime, sent_ns: u64, received_ns: u64) {
        self.alone_since_ns = None;
        self.heard_ns = self.heard_ns.max(received_ns);
        let unheard = self.clock.unheard_ns(sent_ns) > UNHEARD_NS;
        if std::mem::take(&mut self.own_way) || unheard && !self.only {
            self.clock.forget();
        }
        self.slow_in_a_row = 0;
        self.clock.heard(server, sent_ns, received_ns);
    }

    /// Whether to ask now how the server is; then it is taken as asked. `busy`: units of its buckets are held or wanted.
    pub(crate) fn probe_is_due(&mut self, busy: bool, now_ns: u64) -> bool {
        let quiet = now_ns.saturating_sub(self.heard_ns.max(self.probed_ns));
        let every = if busy || self.alone_since_ns.is_some() { PROBE_EVERY_NS } else { IDLE_PROBE_EVERY_NS };
        let due = quiet >= every || now_ns.saturating_sub(self.probed_ns) >= SHOW_UP_EVERY_NS;
        if due {
            self.probed_ns = now_ns;
        }
        due
    }

    /// There is somebody to ask, whose clock is not known yet.
    pub(crate) fn reachable(&mut self) {
        self.alone_since_ns = None;
        self.own_way = false;
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
        self.own_way = true;
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
