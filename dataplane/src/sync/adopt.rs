//! Serves by something new, or refuses it and changes nothing.

use crate::directory::Step;
use crate::edge::Edge;
use crate::live::{Next, Resolve, Snapshot, literal};
use crate::store::{Base, Keeper, Record};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;
use tokio::sync::Notify;
use turnpike_config::log::Position;
use turnpike_config::{Change, NodeState};

/// What a position stands for, and what is not yet in it but served by already.
#[derive(Default)]
struct Held {
    state: Snapshot,
    early: Vec<Change>,
}

/// Swaps what is served by, one step at a time.
pub(super) struct Adopter {
    pub(super) edge: Arc<Edge>,
    pub(super) keeper: Keeper,
    /// A state that this edge died by.
    distrusted: Option<Position>,
    /// What is held; locked from when it is read until its successor is served by.
    held: Mutex<Held>,
    /// There are names of hosts to be resolved.
    pub(super) names: Notify,
}

impl Adopter {
    pub(super) fn new(edge: Arc<Edge>, keeper: Keeper, distrusted: Option<Position>) -> Self {
        Self { edge, keeper, distrusted, held: Mutex::default(), names: Notify::new() }
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Serves by what was on disk.
    pub(super) fn first(&self, base: &Base, early: Vec<Change>) -> Result<(), String> {
        let mut held = self.held();
        let next = held.state.replaced(&base.records, Arc::clone(&base.keys), base.at, &crate::live::resolve)?;
        self.hold(&mut held, next, early, None, Instant::now());
        Ok(())
    }

    /// Applies changes that lead to a position. `early` are beyond it and served by as well.
    pub(super) fn apply(&self, changes: Vec<Change>, to: Position, early: Vec<Change>) -> Result<(), String> {
        let began = Instant::now();
        self.trusted(to)?;
        let mut held = self.held();
        let next = held.state.after(&changes, to, &literal)?;
        let from = held.state.at;
        self.hold(&mut held, next, early, Some(&changes), began);
        self.keeper.step(Record { from, to, changes, early: None });
        Ok(())
    }

    /// Serves by a change beyond the position that is held. What does not fit yet comes again in its turn.
    pub(super) fn apply_early(&self, version: u64, change: Change) {
        let mut held = self.held();
        let (began, before, at) = (Instant::now(), self.edge.snapshot.load_full(), held.state.at);
        let changes = vec![change];
        match before.after(&changes, at, &literal) {
            Ok(next) => {
                self.serve_by(&before, next, Some(&changes), began);
                held.early.extend_from_slice(&changes);
                self.keeper.step(Record { from: at, to: at, changes, early: Some(version) });
            }
            Err(reason) => tracing::info!(reason, "an urgent change has to wait for its turn"),
        }
    }

    /// Serves by a whole state that was made ready, with urgent changes beyond it on top.
    pub(super) fn replace(&self, base: Base, next: Next, early: Vec<(u64, Change)>, began: Instant) {
        let mut held = self.held();
        let at = base.at;
        self.keeper.whole(base);
        for (version, change) in &early {
            self.keeper.step(Record { from: at, to: at, changes: vec![change.clone()], early: Some(*version) });
        }
        self.hold(&mut held, next, early.into_iter().map(|(_, change)| change).collect(), None, began);
    }

    /// Holds something new, and serves by it with what is early on top, in one step: a key that was taken back a moment ago
    /// must not be back in between. `changes` led there; `None` if all of it was replaced.
    fn hold(&self, held: &mut Held, next: Next, early: Vec<Change>, changes: Option<&[Change]>, began: Instant) {
        held.state = next.snapshot.clone();
        let before = self.edge.snapshot.load_full();
        let (snapshot, early) = next.snapshot.with_fitting(early, &literal);
        let next = Next { snapshot, ..next };
        match changes {
            // What was early before may not be any more.
            Some(changes) if !early.is_empty() || !held.early.is_empty() => {
                let all: Vec<Change> = changes.iter().chain(&early).chain(&held.early).cloned().collect();
                self.serve_by(&before, next, Some(&all), began);
            }
            changes => self.serve_by(&before, next, changes, began),
        }
        held.early = early;
    }

    /// Refuses a state that this edge has died by.
    pub(super) fn trusted(&self, to: Position) -> Result<(), String> {
        match self.distrusted {
            Some(position) if position == to => Err("this edge died again and again by this version".to_owned()),
            _ => Ok(()),
        }
    }

    /// Takes the addresses of nodes that were found out.
    pub(super) fn put_again(&self, nodes: &[Change], resolve: Resolve<'_>) {
        let mut held = self.held();
        let still = |change: &&Change| match change {
            Change::PutNode(node) => held.state.node_records().any(|record| record == node),
            _ => false,
        };
        let nodes: Vec<Change> = nodes.iter().filter(still).cloned().collect();
        if nodes.is_empty() {
            return;
        }
        match held.state.after(&nodes, held.state.at, resolve) {
            Ok(next) => {
                let early = held.early.clone();
                self.hold(&mut held, next, early, Some(&nodes), Instant::now());
            }
            Err(reason) => tracing::error!(reason, "addresses of nodes cannot be taken"),
        }
    }

    /// What takes a while and is not urgent: packs keys anew once many have changed.
    pub(super) fn tidy(&self) {
        let mut held = self.held();
        if !held.early.is_empty() {
            return;
        }
        if let Some(state) = held.state.repacked() {
            held.state = state.clone();
            self.edge.snapshot.store(Arc::new(state.renewed()));
        }
    }

    /// Forgets keys that nobody used lately.
    pub(super) fn sweep(&self) {
        let snapshot = self.edge.snapshot.load();
        let in_use = snapshot.seats().sweep();
        self.edge.metrics.keys_in_use.set(i64::try_from(in_use).unwrap_or(i64::MAX));
    }

    /// `changes` are those that led here; `None` if all of it was replaced.
    fn serve_by(&self, before: &Snapshot, next: Next, changes: Option<&[Change]>, began: Instant) {
        let Next { snapshot, unreachable } = next;
        if !unreachable.is_empty() {
            self.names.notify_one();
        }
        let snapshot = Arc::new(snapshot.renewed());
        snapshot.take_effect(changes);
        self.edge.snapshot.store(Arc::clone(&snapshot));
        let metrics = &self.edge.metrics;
        metrics.apply_seconds.set(began.elapsed().as_secs_f64());
        metrics.routing_version.set(i64::try_from(snapshot.at.version).unwrap_or(i64::MAX));
        let is_of_nodes = |change: &Change| matches!(change, Change::PutNode(_) | Change::DropNode(_));
        if changes.is_none_or(|changes| changes.iter().any(is_of_nodes)) {
            let ready = snapshot.nodes().filter(|node| node.record.state == NodeState::Ready).count();
            metrics.nodes_ready.set(i64::try_from(ready).unwrap_or(i64::MAX));
        }
        let version = snapshot.at.version;
        if let Some(changes) = changes {
            tracing::debug!(version, changes = changes.len(), "routing in use");
        } else {
            let (keys, nodes) = (snapshot.key_count(), snapshot.nodes().count());
            tracing::info!(version, keys, nodes, "routing in use");
        }
        if let Some(directory) = &self.edge.directory {
            let is_whole = changes.is_none();
            let changes = changes.unwrap_or_default();
            directory.writer.take(&Step { before, now: &snapshot, changes, is_whole });
        }
        // At the start there are no answers to forget, and those in the region are known by their age.
        if before.at.version > 0 {
            self.purge(before, &snapshot, changes);
        }
    }

    /// Forgets answers that were purged since.
    fn purge(&self, before: &Snapshot, now: &Snapshot, changes: Option<&[Change]>) {
        let Some(changes) = changes else {
            let purged = now.purged().filter(|(key, at)| before.purged_at_ms(key) != **at);
            return purged.for_each(|(key, _)| self.edge.cache.purge(*key));
        };
        for change in changes {
            if let Change::PurgeAnswer { key, .. } = change {
                self.edge.cache.purge(*key);
            }
        }
    }
}
