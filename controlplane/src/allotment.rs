//! Which region may spend how much of money paid ahead. Pure: no clock, no database.
//!
//! Each region has a cap on what it has ever spent of it, so that what it spends needs nobody's word. The invariant: what
//! regions may still spend is together never more than what is left, where a region may spend up to its *bound*, the largest
//! cap that one of its edges may still act on. A cap is raised from what nobody may spend. To move money, a cap is lowered
//! first; the bound follows once every edge of the region has acknowledged that, and the books have all requests that can
//! have been lent money before. All of it is kept in the database together with what is told.
//!
//! Caps go from the first day of the account on and know no months. An edge that is away holds the bound of its region, for
//! ever if need be: it may be spending by the cap it has, and nobody knows how much. Who removes it says that it is gone.

use chrono::{DateTime, TimeDelta, Utc};
use std::collections::BTreeMap;

/// What was lent by an old cap is with a request, and its beginning in the books, so long after the new cap was
/// acknowledged: the life of a lease, 2 s, and as far as clocks may differ, 5 s.
const SETTLES_IN: TimeDelta = TimeDelta::seconds(7);
/// A region that nobody asked for anything for so long does without, if others ask.
const ASKED: TimeDelta = TimeDelta::seconds(60);
/// What is not worth moving, pico-dollars: edges count in millionths.
const GRAIN: i128 = 1_000_000;
/// Who does without keeps this part, as a divisor, so that its first request need not wait; unless another one's requests
/// are refused.
const KEEPS: i128 = 4;
/// Who has all but this part, as a divisor, is not helped by the rest.
const NEARLY_ALL: i128 = 8;
/// Requests that cost nothing for so long may have been refused for want of money.
const IN_VAIN: TimeDelta = TimeDelta::seconds(3);
/// Proportions are kept to a millionth.
const PARTS: i128 = 1_000_000;

/// What a region is given. Amounts are pico-dollars.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Share {
    /// What its spending may come to, as edges are told.
    pub(crate) cap: i128,
    /// The largest cap that one of its edges may still act on, or has lent by.
    pub(crate) bound: i128,
    /// The cap is lower than the bound, and since when.
    pub(crate) lowered: Option<Lowered>,
}

/// A cap that not every edge may know yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Lowered {
    /// The routing that tells it.
    pub(crate) version: u64,
    /// When all edges of the region were seen to have it.
    pub(crate) acked_at: Option<DateTime<Utc>>,
}

/// A region as it is known.
#[derive(Clone, Debug)]
pub(crate) struct Region {
    /// What it is given.
    pub(crate) share: Share,
    /// What it has spent, as far as the books know.
    pub(crate) spent: i128,
    /// One of its edges was seen within the hour.
    pub(crate) is_live: bool,
    /// All of them are there now: a lowered cap will be acknowledged soon.
    pub(crate) is_heard: bool,
    /// The oldest routing that one of its edges holds; `None` if it has no edges.
    pub(crate) holds: Option<u64>,
    /// `spent` has all requests that began by then.
    pub(crate) complete_to: DateTime<Utc>,
    /// What its clients want.
    pub(crate) asked: Asked,
}

/// What clients of a region want, as far as it is seen in the books: requests that are refused are there too.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Asked {
    seen: Option<(i64, i128)>,
    at: Option<DateTime<Utc>>,
    /// Since when they all cost nothing, though there was money that the region did not have.
    in_vain_since: Option<DateTime<Utc>>,
}

impl Asked {
    /// So many requests are in the books now, which cost so much. `has_all`: there is hardly any money elsewhere.
    pub(crate) fn note(&mut self, requests: i64, spent: i128, has_all: bool, now: DateTime<Utc>) {
        let Some((requests_before, spent_before)) = self.seen.replace((requests, spent)) else { return };
        if requests > requests_before {
            self.at = Some(now);
            self.in_vain_since.get_or_insert(now);
        }
        if spent > spent_before || has_all {
            self.in_vain_since = None;
        }
    }

