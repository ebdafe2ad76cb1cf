//! The journal's one writer: a thread that appends and syncs in groups.

use super::{JournalError, io_error, segment};
use std::fs::{File, OpenOptions, TryLockError};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use turnpike_config::UsageEvent;

/// Slots for requests in flight; without a free one no request is dispatched.
const QUEUE: usize = 32_768;
/// Most records in one sync.
const GROUP: usize = 2_048;
/// A segment is closed at this size and can be deleted once shipped.
const SEGMENT_BYTES: u64 = 16 << 20;
/// Between tries when the disk refuses.
const RETRY: Duration = Duration::from_millis(200);

/// A promise that one event can be recorded.
#[derive(Debug)]
pub(crate) struct Permit {
    slot: mpsc::OwnedPermit<UsageEvent>,
    recorded: Arc<AtomicU64>,
}

impl Permit {
    /// Hands the event to the writer. Never waits: the slot is ours.
    pub(crate) fn record(self, event: UsageEvent) {
        self.recorded.fetch_add(1, Ordering::Relaxed);
        self.slot.send(event);
    }
}

/// How the journal is doing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Status {
    /// Sequence number after the last record that survives a power cut.
    pub(crate) durable: u64,
    /// Why nothing can be written at the moment.
    pub(crate) trouble: Option<String>,
}

/// The handle that requests take permits from.
#[derive(Clone, Debug)]
pub(crate) struct Journal {
    queue: mpsc::Sender<UsageEvent>,
    status: watch::Receiver<Status>,
    /// [`Status::is_writable`] for the request path, which takes no locks.
    writable: Arc<AtomicBool>,
    /// Sequence number after the last event handed over; what [`Status::durable`] catches up with.
    recorded: Arc<AtomicU64>,
    /// Made when the journal was; tells its numbering from that of any other journal.
    pub(crate) epoch: u64,
    pub(crate) directory: PathBuf,
}

impl Journal {
    /// Opens or makes the journal and starts its writer. `seen` is called with every event that became durable.
    pub(crate) fn open(
        directory: &Path,
        max_bytes: u64,
        seen: impl Fn(&UsageEvent) + Send + 'static,
    ) -> Result<(Self, std::thread::JoinHandle<()>), JournalError> {
        std::fs::create_dir_all(directory).map_err(io_error(directory))?;
        let lock = lock(directory)?;
        let epoch = epoch(directory)?;
        let writer = Writer::resume(directory, epoch, max_bytes)?;
        let recorded = Arc::new(AtomicU64::new(writer.next_seq));
        let (queue, events) = mpsc::channel(QUEUE);
        let (sender, status) = watch::channel(Status { durable: writer.next_seq, trouble: None });
        let writable = Arc::new(AtomicBool::new(true));
        let publish = Publish { status: sender, writable: Arc::clone(&writable) };
        let thread = std::thread::Builder::new()
            .name("journal".to_owned())
            .spawn(move || {
                // Held as long as something is written.
                let _lock = lock;
                run(writer, events, &publish, &seen);
            })
            .map_err(io_error(directory))?;
        Ok((Self { queue, status, writable, recorded, epoch, directory: directory.to_owned() }, thread))
    }

    /// A slot for one event, or `None` while the disk refuses or too many requests are in flight.
    pub(crate) fn permit(&self) -> Option<Permit> {
        if !self.writable.load(Ordering::Relaxed) {
            return None;
        }
        let slot = self.queue.clone().try_reserve_owned().ok()?;
        Some(Permit { slot, recorded: Arc::clone(&self.recorded) })
    }

    /// Waits until every event recorded so far survives a power cut; for as long as the disk refuses.
    pub(crate) async fn flush(&self) {
        let recorded = self.recorded.load(Ordering::Relaxed);
        // Fails only once the writer has ended, which it does not before this handle is gone.
        let _ = self.status().wait_for(|status| status.durable >= recorded).await;
    }

    /// How it is doing, and a way to wait for news.
    pub(crate) fn status(&self) -> watch::Receiver<Status> {
        self.status.clone()
    }
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
        Ok(text) => u64::from_str_radix(text.trim(), 16).map_err(|_| JournalError::Damaged { path, offset: 0 }),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            let epoch = uuid::Uuid::new_v4().as_u64_pair().0;
            crate::files::write_atomically(&path, format!("{epoch:016x}\n").as_bytes()).map_err(io_error(&path))?;
            Ok(epoch)
        }
        Err(e) => Err(io_error(&path)(e)),
    }
}

/// Where the writer says how it is doing.
struct Publish {
    status: watch::Sender<Status>,
    writable: Arc<AtomicBool>,
}

impl Publish {
    /// Returns whether it is news.
    fn trouble(&self, reason: String) -> bool {
        self.writable.store(false, Ordering::Relaxed);
        // A statement of its own: the borrow is a lock, and replacing takes it too.
        let durable = self.status.borrow().durable;
        self.status.send_replace(Status { durable, trouble: Some(reason) }).is_writable()
    }

