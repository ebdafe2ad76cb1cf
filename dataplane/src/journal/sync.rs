//! Makes what was written survive a power cut, in groups, beside the writer; and keeps room for the next segment.

use super::state::{Shared, Trouble};
use super::{JournalError, io_error};
use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Bytes laid aside for a segment: what it is closed at, and a group of records more.
pub(super) const RESERVED: u64 = (16 << 20) + (1 << 20);
/// Between two syncs: what is written in this time is one group. Nobody waits for it but who ships.
const GROUPING: Duration = Duration::from_millis(20);
/// Between tries when the disk refuses.
pub(super) const RETRY: Duration = Duration::from_millis(200);

/// A segment that is being written.
#[derive(Debug)]
pub(super) struct Active {
    pub(super) path: PathBuf,
    pub(super) file: File,
}

/// What is to be synced.
#[derive(Debug)]
struct Target {
    segment: Arc<Active>,
    /// Sequence number after its last record, and how many had been handed over by then.
    seq: u64,
    taken: u64,
}

#[derive(Debug, Default)]
struct State {
    target: Option<Target>,
    /// The thread sleeps until it is told something.
    sleeps: bool,
    /// The spare was taken.
    needs_spare: bool,
    closing: bool,
}

/// The thread that syncs.
#[derive(Debug)]
pub(super) struct Syncer {
    shared: Arc<Shared>,
    state: Mutex<State>,
    news: Condvar,
}

/// Where the room for the next segment is kept.
pub(super) fn spare(directory: &Path) -> PathBuf {
    directory.join("spare")
}

impl Syncer {
    pub(super) fn new(shared: Arc<Shared>) -> Arc<Self> {
        let state = Mutex::new(State { needs_spare: true, ..State::default() });
        Arc::new(Self { shared, state, news: Condvar::new() })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, change: impl FnOnce(&mut State)) {
        let sleeps = {
            let mut state = self.state();
            change(&mut state);
            std::mem::take(&mut state.sleeps)
        };
        if sleeps {
            self.news.notify_one();
        }
    }

    /// Everything in `segment` up to `seq` has been written, and everything in earlier ones is synced.
    pub(super) fn written(&self, segment: &Arc<Active>, seq: u64, taken: u64) {
        let target = Target { segment: Arc::clone(segment), seq, taken };
        self.tell(|state| state.target = Some(target));
    }

    /// The spare was taken: another is needed.
    pub(super) fn spare_taken(&self) {
        self.tell(|state| state.needs_spare = true);
    }

    /// Nothing will be written any more.
    pub(super) fn close(&self) {
        self.tell(|state| state.closing = true);
    }

    /// Runs until closed and everything is synced.
    pub(super) fn run(&self) {
        loop {
            let (target, needs_spare) = {
                let idle = |state: &mut State| {
                    state.sleeps = state.target.is_none() && !state.needs_spare && !state.closing;
                    state.sleeps
                };
                let mut state = self.news.wait_while(self.state(), idle).unwrap_or_else(PoisonError::into_inner);
                if state.closing && state.target.is_none() {
                    return;
                }
                (state.target.take(), state.needs_spare)
            };
            let outcome = self.sync(target).and_then(|()| self.make_spare(needs_spare));
            let failed = outcome.is_err();
            let reason = outcome.err().map(|error| error.to_string());
            if self.shared.trouble(Trouble::Syncing, reason.clone()) {
                match reason {
                    Some(reason) => tracing::error!(reason, "requests are refused until their usage is safe on disk"),
                    None => tracing::info!("usage is safe on disk again"),
                }
            }
            std::thread::sleep(if failed { RETRY } else { GROUPING });
        }
    }

    fn sync(&self, target: Option<Target>) -> Result<(), JournalError> {
        let Some(target) = target else { return Ok(()) };
        self.shared.is_syncing.store(true, Ordering::Relaxed);
        let synced = target.segment.file.sync_data();
        self.shared.is_syncing.store(false, Ordering::Relaxed);
        match synced {
            Ok(()) => {
                self.shared.synced(target.seq, target.taken);
                Ok(())
            }
            Err(source) => {
                let error = JournalError::Io { path: target.segment.path.clone(), source };
                // Unless something newer is to be synced, this is tried again.
                self.state().target.get_or_insert(target);
                Err(error)
            }
        }
    }

    /// Lays room aside for the next segment, so that a full disk is noticed before requests depend on it.
    fn make_spare(&self, needed: bool) -> Result<(), JournalError> {
        if !needed {
            return Ok(());
        }
        let path = spare(&self.shared.directory);
        let file = File::options().create(true).truncate(true).write(true).open(&path).map_err(io_error(&path))?;
        match fallocate(&file, FallocateFlags::KEEP_SIZE, 0, RESERVED) {
            // A file system that cannot do it says so when it is full.
            Ok(()) | Err(Errno::OPNOTSUPP) => {}
            Err(error) => return Err(io_error(&path)(error.into())),
        }
        file.sync_all().map_err(io_error(&path))?;
        self.state().needs_spare = false;
        Ok(())
    }
}
