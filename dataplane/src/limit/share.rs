//! An edge's share of one limit: units borrowed from the region's bucket, spent without asking anybody.
//!
//! Pure: time comes in as nanoseconds of the edge's monotonic clock, messages go out as [`Ask`]s and come in as [`Grant`]s.
//! At most one ask is on its way at a time; requests that find nothing to spend wait for it together, so that a busy limit
//! asks less often per request, not more.
//!
//! While the bucket cannot be reached, an edge first spends what it holds. What it holds expires, and from then on it
//! admits its part of the rate (`rate / edges`), beginning with nothing.

use super::ask::{Ask, Floor, Grant, Refill, Terms};
use super::clock::Vouch;
use super::held::{Held, MOST, View};
use super::known::{Known, SECOND, real};
use super::reach::Reach;
use crate::bucket::{Bucket, RetryAfter};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// How long units may be held without asking again, from before the ask was sent.
const LEASE_NS: u64 = 2_000_000_000;
/// The same for requests that run: a stopped edge's are not given away to others while it may still go on.
const RUNNING_NS: u64 = 30_000_000_000;
/// How often an edge says how many requests it has running.
const RECOUNT_NS: u64 = 1_000_000_000;
/// The same where every request asks by itself: only as long as the answer may take.
const EXACT_NS: u64 = 100_000_000;
/// For how long ahead units are borrowed, seconds.
const AHEAD_S: f64 = 0.25;
/// A limit that cannot lend this many units for a lease's time is asked for each request.
const LEAST_LEASE: f64 = 4.0;
/// A share that got less than it wanted asks again after this time at the earliest.
const PACE_NS: u64 = 100_000_000;
/// Requests at once: how soon somebody may have let go.
const RELEASE_PACE_NS: u64 = 20_000_000;
/// Most of a bucket that one edge borrows, as a divisor.
const MOST_OF_BUCKET: f64 = 8.0;
/// Units that were not touched for this long are given back.
const IDLE_NS: u64 = 300_000_000;
/// Part of the burst that is withheld where edges borrow: a second's worth, for an edge that is cut off alone.
const MARGIN_S: f64 = 1.0;

/// How long an edge that asks for each request admits nothing once it is alone.
const GRACE_NS: u64 = 1_000_000_000;

/// What is limited, and how units come back after use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    /// Requests per minute: spent for good.
    Requests,
    /// Tokens per minute: reserved, then settled.
    Tokens,
    /// Requests at the same time: reserved, then given back.
    Concurrent,
    /// Money, in millionths of a dollar: reserved, then settled.
    Spend,
}

impl Kind {
    /// Whether what is taken may come back in part.
    const fn reserves(self) -> bool {
        !matches!(self, Self::Requests)
    }
}

/// What became of a request for units.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Take {
    /// Spent.
    Taken(Taken),
    /// Whether there are any is for the bucket to say.
    Ask,
    /// There are none before this moment of the edge's clock, nanoseconds.
    Denied {
        /// Worth another try from then on.
        until_ns: u64,
    },
}

/// Units that were taken, to be settled if their kind is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Taken {
    pub(crate) units: i64,
    tenure: Tenure,
    /// What is left is little: ask before it is used up.
    pub(crate) runs_low: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tenure {
    /// From units that are held for the region's bucket.
    Held(u8),
    /// From the edge's own part of the rate.
    Local,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Share {
    kind: Kind,
    /// Units per minute, at once, or in all. That of money is set anew while it is spent.
    limit: AtomicU64,
    /// Withheld of the burst.
    margin: f64,
    refill: Refill,
    held: Held,
    /// Nothing held may be spent from then on.
    expires_ns: AtomicU64,
    /// Below this many free units it is time to ask.
    low: AtomicU64,
    wanted: AtomicU64,
    /// What the bucket had left when it gave less than was wanted, and when: together they say when it can have more.
    short_ns: AtomicU64,
    short_left: AtomicU64,
    /// No ask before then.
    pace_ns: AtomicU64,
    /// For when the bucket cannot be reached: the edge's own part of the limit, and since when it is drawn on.
    local: Bucket,
    local_since_ns: AtomicU64,
    local_running: AtomicU64,
    /// Taken from it and not reported to the bucket yet.
    local_spent: AtomicU64,
    /// What is known of the bucket's level, for answers' headers: units left then, as bits, and when.
    left: AtomicU64,
    left_ns: AtomicU64,
    known: Mutex<Known>,
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "saturates, and negative becomes 0")]
const fn whole(x: f64) -> u64 {
    x as u64
}

const fn signed(n: u64) -> i64 {
    if n > MOST as u64 { MOST } else { n as i64 }
}