    /// Returns whether there was trouble before.
    fn durable(&self, seq: u64) -> bool {
        self.writable.store(true, Ordering::Relaxed);
        !self.status.send_replace(Status { durable: seq, trouble: None }).is_writable()
    }
}

fn run(mut writer: Writer, mut events: mpsc::Receiver<UsageEvent>, publish: &Publish, seen: &dyn Fn(&UsageEvent)) {
    let mut group = Vec::with_capacity(GROUP);
    while events.blocking_recv_many(&mut group, GROUP) > 0 {
        let mut bytes = Vec::with_capacity(group.len() * 256);
        group.iter().for_each(|event| segment::encode(event, &mut bytes));
        // Nothing is lost while the disk refuses: these wait here, later ones in the queue, and no new permits are given.
        while let Err(error) = writer.append(&bytes, group.len() as u64) {
            if publish.trouble(error.to_string()) {
                tracing::error!(%error, "usage cannot be recorded: requests are refused until it can");
            }
            std::thread::sleep(RETRY);
        }
        if publish.durable(writer.next_seq) {
            tracing::info!("usage can be recorded again");
        }
        group.iter().for_each(seen);
        group.clear();
    }
}

struct Writer {
    directory: PathBuf,
    epoch: u64,
    max_bytes: u64,
    next_seq: u64,
    active: Active,
}

struct Active {
    path: PathBuf,
    file: File,
    /// Bytes known to be good; a failed write is cut back to here.
    length: u64,
}

impl Writer {
    /// Continues after the last whole record on disk.
    fn resume(directory: &Path, epoch: u64, max_bytes: u64) -> Result<Self, JournalError> {
        let Some(first_seq) = segment::list(directory)?.last().copied() else {
            let active = Active::create(directory, epoch, 0)?;
            return Ok(Self { directory: directory.to_owned(), epoch, max_bytes, next_seq: 0, active });
        };
        let path = segment::path(directory, first_seq);
        let header_is_torn = std::fs::metadata(&path).map_err(io_error(&path))?.len() < segment::HEADER;
        if header_is_torn {
            // The crash hit between making the file and its header: it holds nothing.
            let active = Active::create(directory, epoch, first_seq)?;
            return Ok(Self { directory: directory.to_owned(), epoch, max_bytes, next_seq: first_seq, active });
        }
        let bytes = segment::read_from(&path, epoch, segment::HEADER, usize::MAX)?;
        let scan = segment::scan(&bytes, usize::MAX);
        let length = segment::HEADER + scan.good_bytes as u64;
        if scan.damaged_inside {
            return Err(JournalError::Damaged { path, offset: length });
        }
        let file = OpenOptions::new().write(true).open(&path).map_err(io_error(&path))?;
        if scan.torn {
            let lost = bytes.len() - scan.good_bytes;
            tracing::warn!(segment = %path.display(), lost_bytes = lost, "cut off a record that a crash left unfinished");
            file.set_len(length).and_then(|()| file.sync_data()).map_err(io_error(&path))?;
        }
        let next_seq = first_seq + scan.events.len() as u64;
        let active = Active { path, file, length };
        Ok(Self { directory: directory.to_owned(), epoch, max_bytes, next_seq, active })
    }

    /// Appends `count` records and returns once they survive a power cut.
    fn append(&mut self, bytes: &[u8], count: u64) -> Result<(), JournalError> {
        if self.active.length >= SEGMENT_BYTES {
            self.active = Active::create(&self.directory, self.epoch, self.next_seq)?;
        }
        let kept = directory_bytes(&self.directory)?;
        if kept + bytes.len() as u64 > self.max_bytes {
            let full =
                format!("it holds {kept} bytes that the control plane has not taken; journal.max_bytes is reached");
            return Err(io_error(&self.directory)(std::io::Error::new(std::io::ErrorKind::StorageFull, full)));
        }
        self.active.append(bytes)?;
        self.next_seq += count;
        Ok(())
    }
}

fn directory_bytes(directory: &Path) -> Result<u64, JournalError> {
    let sizes = segment::list(directory)?.into_iter().map(|first| {
        // A segment may be deleted under our feet: then it takes no room.
        std::fs::metadata(segment::path(directory, first)).map_or(0, |meta| meta.len())
    });
    Ok(sizes.sum())
}

impl Active {
    fn create(directory: &Path, epoch: u64, first_seq: u64) -> Result<Self, JournalError> {
        let path = segment::path(directory, first_seq);
        let failed = io_error(&path);
        let mut file = File::create(&path).map_err(&failed)?;
        file.write_all(&segment::header(epoch, first_seq)).and_then(|()| file.sync_all()).map_err(&failed)?;
        File::open(directory).and_then(|directory| directory.sync_all()).map_err(&failed)?;
        Ok(Self { path, file, length: segment::HEADER })
    }

