//! What an earlier life of this process left on disk.

use super::record::{Counts, Intent, Record};
use super::{JournalError, io_error, segment};
use foldhash::HashMap;
use std::fs::OpenOptions;
use std::path::Path;
use turnpike_config::EventId;

/// Where the journal stands.
#[derive(Debug, Default)]
pub(super) struct Recovered {
    /// Number of the next record.
    pub(super) next_seq: u64,
    /// First number of the last segment, and its good bytes with the header; `None` if there is none that can be
    /// continued.
    pub(super) last: Option<(u64, u64)>,
    /// Intents whose events are missing.
    pub(super) open: HashMap<EventId, Intent>,
    /// The last segment repeats what earlier ones must not take with them, or is the first.
    pub(super) carried: bool,
    /// Sums of all events so far.
    pub(super) counts: Counts,
    /// Bytes of all segments.
    pub(super) bytes: u64,
}

/// Up to where the control plane has everything.
pub(super) fn shipped(directory: &Path) -> Result<u64, JournalError> {
    let mark = directory.join("shipped");
    match std::fs::read_to_string(&mark) {
        Ok(text) => text.trim().parse().map_err(|_| JournalError::Damaged { path: mark }),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(0),
        Err(e) => Err(io_error(&mark)(e)),
    }
}

/// Reads all segments; cuts off a record that a crash left unfinished. Everything below `shipped` was shipped.
pub(super) fn recover(directory: &Path, epoch: u64, shipped: u64) -> Result<Recovered, JournalError> {
    let segments = segment::list(directory)?;
    let mut found = Recovered::default();
    for (index, first_seq) in segments.iter().enumerate() {
        let path = segment::path(directory, *first_seq);
        let size = std::fs::metadata(&path).map_err(io_error(&path))?.len();
        let is_last = index + 1 == segments.len();
        found.next_seq = found.next_seq.max(*first_seq);
        if size < segment::HEADER && is_last {
            // The crash hit between making the file and its header: it holds nothing, and is made anew.
            (found.last, found.carried) = (None, false);
            break;
        }
        let bytes = segment::read_from(&path, epoch, segment::HEADER, usize::MAX)?;
        let scan = segment::scan_all(&bytes);
        let (good, rest) = (segment::HEADER + scan.good_bytes as u64, bytes.len() - scan.good_bytes);
        if scan.damaged_bytes > 0 || rest > 0 && !is_last {
            let damaged_bytes = scan.damaged_bytes + rest;
            tracing::error!(
                segment = %path.display(),
                damaged_bytes,
                "the disk has damaged usage records; requests that were on their way are asked for at their nodes"
            );
        }
        // What another process wrote may be in the page cache alone; it counts as durable from here on.
        std::fs::File::open(&path).and_then(|file| file.sync_data()).map_err(io_error(&path))?;
        if is_last && rest > 0 {
            tracing::warn!(segment = %path.display(), lost_bytes = rest, "cut off a record that a crash left unfinished");
            let file = OpenOptions::new().write(true).open(&path).map_err(io_error(&path))?;
            file.set_len(good).and_then(|()| file.sync_data()).map_err(io_error(&path))?;
        }
        found.bytes += if is_last { good } else { size };
        found.last = is_last.then_some((*first_seq, good));
        found.carried = *first_seq == 0;
        for record in scan.records {
            let read = record.decode();
            if read.is_none() {
                tracing::error!(segment = %path.display(), record = record.seq, "a usage record cannot be read");
            }
            found.carried |= matches!(read, Some(Record::Counts(_)));
            found.take(record.seq, read.unwrap_or(Record::Unknown));
        }
    }
    // Records that were shipped and are torn off now have had their numbers: they are not given again.
    found.next_seq = found.next_seq.max(shipped);
    Ok(found)
}

impl Recovered {
    fn take(&mut self, seq: u64, record: Record) {
        self.next_seq = self.next_seq.max(seq + 1);
        match record {
            Record::Intent(intent) => drop(self.open.insert(intent.id, *intent)),
            Record::Final(event) => {
                self.open.remove(&event.id);
                self.counts.add(&event);
            }
            // Of everything before it, segments included that have been shipped and deleted.
            Record::Counts(counts) => self.counts = counts,
            Record::Unknown => {}
        }
    }
}
