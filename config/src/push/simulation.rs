//! Both ends of the conversation under everything that a link, a disk and a database can do to them, from seeds.
//!
//! Streams keep order and lose nothing until the link breaks; then what was on its way is gone, in both directions. Somebody
//! in between repeats old frames. Edges start again from what their disk had; the log is set back to an earlier entry and
//! goes on otherwise, with and without a signature that allows edges to follow.

use super::*;
use crate::change::Change;
use crate::log::{Audience, Entry};
use crate::records::OrgRecord;
use crate::routing::Routing;
use crate::{KeyDigest, KeyId, KeyRecord, ModelLimits, OrgId, Permissions, RateLimits};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use uuid::Uuid;

/// SplitMix64.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % limit
    }

    fn one_in(&mut self, times: u64) -> bool {
        self.below(times) == 0
    }
}

const KEYS: u64 = 12;

fn digest(n: u64) -> KeyDigest {
    KeyDigest::of(&n.to_string())
}

fn key(n: u64, active: bool, tag: u64) -> KeyRecord {
    KeyRecord {
        id: KeyId(Uuid::from_u128(tag.into())),
        organization: OrgId(Uuid::nil()),
        digest: digest(n),
        permissions: Permissions::INFERENCE,
        limits: RateLimits::default(),
        models: None,
        active,
        expires_at_ms: None,
        model_limits: ModelLimits::default(),
    }
}

/// One entry of the log, as it is kept and as the edge gets it.
#[derive(Clone)]
struct Kept {
    bytes: ByteVec,
    for_us: bool,
    is_urgent: bool,
}

/// The deployment's log, what it says at each position, and all that it ever said.
struct Log {
    signer: Signer,
    start: Position,
    entries: Vec<Kept>,
    at: Vec<Position>,
    states: Vec<Routing>,
    ever: BTreeMap<(u64, Hash), Routing>,
    replaces: u64,
    next_tag: u64,
}

impl Log {
    fn new() -> Self {
        let mut state = Routing::default();
        state.apply(Change::PutOrg(OrgRecord {
            id: OrgId(Uuid::nil()),
            slug: "o".to_owned(),
            limits: RateLimits::default(),
            model_limits: ModelLimits::default(),
            budget: None,
            prepaid: None,
            cache_generation: 0,
        }));
        let start = Position { version: 0, chain: Hash::of(b"this deployment") };
        let signer = Signer::from_seed(&[3; 32]).unwrap();
        Self {
            signer,
            start,
            entries: Vec::new(),
            at: Vec::new(),
            states: vec![state],
            ever: BTreeMap::new(),
            replaces: 0,
            next_tag: 0,
        }
    }

    fn head(&self) -> Position {
        self.at.last().copied().unwrap_or(self.start)
    }

    fn state(&self) -> Routing {
        self.states.last().cloned().unwrap()
    }

    fn append(&mut self, random: &mut Random) {
        self.next_tag += 1;
        let n = random.below(KEYS);
        let (change, is_urgent) = match random.below(4) {
            0 => (Change::DropKey(digest(n)), true),
            1 => (Change::PutKey(key(n, false, self.next_tag)), true),
            _ => (Change::PutKey(key(n, true, self.next_tag)), false),
        };
        let regions = |name: &str| Audience { edges: Vec::new(), regions: vec![name.to_owned()] };
        let audience = match random.below(6) {
            0 => Some(regions("elsewhere")),
            1 => Some(regions("here")),
            _ => None,
        };
        let for_us = audience.as_ref().is_none_or(|audience| audience.includes("e", "here"));
        let bytes = Entry { change: change.clone(), audience }.to_bytes();
        let mut state = self.state();
        if for_us {
            state.apply(change);
        }
        let at = self.head().then(Hash::of(&bytes));
        state.version = at.version;
        self.entries.push(Kept { bytes, for_us, is_urgent });
        self.at.push(at);
        self.ever.insert((at.version, at.chain), state.clone());
        self.states.push(state);
    }

    /// The database is restored to an earlier moment.
    fn set_back(&mut self, random: &mut Random) {
        let head = self.head().version;
        let keep = usize::try_from(random.below(head + 1)).unwrap();
        self.entries.truncate(keep);
        self.at.truncate(keep);
        self.states.truncate(keep + 1);
        // An operator finds out sooner or later.
        self.replaces = if random.one_in(2) { head } else { self.replaces };
    }

    fn holds(&self, at: Position) -> bool {
        at == self.start || self.at.contains(&at)
    }

    fn delta(&self, from: Position) -> Delta {
        let first = usize::try_from(from.version).unwrap();
        let item = |kept: &Kept| match kept.for_us {
            true => Item::Entry(kept.bytes.clone()),
            false => Item::Hidden(Hash::of(&kept.bytes)),
        };
        let entries = self.entries[first..].iter().map(item).collect();
        Delta { from: from.version, entries, signature: self.signer.sign(Statement::Head(self.head())) }
    }

