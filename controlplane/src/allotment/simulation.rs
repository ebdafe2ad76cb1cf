//! Regions that spend money paid ahead, on one thread, from a seed: pushes, acknowledgements and books come late, edges are
//! stopped, cut off and removed, money is added. What is checked: what all regions together have lent is never more than
//! what was paid; and in the end one region can spend all of it.
//!
//! More seeds: `TURNPIKE_SEEDS=20000 cargo test -p turnpike-controlplane --lib allotment::simulation -- --nocapture`.

use super::*;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

/// Milliseconds between two moments.
const STEP: i64 = 250;
/// How long a lease lives, milliseconds.
const LEASE: i64 = 2_000;
/// The most that a request reserves: a tenth of a cent.
const MOST: i128 = 1_000_000_000;

fn time(ms: i64) -> DateTime<Utc> {
    DateTime::from_timestamp_millis(ms).unwrap()
}

/// Money that was lent to a request; until it ends, it may cost all of it.
struct Running {
    began: i64,
    ends: i64,
    lent: i128,
}

/// A request that ended and is not in the books yet.
struct Ended {
    began: i64,
    booked_at: i64,
    cost: i128,
}

#[derive(Default)]
struct Edge {
    /// The routing it serves by, and what the control plane knows of that.
    holds: u64,
    acked: u64,
    cap: i128,
    /// It hears nothing and ships nothing until then.
    cut_off_until: i64,
    seen_at: i64,
    /// Borrowed, for a request that is about to begin.
    leases: Vec<(i64, i128)>,
    running: Vec<Running>,
    ended: Vec<Ended>,
}

impl Edge {
    /// All requests that began before are in the books.
    fn complete_to(&self, now: i64) -> i64 {
        let began = self.running.iter().map(|it| it.began).chain(self.ended.iter().map(|it| it.began));
        began.min().map_or(now, |began| began - 1)
    }
}

#[derive(Default)]
struct Place {
    edges: Vec<Edge>,
    /// The region's bucket: lent and not given back. It never falls below what was spent.
    lent: i128,
    booked: i128,
    requests: i64,
    /// Requests a second, in thousandths.
    demand: u32,
    share: Share,
    asked: Asked,
}

