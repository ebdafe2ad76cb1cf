//! Edges, a Redis, clients and faults, as events in the order of their times.

use crate::limit::ask::{Ask, Floor, Grant};
use crate::limit::clock::Vouch;
use crate::limit::ledger::Ledger;
use crate::limit::reach::Region;
use crate::limit::share::{Kind, Share, Take, Taken};
use crate::limit::simulation::random::Random;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

pub(super) const MS: u64 = 1_000_000;
const S: u64 = 1_000 * MS;
const SLOW: u64 = 5 * MS;
const KEEP_EVERY: u64 = 100 * MS;
const LOOK_EVERY: u64 = 100 * MS;
/// A request that was told neither yes nor no in this time is refused.
const WAIT: u64 = 25 * MS;
pub(super) const START: i64 = 1_700_000_000_000_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Load {
    /// Each edge gets its part.
    Uniform,
    /// One edge gets all.
    Sticky,
    /// One edge gets all, another one every few seconds.
    Migrating,
}

#[derive(Clone, Copy, Debug)]
enum Fault {
    RedisDown,
    RedisUp {
        lost: bool,
    },
    Flush,
    Stop(usize),
    /// Killed, and started again by what it kept of the server's clock.
    Restart(usize),
    Jump(i64),
}

#[derive(Clone, Debug)]
pub(super) struct Scenario {
    pub(super) seed: u64,
    pub(super) kind: Kind,
    pub(super) edges: usize,
    /// Units per minute.
    pub(super) limit: u64,
    pub(super) load: Load,
    /// Requests per second over all edges.
    pub(super) per_s: f64,
    /// Most units of a request.
    pub(super) most_units: u64,
    pub(super) seconds: u64,
    pub(super) faults: bool,
}

enum Event {
    Arrival,
    AskArrives { edge: usize, ask: Box<Ask>, id: u64, sent: u64 },
    Reply { edge: usize, ask: Box<Ask>, grant: Box<Grant>, id: u64, sent: u64 },
    Slow { edge: usize, ask: Box<Ask>, id: u64 },
    Lost { edge: usize, ask: Box<Ask>, id: u64 },
    Probe(usize),
    ProbeArrives { edge: usize, vouch: Vouch, sent: u64 },
    ProbeReply { edge: usize, server: i64, sent: u64 },
    Keep(usize),
    Save,
    Settle { edge: usize, life: u64, taken: Taken, used: u64 },
    GiveUp { edge: usize, request: u64 },
    Fault(Fault),
}

struct Edge {
    name: String,
    share: Share,
    region: Region,
    /// Request number → (units, used).
    waiting: BTreeMap<u64, (u64, u64)>,
    /// Asks on their way.
    open: Vec<u64>,
    stopped_until: u64,
    life: u64,
    began: u64,
}

#[derive(Default, Debug)]
pub(super) struct Outcome {
    pub(super) arrived: u64,
    pub(super) admitted: u64,
    /// Units admitted, and what one bucket in one place would have admitted of the same arrivals.
    pub(super) units: u64,
    pub(super) ideal_units: u64,
    pub(super) asks: u64,
    pub(super) probes: u64,
    /// Most units that were ever admitted too much.
    pub(super) over: f64,
}

/// One bucket in one place, the measure of all things here.
struct Ideal {
    capacity: f64,
    rate: f64,
    level: f64,
    at: u64,
}

impl Ideal {
    fn new(limit: u64) -> Self {
        Self { capacity: limit as f64, rate: limit as f64 / 60.0, level: limit as f64, at: 0 }
    }
    fn pass(&mut self, now: u64) {
        self.level = (self.level + self.rate * (now - self.at) as f64 / 1e9).min(self.capacity);
        self.at = now;
    }
}

pub(super) struct World {
    scenario: Scenario,
    random: Random,
    now: u64,
    queue: BinaryHeap<Reverse<(u64, u64)>>,
    events: BTreeMap<u64, Event>,
    number: u64,
    edges: Vec<Edge>,
    ledger: Ledger,
    /// What is left of it on disk after a crash: the state of up to a second ago.
    saved: Ledger,
    run: u64,
    redis_up: bool,
    jumped_us: i64,
    ideal: Ideal,
    /// (when, units used) of everything admitted.
    admitted: Vec<(u64, u64)>,
    outcome: Outcome,
    measured_from: u64,
}