    fn is_lately(&self, now: DateTime<Utc>) -> bool {
        self.at.is_some_and(|at| now - at < ASKED)
    }

    /// They may have been refused for want of money.
    pub(crate) fn is_in_vain(&self, now: DateTime<Utc>) -> bool {
        self.is_lately(now) && self.in_vain_since.is_some_and(|since| now - since >= IN_VAIN)
    }
}

impl Region {
    /// What it may spend by its cap.
    fn rest(&self) -> i128 {
        self.share.cap.saturating_sub(self.spent).max(0)
    }

    /// What it may spend as long as not all know the cap.
    fn exposure(&self) -> i128 {
        self.share.bound.saturating_sub(self.spent).max(0)
    }

    /// What it will leave soon.
    fn leaving(&self) -> i128 {
        if self.is_heard { self.exposure() - self.rest() } else { 0 }
    }

    /// Whether others have hardly any of what is left.
    pub(crate) fn has_all(&self, left: i128) -> bool {
        self.rest() >= left - left / NEARLY_ALL
    }

    /// The bound follows a lowered cap.
    fn settle(&mut self, now: DateTime<Utc>) {
        let Some(lowered) = &mut self.share.lowered else { return };
        if self.holds.is_some_and(|holds| holds < lowered.version) {
            lowered.acked_at = None;
            return;
        }
        let acked_at = *lowered.acked_at.get_or_insert(now);
        if self.complete_to >= acked_at + SETTLES_IN {
            self.share = Share { bound: self.share.cap, lowered: None, ..self.share };
        }
    }

    fn raise(&mut self, amount: i128) {
        self.share.cap = self.share.cap.max(self.spent).saturating_add(amount);
        self.share.bound = self.share.bound.max(self.share.cap);
    }

    fn lower(&mut self, amount: i128, version: u64) {
        if amount >= GRAIN {
            self.share.cap -= amount;
            self.share.lowered = Some(Lowered { version, acked_at: None });
        }
    }
}

/// Moves `left` to where it is wanted, as far as that can be done now. What changes is told with the routing `version`.
pub(crate) fn allot(regions: &mut BTreeMap<String, Region>, left: i128, version: u64, now: DateTime<Utc>) {
    let left = left.max(0);
    regions.values_mut().for_each(|region| region.settle(now));
    let told: i128 = regions.values().map(Region::rest).sum();
    if told > left {
        // Money went back to the customer.
        let parts = left.saturating_mul(PARTS) / told;
        for region in regions.values_mut() {
            let rest = region.rest();
            region.lower(rest - rest / PARTS * parts, version);
        }
        return;
    }
    let wanting = wanting(regions, now);
    let Some(fair) = i128::try_from(wanting.len()).ok().and_then(|count| left.checked_div(count)) else { return };
    let exposed: i128 = regions.values().map(Region::exposure).sum();
    give(regions, &wanting, left - exposed, fair);
    take(regions, &wanting, fair, version, now);
}

/// The regions that the money is for, by name: those that were asked for something lately, or all if none was. Where
/// requests to all of them are in vain, no part may be enough for one, so that each gets all of it in turn.
fn wanting(regions: &BTreeMap<String, Region>, now: DateTime<Utc>) -> Vec<String> {
    let live = || regions.iter().filter(|(_, region)| region.is_live);
    let asked: Vec<_> = live().filter(|(_, region)| region.asked.is_lately(now)).collect();
    let names = |found: Vec<(&String, &Region)>| found.into_iter().map(|(name, _)| name.clone()).collect();
    if asked.is_empty() {
        return names(live().collect());
    }
    if asked.iter().all(|(_, region)| region.asked.is_in_vain(now)) {
        return names(asked.into_iter().min_by_key(|(_, region)| region.asked.in_vain_since).into_iter().collect());
    }
    names(asked)
}

