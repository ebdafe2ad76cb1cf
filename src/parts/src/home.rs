//! What a server has for itself: a folder.

use crate::process::{Guarded, GuardedProcess};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long it may take to remove a folder.
const REMOVE_PATIENCE: Duration = Duration::from_secs(20);

/// A temporary folder that outlives its server, so that one can be started on it again, but never us.
#[derive(Debug)]
pub(crate) struct Home {
    path: PathBuf,
    keeper: GuardedProcess,
}

impl Home {
    /// A new one, for a server of this name.
    pub(crate) fn new(server: &str) -> io::Result<Self> {
        let prefix = format!("turnpike-{server}-");
        let made = tempfile::Builder::new().prefix(&prefix).tempdir();
        let made = made.map_err(|e| told(&e, "making a directory in", &std::env::temp_dir()))?;
        // A process that does nothing but end with us, upon which its guard removes the folder.
        let keeper = Guarded {
            command: vec!["sleep".into(), "infinity".into()],
            run_as: None,
            stop_signal: "KILL",
            remove_afterwards: Some(made.path().to_owned()),
            log: made.path().join("keeper.log"),
        };
        let keeper = keeper.spawn().map_err(|e| told(&e, "starting the keeper of", made.path()))?;
        Ok(Self { path: made.keep(), keeper })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Where the server's output goes.
    pub(crate) fn log(&self) -> PathBuf {
        self.path.join("log")
    }

    /// Writes a file of the server's settings, and says where it is.
    pub(crate) fn write(&self, name: &str, text: &str) -> io::Result<PathBuf> {
        let file = self.path.join(name);
        std::fs::write(&file, text).map_err(|e| told(&e, "writing", &file))?;
        Ok(file)
    }

    /// Forgets what earlier starts said.
    pub(crate) fn empty_log(&self) -> io::Result<()> {
        self.write("log", "").map(drop)
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        self.keeper.stop(REMOVE_PATIENCE);
    }
}

/// The same error, saying what was tried on what.
fn told(error: &io::Error, what: &str, on: &Path) -> io::Error {
    io::Error::new(error.kind(), format!("{what} {}: {error}", on.display()))
}