impl World {
    pub(super) fn new(scenario: Scenario) -> Self {
        let edges = (0..scenario.edges)
            .map(|n| Edge {
                name: format!("e{n}"),
                share: Share::new(scenario.kind, scenario.limit),
                region: Region::new(u32::try_from(scenario.edges).unwrap(), 0),
                waiting: BTreeMap::new(),
                open: Vec::new(),
                stopped_until: 0,
                life: 0,
                began: 0,
            })
            .collect();
        Self {
            random: Random(scenario.seed),
            now: 0,
            queue: BinaryHeap::new(),
            events: BTreeMap::new(),
            number: 0,
            edges,
            ledger: Ledger::default(),
            saved: Ledger::default(),
            run: 1,
            redis_up: true,
            jumped_us: 0,
            ideal: Ideal::new(scenario.limit),
            admitted: Vec::new(),
            outcome: Outcome::default(),
            measured_from: 0,
            scenario,
        }
    }

    /// Runs the scenario. Buckets begin as they do in an empty Redis, so the first minute is left out of what is measured
    /// (not out of what is checked), and so is what was used in it.
    pub(super) fn run(mut self) -> Outcome {
        let warm_up = 65 * S;
        for edge in 0..self.edges.len() {
            let (probe, keep) = (self.random.below(LOOK_EVERY), self.random.below(KEEP_EVERY));
            self.at(if edge == 0 { 1 } else { probe / 50 }, Event::Probe(edge));
            self.at(keep, Event::Keep(edge));
        }
        self.measured_from = warm_up;
        self.at(S, Event::Save);
        self.at(warm_up.max(20 * MS), Event::Arrival);
        let end = warm_up + self.scenario.seconds * S;
        if self.scenario.faults {
            self.draw_faults(warm_up, end);
        }
        while let Some(Reverse((at, number))) = self.queue.pop() {
            if at > end {
                break;
            }
            self.now = at;
            let event = self.events.remove(&number).unwrap();
            self.happen(event);
        }
        self.judge();
        self.outcome
    }

    fn at(&mut self, at: u64, event: Event) {
        self.number += 1;
        self.events.insert(self.number, event);
        self.queue.push(Reverse((at, self.number)));
    }

    fn after(&mut self, wait: u64, event: Event) {
        self.at(self.now + wait, event);
    }

    fn latency(&mut self) -> u64 {
        // A network that is out of order for a while delivers late, up to what a client waits for.
        let late = self.scenario.faults && self.random.below(100) == 0;
        100_000 + self.random.below(if late { S } else { 700_000 })
    }

    fn draw_faults(&mut self, start: u64, end: u64) {
        let mut at = start;
        loop {
            at += S / 2 + self.random.below(12 * S);
            if at > end {
                return;
            }
            let edge = usize::try_from(self.random.below(self.edges.len() as u64)).unwrap();
            match self.random.below(7) {
                0 | 1 => {
                    self.at(at, Event::Fault(Fault::RedisDown));
                    let lost = self.random.below(2) == 0;
                    at += self.random.below(6 * S);
                    self.at(at, Event::Fault(Fault::RedisUp { lost }));
                }
                2 => self.at(at, Event::Fault(Fault::Flush)),
                3 => self.at(at, Event::Fault(Fault::Stop(edge))),
                4 => self.at(at, Event::Fault(Fault::Restart(edge))),
                _ => {
                    let jump =
                        self.random.one_of(&[3_600_000_000_i64, -3_600_000_000, 700_000, -5_000_000, 30_000_000]);
                    self.at(at, Event::Fault(Fault::Jump(jump)));
                }
            }
        }
    }

    fn server_time(&self) -> i64 {
        START + i64::try_from(self.now / 1_000).unwrap() + self.jumped_us
    }

