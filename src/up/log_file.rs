//! A child's log on disk, bounded: one file, and the one before it.

use std::path::{Path, PathBuf};
use tokio::fs::File;
use tokio::io::AsyncWriteExt as _;

/// Size at which a new file is begun, bytes.
const LARGEST: u64 = 16 << 20;

/// An open log file.
pub(super) struct LogFile {
    path: PathBuf,
    file: Option<File>,
    size: u64,
}

impl LogFile {
    /// Opens it for appending.
    pub(super) async fn open(path: &Path) -> std::io::Result<Self> {
        let file = File::options().create(true).append(true).mode(0o600).open(path).await?;
        let size = file.metadata().await?.len();
        Ok(Self { path: path.to_owned(), file: Some(file), size })
    }

    /// Appends a line. A log that cannot be written (a full disk) is no reason to stop serving: the line is lost.
    pub(super) async fn write(&mut self, line: &str) {
        if self.size >= LARGEST {
            self.begin_anew().await;
        }
        let Some(file) = &mut self.file else { return };
        let text = format!("{line}\n");
        if file.write_all(text.as_bytes()).await.is_ok() && file.flush().await.is_ok() {
            self.size += u64::try_from(text.len()).unwrap_or(u64::MAX);
        }
    }

    async fn begin_anew(&mut self) {
        let before = self.path.with_extension("log.1");
        let moved = tokio::fs::rename(&self.path, before).await;
        if let Ok(fresh) = Self::open(&self.path).await {
            // Unless it was moved aside, counting restarts anyway, or every line would try again.
            *self = Self { size: if moved.is_ok() { fresh.size } else { 0 }, ..fresh };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_full_file_is_moved_aside() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("edge.log");
        let mut log = LogFile::open(&path).await.unwrap();
        log.write("old").await;
        log.size = LARGEST;
        log.write("new").await;
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "new\n");
        assert_eq!(std::fs::read_to_string(dir.path().join("edge.log.1")).unwrap(), "old\n");
    }
}