/// Whether too little can be lent for a lease's time to be worth lending.
fn is_exact(refill: Refill, limit: u64) -> bool {
    let lends = match refill {
        Refill::PerSecond(rate) => rate * LEASE_NS as f64 / SECOND,
        Refill::OnRelease | Refill::Never => real(limit) / MOST_OF_BUCKET,
    };
    lends < LEAST_LEASE
}

impl Share {
    /// The share of a limit of `limit` units (per minute, at once, or in all).
    pub(crate) fn new(kind: Kind, limit: u64) -> Self {
        let capacity = real(limit);
        let refill = match kind {
            Kind::Requests | Kind::Tokens => Refill::PerSecond(capacity / 60.0),
            Kind::Concurrent => Refill::OnRelease,
            Kind::Spend => Refill::Never,
        };
        let margin = match refill {
            Refill::PerSecond(rate) if !is_exact(refill, limit) => rate * MARGIN_S,
            _ => 0.0,
        };
        Self {
            kind,
            limit: AtomicU64::new(limit),
            margin,
            refill,
            held: Held::default(),
            expires_ns: AtomicU64::new(0),
            low: AtomicU64::new(0),
            wanted: AtomicU64::new(0),
            short_ns: AtomicU64::new(0),
            short_left: AtomicU64::new(0),
            pace_ns: AtomicU64::new(0),
            local_since_ns: AtomicU64::new(0),
            local: Bucket::new(limit),
            local_running: AtomicU64::new(0),
            local_spent: AtomicU64::new(0),
            left: AtomicU64::new(capacity.to_bits()),
            left_ns: AtomicU64::new(0),
            known: Mutex::default(),
        }
    }

    pub(crate) const fn kind(&self) -> Kind {
        self.kind
    }

    /// Units per minute, at once, or in all.
    pub(crate) fn limit(&self) -> u64 {
        self.limit.load(Ordering::Acquire)
    }

    /// There is more money, or less. Requests that began by another routing see it at once, so that none asks for units by a
    /// limit that does not hold any more: what is held already is spent within a lease's life or given back.
    pub(crate) fn set_limit(&self, units: u64) {
        if self.limit.swap(units, Ordering::AcqRel) < units {
            // What there was too little of, there may be enough of now: the bucket is asked again.
            self.short_ns.store(0, Ordering::Release);
        }
    }

    fn terms(&self) -> Terms {
        Terms { capacity: real(self.limit()) - self.margin, refill: self.refill }
    }

    /// Whether every request asks by itself.
    fn is_exact(&self) -> bool {
        is_exact(self.refill, self.limit())
    }

    /// Most units that can ever be had at once: the limit without what is withheld of its burst.
    pub(crate) fn most_at_once(&self) -> u64 {
        whole(self.terms().capacity)
    }

    /// Takes `units` or nothing.
    pub(crate) fn take(&self, units: u64, reach: Reach, now_ns: u64) -> Take {
        self.wanted.fetch_add(units, Ordering::Relaxed);
        self.try_take(units, reach, now_ns)
    }

    /// As [`Share::take`], for a request that has asked before and is not to be counted as demand twice.
    pub(crate) fn try_take(&self, units: u64, reach: Reach, now_ns: u64) -> Take {
        let wanted = signed(units);
        let mut free = 0;
        if now_ns < self.expires_ns.load(Ordering::Acquire) {
            match self.held.spend(wanted, self.kind.reserves()) {
                Ok(view) => return Take::Taken(self.taken(wanted, view)),
                Err(view) => free = view.free,
            }
        }
        if let Some(since) = reach.alone_since_ns {
            return self.take_alone(units, since, reach.edges, now_ns);
        }
        match self.denied_until(wanted - free, now_ns) {
            Some(until_ns) => Take::Denied { until_ns },
            None => Take::Ask,
        }
    }

    fn taken(&self, units: i64, view: View) -> Taken {
        let low = signed(self.low.load(Ordering::Relaxed));
        Taken { units, tenure: Tenure::Held(view.tenure), runs_low: view.free < low }
    }

    /// Until when the bucket cannot have `deficit` units, if that is later than now.
    fn denied_until(&self, deficit: i64, now_ns: u64) -> Option<u64> {
        let short_ns = self.short_ns.load(Ordering::Acquire);
        if short_ns == 0 {
            return None;
        }
        let left = f64::from_bits(self.short_left.load(Ordering::Acquire));
        let missing = (deficit as f64 - left).max(0.0);
        let wait_ns = match self.refill {
            Refill::PerSecond(rate) => whole(missing / rate * SECOND),
            Refill::OnRelease => RELEASE_PACE_NS,
            // Somebody may give back, or the budget may be raised.
            Refill::Never => PACE_NS,
        };
        let until = short_ns.saturating_add(wait_ns).max(self.pace_ns.load(Ordering::Acquire));
        (until > now_ns).then_some(until)
    }