    fn happen(&mut self, event: Event) {
        let whose = match &event {
            Event::Reply { edge, .. }
            | Event::Slow { edge, .. }
            | Event::Lost { edge, .. }
            | Event::Probe(edge)
            | Event::ProbeReply { edge, .. }
            | Event::Keep(edge)
            | Event::Settle { edge, .. }
            | Event::GiveUp { edge, .. } => Some(*edge),
            _ => None,
        };
        if let Some(until) = whose.map(|edge| self.edges[edge].stopped_until).filter(|until| *until > self.now) {
            // A stopped process finds everything when it goes on.
            self.at(until, event);
            return;
        }
        match event {
            Event::Arrival => self.arrive(),
            Event::AskArrives { edge, ask, id, sent } => self.answer(edge, ask, id, sent),
            // Replies to an earlier life find nobody.
            Event::Reply { edge, ref ask, ref grant, id, sent } if self.edges[edge].open.contains(&id) => {
                self.reply(edge, ask, grant, id, sent);
            }
            Event::Reply { .. } => {}
            Event::Slow { edge, ask, id } => {
                if self.edges[edge].open.contains(&id) {
                    self.edges[edge].region.slow(self.now);
                    self.after(SLOW, Event::Slow { edge, ask, id });
                    self.wake(edge);
                }
            }
            Event::Lost { edge, id, .. } if !self.edges[edge].open.contains(&id) => {}
            Event::Lost { edge, ask, id } => {
                self.edges[edge].open.retain(|open| *open != id);
                self.edges[edge].share.lost(&ask);
                self.edges[edge].region.failed(self.now);
                self.wake(edge);
            }
            Event::Probe(edge) => {
                self.after(LOOK_EVERY, Event::Probe(edge));
                let e = &mut self.edges[edge];
                let busy = !e.share.is_dormant(self.now);
                if e.region.probe_is_due(busy, self.now) {
                    self.outcome.probes += u64::from(self.now >= self.measured_from);
                    let (latency, vouch) = (self.latency(), self.edges[edge].region.vouch(self.now));
                    self.after(latency, Event::ProbeArrives { edge, vouch, sent: self.now });
                }
            }
            Event::ProbeArrives { edge, vouch, sent } => {
                if self.redis_up {
                    self.ledger.probe(vouch, self.server_time(), &self.run.to_string());
                    let (latency, server) = (self.latency(), self.server_time());
                    self.after(latency, Event::ProbeReply { edge, server, sent });
                } else {
                    self.edges[edge].region.failed(self.now);
                }
            }
            Event::ProbeReply { edge, sent, .. } if sent < self.edges[edge].began => {}
            Event::ProbeReply { edge, server, sent } => self.edges[edge].region.heard(server, sent, self.now),
            Event::Keep(edge) => {
                self.after(KEEP_EVERY, Event::Keep(edge));
                let e = &self.edges[edge];
                if e.region.reach().alone_since_ns.is_none()
                    && let Some(ask) = e.share.keep(Floor::default(), e.region.vouch(self.now), self.now)
                {
                    self.send(edge, ask);
                }
            }
            Event::Save => {
                self.after(S, Event::Save);
                if self.redis_up {
                    self.saved = self.ledger.clone();
                }
            }
            Event::Settle { edge, life, taken, used } => {
                let e = &self.edges[edge];
                // What a killed process had to settle nobody settles.
                if e.life != life {
                    return;
                }
                e.share.settle(taken, used, e.region.reach(), self.now);
            }
            Event::GiveUp { edge, request } => drop(self.edges[edge].waiting.remove(&request)),
            Event::Fault(fault) => self.fault(fault),
        }
    }

    fn fault(&mut self, fault: Fault) {
        match fault {
            Fault::RedisDown => self.redis_up = false,
            Fault::RedisUp { lost } => {
                self.redis_up = true;
                if lost {
                    // Restarted from an append-only file whose last second is missing, or from nothing.
                    self.run += 1;
                    self.ledger = self.saved.clone();
                    if self.random.below(2) == 0 {
                        self.ledger.flush();
                    }
                }
            }
            Fault::Flush => self.ledger.flush(),
            Fault::Stop(edge) => self.edges[edge].stopped_until = self.now + 10 * S,
            Fault::Restart(edge) => self.restart(edge),
            Fault::Jump(by) => self.jumped_us += by,
        }
    }

    fn restart(&mut self, edge: usize) {
        if self.edges[edge].stopped_until > self.now {
            return;
        }
        let count = u32::try_from(self.edges.len()).unwrap();
        let begins = self.now + self.random.below(20 * S);
        let e = &mut self.edges[edge];
        let kept = e.region.track();
        e.life += 1;
        e.name = format!("e{edge}.{}", e.life);
        e.share = Share::new(self.scenario.kind, self.scenario.limit);
        e.region = Region::new(count, begins);
        if let Some(track) = kept {
            e.region.resume(track);
        }
        e.waiting.clear();
        e.open.clear();
        (e.stopped_until, e.began) = (begins, begins);
    }

