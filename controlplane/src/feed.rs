//! The change feed: the compiled routing state that edges are given, and the one way to change it.
//!
//! Every change is a row in `config_log`, written in the transaction that changes the tables. The feed follows that
//! log, whoever wrote it; nothing reaches an edge that is not committed.

use crate::metrics::Metrics;
use crate::store::{self, PgConnection, Store, StoreError, Tx, config_log};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, watch};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};
use turnpike_config::wire::Delta;
use turnpike_config::{Change, Routing};

/// Changes fetched at once, kept in memory for deltas, and sent in one delta at most. Further behind, a snapshot is
/// cheaper.
pub(crate) const MAX_DELTA: u32 = 4096;
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
    /// The validation task died.
    #[error("validating the change: {0}")]
    Validation(String),
}

/// The published routing state.
#[derive(Debug)]
pub(crate) struct Feed {
    store: Store,
    current: watch::Sender<Arc<Routing>>,
    recent: Mutex<VecDeque<(u64, Change)>>,
    nudge: Notify,
    metrics: Arc<Metrics>,
}

impl Feed {
    /// Compiles the state from the tables.
    pub(crate) async fn load(store: Store, metrics: Arc<Metrics>) -> Result<Self, FeedError> {
        let routing = store::routing::load(&store).await?;
        let faults = routing.faults();
        if !faults.is_empty() {
            // Refusing to start would take the admin API away with which to repair it.
            error!(version = routing.version, ?faults, "the stored configuration has faults; edges may refuse it");
        }
        metrics.config_version.set(signed(routing.version));
        metrics.config_faults.set(signed(faults.len() as u64));
        info!(version = routing.version, keys = routing.keys.len(), models = routing.models.len(), "routing compiled");
        let (current, _) = watch::channel(Arc::new(routing));
        Ok(Self { store, current, recent: Mutex::default(), nudge: Notify::new(), metrics })
    }

    /// The published state.
    pub(crate) fn current(&self) -> Arc<Routing> {
        Arc::clone(&self.current.borrow())
    }

    /// Follows the published state. A slow follower skips versions, it never queues them.
    pub(crate) fn subscribe(&self) -> watch::Receiver<Arc<Routing>> {
        self.current.subscribe()
    }

    /// Starts a change. Waits for other changes to commit first.
    pub(crate) async fn edit(&self, author: impl Into<String>) -> Result<Edit<'_>, FeedError> {
        let mut tx = self.store.begin().await?;
        config_log::lock(&mut tx).await?;
        let head = config_log::head(&mut tx).await?;
        Ok(Edit { feed: self, tx, head, changes: Vec::new(), author: author.into() })
    }

    /// The changes from `from` to `to`, or `None` if that is more than a delta may hold (send a snapshot instead).
    pub(crate) async fn delta(&self, from: u64, to: u64) -> Result<Option<Delta>, StoreError> {
        let Some(count) = to.checked_sub(from).filter(|count| *count <= u64::from(MAX_DELTA)) else {
            return Ok(None);
        };
        let remembered = self.remembered(from, to);
        let changes = match remembered {
            Some(changes) => changes,
            None => {
                let limit = u32::try_from(count).unwrap_or(MAX_DELTA);
                let logged = config_log::since(&mut *self.store.read().await?, from, limit).await?;
                if !is_contiguous(from, &logged) || logged.len() as u64 != count {
                    return Ok(None);
                }
                logged.into_iter().map(|(_, change)| change).collect()
            }
        };
        Ok(Some(Delta { from, to, changes }))
    }

    fn remembered(&self, from: u64, to: u64) -> Option<Vec<Change>> {
        let recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        if recent.front().is_none_or(|(version, _)| *version > from + 1) {
            return None;
        }
        Some(recent.iter().filter(|(v, _)| *v > from && *v <= to).map(|(_, change)| change.clone()).collect())
    }

    /// Follows the log until stopped.
    pub(crate) async fn run(&self, stop: CancellationToken) {
        let mut compiled = Routing::clone(&self.current());
        let mut away = false;
        loop {
            match self.follow(&mut compiled).await {
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
                        Ok(routing) => {
                            compiled = routing;
                            self.publish(&compiled, Vec::new());
                        }
                        Err(error) => error!(%error, "compiling from the tables failed"),
                    }
                }
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.nudge.notified() => {}
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
                            self.nudge.notify_one();
                        }
                    }
                    Err(error) => debug!(%error, "cannot listen for config changes; polling meanwhile"),
                }
                sleep(POLL).await;
            }
        };
        tokio::select! { () = stop.cancelled() => {}, () = listening => {} }
    }

    async fn follow(&self, compiled: &mut Routing) -> Result<(), StoreError> {
        loop {
            let logged = {
                let mut connection = self.store.read().await?;
                config_log::since(&mut connection, compiled.version, MAX_DELTA).await?
            };
            let Some((last, _)) = logged.last() else { return Ok(()) };
            if !is_contiguous(compiled.version, &logged) {
                return Err(StoreError::corrupt("config_log", format!("a gap after version {}", compiled.version)));
            }
            compiled.version = *last;
            for (_, change) in &logged {
                compiled.apply(change.clone());
            }
            self.publish(compiled, logged);
        }
    }

    fn publish(&self, compiled: &Routing, logged: Vec<(u64, Change)>) {
        {
            let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
            if logged.is_empty() {
                recent.clear();
            }
            recent.extend(logged);
            let excess = recent.len().saturating_sub(MAX_DELTA as usize);
            recent.drain(..excess);
        }
        let faults = compiled.faults();
        self.metrics.config_faults.set(signed(faults.len() as u64));
        if faults.is_empty() {
            self.metrics.config_version.set(signed(compiled.version));
            self.current.send_replace(Arc::new(compiled.clone()));
        } else {
            error!(version = compiled.version, ?faults, "not published: edges keep the last good version");
        }
    }
}