    fn urgent_after(&self, version: u64) -> Vec<Urgent> {
        let entries = (1..).zip(&self.entries).filter(|(at, kept)| *at > version && kept.is_urgent && kept.for_us);
        let urgent = |(version, kept): (u64, &Kept)| {
            let statement = Statement::Urgent { version, entry: Hash::of(&kept.bytes) };
            Urgent { version, entry: kept.bytes.clone(), signature: self.signer.sign(statement) }
        };
        entries.map(urgent).collect()
    }
}

/// An edge with its disk, without a file.
struct Edge {
    follower: Follower,
    /// What is held, and what is served by: the same with urgent changes on top.
    held: Routing,
    state: Routing,
    disk: (Position, Routing),
    fetching: Option<Manifest>,
    /// The greatest version held since the last signed step back.
    least: u64,
    /// Taken back by an urgent entry at this version, and not seen again in its turn yet.
    revoked: BTreeMap<KeyDigest, u64>,
}

impl Edge {
    fn follower(log: &Log, held: Position) -> Follower {
        Follower::new("e".to_owned(), "here".to_owned(), log.signer.trust(), held)
    }

    fn new(log: &Log) -> Self {
        let disk = (Position::default(), Routing::default());
        let follower = Self::follower(log, Position::default());
        Self {
            follower,
            held: Routing::default(),
            state: Routing::default(),
            disk,
            fetching: None,
            least: 0,
            revoked: BTreeMap::new(),
        }
    }

    fn take(&mut self, frame: PushFrame, log: &Log, refuses: bool) -> Option<PushReply> {
        let answered = !matches!(frame, PushFrame::Urgent(_));
        match self.follower.take(frame) {
            Ok(Step::Apply { to, .. }) if refuses || self.fetching.is_some() => {
                Some(PushReply::Nack { version: to.version, reason: "today not".to_owned() })
            }
            Ok(Step::Apply { changes, to }) => {
                changes.into_iter().for_each(|change| self.held.apply(change));
                Some(self.adopt(to, log))
            }
            Ok(Step::Fetch(manifest)) => {
                if manifest.replaces > 0 {
                    // What the log took back with what it said up to that version counts no more.
                    self.revoked.retain(|_, version| *version > manifest.replaces);
                }
                self.fetching = Some(manifest);
                None
            }
            Ok(Step::ApplyNow { version, change }) => {
                self.revoked.retain(|_, revoked| *revoked != version);
                if let Change::DropKey(digest) = &change {
                    self.revoked.insert(*digest, version);
                } else if let Change::PutKey(key) = &change {
                    self.revoked.remove(&key.digest);
                }
                self.state.apply(change);
                None
            }
            Ok(Step::Held(at)) => Some(PushReply::Ack(at)),
            Ok(Step::Nothing) => None,
            Err(refusal) => answered.then(|| refusal.into()),
        }
    }

    /// All chunks are there.
    fn fetched(&mut self, log: &Log) -> Option<PushReply> {
        let manifest = self.fetching.take()?;
        self.held = log.ever.get(&(manifest.at.version, manifest.at.chain)).cloned().unwrap();
        if manifest.at.version < self.least {
            assert!(manifest.replaces >= self.least, "went back from {} to {}", self.least, manifest.at.version);
            self.least = 0;
        }
        Some(self.adopt(manifest.at, log))
    }

    fn adopt(&mut self, to: Position, log: &Log) -> PushReply {
        assert!(to.version >= self.least, "went back from {} to {}", self.least, to.version);
        self.least = to.version;
        self.held.version = to.version;
        assert_eq!(Some(&self.held), log.ever.get(&(to.version, to.chain)), "the state at {} is the log's", to.version);
        self.state = self.held.clone();
        self.follower.pending(to.version).for_each(|(_, change)| self.state.apply(change));
        self.revoked.retain(|_, version| *version > to.version);
        self.follower.adopt(to)
    }

    /// What was revoked stays so, whatever it is waiting for.
    fn check(&self) {
        for digest in self.revoked.keys() {
            // A later urgent entry may have put it, disabled.
            assert!(self.state.keys.get(digest).is_none_or(|key| !key.active), "a revoked key is back");
        }
    }
}

/// A link between both.
struct Link {
    session: Session,
    down: VecDeque<PushFrame>,
    up: VecDeque<PushReply>,
}

impl Link {
    fn new(edge: &Edge, log: &Log) -> Self {
        let holds = edge.follower.hello("b").holds;
        let known = log.holds(holds).then_some(holds);
        Self { session: Session::new(known), down: VecDeque::new(), up: VecDeque::new() }
    }

