//! The change feed: the compiled routing state that edges are given, and the one way to change it.
//!
//! Every change is an entry in `config_log`, written in the transaction that changes the tables. The feed follows that
//! log, whoever wrote it; nothing reaches an edge that is not committed.

mod compiled;
mod edit;
mod published;
mod recent;
mod snapshots;

pub(crate) use edit::Edit;
pub(crate) use published::Published;
pub(crate) use recent::Frame;

use crate::metrics::Metrics;
use crate::reason;
use crate::store::config_log::{self, Logged};
use crate::store::routing::Loaded;
use crate::store::{self, Store, StoreError};
use compiled::Compiled;
use recent::Recent;
use snapshots::Snapshots;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{Notify, watch};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};
use turnpike_config::log::{Hash, Position};
use turnpike_config::push::MAX_DELTA;
use turnpike_config::signing::Signer;

/// How often the log is looked at when nobody announces anything.
const POLL: Duration = Duration::from_secs(1);

/// Why a change was not made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FeedError {
    /// The database refused or does not answer.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Edges could not serve by the state that the change would lead to.
    #[error("the change would break routing: {}", .0.join("; "))]
    Faults(Vec<String>),
    /// Some edges are told something else of it.
    #[error("{0} is part of a rollout under way; finish or abort that first (turnpike rollout status)")]
    UnderRollout(String),
}

/// The published routing state.
#[derive(Debug)]
pub(crate) struct Feed {
    store: Store,
    signer: Signer,
    current: watch::Sender<Arc<Published>>,
    recent: Mutex<Recent>,
    snapshots: Snapshots,
    came: Notify,
    metrics: Arc<Metrics>,
}

impl Feed {
    /// Compiles the state from the tables.
    pub(crate) async fn load(store: Store, signer: Signer, metrics: Arc<Metrics>) -> Result<Self, FeedError> {
        let Loaded { head, routing, staged } = store::routing::load(&store).await?;
        let (keys, models) = (routing.keys.size(), routing.models.size());
        let compiled = Compiled::new(routing, head.at, staged);
        let faults = compiled.faults();
        if !faults.is_empty() {
            // Refusing to start would take the admin API away with which to repair it.
            error!(version = head.at.version, ?faults, "the stored configuration has faults; edges may refuse it");
        }
        metrics.config_version.set(signed(head.at.version));
        metrics.config_faults.set(signed(faults.len() as u64));
        info!(version = head.at.version, keys, models, "routing compiled");
        let (current, _) = watch::channel(Arc::new(Published::new(compiled, head.rewinds_from, None, &signer)));
        let (recent, snapshots) = (Mutex::default(), Snapshots::default());
        Ok(Self { store, signer, current, recent, snapshots, came: Notify::new(), metrics })
    }

    /// The published state.
    pub(crate) fn current(&self) -> Arc<Published> {
        Arc::clone(&self.current.borrow())
    }

    /// Follows the published state. A slow follower skips versions, it never queues them.
    pub(crate) fn subscribe(&self) -> watch::Receiver<Arc<Published>> {
        self.current.subscribe()
    }

