//! The node's own ledger: what it worked on for edges and what that took, on disk, whatever happens to the edge.
//!
//! A request is recorded when it is handed to the engine and again when it ends, by the id of the usage event that the
//! edge makes of it. Edges ask it for what they did not live to count; the control plane gets all of it, to compare.

mod files;
mod index;
mod log;
mod record;
mod shared;
mod ship;
mod sync;
mod writer;

pub(crate) use record::Outcome;
pub(crate) use ship::Shipper;

use files::Archive;
use index::{Best, Index};
use log::{Log, MIN_KEEP_HOURS};
use record::{Entry, Record};
use shared::Shared;
use std::fs::{File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;
use sync::Sync;
use tokio::sync::{oneshot, watch};
use turnpike_config::wire::LedgerState;
use turnpike_config::{EventId, Tokens};
use writer::{Clock, Command, End, Writer};

/// Shortest `ledger.keep`: edges ask for what they began up to two days ago.
pub(crate) const MIN_KEEP: Duration = Duration::from_secs(MIN_KEEP_HOURS as u64 * 3600);
/// Records that may wait for the writer; beyond it, requests are refused.
const MAX_QUEUED: usize = 1 << 16;

/// Why the ledger cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// The system refuses.
    #[error("{}: {source}", .path.display())]
    Io {
        /// File or directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Two processes would overwrite each other's records.
    #[error("{}: another process uses this ledger; give each node a data_dir of its own", .0.display())]
    InUse(PathBuf),
}

/// A request that cannot be recorded, and why.
#[derive(Debug, thiserror::Error)]
#[error("this node's ledger cannot be written: {0}")]
pub(crate) struct Unrecorded(String);

/// Where and how much.
pub(crate) struct Options {
    pub(crate) directory: PathBuf,
    /// At least [`MIN_KEEP`].
    pub(crate) keep: Duration,
    pub(crate) max_bytes: u64,
    pub(crate) clock: Clock,
}

/// The ledger, open.
#[derive(Debug)]
pub(crate) struct Ledger {
    shared: Arc<Shared>,
    commands: mpsc::Sender<Command>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Ledger {
    /// Opens the ledger or makes it. What an earlier life began and did not end is lost from now on.
    pub(crate) fn open(options: Options) -> Result<Self, LedgerError> {
        let Options { directory, keep, max_bytes, clock } = options;
        let failed = |source| LedgerError::Io { path: directory.clone(), source };
        std::fs::create_dir_all(&directory).map_err(failed)?;
        let lock = lock(&directory)?;
        let files = files::list(&directory).map_err(failed)?;
        let recovered = files::recover(&directory, &files).map_err(failed)?;
        let keep_hours = u32::try_from(keep.as_secs().div_ceil(3600)).unwrap_or(u32::MAX);
        let mut log = Log::resume(directory.clone(), &files, recovered.records, keep_hours).map_err(failed)?;
        if recovered.damaged > 0 {
            tracing::error!(records = recovered.damaged, path = %directory.display(), "damaged records in the ledger");
        }

        let mut index = Index::default();
        for (event, outcome) in recovered.ended {
            remember(&mut index, event, outcome);
        }
        let mut records = Vec::new();
        for (event, attempts) in &recovered.running {
            let outcome = remember(&mut index, *event, Outcome::LOST);
            (0..*attempts).for_each(|_| Record { event: *event, entry: Entry::Ended(outcome) }.encode(&mut records));
        }
        if !records.is_empty() {
            tracing::warn!(requests = recovered.running.len(), "requests were running when this node last ended");
            // Not in a new file: the last two must say all that is known of what runs.
            log.append(&records).map_err(failed)?;
        }
        if let Some((file, _)) = log.written() {
            file.sync_data().map_err(failed)?;
        }
        let shared = Arc::new(Shared::new(index, Archive::new(directory.clone()), log.end()));
        shared.resume_shipping(&directory).map_err(failed)?;
        Self::start(log, shared, lock, max_bytes, clock).map_err(failed)
    }

    fn start(log: Log, shared: Arc<Shared>, lock: File, max_bytes: u64, clock: Clock) -> io::Result<Self> {
        let (sender, commands) = mpsc::channel();
        let sync = Arc::new(Sync::default());
        let (syncing, state) = (Arc::clone(&sync), Arc::clone(&shared));
        let spawn = |name: &str| std::thread::Builder::new().name(name.to_owned());
        let mut threads = vec![spawn("ledger-sync").spawn(move || syncing.run(&state))?];
        let writer = Writer { log, shared: Arc::clone(&shared), sync, commands, pending: Vec::new(), max_bytes, clock };
        threads.push(spawn("ledger").spawn(move || {
            // Held as long as something is written.
            let _lock = lock;
            writer.run();
        })?);
        Ok(Self { shared, commands: sender, threads: Mutex::new(threads) })
    }

    /// Records that a request is handed to the engine; returns once that is written.
    ///
    /// # Errors
    /// It is not written, and the request must not reach the engine.
    pub(crate) async fn begin(&self, event: EventId) -> Result<Recording, Unrecorded> {
        if self.shared.queued.load(Ordering::Relaxed) >= MAX_QUEUED {
            return Err(Unrecorded(format!("{MAX_QUEUED} records wait for the disk")));
        }
        let attempt = self.shared.attempts.fetch_add(1, Ordering::Relaxed);
        let (done, written) = oneshot::channel();
        // Made before anything is waited for: if the edge leaves meanwhile, its end is recorded as well.
        let mut recording = Recording {
            shared: Arc::clone(&self.shared),
            commands: self.commands.clone(),
            event,
            attempt,
            worked_on: None,
            ended: false,
        };
        recording.send(Command::Begin { event, attempt, done });
        let refused = match written.await {
            Ok(Ok(())) => return Ok(recording),
            Ok(Err(reason)) => reason,
            Err(_stopped) => "it is closed".to_owned(),
        };
        recording.ended = true;
        Err(Unrecorded(refused))
    }

    /// What is known of an event; `None` if it was never here, or so long ago that it is forgotten.
    ///
    /// # Errors
    /// The files cannot be read.
    pub(crate) async fn find(&self, event: EventId) -> io::Result<Option<Outcome>> {
        if let Some(outcome) = self.shared.index().find(event) {
            return Ok(Some(outcome));
        }
        // One at a time: each may read many files.
        let turn = Arc::clone(&self.shared.lookups).acquire_owned().await.map_err(io::Error::other)?;
        let shared = Arc::clone(&self.shared);
        let look = move || {
            // Kept to the end, also if nobody waits for it any more.
            let _turn = turn;
            shared.look_up(event)
        };
        tokio::task::spawn_blocking(look).await.map_err(io::Error::other)?
    }

    /// Why nothing can be recorded at the moment, and a way to wait for news.
    pub(crate) fn trouble(&self) -> watch::Receiver<Option<String>> {
        self.shared.watch_trouble()
    }

    /// Sends it to the control plane.
    pub(crate) fn shipper(&self) -> Shipper {
        Shipper::new(Arc::clone(&self.shared))
    }

    /// Writes what was handed over, onto the disk, and ends.
    pub(crate) fn close(&self) {
        let _ = self.commands.send(Command::Stop);
        for thread in self.threads.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            if thread.join().is_err() {
                tracing::error!("a thread of the ledger panicked");
            }
        }
    }
}

/// Takes into memory what an earlier life left; returns what counts.
fn remember(index: &mut Index, event: EventId, outcome: Outcome) -> Outcome {
    let own = Best { attempt: 0, outcome };
    let best = index.best(event).map_or(own, |before| before.after(own));
    index.remember(event, best);
    best.outcome
}

/// Keeps other processes out; the system lets go of it with this one.
fn lock(directory: &Path) -> Result<File, LedgerError> {
    let path = directory.join("lock");
    let failed = |source| LedgerError::Io { path: path.clone(), source };
    let file = File::options().create(true).append(true).open(&path).map_err(failed)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(LedgerError::InUse(directory.to_owned())),
        Err(TryLockError::Error(source)) => Err(failed(source)),
    }
}

