//! What the journal's threads and its handles share.

use super::began::Began;
use super::record::{Counts, Record};
use super::recover::Recovered;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;
use tokio::sync::{oneshot, watch};

/// A record handed over, and whom to tell once it is written.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) record: Record,
    pub(super) handed_over: Instant,
    pub(super) written: oneshot::Sender<()>,
    pub(super) _slot: Slot,
}

/// Most records that wait to be written, or are promised a place; without one no request is dispatched.
const SLOTS: usize = 32_768;

/// A place among the records that wait.
#[derive(Debug)]
pub(super) struct Slot(Arc<Shared>);

impl Slot {
    /// A free one; `None` if too many requests are in flight.
    pub(super) fn take(shared: &Arc<Shared>) -> Option<Self> {
        let slot = Self(Arc::clone(shared));
        // One too many is given back at once.
        (shared.taken_slots.fetch_add(1, Ordering::Relaxed) < SLOTS).then_some(slot)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.taken_slots.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Comes true once a record is written: then a killed process does not lose it.
#[derive(Debug)]
pub(crate) struct Written(Option<oneshot::Receiver<()>>);

impl Written {
    /// It is.
    pub(super) const NOW: Self = Self(None);

    /// For a record that somebody else writes, who tells the sender.
    pub(crate) fn later() -> (oneshot::Sender<()>, Self) {
        let (sender, receiver) = oneshot::channel();
        (sender, Self(Some(receiver)))
    }

    /// Whether there is nothing to wait for.
    pub(crate) const fn is_now(&self) -> bool {
        self.0.is_none()
    }

    /// Waits; for as long as the disk refuses.
    pub(crate) async fn wait(self) {
        if let Some(receiver) = self.0 {
            // Fails only once nothing is written any more, which is not before this process ends.
            let _ = receiver.await;
        }
    }
}

/// How the journal is doing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Position {
    /// Sequence number after the last record that survives a power cut.
    pub(crate) durable: u64,
    /// How many records were handed over since the start up to there.
    pub(crate) taken: u64,
    /// Why nothing can be written, or synced, at the moment.
    pub(super) trouble: [Option<String>; 2],
}

impl Position {
    fn is_sound(&self) -> bool {
        self.trouble.iter().all(Option::is_none)
    }
}

/// What can go wrong at the moment, each with its own place in [`Position`].
#[derive(Clone, Copy, Debug)]
pub(super) enum Trouble {
    Writing = 0,
    Syncing = 1,
}

/// What the journal's threads and its handles share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) directory: PathBuf,
    pub(super) epoch: u64,
    /// Records from this number on are of this life: they can be read.
    pub(super) own_from: u64,
    pub(super) max_bytes: u64,
    pub(super) position: watch::Sender<Position>,
    /// [`Position::is_sound`] for the request path, which takes no locks.
    pub(super) is_sound: AtomicBool,
    /// Bytes of all segments on disk.
    pub(super) bytes: AtomicU64,
    /// Records handed over, counted before they are.
    pub(super) handed_over: AtomicU64,
    pub(super) taken_slots: AtomicUsize,
    /// The disk is busy with making things durable, and may be slow to take more.
    pub(super) is_syncing: AtomicBool,
    /// Requests that run, by when they began (Unix time).
    pub(super) began: Arc<Began>,
    /// Requests that have ended and whose events are not known yet, by when they did (monotonic clock).
    pub(super) ended: Arc<Began>,
    /// Requests of an earlier life whose events are not known yet.
    pub(super) orphans: AtomicU64,
    pub(super) counts: Mutex<Counts>,
}

impl Shared {
    pub(super) fn new(directory: &Path, epoch: u64, max_bytes: u64, recovered: &Recovered) -> Self {
        Self {
            directory: directory.to_owned(),
            epoch,
            own_from: recovered.next_seq,
            max_bytes,
            position: watch::Sender::new(Position { durable: recovered.next_seq, ..Position::default() }),
            is_sound: AtomicBool::new(true),
            bytes: AtomicU64::new(recovered.bytes),
            handed_over: AtomicU64::new(0),
            taken_slots: AtomicUsize::new(0),
            is_syncing: AtomicBool::new(false),
            began: Began::new(),
            ended: Began::new(),
            orphans: AtomicU64::new(0),
            counts: Mutex::new(recovered.counts.clone()),
        }
    }

    /// Notes what is wrong, or that it is not any more. Returns whether it is news.
    pub(super) fn trouble(&self, kind: Trouble, reason: Option<String>) -> bool {
        self.position.send_if_modified(|position| {
            let news = position.trouble[kind as usize].is_some() != reason.is_some();
            position.trouble[kind as usize] = reason;
            self.is_sound.store(position.is_sound(), Ordering::Relaxed);
            news
        })
    }

    /// Everything below `durable` survives a power cut.
    pub(super) fn synced(&self, durable: u64, taken: u64) {
        self.position.send_modify(|position| {
            position.durable = durable;
            position.taken = taken;
        });
    }

    pub(super) fn count(&self, count: impl FnOnce(&mut Counts)) {
        count(&mut self.counts.lock().unwrap_or_else(PoisonError::into_inner));
    }
}
