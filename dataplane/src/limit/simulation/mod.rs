//! A region of edges and their Redis under faults, on one thread, from a seed.
//!
//! Everything is the real code but the network, the clocks and the clients: arrivals, latencies, outages, lost data,
//! stopped edges and clock jumps are drawn from the seed. What is checked: the requests admitted by all edges together
//! would have passed one bucket of the whole limit (so over every window: admitted ≤ burst + rate · window).

mod random;
mod world;

use super::ask::Floor;
use super::ledger::Ledger;
use super::reach::Region;
use super::share::{Kind, Share, Take};
pub(super) use random::Random;
use world::{Load, MS, Outcome, START, Scenario, World};

fn seeds(default: u64) -> u64 {
    std::env::var("TURNPIKE_SEEDS").ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

fn drawn(seed: u64) -> Scenario {
    let mut random = Random(seed ^ 0x7475_726e);
    let kind = random.one_of(&[Kind::Requests, Kind::Requests, Kind::Tokens]);
    let limit = random.one_of(&[3, 10, 60, 119, 120, 600, 3_000, 12_000, 60_000]);
    let most_units = if kind == Kind::Tokens { (limit / 20).clamp(1, 400) } else { 1 };
    let demand = random.one_of(&[0.9, 2.0, 6.0, 20.0]) * limit as f64 / 60.0 / (most_units as f64 / 2.0).max(1.0);
    Scenario {
        seed,
        kind,
        edges: random.one_of(&[1, 3, 8]),
        limit,
        load: random.one_of(&[Load::Uniform, Load::Sticky, Load::Migrating]),
        per_s: demand.clamp(0.5, 1_500.0),
        most_units,
        seconds: 10 + random.below(40),
        faults: true,
    }
}

#[test]
fn nothing_is_admitted_too_much_whatever_fails() {
    let count = seeds(200);
    let mut admitted = 0;
    for seed in 0..count {
        let scenario = drawn(seed);
        let outcome = World::new(scenario.clone()).run();
        assert!(outcome.over < 1e-3, "{:.3} units too much: {scenario:?} {outcome:?}", outcome.over);
        admitted += outcome.admitted;
    }
    println!("{count} seeds, {admitted} requests admitted, 0 over-admitted");
    assert!(admitted > count * 10, "hardly anything was admitted: {admitted}");
}

fn steady(load: Load, limit: u64, per_s: f64, seed: u64) -> Outcome {
    let kind = Kind::Requests;
    World::new(Scenario { seed, kind, edges: 8, limit, load, per_s, most_units: 1, seconds: 150, faults: false }).run()
}

#[test]
fn little_is_refused_that_one_bucket_would_have_admitted_and_redis_is_asked_seldom() {
    // load, limit per minute, requests per second, most refused too much, most operations of Redis per 1,000 requests:
    // asks, and what edges ask to know that it is there.
    let cases = [
        (Load::Uniform, 60_000, 1_000.0, 0.01, 100.0),
        (Load::Uniform, 60_000, 2_000.0, 0.01, 100.0),
        (Load::Uniform, 90_000, 1_000.0, 0.01, 100.0),
        (Load::Sticky, 90_000, 1_000.0, 0.01, 20.0),
        (Load::Sticky, 60_000, 2_000.0, 0.01, 20.0),
        (Load::Migrating, 60_000, 2_000.0, 0.05, 100.0),
        (Load::Migrating, 6_000, 300.0, 0.05, 100.0),
        (Load::Uniform, 30, 2.0, 0.01, 1_500.0),
        (Load::Sticky, 6, 1.0, 0.01, 1_500.0),
        (Load::Uniform, 110, 1.5, 0.01, 1_500.0),
        (Load::Migrating, 60, 3.0, 0.01, 1_500.0),
    ];
    for (load, limit, per_s, most_under, most_asks) in cases {
        let outcome = steady(load, limit, per_s, 7);
        let under = 1.0 - outcome.units as f64 / outcome.ideal_units as f64;
        let per_thousand = |count: u64| count as f64 * 1_000.0 / outcome.arrived as f64;
        let (asks, probes) = (per_thousand(outcome.asks), per_thousand(outcome.probes));
        println!(
            "{load:?} {limit}/min at {per_s}/s: {} of {} admitted, {:.2} % too few, {asks:.1} asks and {probes:.1} probes per 1,000",
            outcome.units,
            outcome.ideal_units,
            under * 100.0
        );
        assert!(outcome.over < 1e-3, "{load:?} {limit}: {outcome:?}");
        assert!(under <= most_under, "{load:?} {limit}: {under} {outcome:?}");
        assert!(asks <= most_asks, "{load:?} {limit}: {asks} {outcome:?}");
        if per_s >= 1_000.0 {
            assert!(asks + probes <= most_asks, "{load:?} {limit}: {asks} and {probes} {outcome:?}");
        }
    }
}

#[test]
fn what_is_known_to_be_denied_costs_no_ask() {
    let share = Share::new(Kind::Requests, 60_000);
    let (mut region, mut ledger) = (Region::new(1, 0), Ledger::default());
    region.heard(START, 0, 1);
    let reach = region.reach();
    assert_eq!(share.take(1, reach, MS), Take::Ask);
    let ask = share.ask(1, Floor::default(), region.vouch(MS), MS).unwrap();
    let grant = ledger.answer("bucket", "e", &ask, START + 1_000, "run");
    share.granted(&ask, &grant, MS, 2 * MS);
    // Freshly begun: nothing there yet. Until it can have refilled, nobody is asked.
    let mut denied = 0;
    for now in (2 * MS..90 * MS).step_by(10_000) {
        denied += u64::from(matches!(share.take(1, reach, now), Take::Denied { .. }));
    }
    assert_eq!(denied, 8_800);
}
