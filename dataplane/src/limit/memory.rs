//! What an edge knows of the region's clock, kept on disk for its next life.
//!
//! Without it a restarted edge could vouch for no moment before its start, and buckets that nobody used lately would be
//! empty to it for a minute.

use super::clock::Track;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

/// Older knowledge is of no use: the longer a clock was not heard, the smaller a jump goes unnoticed.
const STALE_NS: u64 = 60_000_000_000;
/// Changes with every start of the machine, and with it the clock that tracks are measured by.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// The file.
#[derive(Debug)]
pub(crate) struct Memory {
    path: PathBuf,
    boot: String,
    file: Mutex<()>,
}

#[derive(Serialize, Deserialize)]
struct Content {
    boot: String,
    /// The server's run id.
    run: String,
    track: Track,
}

impl Memory {
    /// `None` where the machine does not say when it was started.
    pub(crate) fn new(path: PathBuf) -> Option<Self> {
        let boot = std::fs::read_to_string(BOOT_ID).ok()?.trim().to_owned();
        Some(Self { path, boot, file: Mutex::default() })
    }

    /// What an earlier life knew of this run of the server.
    pub(crate) fn load(&self, run: &str, now_ns: u64) -> Option<Track> {
        let content: Content = serde_json::from_slice(&std::fs::read(&self.path).ok()?).ok()?;
        let fresh = content.track.age_ns(now_ns).is_some_and(|age| age < STALE_NS);
        (fresh && content.boot == self.boot && content.run == run).then_some(content.track)
    }

    /// Writes what is known, if anything is when its turn has come: what was forgotten is not written again.
    pub(crate) fn save(&self, run: &str, track: impl FnOnce() -> Option<Track>) {
        let _file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(track) = track() else { return };
        let content = Content { boot: self.boot.clone(), run: run.to_owned(), track };
        let written = serde_json::to_vec(&content).map_err(std::io::Error::other).and_then(|content| {
            let beside = self.path.with_extension("tmp");
            std::fs::write(&beside, content)?;
            std::fs::rename(&beside, &self.path)
        });
        if let Err(error) = written {
            tracing::debug!(file = %self.path.display(), %error, "the region's clock cannot be kept for the next start");
        }
    }

    /// Forgets, before the edge spends anything that the server does not know of.
    pub(crate) fn forget(&self) {
        let _file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        // Not there is as good.
        drop(std::fs::remove_file(&self.path));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limit::clock::ServerClock;

    #[test]
    fn only_what_is_fresh_and_of_the_same_run_is_gone_on_by() {
        let directory = tempfile::tempdir().unwrap();
        let memory = Memory::new(directory.path().join("clock.json")).unwrap();
        let mut clock = ServerClock::default();
        clock.heard(5, 1_000, 2_000);
        assert_eq!(memory.load("a", 3_000), None);
        memory.save("a", || clock.track());
        assert_eq!(memory.load("a", 3_000), clock.track());
        assert_eq!(memory.load("b", 3_000), None);
        assert_eq!(memory.load("a", 2_000 + STALE_NS), None);
        // Another start of the machine, or so it seems.
        assert_eq!(memory.load("a", 1_999), None);
        memory.forget();
        assert_eq!(memory.load("a", 3_000), None);
    }
}
