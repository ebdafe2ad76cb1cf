//! The journal's one writer.

use super::record::{Counts, Intent, Record};
use super::recover::Recovered;
use super::state::{Entry, Shared, Trouble};
use super::sync::{RETRY, Syncer, spare};
use super::{JournalError, io_error, segment};
use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::sync::mpsc;
use turnpike_config::crash::is_due;
use turnpike_config::{EventId, UsageEvent};

/// Most records written at once.
const GROUP: usize = 2_048;
/// A segment is closed at this size and can be deleted once shipped.
const SEGMENT_BYTES: u64 = 16 << 20;

/// Writes what is handed over until nobody can hand over any more.
pub(super) fn run(mut writer: Writer, mut entries: mpsc::Receiver<Entry>, seen: &dyn Fn(&UsageEvent, Duration)) {
    let mut group = Vec::with_capacity(GROUP);
    while entries.blocking_recv_many(&mut group, GROUP) > 0 {
        // Nothing is lost while the disk refuses: these wait here, later ones in the queue, and no new permits are given.
        while let Err(error) = writer.write(&group) {
            if writer.shared.trouble(Trouble::Writing, Some(error.to_string())) {
                tracing::error!(%error, "usage cannot be recorded: requests are refused until it can");
            }
            std::thread::sleep(RETRY);
        }
        if writer.shared.trouble(Trouble::Writing, None) {
            tracing::info!("usage can be recorded again");
        }
        for Entry { record, handed_over, written } in group.drain(..) {
            // Whoever does not wait is not told.
            let _ = written.send(());
            if let Record::Final(event) = &record {
                seen(event, handed_over.elapsed());
            }
            writer.remember(record);
        }
    }
    writer.syncer.close();
}

pub(super) struct Writer {
    shared: Arc<Shared>,
    syncer: Arc<Syncer>,
    next_seq: u64,
    /// Records handed over that are written.
    taken: u64,
    active: Active,
    /// Intents whose events have not come: carried into each new segment, so that old ones can go.
    open: HashMap<EventId, Intent>,
    counts: Counts,
}

struct Active {
    path: PathBuf,
    file: Arc<File>,
    /// Bytes known to be good; a failed write is cut back to here.
    length: u64,
}

impl Writer {
    /// Continues after the last whole record on disk.
    pub(super) fn resume(shared: Arc<Shared>, syncer: Arc<Syncer>, recovered: Recovered) -> Result<Self, JournalError> {
        let Recovered { next_seq, last, open, counts, carried, .. } = recovered;
        let active = match last {
            Some((first_seq, length)) => {
                let path = segment::path(&shared.directory, first_seq);
                let file = OpenOptions::new().write(true).open(&path).map_err(io_error(&path))?;
                Active { path, file: Arc::new(file), length }
            }
            None => {
                let active = Active::create(&shared, &syncer, next_seq)?;
                shared.bytes.fetch_add(segment::HEADER, Ordering::Relaxed);
                active
            }
        };
        let mut writer = Self { shared, syncer, next_seq, taken: 0, active, open, counts };
        if !carried && next_seq > 0 {
            // A crash hit between making the segment and carrying over: once earlier ones are gone it would be too late.
            writer.carry_over()?;
            writer.active.file.sync_data().map_err(io_error(&writer.active.path))?;
            writer.syncer.written(&writer.active.file, &writer.active.path, writer.next_seq, 0);
        }
        Ok(writer)
    }

    /// Writes records, in order; they are synced soon afterwards.
    fn write(&mut self, group: &[Entry]) -> Result<(), JournalError> {
        if self.active.length >= SEGMENT_BYTES {
            self.next_segment()?;
        }
        let mut bytes = Vec::with_capacity(group.len() * 256);
        for (seq, entry) in (self.next_seq..).zip(group) {
            segment::encode(seq, &entry.record, &mut bytes);
        }
        self.append(&bytes, group.len() as u64)?;
        self.taken += group.len() as u64;
        self.syncer.written(&self.active.file, &self.active.path, self.next_seq, self.taken);
        Ok(())
    }

    /// Begins a segment with all that must not go with the earlier ones.
    fn next_segment(&mut self) -> Result<(), JournalError> {
        // The syncer only knows the newest file.
        self.active.file.sync_data().map_err(io_error(&self.active.path))?;
        let active = Active::create(&self.shared, &self.syncer, self.next_seq)?;
        let before = std::mem::replace(&mut self.active, active);
        if let Err(error) = self.carry_over() {
            // The next try makes it anew.
            self.active = before;
            return Err(error);
        }
        self.shared.bytes.fetch_add(segment::HEADER, Ordering::Relaxed);
        Ok(())
    }