    /// The control plane sends what is due.
    fn send(&mut self, log: &Log, past: &mut Vec<PushFrame>) {
        let head = log.head();
        let before = self.down.len();
        match self.session.want(head) {
            Want::Nothing => {}
            Want::Delta(from) if log.holds(from) => {
                self.down.push_back(PushFrame::Delta(log.delta(from)));
                self.session.sent_delta(head);
            }
            Want::Delta(_) | Want::Snapshot => {
                let manifest = Manifest::new(head, vec![head.chain], log.replaces, &log.signer);
                self.down.push_back(PushFrame::Manifest(manifest));
                let serves = self.session.held().map_or(u64::MAX, |held| held.version);
                self.session.sent_snapshot(head, serves);
            }
            Want::Urgent(after) => {
                self.down.extend(log.urgent_after(after).into_iter().map(PushFrame::Urgent));
                self.session.sent_urgent(head.version);
            }
        }
        past.extend(self.down.iter().skip(before).cloned());
    }
}

fn run(seed: u64) {
    let mut random = Random(seed);
    let mut log = Log::new();
    log.append(&mut random);
    let mut edge = Edge::new(&log);
    let mut link = Link::new(&edge, &log);
    let mut past: Vec<PushFrame> = Vec::new();
    let forks = random.one_in(2);
    for _ in 0..400 {
        match random.below(12) {
            0..3 => log.append(&mut random),
            3 if random.one_in(3) => link = reconnect(&mut edge, &log),
            4 if random.one_in(6) => {
                // Started again by what the disk had.
                edge.follower = Edge::follower(&log, edge.disk.0);
                (edge.held, edge.state) = (edge.disk.1.clone(), edge.disk.1.clone());
                edge.least = edge.disk.0.version;
                edge.revoked.clear();
                link = reconnect(&mut edge, &log);
            }
            5 if forks && random.one_in(10) => {
                log.set_back(&mut random);
                log.append(&mut random);
                link = reconnect(&mut edge, &log);
            }
            6 if !past.is_empty() => {
                let old = past[usize::try_from(random.below(past.len() as u64)).unwrap()].clone();
                link.down.push_back(old);
            }
            7 => {
                if let Some(reply) = edge.fetched(&log) {
                    link.up.push_back(reply);
                }
            }
            8 => edge.disk = (edge.follower.held(), at_rest(&edge, &log)),
            _ => step(&mut link, &mut edge, &log, &mut past, &mut random),
        }
        edge.check();
    }
    // All is well from now on, and an operator has allowed what was restored.
    let greatest = log.ever.keys().map(|(version, _)| *version).max().unwrap_or(0);
    log.replaces = log.replaces.max(greatest);
    // What was urgent in a log that is no more may be heeded until this one is further.
    while log.head().version <= greatest {
        log.append(&mut random);
    }
    link = reconnect(&mut edge, &log);
    for _ in 0..20 {
        link.send(&log, &mut past);
        while let Some(frame) = link.down.pop_front() {
            link.up.extend(edge.take(frame, &log, false));
        }
        link.up.extend(edge.fetched(&log));
        while let Some(reply) = link.up.pop_front() {
            link.session.take(&reply).unwrap();
        }
    }
    assert_eq!(edge.follower.held(), log.head(), "seed {seed}: it got there");
    assert_eq!(edge.state, log.state(), "seed {seed}");
}

/// What the disk has: the state at the held position.
fn at_rest(edge: &Edge, log: &Log) -> Routing {
    let held = edge.follower.held();
    log.ever.get(&(held.version, held.chain)).cloned().unwrap_or_default()
}

fn reconnect(edge: &mut Edge, log: &Log) -> Link {
    edge.fetching = None;
    Link::new(edge, log)
}

/// One thing happens on the link.
fn step(link: &mut Link, edge: &mut Edge, log: &Log, past: &mut Vec<PushFrame>, random: &mut Random) {
    let ended = match random.below(3) {
        0 => {
            link.send(log, past);
            false
        }
        1 => {
            if let Some(frame) = link.down.pop_front() {
                let refuses = random.one_in(40);
                link.up.extend(edge.take(frame, log, refuses));
            }
            false
        }
        _ => link.up.pop_front().is_some_and(|reply| link.session.take(&reply).is_err()),
    };
    if ended {
        *link = reconnect(edge, log);
    }
}

#[test]
fn both_ends_come_together_whatever_happens_between_them() {
    let seeds = std::env::var("TURNPIKE_SEEDS").map_or(500, |seeds| seeds.parse().unwrap());
    let first = std::env::var("TURNPIKE_SEED").map_or(0, |seed| seed.parse().unwrap());
    let mut failed = BTreeSet::new();
    for seed in first..first + seeds {
        if std::panic::catch_unwind(|| run(seed)).is_err() {
            failed.insert(seed);
        }
    }
    assert!(failed.is_empty(), "seeds {failed:?}");
}
