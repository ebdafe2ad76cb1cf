//! The region's buckets: what `bucket.lua` does inside Redis, in Rust.
//!
//! Edges borrow units from a bucket and spend them on their own. A bucket is debited when it grants, and knows what is
//! still out with each edge. It refills only as far as `capacity − outstanding`, so that at any moment what is in the
//! bucket and what is out together are at most the capacity. Everything admitted in a window comes from the bucket or from
//! what was out at its start, or was refilled in it: at most `capacity + rate · window`, over all edges together.
//!
//! This twin of the script is what the simulation runs against; a test holds the two against each other.

use super::ask::{Ask, Grant, Refill, Terms};
use super::clock::{ServerTime, Vouch};
use std::collections::BTreeMap;

/// A vouched span this long fills any bucket, so that an older one is of no more use. Microseconds.
const LONG_SPAN_US: i64 = 60_000_000;
/// Rounding in sums of fractions never grants a unit too much.
const EPSILON: f64 = 1e-6;
/// Requests that run are counted anew after a loss of data: within this time every edge has said how many it has.
const RELEASE_LEARNING_US: i64 = 3_000_000;
/// An edge that is this far behind the clock has missed a jump (or the server was held up, which is no harm).
const JUMP_US: i64 = 50_000;
/// A bucket's own time that lies ahead of the clock by more than this was taken from a clock since set back.
const BACKWARD_US: i64 = 1_000_000;

/// When this data began, and how far back the edges together vouch for the clock.
#[derive(Clone, Debug)]
pub(crate) struct Sentinel {
    run: String,
    born: ServerTime,
    /// What was spent since is in the buckets; before, only the books know.
    counts_from: ServerTime,
    vouched_from: ServerTime,
    vouched_to: ServerTime,
}

#[derive(Clone, Copy, Debug)]
struct Held {
    units: f64,
    /// In the bucket's own time.
    until_us: i64,
}

#[derive(Clone, Debug)]
struct Bucket {
    generation: String,
    /// Up to when it was credited, by the clock as the edge before knew it, and as it was.
    at: ServerTime,
    heard: ServerTime,
    /// Own time: how much of the clock was vouched for since the bucket began.
    age_us: i64,
    /// Units used up or out.
    debt: f64,
    credited: f64,
    held: BTreeMap<String, Held>,
    /// Money: how much was spent before the data began is not known yet, so nothing is granted.
    closed: bool,
    /// What nobody holds any more since then: spent, or lost with a lease that ran out.
    gone: f64,
    gone_since: ServerTime,
}

/// All buckets of one server.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ledger {
    sentinel: Option<Sentinel>,
    buckets: BTreeMap<String, Bucket>,
}

impl Ledger {
    /// Answers an ask for the bucket `key` by `edge`. `now` is the server's clock, `run` tells its lives apart.
    pub(crate) fn answer(&mut self, key: &str, edge: &str, ask: &Ask, now: ServerTime, run: &str) -> Grant {
        let seen = now.min(ask.vouch.not_after);
        let sentinel = self.sentinel(now, run);
        let from = sentinel.join(ask.vouch, seen);
        let generation = format!("{}:{}", sentinel.run, sentinel.born);

        let (born, counts_from) = (sentinel.born, sentinel.counts_from);
        let bucket = self.buckets.entry(key.to_owned()).or_insert_with(|| Bucket::empty(&generation, born, ask.terms));
        if bucket.generation != generation {
            *bucket = Bucket::empty(&generation, born, ask.terms);
        }
        bucket.pass_time(ask.terms.refill, seen, from, now);
        bucket.settle(edge, ask, counts_from);
        bucket.correct(ask, now);
        let learning = ask.terms.refill == Refill::OnRelease && now - born < RELEASE_LEARNING_US;
        let granted = if learning { 0 } else { bucket.left(ask.terms.capacity).min(ask.want) };
        bucket.lend(edge, ask, granted);
        Grant {
            granted,
            left: ask.terms.capacity - bucket.debt,
            at: now,
            generation: bucket.generation.clone(),
            credited: bucket.credited,
        }
    }

    /// Buckets of a data set that is long in use: what is not known in it is full. For one edge on its own, of whose
    /// spending in an earlier life the books alone know, by this same clock.
    pub(crate) fn settled(now: ServerTime) -> Self {
        let born = now - 60 * LONG_SPAN_US;
        let counts_from = now - CLOCKS_DIFFER_US;
        let sentinel = Sentinel { run: String::new(), born, counts_from, vouched_from: born, vouched_to: now };
        Self { sentinel: Some(sentinel), buckets: BTreeMap::new() }
    }