    /// Repeats what earlier segments must not take with them. The counts come last: where they are, all is.
    fn carry_over(&mut self) -> Result<(), JournalError> {
        let intents = self.open.values().cloned().map(|intent| Record::Intent(Box::new(intent)));
        let mut bytes = Vec::new();
        let mut count = 0;
        for record in intents.chain([Record::Counts(self.counts.clone())]) {
            segment::encode(self.next_seq + count, &record, &mut bytes);
            count += 1;
        }
        self.append(&bytes, count)
    }

    fn append(&mut self, bytes: &[u8], count: u64) -> Result<(), JournalError> {
        self.active.append(bytes)?;
        self.next_seq += count;
        self.shared.bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        Ok(())
    }

    fn remember(&mut self, record: Record) {
        match record {
            Record::Intent(intent) => drop(self.open.insert(intent.id, *intent)),
            Record::Final(event) => {
                self.open.remove(&event.id);
                self.counts.add(&event);
                self.shared.count(|counts| counts.add(&event));
            }
            Record::Counts(_) | Record::Unknown => {}
        }
    }
}

impl Active {
    /// Makes a segment of the room that was laid aside for it, or else of what the disk has. The caller counts its bytes.
    fn create(shared: &Shared, syncer: &Syncer, first_seq: u64) -> Result<Self, JournalError> {
        let (directory, path) = (&shared.directory, segment::path(&shared.directory, first_seq));
        let failed = io_error(&path);
        match std::fs::rename(spare(directory), &path) {
            Ok(()) => syncer.spare_taken(),
            Err(e) if e.kind() == ErrorKind::NotFound => syncer.spare_taken(),
            Err(e) => return Err(failed(e)),
        }
        let file = OpenOptions::new().write(true).create(true).truncate(false).open(&path).map_err(&failed)?;
        let header = segment::header(shared.epoch, first_seq);
        file.write_all_at(&header, 0).and_then(|()| file.sync_all()).map_err(&failed)?;
        sync_directory(directory)?;
        Ok(Self { path, file: Arc::new(file), length: segment::HEADER })
    }

    fn append(&mut self, bytes: &[u8]) -> Result<(), JournalError> {
        if is_due("edge.mid_segment") {
            let _ = self.file.write_all_at(&bytes[..bytes.len() / 2], self.length);
            std::process::abort();
        }
        if let Err(source) = self.file.write_all_at(bytes, self.length) {
            // Best effort: an unfinished record at the tail is cut off at the next start in any case.
            let _ = self.file.set_len(self.length);
            return Err(JournalError::Io { path: self.path.clone(), source });
        }
        self.length += bytes.len() as u64;
        Ok(())
    }
}

fn sync_directory(directory: &Path) -> Result<(), JournalError> {
    File::open(directory).and_then(|directory| directory.sync_all()).map_err(io_error(directory))
}

#[cfg(test)]
mod tests {
    use super::super::segment::fixtures::event;
    use super::*;
    use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
    use std::os::fd::AsRawFd as _;
    use std::os::unix::fs::symlink;
    use std::time::Instant;
    use tokio::sync::oneshot;

    #[test]
    fn a_segment_that_takes_several_tries_is_counted_once() {
        let directory = tempfile::tempdir().unwrap();
        let recovered = Recovered::default();
        let shared = Arc::new(Shared::new(directory.path(), 1, 1 << 30, &recovered));
        let syncer = Syncer::new(Arc::clone(&shared));
        let mut writer = Writer::resume(Arc::clone(&shared), syncer, recovered).unwrap();
        let record = Record::Final(Box::new(event(1)));
        writer.write(&[Entry { record, handed_over: Instant::now(), written: oneshot::channel().0 }]).unwrap();
        let before = shared.bytes.load(Ordering::Relaxed);

        // A file that has room for the header and for nothing behind it.
        let small = File::from(memfd_create("small", MemfdFlags::ALLOW_SEALING).unwrap());
        small.set_len(segment::HEADER).unwrap();
        fcntl_add_seals(&small, SealFlags::GROW).unwrap();
        let path = segment::path(directory.path(), writer.next_seq);
        symlink(format!("/proc/self/fd/{}", small.as_raw_fd()), &path).unwrap();
        for _ in 0..3 {
            writer.next_segment().unwrap_err();
            assert_eq!(shared.bytes.load(Ordering::Relaxed), before);
        }
        std::fs::remove_file(&path).unwrap();
        writer.next_segment().unwrap();
        let segments = segment::list(directory.path()).unwrap();
        let lengths = segments.iter().map(|first| segment::path(directory.path(), *first).metadata().unwrap().len());
        assert_eq!((segments.len(), shared.bytes.load(Ordering::Relaxed)), (2, lengths.sum()));
    }
}
