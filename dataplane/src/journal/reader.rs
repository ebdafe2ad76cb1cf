//! Reads the journal back for shipping, and deletes what has been stored elsewhere.

use super::writer::Journal;
use super::{JournalError, io_error, segment};
use std::path::PathBuf;
use turnpike_config::UsageEvent;

/// Bytes looked at for one batch; several thousand events.
const WINDOW: usize = 4 << 20;

/// Consecutive events.
#[derive(Debug)]
pub(crate) struct Batch {
    pub(crate) first_seq: u64,
    pub(crate) last_seq: u64,
    pub(crate) events: Vec<UsageEvent>,
}

/// A position in the journal that survives restarts.
#[derive(Debug)]
pub(crate) struct Reader {
    directory: PathBuf,
    epoch: u64,
    /// Next sequence number to ship.
    position: u64,
    /// Segment and byte offset of `position`, if known.
    cursor: Option<Cursor>,
}

#[derive(Clone, Copy, Debug)]
struct Cursor {
    segment: u64,
    seq: u64,
    offset: u64,
}

impl Reader {
    /// Continues where the last reader had advanced to.
    pub(crate) fn open(journal: &Journal) -> Result<Self, JournalError> {
        let mark = journal.directory.join("shipped");
        let position = match std::fs::read_to_string(&mark) {
            Ok(text) => text.trim().parse().map_err(|_| JournalError::Damaged { path: mark, offset: 0 })?,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => 0,
            Err(e) => return Err(io_error(&mark)(e)),
        };
        Ok(Self { directory: journal.directory.clone(), epoch: journal.epoch, position, cursor: None })
    }

    /// The next events below `durable`, at most `limit`; `None` if there are none.
    pub(crate) fn next(&mut self, durable: u64, limit: usize) -> Result<Option<Batch>, JournalError> {
        if self.position >= durable {
            return Ok(None);
        }
        let Some(mut cursor) = self.seek()? else { return Ok(None) };
        let path = segment::path(&self.directory, cursor.segment);
        let most = limit.min(usize::try_from(durable - self.position).unwrap_or(usize::MAX));
        loop {
            let bytes = segment::read_from(&path, self.epoch, cursor.offset, WINDOW)?;
            let skip = usize::try_from(self.position - cursor.seq).unwrap_or(usize::MAX);
            let scan = segment::scan(&bytes, skip.min(4096) + if skip <= 4096 { most } else { 0 });
            if scan.events.is_empty() {
                return Err(JournalError::Damaged { path, offset: cursor.offset });
            }
            let count = scan.events.len();
            let end = Cursor {
                segment: cursor.segment,
                seq: cursor.seq + count as u64,
                offset: cursor.offset + scan.good_bytes as u64,
            };
            if end.seq > self.position {
                let events: Vec<_> = scan.events.into_iter().skip(skip).collect();
                self.cursor = Some(end);
                let last_seq = self.position + events.len() as u64 - 1;
                return Ok(Some(Batch { first_seq: self.position, last_seq, events }));
            }
            cursor = end;
        }
    }

    /// Where `position` lies, or the start of the segment that holds it.
    fn seek(&mut self) -> Result<Option<Cursor>, JournalError> {
        let segments = segment::list(&self.directory)?;
        let Some(holder) = segments.iter().rev().find(|first| **first <= self.position).copied() else {
            // Everything below the first segment was shipped and deleted.
            if let Some(first) = segments.first() {
                self.position = *first;
            }
            return Ok(segments.first().map(|first| Cursor { segment: *first, seq: *first, offset: segment::HEADER }));
        };
        let known = self.cursor.filter(|cursor| cursor.segment == holder && cursor.seq <= self.position);
        Ok(Some(known.unwrap_or(Cursor { segment: holder, seq: holder, offset: segment::HEADER })))
    }

    /// Everything through `seq` is stored by the control plane: remember it and delete segments that hold nothing else.
    pub(crate) fn advance(&mut self, seq: u64) -> Result<(), JournalError> {
        self.position = self.position.max(seq + 1);
        let mark = self.directory.join("shipped");
        crate::files::write_atomically(&mark, format!("{}\n", self.position).as_bytes()).map_err(io_error(&mark))?;
        let segments = segment::list(&self.directory)?;
        for pair in segments.windows(2) {
            // The last segment stays: it carries the numbering on.
            if pair[1] <= self.position {
                let path = segment::path(&self.directory, pair[0]);
                std::fs::remove_file(&path).map_err(io_error(&path))?;
            }
        }
        Ok(())
    }
}
