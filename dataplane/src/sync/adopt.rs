//! Serves by something new, or refuses it and changes nothing.

use crate::directory::Step;
use crate::edge::Edge;
use crate::live::{Next, Snapshot, literal};
use crate::store::{Base, Keeper, Record};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;
use tokio::sync::Notify;
use turnpike_config::log::Position;
use turnpike_config::{Change, NodeState};

/// Swaps what is served by, one step at a time.
pub(super) struct Adopter {
    pub(super) edge: Arc<Edge>,
    pub(super) keeper: Keeper,
    /// A state that this edge died by.
    distrusted: Option<Position>,
    /// Held from when the current snapshot is read until its successor is served by.
    turn: Mutex<()>,
    /// There are names of hosts to be resolved.
    pub(super) names: Notify,
}

impl Adopter {
    pub(super) fn new(edge: Arc<Edge>, keeper: Keeper, distrusted: Option<Position>) -> Self {
        Self { edge, keeper, distrusted, turn: Mutex::default(), names: Notify::new() }
    }

    /// Serves by what was on disk.
    pub(super) fn first(&self, base: &Base) -> Result<(), String> {
        let before = self.edge.snapshot.load_full();
        let next = before.replaced(&base.records, Arc::clone(&base.keys), base.at, &crate::live::resolve)?;
        self.serve_by(&before, next, &[], Instant::now());
        Ok(())
    }

    /// Applies changes that lead to a position.
    pub(super) fn apply(&self, changes: Vec<Change>, to: Position) -> Result<(), String> {
        let began = Instant::now();
        self.trusted(to)?;
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let before = self.edge.snapshot.load_full();
        let next = before.after(&changes, to, &literal)?;
        self.serve_by(&before, next, &changes, began);
        self.keeper.step(Record { from: before.at, to, changes });
        Ok(())
    }

    /// Applies a change beyond the position that is held. What does not fit this state yet comes again in its turn.
    pub(super) fn apply_early(&self, change: Change) {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let (began, before) = (Instant::now(), self.edge.snapshot.load_full());
        let changes = vec![change];
        match before.after(&changes, before.at, &literal) {
            Ok(next) => {
                self.serve_by(&before, next, &changes, began);
                self.keeper.step(Record { from: before.at, to: before.at, changes });
            }
            Err(reason) => tracing::info!(reason, "an urgent change has to wait for its turn"),
        }
    }

    /// Serves by a whole state that was made ready, with urgent changes beyond it on top.
    pub(super) fn replace(&self, base: Base, next: Next, pending: Vec<Change>, began: Instant) {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let (at, before) = (base.at, self.edge.snapshot.load_full());
        // In one step: a key that was taken back a moment ago must not be back in between.
        let (snapshot, pending) = next.snapshot.with_fitting(pending, &literal);
        self.serve_by(&before, Next { snapshot, ..next }, &[], began);
        self.keeper.whole(base);
        if !pending.is_empty() {
            self.keeper.step(Record { from: at, to: at, changes: pending });
        }
    }

    /// Refuses a state that this edge has died by.
    pub(super) fn trusted(&self, to: Position) -> Result<(), String> {
        match self.distrusted {
            Some(position) if position == to => Err("this edge died again and again by this version".to_owned()),
            _ => Ok(()),
        }
    }

    /// Takes the addresses of nodes that were found out.
    pub(super) fn put_again(&self, nodes: &[Change], resolve: crate::live::Resolve<'_>) {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let before = self.edge.snapshot.load_full();
        let still = |change: &&Change| match change {
            Change::PutNode(node) => before.node_records().any(|record| record == node),
            _ => false,
        };
        let nodes: Vec<Change> = nodes.iter().filter(still).cloned().collect();
        match before.after(&nodes, before.at, resolve) {
            Ok(next) => self.serve_by(&before, next, &nodes, Instant::now()),
            Err(reason) => tracing::error!(reason, "addresses of nodes cannot be taken"),
        }
    }

    /// What takes a while and is not urgent: packs keys anew once many have changed.
    pub(super) fn tidy(&self) {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(snapshot) = self.edge.snapshot.load().repacked() {
            self.edge.snapshot.store(Arc::new(snapshot));
        }
    }

    /// Forgets keys that nobody used lately.
    pub(super) fn sweep(&self) {
        let snapshot = self.edge.snapshot.load();
        let in_use = snapshot.seats().sweep();
        self.edge.metrics.keys_in_use.set(i64::try_from(in_use).unwrap_or(i64::MAX));
    }

    /// `changes` are those that led here; none if all of it was replaced.
    fn serve_by(&self, before: &Snapshot, next: Next, changes: &[Change], began: Instant) {
        let Next { snapshot, unreachable } = next;
        if !unreachable.is_empty() {
            self.names.notify_one();
        }
        let (snapshot, is_whole) = (Arc::new(snapshot.renewed()), changes.is_empty());
        self.edge.snapshot.store(Arc::clone(&snapshot));
        let metrics = &self.edge.metrics;
        metrics.apply_seconds.set(began.elapsed().as_secs_f64());
        metrics.routing_version.set(i64::try_from(snapshot.at.version).unwrap_or(i64::MAX));
        if is_whole || changes.iter().any(|change| matches!(change, Change::PutNode(_) | Change::DropNode(_))) {
            let ready = snapshot.nodes().filter(|node| node.record.state == NodeState::Ready).count();
            metrics.nodes_ready.set(i64::try_from(ready).unwrap_or(i64::MAX));
        }
        if is_whole {
            let (version, keys, nodes) = (snapshot.at.version, snapshot.key_count(), snapshot.nodes().count());
            tracing::info!(version, keys, nodes, "routing in use");
        } else {
            tracing::debug!(version = snapshot.at.version, changes = changes.len(), "routing in use");
        }
        if let Some(directory) = &self.edge.directory {
            directory.writer.take(&Step { before, now: &snapshot, changes, is_whole });
        }
        self.purge(before, &snapshot, changes);
    }

    /// Forgets answers that were purged since. At the start there are none to forget, and those in the region are known by
    /// their age.
    fn purge(&self, before: &Snapshot, now: &Snapshot, changes: &[Change]) {
        if before.at.version == 0 {
            return;
        }
        if changes.is_empty() {
            let purged = now.purged().filter(|(key, at)| before.purged_at_ms(key) != **at);
            purged.for_each(|(key, _)| self.edge.cache.purge(*key));
        }
        for change in changes {
            if let Change::PurgeAnswer { key, .. } = change {
                self.edge.cache.purge(*key);
            }
        }
    }
}
