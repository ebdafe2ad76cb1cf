//! What the ledger's threads and its users share.

use super::files::{Archive, Position};
use super::index::Index;
use super::record::Outcome;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use tokio::sync::{Semaphore, watch};
use turnpike_config::EventId;

/// File that says how far the control plane has the ledger.
const SHIPPED: &str = "shipped";

#[derive(Debug)]
pub(super) struct Shared {
    index: Mutex<Index>,
    pub(super) archive: Archive,
    /// For one lookup in the files at a time.
    pub(super) lookups: Arc<Semaphore>,
    /// Number of the next attempt; 0 is for those of earlier lives.
    pub(super) attempts: AtomicU64,
    /// Commands that wait for the writer.
    pub(super) queued: AtomicUsize,
    /// Up to where the files are written and memory has what they say, as [`Position::as_u64`].
    pub(super) written: AtomicU64,
    /// Up to where they are in the control plane.
    pub(super) shipped: AtomicU64,
    shipped_file: Mutex<PathBuf>,
    /// Up to where they survive a power cut.
    synced: watch::Sender<Position>,
    trouble: watch::Sender<Option<String>>,
    sync_trouble: Mutex<Option<String>>,
}

impl Shared {
    /// `end`: after the last record, which is on the disk.
    pub(super) fn new(index: Index, archive: Archive, end: Position) -> Self {
        Self {
            index: Mutex::new(index),
            archive,
            lookups: Arc::new(Semaphore::new(1)),
            attempts: AtomicU64::new(1),
            queued: AtomicUsize::new(0),
            written: AtomicU64::new(end.as_u64()),
            shipped: AtomicU64::new(0),
            shipped_file: Mutex::default(),
            synced: watch::Sender::new(end),
            trouble: watch::Sender::new(None),
            sync_trouble: Mutex::new(None),
        }
    }

    pub(super) fn index(&self) -> MutexGuard<'_, Index> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the files or memory know of an event that memory did not know a moment ago.
    pub(super) fn look_up(&self, event: EventId) -> io::Result<Option<Outcome>> {
        // Twice: what began meanwhile is in memory, unless it also ended and has left it, and then the files have the end.
        for _ in 0..2 {
            let end = Position::from_u64(self.written.load(Ordering::Acquire));
            let found = self.archive.find(event, end)?;
            if found != Some(Outcome::RUNNING) {
                return Ok(found);
            }
            if let Some(outcome) = self.index().find(event) {
                return Ok(Some(outcome));
            }
        }
        // Begun, and what it ended in cannot be read: what runs is known in memory.
        Ok(Some(Outcome::LOST))
    }

    pub(super) fn trouble(&self) -> Option<String> {
        self.trouble.borrow().clone()
    }

    pub(super) fn watch_trouble(&self) -> watch::Receiver<Option<String>> {
        self.trouble.subscribe()
    }

    /// Nothing can be recorded for this reason, or it can again.
    pub(super) fn set_trouble(&self, trouble: Option<String>) {
        match (&*self.trouble.borrow(), &trouble) {
            (before, now) if before == now => return,
            (_, Some(reason)) => tracing::error!(reason, "the ledger cannot be written; requests of edges are refused"),
            (_, None) => tracing::info!("the ledger can be written again"),
        }
        self.trouble.send_replace(trouble);
    }

    pub(super) fn sync_trouble(&self) -> Option<String> {
        self.sync_trouble.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn set_sync_trouble(&self, trouble: Option<String>) {
        *self.sync_trouble.lock().unwrap_or_else(PoisonError::into_inner) = trouble;
    }

    pub(super) fn synced(&self) -> watch::Receiver<Position> {
        self.synced.subscribe()
    }

    pub(super) fn publish_synced(&self, to: Position) {
        self.synced.send_if_modified(|synced| {
            let is_news = to > *synced;
            *synced = to.max(*synced);
            is_news
        });
    }

    /// Reads how far the control plane has the ledger; from its beginning if that is not known.
    pub(super) fn resume_shipping(&self, directory: &Path) -> io::Result<()> {
        let path = directory.join(SHIPPED);
        let position = match std::fs::read_to_string(&path) {
            Ok(text) => text.trim().parse().unwrap_or(0),
            Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
            Err(error) => return Err(error),
        };
        // A file that was cut shorter than that grows over it again: send it once more instead.
        let end = self.written.load(Ordering::Acquire);
        let position = if position > end { end >> 32 << 32 } else { position };
        self.shipped.store(position, Ordering::Release);
        *self.shipped_file.lock().unwrap_or_else(PoisonError::into_inner) = path;
        Ok(())
    }

    /// Notes it. Lost in a power cut, it is sent again.
    pub(super) fn note_shipped(&self, position: Position) -> io::Result<()> {
        let path = self.shipped_file.lock().unwrap_or_else(PoisonError::into_inner);
        let new = path.with_extension("new");
        std::fs::write(&new, format!("{}\n", position.as_u64()))?;
        std::fs::rename(&new, &*path)?;
        self.shipped.store(position.as_u64(), Ordering::Release);
        Ok(())
    }
}
