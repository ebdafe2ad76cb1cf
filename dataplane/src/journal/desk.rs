//! Where records are handed over. Whoever does writes them himself, which is over sooner than waking somebody else; unless
//! somebody is at it, the disk is busy or refuses, or a segment is to be begun: then they wait, in order, for who writes
//! next, and that is the thread at the latest.

use super::JournalError;
use super::record::Record;
use super::state::{Entry, Shared, Slot, Trouble, Written};
use super::sync::{RETRY, Syncer};
use super::writer::Writer;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, Instant};
use turnpike_config::UsageEvent;

/// Called with every event that was written, and with how long that took.
pub(super) type Seen = Box<dyn Fn(&UsageEvent, Duration) + Send + Sync>;

pub(super) struct Desk {
    pub(super) shared: Arc<Shared>,
    /// Whoever locks it looks into the queue again afterwards.
    writer: Mutex<Writer>,
    queue: Mutex<Queue>,
    /// The thread is called, or may go.
    news: Condvar,
    seen: Seen,
}

#[derive(Default)]
struct Queue {
    entries: Vec<Entry>,
    called: bool,
    closing: bool,
}

impl std::fmt::Debug for Desk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Desk").field("shared", &self.shared).finish_non_exhaustive()
    }
}

impl Desk {
    pub(super) fn new(shared: Arc<Shared>, writer: Writer, seen: Seen) -> Self {
        Self { shared, writer: Mutex::new(writer), queue: Mutex::default(), news: Condvar::new(), seen }
    }

    /// Takes a record, which holds its slot until it is written. Does not wait for anybody.
    pub(super) fn hand_over(&self, record: Record, slot: Slot) -> Written {
        self.shared.handed_over.fetch_add(1, Ordering::SeqCst);
        let handed_over = Instant::now();
        match self.write_now(record, handed_over) {
            Ok(()) => Written::NOW,
            Err(record) => {
                let (written, later) = Written::later();
                self.queue().entries.push(Entry { record, handed_over, written, _slot: slot });
                self.serve();
                later
            }
        }
    }

    /// Writes a record if that does not take long and no other comes first; otherwise it is given back.
    fn write_now(&self, record: Record, handed_over: Instant) -> Result<(), Record> {
        if self.is_busy() {
            return Err(record);
        }
        let Some(mut writer) = self.free_writer() else { return Err(record) };
        // What went wrong is met again, and told, by who tries next.
        let is_first = self.queue().entries.is_empty();
        if !is_first || writer.is_full() || writer.write(std::iter::once(&record)).is_err() {
            return Err(record);
        }
        let event = writer.remember(record);
        drop(writer);
        if let Some(event) = event {
            (self.seen)(&event, handed_over.elapsed());
        }
        self.serve();
        Ok(())
    }

    /// Writes what waits, unless somebody else is at it or it could take long.
    fn serve(&self) {
        while !self.queue().entries.is_empty() {
            if self.is_busy() {
                return self.call();
            }
            // Who has it looks again.
            let Some(mut writer) = self.free_writer() else { return };
            if writer.is_full() || self.write_queue(&mut writer).is_err() {
                drop(writer);
                return self.call();
            }
        }
    }

    /// The thread: writes what nobody else could, until nothing can be handed over any more.
    pub(super) fn run(&self, syncer: &Syncer) {
        while self.called() {
            while !self.queue().entries.is_empty() {
                self.write_patiently(&mut self.writer.lock().unwrap_or_else(PoisonError::into_inner));
            }
        }
        syncer.close();
    }

    /// Waits until it is called; `false` once that cannot happen any more.
    fn called(&self) -> bool {
        let waits = |queue: &mut Queue| !queue.called && !queue.closing;
        let mut queue = self.news.wait_while(self.queue(), waits).unwrap_or_else(PoisonError::into_inner);
        queue.called = false;
        !queue.closing || !queue.entries.is_empty()
    }

    /// Nothing is lost while the disk refuses: it waits here, what comes later in the queue, and no new permits are given.
    fn write_patiently(&self, writer: &mut Writer) {
        while let Err(error) = self.write_queue(writer) {
            if self.shared.trouble(Trouble::Writing, Some(error.to_string())) {
                tracing::error!(%error, "usage cannot be recorded: requests are refused until it can");
            }
            std::thread::sleep(RETRY);
        }
        if self.shared.trouble(Trouble::Writing, None) {
            tracing::info!("usage can be recorded again");
        }
    }

    /// Writes what waits, or leaves it where it is.
    fn write_queue(&self, writer: &mut Writer) -> Result<(), JournalError> {
        let mut group = std::mem::take(&mut self.queue().entries);
        if group.is_empty() {
            // Somebody else was faster.
            return Ok(());
        }
        if let Err(error) = writer.write(group.iter().map(|entry| &entry.record)) {
            let mut queue = self.queue();
            group.append(&mut queue.entries);
            queue.entries = group;
            return Err(error);
        }
        for Entry { record, handed_over, written, .. } in group {
            // Whoever does not wait is not told.
            let _ = written.send(());
            if let Some(event) = writer.remember(record) {
                (self.seen)(&event, handed_over.elapsed());
            }
        }
        Ok(())
    }

    /// The writer, if nobody has it.
    fn free_writer(&self) -> Option<MutexGuard<'_, Writer>> {
        match self.writer.try_lock() {
            Ok(writer) => Some(writer),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    fn is_busy(&self) -> bool {
        self.shared.is_syncing.load(Ordering::Relaxed)
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn call(&self) {
        self.tell(|queue| queue.called = true);
    }

    /// Nobody hands over any more.
    pub(super) fn close(&self) {
        self.tell(|queue| queue.closing = true);
    }

    fn tell(&self, change: impl FnOnce(&mut Queue)) {
        change(&mut self.queue());
        self.news.notify_one();
    }
}
