//! A thread that brings what was written onto the disk, in groups, so that no request waits for it.

use super::files::Position;
use super::shared::Shared;
use std::fs::File;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How far the disk may be behind what was written.
const BEHIND: Duration = Duration::from_millis(5);
/// Between tries when the disk refuses.
const RETRY: Duration = Duration::from_millis(500);

/// What is to be synced.
#[derive(Debug, Default)]
struct Dirty {
    file: Option<(Arc<File>, Position)>,
    stopping: bool,
}

/// Hands over what is to be synced.
#[derive(Debug, Default)]
pub(super) struct Sync {
    dirty: Mutex<Dirty>,
    wake: Condvar,
}

impl Sync {
    /// A file was written up to a position; the files before it are synced.
    pub(super) fn wrote(&self, file: Arc<File>, to: Position) {
        let before = self.lock().file.replace((file, to));
        // It knows already, and gathers: waking it for every write would cost more than the write.
        if before.is_none() {
            self.wake.notify_one();
        }
    }

    /// Ends the thread once everything is synced, or the disk refuses that.
    pub(super) fn stop(&self) {
        self.lock().stopping = true;
        self.wake.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, Dirty> {
        self.dirty.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until there is something; false if it is time to end.
    fn wait(&self) -> bool {
        let mut dirty = self.lock();
        while dirty.file.is_none() && !dirty.stopping {
            dirty = self.wake.wait(dirty).unwrap_or_else(PoisonError::into_inner);
        }
        dirty.file.is_some()
    }

    /// Gives others time to write, unless there will be none.
    fn gather(&self, pause: Duration) {
        let dirty = self.lock();
        let _ = self.wake.wait_timeout_while(dirty, pause, |dirty| !dirty.stopping);
    }

    /// The thread.
    pub(super) fn run(&self, shared: &Shared) {
        let mut pause = BEHIND;
        while self.wait() {
            self.gather(pause);
            let Some((file, to)) = self.lock().file.take() else { continue };
            match file.sync_data() {
                Ok(()) => {
                    pause = BEHIND;
                    shared.publish_synced(to);
                    shared.set_sync_trouble(None);
                }
                Err(error) => {
                    pause = RETRY;
                    shared.set_sync_trouble(Some(format!("syncing: {error}")));
                    let mut dirty = self.lock();
                    if dirty.stopping {
                        return;
                    }
                    dirty.file.get_or_insert((file, to));
                }
            }
        }
    }
}
