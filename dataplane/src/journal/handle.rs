//! What requests hold of the journal.

use super::began::Running;
use super::desk::Desk;
use super::record::{Counts, Intent, Record};
use super::state::{Position, Shared, Slot, Written};
use super::sync::Syncer;
use super::writer::Writer;
use super::{JournalError, io_error, recover};
use crate::clock::Clock;
use std::fs::{File, TryLockError};
use std::path::Path;
use std::sync::Arc;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::watch;
use turnpike_config::UsageEvent;

/// A promise that what becomes of a request can be recorded.
#[derive(Debug)]
pub(crate) struct Permit {
    /// Gone once the event is handed over.
    slot: Option<Slot>,
    desk: Arc<Handles>,
    // Until the event is handed over, the request counts as running.
    running: Option<Running>,
    late: Option<Running>,
    orphan: Option<Orphan>,
    /// A node was asked, or is about to be.
    intended: AtomicBool,
}

/// A request of an earlier life that holds the books open.
#[derive(Debug)]
struct Orphan(Arc<Shared>);

impl Orphan {
    fn new(shared: &Arc<Shared>) -> Self {
        shared.orphans.fetch_add(1, Ordering::SeqCst);
        Self(Arc::clone(shared))
    }
}

impl Drop for Orphan {
    fn drop(&mut self) {
        self.0.orphans.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Permit {
    /// Hands over what a node is about to be asked; `None` if too many requests are in flight.
    pub(crate) fn intend(&self, intent: Intent) -> Option<Written> {
        let slot = Slot::take(&self.desk.0.shared)?;
        self.intended.store(true, Ordering::Relaxed);
        Some(self.desk.0.hand_over(Record::Intent(Box::new(intent)), slot))
    }

    /// The request has ended, and its event takes a while yet.
    pub(crate) fn is_late(&mut self) {
        self.late = Some(self.desk.0.shared.ended.enter(monotonic_ms()));
    }

    /// Its event may take long: what is said to be complete by the end of requests does not wait for it any more.
    pub(crate) fn let_go(&mut self) {
        self.orphan = None;
    }

    /// Hands over the event. Never waits: the slot is ours.
    pub(crate) fn record(mut self, event: UsageEvent) -> Written {
        match self.slot.take() {
            Some(slot) => self.desk.0.hand_over(Record::Final(Box::new(event)), slot),
            None => Written::NOW,
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if self.slot.is_some() && self.intended.load(Ordering::Relaxed) {
            // A node was asked and no event says what came of it: an orphan for the next life. Nobody may take usage for
            // complete in this one.
            std::mem::forget(self.running.take());
            std::mem::forget(self.orphan.take().unwrap_or_else(|| Orphan::new(&self.desk.0.shared)));
        }
    }
}

/// Those who may hand over; with the last of them, the threads end.
#[derive(Debug)]
struct Handles(Arc<Desk>);

impl Drop for Handles {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// The handle that requests take permits from.
#[derive(Clone, Debug)]
pub(crate) struct Journal {
    desk: Arc<Handles>,
    shared: Arc<Shared>,
}

/// A journal that has just been opened.
pub(crate) struct Opened {
    pub(crate) journal: Journal,
    /// Intents of an earlier life whose events are missing. Each holds a permit, so that nobody takes the usage for
    /// complete before they are recorded.
    pub(crate) orphans: Vec<(Intent, Permit)>,
    /// End once the journal and all permits are gone.
    #[cfg(test)]
    pub(crate) threads: [std::thread::JoinHandle<()>; 2],
}

impl Journal {
    /// Opens or makes the journal and starts its threads. `seen` is called with every event that was written,
    /// and with how long that took.
    pub(crate) fn open(
        directory: &Path,
        max_bytes: u64,
        seen: impl Fn(&UsageEvent, Duration) + Send + Sync + 'static,
    ) -> Result<Opened, JournalError> {
        std::fs::create_dir_all(directory).map_err(io_error(directory))?;
        let lock = lock(directory)?;
        let epoch = epoch(directory)?;
        let recovered = recover::recover(directory, epoch, recover::shipped(directory)?)?;
        let shared = Arc::new(Shared::new(directory, epoch, max_bytes, &recovered));
        let orphans: Vec<Intent> = recovered.open.values().cloned().collect();
        let syncer = Syncer::new(Arc::clone(&shared));
        let writer = Writer::resume(Arc::clone(&shared), Arc::clone(&syncer), recovered)?;
        let desk = Arc::new(Desk::new(Arc::clone(&shared), writer, Box::new(seen)));
        let at_desk = (Arc::clone(&desk), Arc::clone(&syncer));
        let thread = |name: &str| std::thread::Builder::new().name(name.to_owned());
        let _syncing = thread("journal-sync").spawn(move || syncer.run()).map_err(io_error(directory))?;
        let _writing = thread("journal")
            .spawn(move || {
                // Held as long as something is written.
                let _lock = lock;
                let (desk, syncer) = at_desk;
                desk.run(&syncer);
            })
            .map_err(io_error(directory))?;
        let journal = Self { desk: Arc::new(Handles(desk)), shared };
        let held = orphans.into_iter().filter_map(|intent| {
            let orphan = Orphan::new(&journal.shared);
            let Some(mut permit) = journal.permit_for(intent.id.unix_ms()) else {
                // More than there are slots: left for the next life, and until then nobody may take usage for complete.
                std::mem::forget((orphan, journal.shared.began.enter(intent.id.unix_ms())));
                return None;
            };
            permit.orphan = Some(orphan);
            permit.intended = AtomicBool::new(true);
            Some((intent, permit))
        });
        let orphans = held.collect();
        Ok(Opened {
            journal,
            orphans,
            #[cfg(test)]
            threads: [_writing, _syncing],
        })
    }

    /// A permit for a request that began then (Unix milliseconds), or `None` while the disk refuses, the journal is full or
    /// too many requests are in flight.
    pub(crate) fn permit(&self, began_ms: u64) -> Option<Permit> {
        let has_room = self.shared.bytes.load(Ordering::Relaxed) < self.shared.max_bytes;
        if !has_room || !self.shared.is_sound.load(Ordering::Relaxed) {
            return None;
        }
        self.permit_for(began_ms)
    }

    fn permit_for(&self, began_ms: u64) -> Option<Permit> {
        // Counted as running first: at no moment is it neither running nor handed over.
        let running = self.shared.began.enter(began_ms);
        let slot = Slot::take(&self.shared)?;
        Some(Permit {
            slot: Some(slot),
            desk: Arc::clone(&self.desk),
            running: Some(running),
            late: None,
            orphan: None,
            intended: AtomicBool::new(false),
        })
    }

    /// Waits until every record handed over so far survives a power cut; for as long as the disk refuses.
    pub(crate) async fn flush(&self) {
        let handed_over = self.handed_over();
        // Fails only once the writer has ended, which it does not before this handle is gone.
        let _ = self.position().wait_for(|position| position.taken >= handed_over).await;
    }

    /// How it is doing, and a way to wait for news.
    pub(crate) fn position(&self) -> watch::Receiver<Position> {
        self.shared.position.subscribe()
    }

    /// Why no event can be recorded, if that is so.
    pub(crate) fn trouble(&self) -> Option<String> {
        let position = self.shared.position.borrow().clone();
        let (kept, max) = (self.shared.bytes.load(Ordering::Relaxed), self.shared.max_bytes);
        position.trouble.into_iter().flatten().next().or_else(|| {
            let directory = self.shared.directory.display();
            (kept >= max).then(|| {
                format!(
                    "{directory} holds {kept} bytes that the control plane has not taken; journal.max_bytes is reached"
                )
            })
        })
    }

    /// Records handed over since the start.
    pub(crate) fn handed_over(&self) -> u64 {
        self.shared.handed_over.load(Ordering::SeqCst)
    }

    /// Every request that began before this (Unix milliseconds, at most `now_ms`) has been handed over.
    pub(crate) fn began_to(&self, now_ms: u64) -> u64 {
        self.shared.began.complete_to(now_ms)
    }

    /// The same for requests that ended: `None` while some of an earlier life are not known, else how long before now.
    pub(crate) fn ended_before(&self) -> Option<Duration> {
        if self.shared.orphans.load(Ordering::SeqCst) > 0 {
            return None;
        }
        let now = monotonic_ms();
        // To the step, so that it is no later than it was.
        Some(Duration::from_millis(now - self.shared.ended.complete_to(now)))
    }

    /// Sums of all events that were written, by day.
    pub(crate) fn counts(&self) -> Counts {
        self.shared.counts.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Made when the journal was; tells its numbering from that of any other journal.
    pub(crate) fn epoch(&self) -> u64 {
        self.shared.epoch
    }

    /// Whether a record was written in this life.
    pub(super) fn is_own(&self, seq: u64) -> bool {
        seq >= self.shared.own_from
    }

    pub(super) fn directory(&self) -> &Path {
        &self.shared.directory
    }

    /// Bytes of a segment are gone.
    pub(super) fn deleted(&self, bytes: u64) {
        self.shared.bytes.fetch_sub(bytes, Ordering::Relaxed);
    }
}

fn monotonic_ms() -> u64 {
    Clock.now_ns() / 1_000_000
}

/// Keeps other processes out; the system lets go of it with this one.
fn lock(directory: &Path) -> Result<File, JournalError> {
    let path = directory.join("lock");
    let file = File::options().create(true).append(true).open(&path).map_err(io_error(&path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(JournalError::InUse { path: directory.to_owned() }),
        Err(TryLockError::Error(source)) => Err(io_error(&path)(source)),
    }
}

/// The journal's epoch, made on first use.
fn epoch(directory: &Path) -> Result<u64, JournalError> {
    let path = directory.join("epoch");
    match std::fs::read_to_string(&path) {
        Ok(text) => u64::from_str_radix(text.trim(), 16).map_err(|_| JournalError::Damaged { path }),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            let epoch = uuid::Uuid::new_v4().as_u64_pair().0;
            crate::files::write_atomically(&path, format!("{epoch:016x}\n").as_bytes()).map_err(io_error(&path))?;
            Ok(epoch)
        }
        Err(e) => Err(io_error(&path)(e)),
    }
}
