//! Pieces of a state that were fetched before the rest was, so that a transfer that breaks off goes on later.

use std::collections::HashSet;
use std::io::ErrorKind;
use std::path::PathBuf;
use turnpike_config::log::Hash;

/// A directory of chunks, each named by its hash. Nothing is synced: what is not what its name says is fetched again.
#[derive(Clone, Debug)]
pub(super) struct ChunkFiles {
    directory: PathBuf,
}

impl ChunkFiles {
    pub(super) fn open(directory: PathBuf) -> std::io::Result<Self> {
        std::fs::create_dir_all(&directory)?;
        Ok(Self { directory })
    }

    /// A chunk that is there and sound.
    pub(super) fn read(&self, hash: Hash) -> Option<Vec<u8>> {
        std::fs::read(self.directory.join(hash.to_string())).ok().filter(|bytes| Hash::of(bytes) == hash)
    }

    /// Keeps a chunk. One that cannot be kept is only fetched again.
    pub(super) fn keep(&self, hash: Hash, bytes: &[u8]) {
        let path = self.directory.join(hash.to_string());
        let beside = path.with_extension("tmp");
        let kept = std::fs::write(&beside, bytes).and_then(|()| std::fs::rename(&beside, &path));
        if let Err(error) = kept {
            tracing::debug!(file = %path.display(), %error, "a chunk cannot be kept");
        }
    }

    /// Removes all but these.
    pub(super) fn retain(&self, wanted: &[Hash]) {
        let wanted: HashSet<String> = wanted.iter().map(Hash::to_string).collect();
        let removed = std::fs::read_dir(&self.directory).and_then(|entries| {
            for entry in entries {
                let entry = entry?;
                if !entry.file_name().to_str().is_some_and(|name| wanted.contains(name)) {
                    std::fs::remove_file(entry.path())?;
                }
            }
            Ok(())
        });
        match removed {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                tracing::warn!(directory = %self.directory.display(), %error, "old chunks cannot be removed");
            }
            _ => {}
        }
    }

    /// How many are kept.
    #[cfg(test)]
    pub(super) fn count(&self) -> usize {
        std::fs::read_dir(&self.directory).map_or(0, Iterator::count)
    }
}