/// Raises caps by `slack`, which nobody may spend, those of which least is left first. A lowered one waits, and what is
/// its fair part waits for it.
fn give(regions: &mut BTreeMap<String, Region>, wanting: &[String], slack: i128, fair: i128) {
    let fits = |(name, region): &(&String, &mut Region)| wanting.contains(name) && region.share.lowered.is_none();
    let mut takers: Vec<&mut Region> = regions.iter_mut().filter(fits).map(|(_, region)| region).collect();
    if slack < GRAIN || takers.is_empty() {
        return;
    }
    takers.sort_by_key(|region| region.rest());
    let rests: Vec<i128> = takers.iter().map(|region| region.rest()).collect();
    // As high as it comes when it is poured in.
    let (mut sum, mut level) = (slack, 0);
    for (count, rest) in (1..).zip(&rests) {
        if count > 1 && level <= *rest {
            break;
        }
        sum += rest;
        level = (sum / count).min(fair);
    }
    for (region, rest) in takers.into_iter().zip(rests).filter(|(_, rest)| *rest < level) {
        region.raise(level - rest);
    }
}

/// Lowers caps of others for regions of which little is left or whose requests are in vain.
fn take(regions: &mut BTreeMap<String, Region>, wanting: &[String], fair: i128, version: u64, now: DateTime<Utc>) {
    let is_in_vain = |region: &Region| region.is_live && region.asked.is_in_vain(now);
    let is_short = |region: &Region| region.asked.is_lately(now) && region.rest() < fair / 2 || is_in_vain(region);
    let short = wanting.iter().filter_map(|name| regions.get(name)).filter(|region| is_short(region));
    let wanted: i128 = short.map(|region| (fair - region.rest()).max(0)).sum();
    let leaving: i128 = regions.values().map(Region::leaving).sum();
    let mut missing = wanted - leaving;
    let hurry = regions.values().any(is_in_vain);
    let mut donors: Vec<(bool, &mut Region)> = regions
        .iter_mut()
        .map(|(name, region)| (wanting.contains(name), region))
        .filter(|(_, region)| region.share.lowered.is_none())
        .collect();
    // First those that nobody asks and that will do it soon.
    donors.sort_by_key(|(wants, region)| (*wants, !region.is_heard));
    for (wants, region) in donors {
        let rest = region.rest();
        let keeps = match wants {
            true => fair,
            false if hurry || !region.is_live => 0,
            false => rest / KEEPS,
        };
        let amount = (rest - keeps).min(missing);
        if amount >= GRAIN {
            region.lower(amount, version);
            missing -= amount;
        }
    }
}

#[cfg(test)]
mod simulation;

#[cfg(test)]
mod tests {
    use super::*;

    const DOLLAR: i128 = 1_000_000_000_000;

    fn at(seconds: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(seconds, 0).unwrap_or_default()
    }

    fn region(given: i128, spent: i128) -> Region {
        let share = Share { cap: given, bound: given, lowered: None };
        Region {
            share,
            spent,
            is_live: true,
            is_heard: true,
            holds: Some(1),
            complete_to: at(0),
            asked: Asked::default(),
        }
    }

    fn asks(region: &mut Region, now: i64) {
        region.asked.note(0, region.spent - 1, false, at(now));
        region.asked.note(1, region.spent, false, at(now));
    }

    fn caps(regions: &BTreeMap<String, Region>) -> Vec<i128> {
        regions.values().map(|region| region.share.cap).collect()
    }

    fn of<const N: usize>(regions: [Region; N]) -> BTreeMap<String, Region> {
        ('a'..).map(String::from).zip(regions).collect()
    }

    #[test]
    fn one_region_has_everything_at_once_and_several_share_it() {
        let mut one = of([region(0, 5)]);
        allot(&mut one, 4 * DOLLAR, 2, at(0));
        assert_eq!(caps(&one), [4 * DOLLAR + 5]);
        allot(&mut one, 6 * DOLLAR, 3, at(1));
        assert_eq!(caps(&one), [6 * DOLLAR + 5], "more money");
        let mut three = of([region(0, 0), region(3 * DOLLAR, 2 * DOLLAR), region(0, 7)]);
        three.get_mut("c").unwrap().is_live = false;
        allot(&mut three, 5 * DOLLAR, 2, at(0));
        assert_eq!(caps(&three), [5 * DOLLAR / 2, 2 * DOLLAR + 5 * DOLLAR / 2, 0]);
        let before = three["a"].share;
        allot(&mut three, 5 * DOLLAR, 3, at(60));
        assert_eq!(three["a"].share, before, "nothing moves while nobody asks");
    }

