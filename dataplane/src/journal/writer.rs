//! Writes records into segments.

use super::record::{Counts, Intent, Record};
use super::recover::Recovered;
use super::state::Shared;
use super::sync::{Active, Syncer, spare};
use super::{JournalError, io_error, segment};
use foldhash::HashMap;
use std::fs::{File, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use turnpike_config::crash::is_due;
use turnpike_config::{EventId, UsageEvent};

/// Bytes kept for encoding the next records.
const KEPT_ROOM: usize = 64 << 10;
/// A segment is closed at this size and can be deleted once shipped.
const SEGMENT_BYTES: u64 = 16 << 20;

pub(super) struct Writer {
    shared: Arc<Shared>,
    syncer: Arc<Syncer>,
    next_seq: u64,
    /// Records handed over that are written.
    taken: u64,
    active: Arc<Active>,
    /// Bytes of it known to be good; a failed write is cut back to here.
    length: u64,
    /// Intents whose events have not come: carried into each new segment, so that old ones can go.
    open: HashMap<EventId, Box<Intent>>,
    counts: Counts,
    /// Room for what is being encoded.
    bytes: Vec<u8>,
}

impl Writer {
    /// Continues after the last whole record on disk.
    pub(super) fn resume(shared: Arc<Shared>, syncer: Arc<Syncer>, recovered: Recovered) -> Result<Self, JournalError> {
        let Recovered { next_seq, last, open, counts, carried, .. } = recovered;
        let (active, length) = match last {
            Some((first_seq, length)) => {
                let path = segment::path(&shared.directory, first_seq);
                let file = OpenOptions::new().write(true).open(&path).map_err(io_error(&path))?;
                (Active { path, file }, length)
            }
            None => {
                let active = create(&shared, &syncer, next_seq)?;
                shared.bytes.fetch_add(segment::HEADER, Ordering::Relaxed);
                (active, segment::HEADER)
            }
        };
        let open = open.into_iter().map(|(id, intent)| (id, Box::new(intent))).collect();
        let (active, bytes) = (Arc::new(active), Vec::new());
        let mut writer = Self { shared, syncer, next_seq, taken: 0, active, length, open, counts, bytes };
        if !carried && next_seq > 0 {
            // A crash hit between making the segment and carrying over: once earlier ones are gone it would be too late.
            writer.carry_over()?;
            writer.active.file.sync_data().map_err(io_error(&writer.active.path))?;
            writer.syncer.written(&writer.active, writer.next_seq, 0);
        }
        Ok(writer)
    }

    /// Whether the next record begins a segment, which takes a while.
    pub(super) const fn is_full(&self) -> bool {
        self.length >= SEGMENT_BYTES
    }

    /// Writes records, in order; they are synced soon afterwards.
    pub(super) fn write<'a>(&mut self, group: impl Iterator<Item = &'a Record>) -> Result<(), JournalError> {
        if self.is_full() {
            self.next_segment()?;
        }
        let mut bytes = std::mem::take(&mut self.bytes);
        bytes.clear();
        let mut count = 0;
        for record in group {
            segment::encode(self.next_seq + count, record, &mut bytes);
            count += 1;
        }
        let appended = self.append(&bytes, count);
        if bytes.capacity() <= KEPT_ROOM {
            self.bytes = bytes;
        }
        appended?;
        self.taken += count;
        self.syncer.written(&self.active, self.next_seq, self.taken);
        Ok(())
    }

    /// Begins a segment with all that must not go with the earlier ones.
    fn next_segment(&mut self) -> Result<(), JournalError> {
        // The syncer only knows the newest file.
        self.active.file.sync_data().map_err(io_error(&self.active.path))?;
        let active = Arc::new(create(&self.shared, &self.syncer, self.next_seq)?);
        let before =
            (std::mem::replace(&mut self.active, active), std::mem::replace(&mut self.length, segment::HEADER));
        if let Err(error) = self.carry_over() {
            // The next try makes it anew.
            (self.active, self.length) = before;
            return Err(error);
        }
        self.shared.bytes.fetch_add(segment::HEADER, Ordering::Relaxed);
        Ok(())
    }

    /// Repeats what earlier segments must not take with them. The counts come last: where they are, all is.
    fn carry_over(&mut self) -> Result<(), JournalError> {
        let intents = self.open.values().cloned().map(Record::Intent);
        let mut bytes = Vec::new();
        let mut count = 0;
        for record in intents.chain([Record::Counts(self.counts.clone())]) {
            segment::encode(self.next_seq + count, &record, &mut bytes);
            count += 1;
        }
        self.append(&bytes, count)
    }

    fn append(&mut self, bytes: &[u8], count: u64) -> Result<(), JournalError> {
        if is_due("edge.mid_segment") {
            let _ = self.active.file.write_all_at(&bytes[..bytes.len() / 2], self.length);
            std::process::abort();
        }
        if let Err(source) = self.active.file.write_all_at(bytes, self.length) {
            // Best effort: an unfinished record at the tail is cut off at the next start in any case.
            let _ = self.active.file.set_len(self.length);
            return Err(JournalError::Io { path: self.active.path.clone(), source });
        }
        self.length += bytes.len() as u64;
        self.next_seq += count;
        self.shared.bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        Ok(())
    }

    /// Notes what must outlast the segment that it was written in. An event is given back.
    pub(super) fn remember(&mut self, record: Record) -> Option<Box<UsageEvent>> {
        match record {
            Record::Intent(intent) => {
                self.open.insert(intent.id, intent);
                None
            }
            Record::Final(event) => {
                self.open.remove(&event.id);
                self.counts.add(&event);
                self.shared.count(|counts| counts.add(&event));
                Some(event)
            }
            Record::Counts(_) | Record::Unknown => None,
        }
    }
}

/// Makes a segment of the room that was laid aside for it, or else of what the disk has. The caller counts its bytes.
fn create(shared: &Shared, syncer: &Syncer, first_seq: u64) -> Result<Active, JournalError> {
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
    Ok(Active { path, file })
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

    #[test]
    fn a_segment_that_takes_several_tries_is_counted_once() {
        let directory = tempfile::tempdir().unwrap();
        let recovered = Recovered::default();
        let shared = Arc::new(Shared::new(directory.path(), 1, 1 << 30, &recovered));
        let syncer = Syncer::new(Arc::clone(&shared));
        let mut writer = Writer::resume(Arc::clone(&shared), syncer, recovered).unwrap();
        let record = Record::Final(Box::new(event(1)));
        writer.write([&record].into_iter()).unwrap();
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