    fn arrive(&mut self) {
        let wait = self.random.wait(self.scenario.per_s);
        self.after(wait, Event::Arrival);
        let count = self.edges.len() as u64;
        let edge = usize::try_from(match self.scenario.load {
            Load::Uniform => self.random.below(count),
            Load::Sticky => self.scenario.seed % count,
            Load::Migrating => (self.now / (3 * S)) % count,
        })
        .unwrap();
        if self.edges[edge].stopped_until > self.now {
            return;
        }
        let units = 1 + self.random.below(self.scenario.most_units);
        let used = if self.scenario.kind == Kind::Tokens { 1 + self.random.below(units) } else { units };
        self.outcome.arrived += 1;
        self.ideal.pass(self.now);
        if self.ideal.level >= units as f64 {
            self.ideal.level -= used as f64;
            self.outcome.ideal_units += used;
        }
        let e = &self.edges[edge];
        match e.share.take(units, e.region.reach(), self.now) {
            Take::Taken(taken) => self.admit(edge, taken, used),
            Take::Denied { .. } => {}
            Take::Ask => {
                self.number += 1;
                let request = self.number;
                self.edges[edge].waiting.insert(request, (units, used));
                self.after(WAIT, Event::GiveUp { edge, request });
                self.ask(edge);
            }
        }
    }

    fn ask(&mut self, edge: usize) {
        let e = &self.edges[edge];
        let waiting = e.waiting.values().map(|(units, _)| units).sum();
        if let Some(ask) = e.share.ask(waiting, Floor::default(), e.region.vouch(self.now), self.now) {
            self.send(edge, ask);
        }
    }

    fn send(&mut self, edge: usize, ask: Ask) {
        self.outcome.asks += u64::from(self.now >= self.measured_from);
        self.number += 1;
        let (id, sent) = (self.number, self.now);
        self.edges[edge].open.push(id);
        let (latency, ask) = (self.latency(), Box::new(ask));
        self.after(SLOW, Event::Slow { edge, ask: ask.clone(), id });
        self.after(latency, Event::AskArrives { edge, ask, id, sent });
    }

    fn answer(&mut self, edge: usize, ask: Box<Ask>, id: u64, sent: u64) {
        let latency = self.latency();
        if !self.redis_up {
            self.after(latency, Event::Lost { edge, ask, id });
            return;
        }
        let name = self.edges[edge].name.clone();
        let grant = self.ledger.answer("bucket", &name, &ask, self.server_time(), &self.run.to_string());
        // Some answers are lost on their way back.
        if self.scenario.faults && self.random.below(200) == 0 {
            self.after(latency, Event::Lost { edge, ask, id });
        } else {
            self.after(latency, Event::Reply { edge, ask, grant: Box::new(grant), id, sent });
        }
    }

    fn reply(&mut self, edge: usize, ask: &Ask, grant: &Grant, id: u64, sent: u64) {
        let now = self.now;
        let e = &mut self.edges[edge];
        e.open.retain(|open| *open != id);
        e.region.heard(grant.at, sent, now);
        e.share.granted(ask, grant, sent, now);
        self.wake(edge);
    }

    fn wake(&mut self, edge: usize) {
        let waiting: Vec<_> = self.edges[edge].waiting.iter().map(|(n, units)| (*n, *units)).collect();
        let mut ask_again = false;
        for (request, (units, used)) in waiting {
            let e = &self.edges[edge];
            match e.share.try_take(units, e.region.reach(), self.now) {
                Take::Taken(taken) => {
                    self.edges[edge].waiting.remove(&request);
                    self.admit(edge, taken, used);
                }
                Take::Denied { .. } => drop(self.edges[edge].waiting.remove(&request)),
                Take::Ask => ask_again = true,
            }
        }
        if ask_again {
            self.ask(edge);
        }
    }

    fn admit(&mut self, edge: usize, taken: Taken, used: u64) {
        self.outcome.admitted += 1;
        self.outcome.units += used;
        self.admitted.push((self.now, used));
        if self.scenario.kind == Kind::Tokens {
            let wait = self.random.below(8 * S);
            let life = self.edges[edge].life;
            self.after(wait, Event::Settle { edge, life, taken, used });
        }
        if taken.runs_low && self.edges[edge].region.reach().alone_since_ns.is_none() {
            self.ask(edge);
        }
    }

    /// Would one bucket of the whole limit have let all of this pass?
    fn judge(&mut self) {
        let mut bucket = Ideal::new(self.scenario.limit);
        for (at, units) in &self.admitted {
            bucket.pass(*at);
            bucket.level -= *units as f64;
            self.outcome.over = self.outcome.over.max(-bucket.level);
        }
    }
}