struct World {
    random: StdRng,
    now: i64,
    paid: i128,
    version: u64,
    /// What was told, by version.
    told: Vec<BTreeMap<String, i128>>,
    places: BTreeMap<String, Place>,
    answered: u64,
    refused: u64,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        let places = (0..random.random_range(1..=4)).map(|n| (format!("r{n}"), Place::default())).collect();
        let told = vec![BTreeMap::new()];
        let mut world = Self { random, now: 0, paid: 0, version: 0, told, places, answered: 0, refused: 0 };
        for name in world.names() {
            world.change_demand(&name);
            let edges = world.random.random_range(0..=2);
            world.place(&name).edges.extend((0..edges).map(|_| Edge::default()));
        }
        world.pay();
        world
    }

    fn names(&self) -> Vec<String> {
        self.places.keys().cloned().collect()
    }

    fn place(&mut self, name: &str) -> &mut Place {
        self.places.get_mut(name).unwrap()
    }

    fn chance(&mut self, one_in: u32) -> bool {
        self.random.random_ratio(1, one_in)
    }

    fn pay(&mut self) {
        self.paid += MOST * self.random.random_range(1..=60);
    }

    fn change_demand(&mut self, name: &str) {
        let choices = [0, 0, 200, 2_000, 8_000];
        self.place(name).demand = choices[self.random.random_range(0..choices.len())];
    }

    /// A push reaches some edges, an acknowledgement is noted for some, and what they ship is added up.
    fn talk(&mut self) {
        let (now, version) = (self.now, self.version);
        for (name, place) in &mut self.places {
            for edge in place.edges.iter_mut().filter(|edge| edge.cut_off_until <= now) {
                edge.seen_at = now;
                if edge.holds < version && self.random.random_ratio(1, 3) {
                    edge.holds = version;
                    edge.cap = self.told[usize::try_from(version).unwrap()].get(name).copied().unwrap_or_default();
                }
                if self.random.random_ratio(1, 3) {
                    edge.acked = edge.holds;
                }
                let booked = edge.ended.extract_if(.., |it| it.booked_at <= now).map(|it| it.cost);
                for cost in booked {
                    place.booked += cost;
                    place.requests += 1;
                }
            }
        }
    }

    fn spend(&mut self) {
        let now = self.now;
        for place in self.places.values_mut() {
            let (lent, random) = (&mut place.lent, &mut self.random);
            for edge in &mut place.edges {
                let (ended, running): (Vec<_>, Vec<_>) =
                    std::mem::take(&mut edge.running).into_iter().partition(|it| it.ends <= now);
                edge.running = running;
                for Running { began, lent: reserved, .. } in ended {
                    let cost = reserved * random.random_range(1..=100) / 100;
                    *lent -= reserved - cost;
                    let late = if random.random_ratio(1, 50) { 120_000 } else { 3_000 };
                    edge.ended.push(Ended { began, booked_at: now + random.random_range(0..late), cost });
                }
                for (until, units) in std::mem::take(&mut edge.leases) {
                    if until <= now || random.random_ratio(1, 3) {
                        let longest = if random.random_ratio(1, 40) { 60_000 } else { 2_000 };
                        // It may just have had the money before the lease ended.
                        let began = now.min(until);
                        edge.running.push(Running { began, ends: now + random.random_range(0..longest), lent: units });
                    } else {
                        edge.leases.push((until, units));
                    }
                }
                let wanted = u64::from(place.demand) * u64::try_from(STEP).unwrap() / 1_000;
                let count = wanted / 1_000 + u64::from(random.random_range(0..1_000) < wanted % 1_000);
                for _ in 0..count {
                    let units = random.random_range(MOST / 10..=MOST);
                    if *lent + units <= edge.cap {
                        *lent += units;
                        edge.leases.push((now + random.random_range(1..=LEASE), units));
                        self.answered += 1;
                    } else {
                        self.refused += 1;
                        edge.ended.push(Ended { began: now, booked_at: now + random.random_range(0..3_000), cost: 0 });
                    }
                }
            }
        }
        let out: i128 = self.places.values().map(|place| place.lent).sum();
        assert!(out <= self.paid, "{out} lent of {} at {now}", self.paid);
    }

    /// What the control plane does at each look; it knows no more than the database does.
    fn allot(&mut self) {
        let now = self.now;
        let left = self.paid - self.places.values().map(|place| place.booked).sum::<i128>();
        let mut regions = BTreeMap::new();
        for (name, place) in &mut self.places {
            let spent = place.booked;
            let edges = &place.edges;
            let complete = edges.iter().map(|edge| edge.complete_to(now)).min().unwrap_or(now);
            let mut region = Region {
                share: place.share,
                spent,
                is_live: edges.iter().any(|edge| edge.seen_at > now - 3_600_000),
                is_heard: edges.iter().all(|edge| edge.seen_at > now - 60_000),
                holds: edges.iter().map(|edge| edge.acked).min(),
                complete_to: time(complete),
                asked: place.asked,
            };
            place.asked.note(place.requests, spent, region.has_all(left), time(now));
            region.asked = place.asked;
            regions.insert(name.clone(), region);
        }
        let caps = |regions: &BTreeMap<String, Region>| -> BTreeMap<String, i128> {
            regions.iter().map(|(name, region)| (name.clone(), region.share.cap)).collect()
        };
        let before = caps(&regions);
        allot(&mut regions, left, self.version + 1, time(now));
        let exposed: i128 = regions.values().map(Region::exposure).sum();
        assert!(exposed <= left, "{exposed} may be spent of {left} at {now}: {regions:?}");
        let after = caps(&regions);
        if after != before {
            self.version += 1;
            self.told.push(after);
        }
        for (name, region) in regions {
            let lowered = region.share.lowered;
            assert!(lowered.is_none_or(|it| it.version <= self.version), "a version that tells nothing: {region:?}");
            self.place(&name).share = region.share;
        }
    }

    /// Edges are cut off for a while, come, and go for good; money comes in; other regions are busy.
    fn happen(&mut self) {
        if self.chance(1_500) {
            self.pay();
        }
        for name in self.names() {
            if self.chance(300) {
                self.change_demand(&name);
            }
            if self.chance(1_000) && self.place(&name).edges.len() < 3 {
                self.place(&name).edges.push(Edge::default());
            }
            let until = self.now + self.random.random_range(1..200_000);
            let (cut_off, gone) = (self.chance(800), self.chance(1_500));
            let now = self.now;
            let place = self.place(&name);
            if let Some(edge) = place.edges.last_mut().filter(|_| cut_off) {
                edge.cut_off_until = until;
            }
            // It is removed once it has ended all and shipped all.
            let is_done = |edge: &Edge| edge.leases.is_empty() && edge.complete_to(now) == now;
            if gone && place.edges.first().is_some_and(is_done) {
                place.edges.remove(0);
            }
        }
    }

    fn step(&mut self) {
        self.now += STEP;
        self.talk();
        self.spend();
        if self.random.random_ratio(1, 4) {
            self.allot();
        }
    }

    /// Everybody is there again, and one region alone is asked.
    fn end(&mut self) {
        let names = self.names();
        for name in &names {
            let place = self.place(name);
            place.demand = 0;
            place.edges.iter_mut().for_each(|edge| edge.cut_off_until = 0);
        }
        let last = self.place(&names[0]);
        last.demand = 8_000;
        if last.edges.is_empty() {
            last.edges.push(Edge::default());
        }
        let mut steps = 0;
        // Nothing but less than a request's worth.
        while self.paid - self.places.values().map(|place| place.lent).sum::<i128>() >= MOST / 10 + 4 * GRAIN {
            self.step();
            steps += 1;
            assert!(
                steps < 20_000,
                "{:?}",
                self.places.values().map(|place| (place.lent, place.share)).collect::<Vec<_>>()
            );
        }
    }
}

#[test]
fn regions_never_spend_more_than_was_paid_and_one_can_spend_it_all() {
    let count = std::env::var("TURNPIKE_SEEDS").ok().and_then(|text| text.parse().ok()).unwrap_or(150);
    let (mut answered, mut refused, mut told) = (0, 0, 0);
    for seed in 0..count {
        let mut world = World::new(seed);
        for _ in 0..2_400 {
            world.happen();
            world.step();
        }
        world.end();
        answered += world.answered;
        refused += world.refused;
        told += world.version;
    }
    println!("{count} seeds: {answered} requests answered and {refused} refused, {told} versions told");
    assert!(answered > 10 * count, "hardly anything was spent");
}