    fn append(&mut self, bytes: &[u8]) -> Result<(), JournalError> {
        use std::os::unix::fs::FileExt as _;
        let written = self.file.write_all_at(bytes, self.length).and_then(|()| self.file.sync_data());
        if let Err(source) = written {
            // Best effort: an unfinished record at the tail is cut off at the next start in any case.
            let _ = self.file.set_len(self.length);
            return Err(JournalError::Io { path: self.path.clone(), source });
        }
        self.length += bytes.len() as u64;
        Ok(())
    }
}

impl Status {
    /// Shared by tests and readiness: whether events can be recorded.
    pub(crate) const fn is_writable(&self) -> bool {
        self.trouble.is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::Reader;
    use crate::journal::reader::Batch;
    use crate::journal::segment::fixtures::event;

    fn record(journal: &Journal, number: u32) {
        journal.permit().unwrap().record(event(number));
    }

    fn close(journal: Journal, thread: std::thread::JoinHandle<()>) {
        drop(journal);
        thread.join().unwrap();
    }

    fn read_all(directory: &Path) -> Vec<u32> {
        let (journal, thread) = Journal::open(directory, 1 << 30, |_| ()).unwrap();
        let durable = journal.status().borrow().durable;
        let mut reader = Reader::open(&journal).unwrap();
        let mut found = Vec::new();
        while let Some(Batch { events, last_seq, .. }) = reader.next(durable, 3).unwrap() {
            found.extend(events.iter().map(|event| event.prompt_tokens));
            reader.advance(last_seq).unwrap();
        }
        drop(reader);
        close(journal, thread);
        found
    }

    #[test]
    fn what_was_recorded_is_read_back_after_a_restart_once() {
        let directory = tempfile::tempdir().unwrap();
        let (journal, thread) = Journal::open(directory.path(), 1 << 30, |_| ()).unwrap();
        (0..10).for_each(|number| record(&journal, number));
        close(journal, thread);
        assert_eq!(read_all(directory.path()), (0..10).collect::<Vec<_>>());
        assert_eq!(read_all(directory.path()), Vec::<u32>::new());
    }

    #[test]
    fn a_journal_belongs_to_one_process() {
        let directory = tempfile::tempdir().unwrap();
        let (journal, thread) = Journal::open(directory.path(), 1 << 30, |_| ()).unwrap();
        let second = Journal::open(directory.path(), 1 << 30, |_| ()).err().unwrap();
        assert!(matches!(second, JournalError::InUse { .. }), "{second}");
        drop(journal);
        thread.join().unwrap();
        assert!(Journal::open(directory.path(), 1 << 30, |_| ()).is_ok());
    }

    #[tokio::test]
    async fn what_was_flushed_is_on_disk() {
        let directory = tempfile::tempdir().unwrap();
        let (journal, _thread) = Journal::open(directory.path(), 1 << 30, |_| ()).unwrap();
        for number in 1..=200 {
            record(&journal, number);
            journal.flush().await;
            // Read from the file itself, not from what the writer says of it.
            let bytes =
                segment::read_from(&segment::path(directory.path(), 0), journal.epoch, segment::HEADER, 1 << 20);
            assert_eq!(segment::scan(&bytes.unwrap(), usize::MAX).events.len(), number as usize);
        }
    }

    #[test]
    fn a_torn_tail_is_cut_and_numbering_goes_on() {
        let directory = tempfile::tempdir().unwrap();
        let (journal, thread) = Journal::open(directory.path(), 1 << 30, |_| ()).unwrap();
        (0..3).for_each(|number| record(&journal, number));
        close(journal, thread);
        let path = segment::path(directory.path(), 0);
        let length = std::fs::metadata(&path).unwrap().len();
        OpenOptions::new().write(true).open(&path).unwrap().set_len(length - 5).unwrap();

        let (journal, thread) = Journal::open(directory.path(), 1 << 30, |_| ()).unwrap();
        assert_eq!(journal.status().borrow().durable, 2);
        record(&journal, 7);
        close(journal, thread);
        assert_eq!(read_all(directory.path()), [0, 1, 7]);
    }

    #[test]
    fn a_full_journal_gives_no_permits_and_loses_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let (journal, thread) = Journal::open(directory.path(), segment::HEADER + 100, |_| ()).unwrap();
        record(&journal, 1);
        let mut status = journal.status();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let waited = runtime.block_on(async {
            let full = status.wait_for(|status| !status.is_writable());
            tokio::time::timeout(Duration::from_secs(10), full).await.is_ok()
        });
        assert!(waited && journal.permit().is_none());
        let trouble = journal.status().borrow().trouble.clone().unwrap();
        assert!(trouble.contains("journal.max_bytes"), "{trouble}");
        // The writer keeps trying; the test leaves it behind.
        drop((journal, thread));
    }
}