    #[test]
    fn money_moves_once_all_edges_know_and_the_books_have_what_was_lent_before() {
        let mut regions = of([region(DOLLAR, 0), region(DOLLAR, DOLLAR)]);
        asks(regions.get_mut("b").unwrap(), 100);
        allot(&mut regions, DOLLAR, 5, at(100));
        let waits =
            |acked_at| Share { cap: DOLLAR / 4, bound: DOLLAR, lowered: Some(Lowered { version: 5, acked_at }) };
        assert_eq!((regions["a"].share, regions["b"].share.cap), (waits(None), DOLLAR));
        let mut later = |holds, complete, now| {
            let a = regions.get_mut("a").unwrap();
            (a.holds, a.complete_to) = (Some(holds), at(complete));
            allot(&mut regions, DOLLAR, 6, at(now));
            (regions["a"].share, regions["b"].share.cap)
        };
        assert_eq!(later(4, 101, 101), (waits(None), DOLLAR), "one edge does not know");
        assert_eq!(later(5, 101, 102), (waits(Some(at(102))), DOLLAR));
        assert_eq!(later(5, 108, 109), (waits(Some(at(102))), DOLLAR), "what was lent may not be in the books");
        let moved = Share { cap: DOLLAR / 4, bound: DOLLAR / 4, lowered: None };
        assert_eq!(later(5, 109, 109), (moved, DOLLAR + DOLLAR * 3 / 4));
    }

    #[test]
    fn who_asks_in_vain_gets_all_and_who_asks_as_well_keeps_a_fair_part() {
        let mut regions = of([region(DOLLAR, 0), region(0, 0), region(DOLLAR, 0)]);
        asks(regions.get_mut("a").unwrap(), 100);
        let b = &mut regions.get_mut("b").unwrap().asked;
        b.note(0, 0, false, at(97));
        b.note(1, 0, false, at(97));
        regions.get_mut("c").unwrap().holds = None;
        allot(&mut regions, 2 * DOLLAR, 5, at(100));
        assert_eq!(caps(&regions), [DOLLAR, 0, 0], "the third has no edge and the others are two");
        regions.get_mut("c").unwrap().complete_to = at(200);
        allot(&mut regions, 2 * DOLLAR, 6, at(101));
        assert_eq!(caps(&regions), [DOLLAR, DOLLAR, 0]);
        let a = &mut regions.get_mut("a").unwrap().asked;
        a.note(2, 0, false, at(102));
        allot(&mut regions, 2 * DOLLAR, 7, at(104));
        assert_eq!(caps(&regions), [DOLLAR, DOLLAR, 0]);
        allot(&mut regions, 2 * DOLLAR, 8, at(105));
        assert_eq!(caps(&regions), [0, DOLLAR, 0], "no half is enough for a request");
        let b = &mut regions.get_mut("b").unwrap().asked;
        b.note(2, 0, true, at(110));
        assert_eq!(wanting(&regions, at(110)), ["a", "b"], "nor was all of it");
        regions.get_mut("b").unwrap().asked.note(3, 0, false, at(111));
        assert_eq!(wanting(&regions, at(120)), ["a"], "it is the other one's turn");
    }

    #[test]
    fn money_that_goes_back_is_taken_from_all() {
        let mut regions = of([region(3 * DOLLAR, 0), region(DOLLAR, 0)]);
        allot(&mut regions, 2 * DOLLAR, 5, at(0));
        assert_eq!(caps(&regions), [3 * DOLLAR / 2, DOLLAR / 2]);
        allot(&mut regions, -DOLLAR, 6, at(0));
        assert_eq!(caps(&regions), [0, 0]);
        assert!(regions.values().all(|region| region.share.lowered.is_some_and(|lowered| lowered.version == 6)));
    }
}