/// A request that is recorded as begun. Dropped without an end, it was never answered: the edge has left.
#[derive(Debug)]
pub(crate) struct Recording {
    shared: Arc<Shared>,
    commands: mpsc::Sender<Command>,
    event: EventId,
    attempt: u64,
    /// The prompt's size, once the engine has it.
    worked_on: Option<u32>,
    ended: bool,
}

impl Recording {
    /// The engine gets it, with a prompt of so many tokens as the edge judges it: that much is used from here on.
    pub(crate) fn hand_over(&mut self, prompt: u32) {
        self.worked_on = Some(prompt);
    }

    /// Records how it ended; only the first end counts. What comes back resolves once that is written, or at once if the
    /// disk refuses; it is then tried again.
    pub(crate) fn end(&mut self, state: LedgerState, tokens: Tokens) -> oneshot::Receiver<()> {
        let (done, written) = oneshot::channel();
        if !std::mem::replace(&mut self.ended, true) {
            let outcome = Outcome { state, tokens };
            self.send(Command::End(End { event: self.event, attempt: self.attempt, outcome, done: Some(done) }));
        }
        written
    }

    fn send(&self, command: Command) {
        self.shared.queued.fetch_add(1, Ordering::Relaxed);
        // Fails only when the ledger is closed, after all requests.
        let _ = self.commands.send(command);
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        drop(match self.worked_on {
            Some(prompt) => self.end(LedgerState::Seen, Tokens { prompt, ..Tokens::default() }),
            None => self.end(LedgerState::Refused, Tokens::default()),
        });
    }
}

#[cfg(test)]
mod tests;