fn is_contiguous(from: u64, logged: &[(u64, Change)]) -> bool {
    (from + 1..).zip(logged).all(|(expected, (version, _))| expected == *version)
}

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// A change in the making: rows and log in one transaction, rolled back unless committed.
pub(crate) struct Edit<'f> {
    feed: &'f Feed,
    tx: Tx,
    head: u64,
    changes: Vec<Change>,
    author: String,
}

impl Edit<'_> {
    /// The connection inside the transaction.
    pub(crate) fn connection(&mut self) -> &mut PgConnection {
        &mut self.tx
    }

    /// The version that the next change will have.
    pub(crate) const fn next_version(&self) -> u64 {
        self.head + self.changes.len() as u64 + 1
    }

    /// Notes what edges must be told.
    pub(crate) fn push(&mut self, change: Change) {
        self.changes.push(change);
    }

    /// Commits the rows and their changes, or neither. Returns the version at which edges will know.
    pub(crate) async fn commit(mut self) -> Result<u64, FeedError> {
        if self.changes.is_empty() {
            self.tx.commit().await.map_err(StoreError::from)?;
            return Ok(self.head);
        }
        self.validate().await?;
        let version = config_log::append(&mut self.tx, self.head, &self.changes, &self.author).await?;
        self.tx.commit().await.map_err(StoreError::from)?;
        self.feed.nudge.notify_one();
        Ok(version)
    }

    /// Refuses changes that add a fault. Faults that were there before do not stand in the way of a repair.
    async fn validate(&mut self) -> Result<(), FeedError> {
        let base = self.feed.current();
        let mut missed = Vec::new();
        let mut at = base.version;
        while at < self.head {
            let page = config_log::since(&mut self.tx, at, MAX_DELTA).await?;
            let Some((last, _)) = page.last() else { break };
            at = *last;
            missed.extend(page.into_iter().map(|(_, change)| change));
        }
        let changes = self.changes.clone();
        // Off the runtime's workers: the state may hold a million keys.
        let added = tokio::task::spawn_blocking(move || {
            let mut routing = Routing::clone(&base);
            missed.into_iter().for_each(|change| routing.apply(change));
            let mut changed = routing.clone();
            changes.into_iter().for_each(|change| changed.apply(change));
            let mut faults = changed.faults();
            if !faults.is_empty() {
                let before = routing.faults();
                faults.retain(|fault| !before.contains(fault));
            }
            faults
        })
        .await
        .map_err(|e| FeedError::Validation(e.to_string()))?;
        if added.is_empty() { Ok(()) } else { Err(FeedError::Faults(added)) }
    }
}