    /// Forgets buckets that are full and lend nothing, which is what an unknown one is too.
    pub(crate) fn tidy(&mut self) {
        self.buckets.retain(|_, bucket| bucket.closed || bucket.debt > 0.0 || !bucket.held.is_empty());
    }

    /// The sentinel of this run; data without one begins now.
    fn sentinel(&mut self, now: ServerTime, run: &str) -> &mut Sentinel {
        let kept = self.sentinel.take().filter(|sentinel| sentinel.run == run);
        self.sentinel.insert(kept.unwrap_or_else(|| Sentinel {
            run: run.to_owned(),
            born: now,
            counts_from: now,
            vouched_from: now,
            vouched_to: now,
        }))
    }
}

/// What only a server is told: an edge on its own neither probes itself nor loses its data and goes on.
#[cfg(test)]
impl Ledger {
    /// Says that an edge is there and what it knows of the clock; without it, data would begin with the first ask.
    pub(crate) fn probe(&mut self, vouch: Vouch, now: ServerTime, run: &str) {
        self.sentinel(now, run).join(vouch, now.min(vouch.not_after));
    }

    /// Forgets everything, as FLUSHALL does.
    pub(crate) fn flush(&mut self) {
        *self = Self::default();
    }
}

impl Sentinel {
    /// Edges vouch for overlapping spans of the clock; together they reach further back than each alone.
    fn join(&mut self, vouch: Vouch, seen: ServerTime) -> ServerTime {
        let set_back = vouch.from <= seen && self.vouched_to > seen + BACKWARD_US;
        if vouch.from <= self.vouched_to && !set_back {
            self.vouched_to = self.vouched_to.max(seen);
            return vouch.from.min(self.vouched_from);
        }
        if set_back || seen - vouch.from >= LONG_SPAN_US {
            (self.vouched_from, self.vouched_to) = (vouch.from, seen);
        }
        vouch.from
    }
}

/// The books go by another clock than the buckets: theirs must be so far ahead to be surely complete.
const CLOCKS_DIFFER_US: ServerTime = 5_000_000;

impl Bucket {
    /// Data may have been lost just now, so a bucket that is not known counts as empty when the data began.
    fn empty(generation: &str, born: ServerTime, terms: Terms) -> Self {
        Self {
            generation: generation.to_owned(),
            at: born,
            heard: born,
            age_us: 0,
            debt: terms.capacity,
            credited: 0.0,
            held: BTreeMap::new(),
            closed: terms.refill == Refill::Never,
            gone: 0.0,
            gone_since: born,
        }
    }

    fn pass_time(&mut self, refill: Refill, seen: ServerTime, from: ServerTime, now: ServerTime) {
        let mut elapsed = (seen - self.at.max(from)).max(0);
        if self.heard - self.at > JUMP_US {
            // The edge before had not noticed a jump yet: by its word the bucket was credited for this side of it too.
            elapsed = elapsed.min((now - self.heard).max(0));
        }
        self.heard = now;
        let set_back = self.at > now + BACKWARD_US;
        self.at = if set_back { now } else { self.at.max(seen) };
        self.age_us += elapsed;
        let age = self.age_us;
        let out_before = self.out();
        self.held.retain(|_, held| held.until_us > age);
        let out = self.out();
        self.gone += out_before - out;
        let before = self.debt;
        self.debt = match refill {
            // Rounding to µs: a count of i64 microseconds fits a double exactly for centuries.
            #[expect(clippy::cast_precision_loss, reason = "exact below 2^53 µs")]
            Refill::PerSecond(_) => out.max(self.debt - elapsed as f64 * refill.per_us()),
            Refill::OnRelease => out,
            Refill::Never => self.debt,
        };
        self.credited += (before - self.debt).max(0.0);
    }