    /// From the edge's own part of the limit, which was empty when it came to be alone.
    fn take_alone(&self, units: u64, since_ns: u64, edges: u32, now_ns: u64) -> Take {
        let local = |units| Take::Taken(Taken { units: signed(units), tenure: Tenure::Local, runs_low: false });
        match self.kind {
            // Nobody can say how much of the budget is left.
            Kind::Spend => Take::Denied { until_ns: now_ns.saturating_add(PACE_NS) },
            Kind::Concurrent => {
                let part = self.limit() / u64::from(edges.max(1));
                let running = self.local_running.fetch_add(units, Ordering::AcqRel);
                if running + units + u64::try_from(self.held.view().reserved).unwrap_or(0) <= part {
                    return local(units);
                }
                self.local_running.fetch_sub(units, Ordering::AcqRel);
                Take::Denied { until_ns: now_ns.saturating_add(RELEASE_PACE_NS) }
            }
            Kind::Requests | Kind::Tokens => {
                if self.local_since_ns.swap(since_ns, Ordering::AcqRel) != since_ns {
                    // No burst is withheld from a small limit, so it begins a little later instead: edges do not all
                    // notice at the same moment.
                    self.local.empty_at(if self.is_exact() { since_ns.saturating_add(GRACE_NS) } else { since_ns });
                }
                match self.local.take(units, edges, now_ns) {
                    Ok(()) => {
                        self.local_spent.fetch_add(units, Ordering::Relaxed);
                        local(units)
                    }
                    Err(RetryAfter(wait)) => Take::Denied { until_ns: now_ns.saturating_add(wait) },
                }
            }
        }
    }