    /// Starts a change. Waits for other changes to commit first.
    pub(crate) async fn edit(&self, author: impl Into<String>) -> Result<Edit<'_>, FeedError> {
        let mut tx = self.store.begin().await?;
        config_log::lock(&mut tx).await?;
        let head = config_log::head(&mut tx).await?;
        Ok(Edit::new(self, tx, head, author.into(), reason::current()))
    }

    /// Looks at the log now.
    pub(crate) fn nudge(&self) {
        self.came.notify_one();
    }

    /// Whether the log went through a position.
    pub(crate) async fn went_through(&self, at: Position) -> Result<bool, StoreError> {
        if at == self.current().at() {
            return Ok(true);
        }
        let remembered = self.recent().went_through(at);
        match remembered {
            Some(known) => Ok(known),
            None => config_log::went_through(&mut *self.store.read().await?, at).await,
        }
    }

    /// What leads an edge from a position to what is published, ready to be sent; `None` if that is too much or not kept:
    /// a snapshot is due.
    pub(crate) async fn delta(
        &self,
        from: Position,
        to: &Published,
        (edge, region): (&str, &str),
    ) -> Result<Option<Frame>, StoreError> {
        let (start, end) = (from.version, to.at().version);
        let Some(count) = end.checked_sub(start).and_then(|count| usize::try_from(count).ok()) else { return Ok(None) };
        if count > MAX_DELTA {
            return Ok(None);
        }
        if let Some(frame) = self.recent().frame(from, to.at()) {
            return Ok(Some(frame));
        }
        let remembered = self.recent().between(from, end);
        let entries = match remembered {
            Some(entries) => entries,
            None => config_log::since(&mut *self.store.read().await?, start, count).await?,
        };
        if !leads(from, &entries, to.at()) {
            return Ok(None);
        }
        let frame = recent::encode(&recent::delta(start, &entries, to.signature, edge, region));
        if let Some(frame) = frame.clone().filter(|_| recent::is_for_all(&entries)) {
            self.recent().keep(from, to.at(), frame);
        }
        Ok(frame)
    }

    /// The manifest of the published state for an edge that holds `after`, and where it leads.
    pub(crate) async fn manifest(
        &self,
        published: &Published,
        edge: (&str, &str),
        after: u64,
    ) -> Option<(Frame, Position)> {
        self.snapshots.manifest(published, edge, after, &self.signer).await
    }

    /// A piece of a state, ready to be sent.
    pub(crate) fn chunk(&self, hash: Hash) -> Option<Frame> {
        self.snapshots.chunk(hash)
    }

    /// Urgent entries after a version, for an edge that is busy.
    pub(crate) fn urgent_after(&self, version: u64, (edge, region): (&str, &str)) -> Vec<Frame> {
        self.recent().urgent_after(version, edge, region)
    }

    fn recent(&self) -> MutexGuard<'_, Recent> {
        self.recent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Follows the log until stopped.
    pub(crate) async fn run(&self, stop: CancellationToken) {
        let mut compiled = self.current().compiled.clone();
        let mut rewinds_from = self.current().rewinds_from;
        let mut away = false;
        loop {
            match self.follow(&mut compiled, &mut rewinds_from).await {
                Ok(()) if away => {
                    away = false;
                    info!("the config log can be read again");
                }
                Ok(()) => {}
                Err(StoreError::Unavailable(reason)) => {
                    // Once per outage, not once per second.
                    if !away {
                        warn!(reason, "the config log cannot be read; edges keep what they have until it can");
                    }
                    away = true;
                }
                Err(error) => {
                    error!(%error, "the config log cannot be followed; compiling anew from the tables");
                    match store::routing::load(&self.store).await {
                        Ok(Loaded { head, routing, staged }) => {
                            compiled = Compiled::new(routing, head.at, staged);
                            self.recent().clear();
                            rewinds_from = head.rewinds_from;
                            self.publish(&compiled, head.rewinds_from, Vec::new());
                        }
                        Err(error) => error!(%error, "compiling from the tables failed"),
                    }
                }
            }
            self.snapshots.forget_old(Instant::now());
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.came.notified() => {}
                () = sleep(POLL) => {}
            }
        }
    }

    /// Wakes the feed when another process announces a change; the poll covers for missed announcements.
    pub(crate) async fn listen(&self, stop: CancellationToken) {
        let listening = async {
            loop {
                match self.store.announcements().await {
                    Ok(mut announcements) => {
                        while announcements.next().await.is_ok() {
                            self.nudge();
                        }
                    }
                    Err(error) => debug!(%error, "cannot listen for config changes; polling meanwhile"),
                }
                sleep(POLL).await;
            }
        };
        tokio::select! { () = stop.cancelled() => {}, () = listening => {} }
    }

    /// `rewinds_from`: as it was last seen, whether or not it could be published.
    async fn follow(&self, compiled: &mut Compiled, rewinds_from: &mut u64) -> Result<(), StoreError> {
        loop {
            let (head, logged) = {
                let mut connection = self.store.read().await?;
                // In this order: the log may be ahead of the head that was read, never behind it.
                let head = config_log::head(&mut connection).await?;
                (head, config_log::since(&mut connection, compiled.at.version, MAX_DELTA).await?)
            };
            if logged.is_empty() {
                if head.at != compiled.at {
                    // Set back under us, or trimmed where we have not read yet.
                    return Err(broken(compiled.at));
                }
                if head.rewinds_from == *rewinds_from {
                    return Ok(());
                }
            }
            if !compiled.take(&logged) {
                return Err(broken(compiled.at));
            }
            *rewinds_from = head.rewinds_from;
            self.publish(compiled, head.rewinds_from, logged);
        }
    }

    fn publish(&self, compiled: &Compiled, rewinds_from: u64, logged: Vec<Logged>) {
        let made_at = logged.last().map(|last| last.made_at);
        self.recent().extend(logged, &self.signer);
        let faults = compiled.faults();
        self.metrics.config_faults.set(signed(faults.len() as u64));
        if faults.is_empty() {
            self.metrics.config_version.set(signed(compiled.at.version));
            let published = Published::new(compiled.clone(), rewinds_from, made_at, &self.signer);
            self.current.send_replace(Arc::new(published));
        } else {
            error!(version = compiled.at.version, ?faults, "not published: edges keep the last good version");
        }
    }
}

fn broken(after: Position) -> StoreError {
    StoreError::corrupt("config_log", format!("it does not follow on version {}", after.version))
}

/// Whether entries lead from one position to another.
fn leads(from: Position, entries: &[Logged], to: Position) -> bool {
    entries.iter().fold(from, |at, logged| at.then(Hash::of(&logged.bytes))) == to
}

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}
