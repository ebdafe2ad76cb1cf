//! The files of each generation.

use super::base::{self, Base};
use super::log::Log;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use turnpike_config::log::Position;

/// Files of a generation.
pub(super) fn base_path(directory: &Path, generation: u64) -> PathBuf {
    directory.join(format!("base-{generation}"))
}

pub(super) fn log_path(directory: &Path, generation: u64) -> PathBuf {
    directory.join(format!("log-{generation}"))
}

/// The generations of which there are files, oldest first.
pub(super) fn generations(directory: &Path) -> std::io::Result<BTreeSet<u64>> {
    let mut found = BTreeSet::new();
    for entry in std::fs::read_dir(directory)? {
        let name = entry?.file_name();
        let number = name.to_str().and_then(|name| name.strip_prefix("base-").or(name.strip_prefix("log-")));
        found.extend(number.and_then(|number| number.parse::<u64>().ok()));
    }
    Ok(found)
}

/// The files that are written to.
pub(super) struct Generations {
    pub(super) directory: PathBuf,
    pub(super) newest: u64,
    pub(super) log: Log,
    /// Where the newest log ends.
    pub(super) at: Position,
    /// Bytes of the newest whole state.
    pub(super) whole: u64,
}

impl Generations {
    pub(super) fn new(directory: &Path, newest: u64, log: Log, at: Position) -> Self {
        let whole = std::fs::metadata(base_path(directory, newest)).map_or(0, |file| file.len());
        Self { directory: directory.to_owned(), newest, log, at, whole }
    }

    /// Begins anew, and removes what was there.
    pub(super) fn afresh(directory: &Path, generation: u64, base: Option<&Base>) -> std::io::Result<Self> {
        base.map_or(Ok(()), |base| base::save(&base_path(directory, generation), base))?;
        let log = Log::create(&log_path(directory, generation))?;
        let new = Self::new(directory, generation, log, base.map(|base| base.at).unwrap_or_default());
        new.forget(generation);
        Ok(new)
    }

    /// Begins a new generation with a whole state.
    pub(super) fn begin(&mut self, base: &Base) -> std::io::Result<()> {
        let next = self.newest + 1;
        // The log first: alone it says nothing, and a whole state without one would hide what is still being written.
        let log = Log::create(&log_path(&self.directory, next))?;
        base::save(&base_path(&self.directory, next), base)?;
        (self.log, self.newest, self.at) = (log, next, base.at);
        self.whole = std::fs::metadata(base_path(&self.directory, next))?.len();
        self.forget(next - 1);
        Ok(())
    }

    /// Removes what is before a generation.
    fn forget(&self, first: u64) {
        for old in generations(&self.directory).unwrap_or_default().range(..first) {
            for path in [base_path(&self.directory, *old), log_path(&self.directory, *old)] {
                if let Err(error) = std::fs::remove_file(&path)
                    && error.kind() != std::io::ErrorKind::NotFound
                {
                    tracing::warn!(file = %path.display(), %error, "an old routing cannot be removed");
                }
            }
        }
    }
}