    /// Corrects what was taken to what was used; 0 gives all back.
    pub(crate) fn settle(&self, taken: Taken, used: u64, reach: Reach, now_ns: u64) {
        let used_units = signed(used);
        match taken.tenure {
            // Spent for good, unless nothing came of it.
            Tenure::Held(tenure) if !self.kind.reserves() => {
                if used == 0 && self.held.view().tenure == tenure {
                    self.held.add(taken.units);
                }
            }
            Tenure::Held(tenure) => {
                // In a later tenure the reservation is closed: what it was counted for stays counted.
                let _ = self.held.settle(taken.units, used_units, tenure);
            }
            Tenure::Local if self.kind == Kind::Concurrent => {
                self.local_running.fetch_sub(u64::try_from(taken.units).unwrap_or(0), Ordering::AcqRel);
            }
            Tenure::Local => {
                // Less used than taken is not given back: this part of the limit is rough, and small.
                if let Ok(excess) = u64::try_from(used_units - taken.units) {
                    self.local.take_anyway(excess, reach.edges, now_ns);
                    self.local_spent.fetch_add(excess, Ordering::Relaxed);
                }
            }
        }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The message to send for `waiting` units that requests wait for; `None` while another is on its way.
    pub(crate) fn ask(&self, waiting: u64, floor: Floor, vouch: Vouch, now_ns: u64) -> Option<Ask> {
        let mut known = self.known();
        if known.asking {
            return None;
        }
        known.asking = true;
        known.asked_ns = now_ns;
        known.measure(self.wanted.load(Ordering::Relaxed), now_ns);
        if now_ns >= self.expires_ns.load(Ordering::Acquire) {
            self.held.let_go(self.kind == Kind::Concurrent);
        }
        let ahead = if self.is_exact() { 0 } else { self.ahead(&known) };
        let view = self.held.view();
        let missing = signed(waiting.max(ahead)) - view.free;
        Some(self.message(&mut known, u64::try_from(missing).unwrap_or(0), 0, floor, vouch))
    }

    /// Units to borrow beyond those that are waited for.
    fn ahead(&self, known: &Known) -> u64 {
        let most = (self.terms().capacity / MOST_OF_BUCKET).max(1.0);
        whole((known.demand_per_s * AHEAD_S).max(LEAST_LEASE).min(most).min(real(MOST as u64 / 4)))
    }

    /// The message to send now and then without any request: it renews what is reserved, and gives back what is idle.
    /// `None` if there is nothing to say.
    pub(crate) fn keep(&self, floor: Floor, vouch: Vouch, now_ns: u64) -> Option<Ask> {
        let mut known = self.known();
        let expires = self.expires_ns.load(Ordering::Acquire);
        if known.asking || now_ns >= expires {
            return None;
        }
        known.measure(self.wanted.load(Ordering::Relaxed), now_ns);
        let idle = now_ns.saturating_sub(known.active_ns) >= IDLE_NS;
        let keep = if idle { 0 } else { self.ahead(&known) };
        let view = self.held.view();
        let surplus = if view.free > signed(keep.saturating_mul(2)) { view.free - signed(keep) } else { 0 };
        let due = view.reserved > 0
            && match self.kind {
                Kind::Concurrent => now_ns.saturating_sub(known.asked_ns) >= RECOUNT_NS,
                _ => expires - now_ns < LEASE_NS / 2,
            };
        if surplus == 0 && !due {
            return None;
        }
        known.asking = true;
        known.asked_ns = now_ns;
        let back = self.held.take_out(surplus);
        Some(self.message(&mut known, 0, u64::try_from(back).unwrap_or(0), floor, vouch))
    }

    fn message(&self, known: &mut Known, want: u64, give_back: u64, floor: Floor, vouch: Vouch) -> Ask {
        let view = self.held.view();
        Ask {
            terms: self.terms(),
            want,
            give_back,
            outstanding: u64::try_from(view.free.max(0) + view.reserved).unwrap_or(0),
            life_us: i64::try_from(self.life_ns() / 1_000).unwrap_or(i64::MAX),
            generation: known.generation.clone(),
            spent: self.local_spent.swap(0, Ordering::AcqRel),
            credited: known.credited,
            floor,
            vouch,
        }
    }

    fn life_ns(&self) -> u64 {
        match self.kind {
            Kind::Concurrent => RUNNING_NS,
            Kind::Requests if self.is_exact() => EXACT_NS,
            _ => LEASE_NS,
        }
    }

    /// Takes in the answer to an ask that was sent at `sent_ns`.
    pub(crate) fn granted(&self, ask: &Ask, grant: &Grant, sent_ns: u64, now_ns: u64) {
        let mut known = self.known();
        known.asking = false;
        if known.generation != grant.generation {
            // What is held is from a life of the bucket that the server has forgotten.
            self.held.let_go(self.kind == Kind::Concurrent);
            known.generation.clone_from(&grant.generation);
        }
        known.credited = grant.credited;
        let life_ns = u64::try_from(ask.life_us).unwrap_or(0).saturating_mul(1_000);
        self.held.add(signed(grant.granted));
        self.expires_ns.store(sent_ns.saturating_add(life_ns), Ordering::Release);
        self.left.store(grant.left.to_bits(), Ordering::Release);
        self.left_ns.store(now_ns, Ordering::Release);
        // Too little by terms that hold no more says nothing of those that do.
        let short = grant.granted < ask.want && ask.terms == self.terms();
        if short {
            self.short_left.store(grant.left.to_bits(), Ordering::Release);
            self.pace_ns.store(if self.is_exact() { 0 } else { now_ns.saturating_add(PACE_NS) }, Ordering::Release);
        }
        self.short_ns.store(if short { sent_ns.max(1) } else { 0 }, Ordering::Release);
        let low = if self.is_exact() { 0 } else { whole(known.demand_per_s * AHEAD_S / 4.0) };
        self.low.store(if short { 0 } else { low }, Ordering::Relaxed);
    }

    /// The ask was not answered. What it gave back is lost, which is the safe side.
    pub(crate) fn lost(&self, ask: &Ask) {
        self.known().asking = false;
        self.local_spent.fetch_add(ask.spent, Ordering::AcqRel);
    }

    /// Holds nothing that could be given back or must be renewed, and is not asking.
    pub(crate) fn is_dormant(&self, now_ns: u64) -> bool {
        let known = self.known();
        let expired = now_ns >= self.expires_ns.load(Ordering::Acquire);
        let view = self.held.view();
        let idle = now_ns.saturating_sub(known.active_ns) >= IDLE_NS;
        !known.asking && (expired || (idle && view.free <= 0 && view.reserved == 0))
    }

    /// Units that are left as far as this edge knows, at most the limit.
    pub(crate) fn remaining(&self, now_ns: u64) -> u64 {
        let left = f64::from_bits(self.left.load(Ordering::Acquire));
        let since = now_ns.saturating_sub(self.left_ns.load(Ordering::Acquire));
        let refilled = match self.refill {
            Refill::PerSecond(rate) => real(since) / SECOND * rate,
            Refill::OnRelease | Refill::Never => 0.0,
        };
        let held = u64::try_from(self.held.view().free).unwrap_or(0);
        whole((left + refilled + real(held)).clamp(0.0, real(self.limit())))
    }

    /// Seconds until the limit is as fresh as if nothing had been used.
    pub(crate) fn full_in_s(&self, now_ns: u64) -> f64 {
        match self.refill {
            Refill::PerSecond(rate) => real(self.limit().saturating_sub(self.remaining(now_ns))) / rate,
            Refill::OnRelease | Refill::Never => 0.0,
        }
    }
}
