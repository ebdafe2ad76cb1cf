//! The edge's end: checks what it is told before anything changes, and says what to do with it.

use super::{Delta, EdgeHello, Item, MAX_CHUNKS, MAX_DELTA, Manifest, PushFrame, PushReply, Urgent};
use crate::change::Change;
use crate::log::{Entry, Hash, Position};
use crate::signing::{Statement, Trust};
use std::collections::BTreeMap;

/// Most urgent entries that are remembered; more than that are refused until the snapshot is there.
const MAX_URGENT: usize = 100_000;

/// Why something is not taken. What the edge holds stays as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Version refused.
    pub version: u64,
    /// Why, for the operator.
    pub reason: String,
}

impl From<Refusal> for PushReply {
    fn from(Refusal { version, reason }: Refusal) -> Self {
        Self::Nack { version, reason }
    }
}

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Apply these to what is held, serve by that with [`Follower::pending`] on top, then call [`Follower::adopt`] and
    /// acknowledge.
    Apply {
        /// In order.
        changes: Vec<Change>,
        /// What is held then.
        to: Position,
    },
    /// Fetch these chunks, make a new state out of them, serve by that with [`Follower::pending`] on top, then call
    /// [`Follower::adopt`] and acknowledge.
    Fetch(Manifest),
    /// Serve by this as well, at once; nothing is acknowledged. It does not become part of what is held: that a position
    /// says which state is held would not be so any more, should the log be set back to before this.
    ApplyNow {
        /// Where it is in the log.
        version: u64,
        /// What changes.
        change: Change,
    },
    /// It is held already: acknowledge.
    Held(Position),
    /// It is known already, and nobody waits for an answer.
    Nothing,
}

/// What an edge holds and is waiting for.
#[derive(Clone, Debug)]
pub struct Follower {
    name: String,
    region: String,
    trust: Trust,
    held: Position,
    /// Urgent entries beyond what is held, by version, each with its hash.
    urgent: BTreeMap<u64, (Hash, Change)>,
}

impl Follower {
    /// An edge that holds something, or nothing at [`Position::default`].
    pub const fn new(name: String, region: String, trust: Trust, held: Position) -> Self {
        Self { name, region, trust, held, urgent: BTreeMap::new() }
    }

    /// What to say at the beginning of a push stream.
    pub fn hello(&self, build: &str) -> EdgeHello {
        EdgeHello { region: self.region.clone(), holds: self.held, build: build.to_owned() }
    }

    /// What is held.
    pub const fn held(&self) -> Position {
        self.held
    }

    /// Takes a frame.
    pub fn take(&mut self, frame: PushFrame) -> Result<Step, Refusal> {
        match frame {
            PushFrame::Delta(delta) => self.take_delta(&delta),
            PushFrame::Manifest(manifest) => self.take_manifest(manifest),
            PushFrame::Urgent(urgent) => self.take_urgent(&urgent),
        }
    }

    fn take_delta(&self, delta: &Delta) -> Result<Step, Refusal> {
        let refuse = |reason: String| Err(Refusal { version: delta.to(), reason });
        if delta.entries.len() > MAX_DELTA {
            return refuse(format!("{} entries are over the limit of {MAX_DELTA}", delta.entries.len()));
        }
        if delta.from != self.held.version {
            return refuse(format!("it follows on version {}, this edge holds {}", delta.from, self.held.version));
        }
        let to = delta.entries.iter().fold(self.held, |at, item| at.then(item.hash()));
        if !self.trust.accepts(Statement::Head(to), &delta.signature) {
            return refuse("it is signed by no key that this edge trusts, or follows on another log".to_owned());
        }
        let mut changes = Vec::with_capacity(delta.entries.len());
        for (version, item) in (delta.from + 1..).zip(&delta.entries) {
            let Item::Entry(bytes) = item else { continue };
            match self.read(bytes) {
                Ok(Some(change)) => changes.push(change),
                Ok(None) => {}
                Err(reason) => return refuse(format!("version {version}: {reason}")),
            }
        }
        Ok(Step::Apply { changes, to })
    }

    /// The change inside an entry, if it is for this edge.
    fn read(&self, bytes: &[u8]) -> Result<Option<Change>, String> {
        let entry = Entry::from_bytes(bytes).map_err(|e| format!("an entry that this build cannot read: {e}"))?;
        let for_all = entry.audience.is_none();
        let included = for_all || entry.audience.is_some_and(|audience| audience.includes(&self.name, &self.region));
        Ok(included.then_some(entry.change))
    }

    fn take_manifest(&mut self, manifest: Manifest) -> Result<Step, Refusal> {
        let refuse = |reason: String| Err(Refusal { version: manifest.at.version, reason });
        let Manifest { at, replaces, .. } = manifest;
        if manifest.chunks.len() > MAX_CHUNKS {
            return refuse(format!("{} chunks are over the limit of {MAX_CHUNKS}", manifest.chunks.len()));
        }
        let statement = Manifest::statement(at, &manifest.chunks, replaces);
        if !self.trust.accepts(statement, &manifest.signature) {
            return refuse("it is signed by no key that this edge trusts".to_owned());
        }
        if at == self.held && at.version > 0 {
            return Ok(Step::Held(at));
        }
        if at.version <= self.held.version && self.held.version > replaces {
            let held = self.held.version;
            return refuse(format!(
                "this edge holds version {held} of another log, and nobody has signed that it may go back to {}: if the \
                 database was restored, allow it with `turnpike config rewind`",
                at.version
            ));
        }
        if replaces > 0 {
            // What was urgent on the way that is left; what is so on the new one is sent after the manifest.
            self.urgent.retain(|version, _| *version <= at.version || *version > replaces);
        }
        Ok(Step::Fetch(manifest))
    }

    fn take_urgent(&mut self, urgent: &Urgent) -> Result<Step, Refusal> {
        let version = urgent.version;
        let refuse = |reason: String| Err(Refusal { version, reason });
        let entry = Hash::of(&urgent.entry);
        // Another one at the same version is from after the log was set back.
        if version <= self.held.version || self.urgent.get(&version).is_some_and(|(known, _)| *known == entry) {
            return Ok(Step::Nothing);
        }
        let statement = Statement::Urgent { version, entry };
        if !self.trust.accepts(statement, &urgent.signature) {
            return refuse("it is signed by no key that this edge trusts".to_owned());
        }
        if self.urgent.len() >= MAX_URGENT {
            return refuse(format!("{MAX_URGENT} urgent entries wait already"));
        }
        match self.read(&urgent.entry) {
            Ok(Some(change)) => {
                self.urgent.insert(version, (entry, change.clone()));
                Ok(Step::ApplyNow { version, change })
            }
            Ok(None) => Ok(Step::Nothing),
            Err(reason) => refuse(reason),
        }
    }

    /// Urgent changes beyond a version, with their versions, in order: a state at that version is served by with these on top.
    pub fn pending(&self, version: u64) -> impl Iterator<Item = (u64, Change)> + '_ {
        self.urgent.range(version.saturating_add(1)..).map(|(version, (_, change))| (*version, change.clone()))
    }

    /// Knows again, after a start, of an urgent change that it was told of before.
    pub fn recall(&mut self, version: u64, change: Change) {
        if version > self.held.version {
            self.urgent.insert(version, (Hash::default(), change));
        }
    }

    /// It is served by now.
    pub fn adopt(&mut self, to: Position) -> PushReply {
        self.held = to;
        self.urgent = self.urgent.split_off(&to.version.saturating_add(1));
        PushReply::Ack(to)
    }
}
