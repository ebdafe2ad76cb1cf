//! The end of the ledger, where records are appended; and its beginning, where files are retired.

use super::files::{FileId, Position};
use super::record::SIZE;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::sync::Arc;

/// Hours for which every file is kept, whatever its size.
pub(super) const MIN_KEEP_HOURS: u32 = 48;

/// The files, and the last one of them open.
#[derive(Debug)]
pub(super) struct Log {
    directory: PathBuf,
    /// With their lengths in bytes, oldest first. The last one is `file`.
    files: Vec<(FileId, u64)>,
    file: Option<Arc<File>>,
    /// Hours for which a file is kept after its own has ended.
    keep_hours: u32,
}

impl Log {
    /// Goes on after the first `records` of the last file; what is behind them was never written whole and is cut off.
    pub(super) fn resume(directory: PathBuf, files: &[FileId], records: u32, keep_hours: u32) -> io::Result<Self> {
        let mut lengths = Vec::new();
        for file in files {
            lengths.push((*file, std::fs::metadata(file.path(&directory))?.len()));
        }
        let file = match lengths.last_mut() {
            Some((last, length)) => {
                let file = File::options().read(true).write(true).open(last.path(&directory))?;
                *length = u64::from(records) * SIZE as u64;
                file.set_len(*length)?;
                Some(Arc::new(file))
            }
            None => None,
        };
        Ok(Self { directory, files: lengths, file, keep_hours: keep_hours.max(MIN_KEEP_HOURS) })
    }

    /// After the last record.
    pub(super) fn end(&self) -> Position {
        self.files.last().map_or(Position::default(), |(file, length)| Position {
            file: file.number,
            record: u32::try_from(length / SIZE as u64).unwrap_or(u32::MAX),
        })
    }

    /// All files together, bytes.
    pub(super) fn bytes(&self) -> u64 {
        self.files.iter().map(|(_, length)| length).sum()
    }

    /// The open file, and up to where it is written.
    pub(super) fn written(&self) -> Option<(Arc<File>, Position)> {
        Some((Arc::clone(self.file.as_ref()?), self.end()))
    }

    /// Whether the open file is another hour's, or there is none.
    pub(super) fn is_due(&self, hour: u32) -> bool {
        self.files.last().is_none_or(|(file, _)| file.hour != hour)
    }

    /// Whether nothing has been written to the open file.
    pub(super) fn is_at_start(&self) -> bool {
        self.files.last().is_none_or(|(_, length)| *length == 0)
    }

    /// Begins a file. The one before is synced first: the new one repeats of it only what runs.
    pub(super) fn begin(&mut self, hour: u32) -> io::Result<()> {
        if let Some(before) = &self.file {
            before.sync_data()?;
        }
        // The last two files must say all there is to know of what runs; an empty one would be one of them.
        if let Some((empty, 0)) = self.files.last() {
            std::fs::remove_file(empty.path(&self.directory))?;
            self.files.pop();
            self.file = None;
        }
        let number = self.files.last().map_or(1, |(file, _)| file.number.saturating_add(1));
        let id = FileId { number, hour };
        let file = File::options().read(true).write(true).create(true).truncate(true).open(id.path(&self.directory))?;
        // The name is to outlast a power cut as the records do.
        File::open(&self.directory)?.sync_all()?;
        self.file = Some(Arc::new(file));
        self.files.push((id, 0));
        Ok(())
    }

    /// Appends whole records.
    pub(super) fn append(&mut self, records: &[u8]) -> io::Result<()> {
        let (Some(file), Some((_, length))) = (&self.file, self.files.last_mut()) else {
            return Err(io::Error::other("no file is open"));
        };
        if let Err(error) = file.write_all_at(records, *length) {
            // What was written of it must not be taken for records. If this fails too, the next try overwrites it.
            let _ = file.set_len(*length);
            return Err(error);
        }
        *length += records.len() as u64;
        Ok(())
    }

    /// Removes files that are older than they are kept and that the control plane has whole; if `pressed` for room, those
    /// beyond the least time too. Returns their numbers, and what went wrong: a file that cannot be removed is tried again
    /// the next time, and keeps no other one.
    pub(super) fn retire(&mut self, hour: u32, shipped: Position, pressed: bool) -> (Vec<u32>, io::Result<()>) {
        let keep = if pressed { MIN_KEEP_HOURS } else { self.keep_hours };
        let open = self.files.last().map(|(file, _)| file.number);
        let (mut removed, mut outcome) = (Vec::new(), Ok(()));
        let directory = &self.directory;
        self.files.retain(|(file, _)| {
            let age = hour.saturating_sub(file.hour.saturating_add(1));
            if Some(file.number) == open || shipped.file <= file.number || age < keep {
                return true;
            }
            match std::fs::remove_file(file.path(directory)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    outcome = Err(error);
                    true
                }
                Ok(()) | Err(_) => {
                    removed.push(file.number);
                    false
                }
            }
        });
        (removed, outcome)
    }
}