    /// Takes in what the edge gives back, still holds, and has spent on its own.
    fn settle(&mut self, edge: &str, ask: &Ask, counts_from: ServerTime) {
        let known = self.held.get(edge).map_or(0.0, |held| held.units);
        let on_release = ask.terms.refill == Refill::OnRelease;
        let same = ask.generation == self.generation;
        let back = if same { units(ask.give_back).min(known) } else { 0.0 };
        let outstanding = match units(ask.outstanding) {
            // Requests that run are running, whatever the bucket remembers of them.
            running if on_release => running,
            claimed if same => claimed.min(known - back),
            _ => 0.0,
        };
        if same {
            // What others were credited while this edge was away, it may have spent as well.
            self.debt += units(ask.spent).min((self.credited - ask.credited).max(0.0));
        }
        self.debt -= back;
        self.gone += (known - back - outstanding).max(0.0);
        self.hold(edge, outstanding, ask.life_us);
        if self.closed && ask.floor.complete_to >= counts_from + CLOCKS_DIFFER_US {
            self.closed = false;
            self.debt = self.out();
        }
        match ask.terms.refill {
            Refill::Never if self.closed => self.debt = self.debt.max(ask.floor.units).max(ask.terms.capacity),
            Refill::Never => self.debt = self.debt.max(ask.floor.units),
            Refill::OnRelease => self.debt = self.out(),
            Refill::PerSecond(_) => {}
        }
    }

    /// Money that was lent and neither spent nor given back comes back by the books. Once they have all that had been spent
    /// at a moment, no more can have been spent than they say, and what is held or gone since.
    fn correct(&mut self, ask: &Ask, now: ServerTime) {
        let is_known = ask.floor.complete_to >= self.gone_since + CLOCKS_DIFFER_US;
        if ask.terms.refill == Refill::Never && !self.closed && is_known {
            self.debt = self.debt.min(ask.floor.units + self.gone + self.out());
            (self.gone, self.gone_since) = (0.0, now);
        }
    }

    fn left(&self, capacity: f64) -> u64 {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "whole, and not negative")]
        let left = (capacity - self.debt + EPSILON).floor().max(0.0) as u64;
        left
    }

    fn lend(&mut self, edge: &str, ask: &Ask, granted: u64) {
        self.debt += units(granted);
        let outstanding = self.held.get(edge).map_or(0.0, |held| held.units);
        self.hold(edge, outstanding + units(granted), ask.life_us);
    }

    fn hold(&mut self, edge: &str, units: f64, life_us: i64) {
        if units > 0.0 {
            self.held.insert(edge.to_owned(), Held { units, until_us: self.age_us + life_us });
        } else {
            self.held.remove(edge);
        }
    }

    fn out(&self) -> f64 {
        self.held.values().map(|held| held.units).sum()
    }
}

#[expect(clippy::cast_precision_loss, reason = "units are far below 2^53")]
fn units(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limit::ask::Floor;

    #[test]
    fn an_edge_on_its_own_forgets_no_money_that_it_spent_in_an_earlier_life() {
        const START: ServerTime = 1_700_000_000_000_000;
        let mut ledger = Ledger::settled(START);
        let mut ask = |spent: f64, complete_to| {
            let ask = Ask {
                terms: Terms { capacity: 100.0, refill: Refill::Never },
                want: 60,
                give_back: 0,
                outstanding: 0,
                life_us: 2_000_000,
                generation: String::new(),
                spent: 0,
                credited: 0.0,
                floor: Floor { units: spent, complete_to },
                vouch: Vouch { from: 0, not_after: START + 1 },
            };
            ledger.answer("budget", "e", &ask, START + 1, "").granted
        };
        assert_eq!(ask(10.0, START - 1), 0, "what it spent in its last second is not in the books");
        assert_eq!(ask(70.0, START), 30);
    }

    #[test]
    fn money_that_was_lost_with_a_lease_comes_back_once_the_books_have_what_was_spent() {
        let (mut ledger, mut now) = (Ledger::default(), 1_700_000_000_000_000);
        let mut ask = |edge: &str, want, floor: f64, after: i64| {
            now += after;
            let ask = Ask {
                terms: Terms { capacity: 100.0, refill: Refill::Never },
                want,
                give_back: 0,
                outstanding: 0,
                life_us: 2_000_000,
                generation: String::new(),
                spent: 0,
                credited: 0.0,
                floor: Floor { units: floor, complete_to: now - 1_000 },
                vouch: Vouch { from: 0, not_after: now },
            };
            ledger.answer("budget", edge, &ask, now, "run").granted
        };
        assert_eq!(ask("a", 90, 0.0, 0), 0, "it has just begun");
        assert_eq!(ask("a", 90, 0.0, 5_002_000), 90);
        assert_eq!(ask("b", 90, 0.0, 1_000_000), 10);
        assert_eq!(ask("b", 90, 20.0, 3_000_000), 0, "who knows what became of it");
        // Of 100 that were lent 30 were spent, and that is known by now.
        assert_eq!(ask("b", 90, 30.0, 60_000_000), 0, "the next moment");
        assert_eq!(ask("b", 90, 30.0, 6_000_000), 70);
    }
}
