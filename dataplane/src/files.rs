//! Files that are either the old or the new version after a crash, never half of one.

use std::fs::File;
use std::io::Write as _;
use std::path::Path;

/// Writes beside the target, syncs, and renames over it.
pub(crate) fn write_atomically(path: &Path, content: &[u8]) -> std::io::Result<()> {
    let beside = path.with_extension("tmp");
    let mut file = File::create(&beside)?;
    file.write_all(content)?;
    file.sync_all()?;
    std::fs::rename(&beside, path)?;
    match path.parent() {
        Some(directory) => File::open(directory)?.sync_all(),
        None => Ok(()),
    }
}
