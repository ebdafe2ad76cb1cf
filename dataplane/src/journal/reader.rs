//! Reads the journal back for shipping, and deletes what has been stored elsewhere.

use super::handle::Journal;
use super::segment::Found;
use super::{JournalError, io_error, recover, segment};
use bytes::Bytes;
use std::path::Path;
use turnpike_config::EncodedEvent;

/// Bytes looked at for one batch; several thousand records.
const WINDOW: usize = 4 << 20;

/// A stretch of the journal.
#[derive(Debug)]
pub(crate) struct Batch {
    pub(crate) first_seq: u64,
    /// After the last record.
    pub(crate) end_seq: u64,
    /// The events among the records.
    pub(crate) events: Vec<EncodedEvent>,
}

/// A position in the journal that survives restarts.
#[derive(Debug)]
pub(crate) struct Reader {
    journal: Journal,
    /// Next sequence number to ship.
    position: u64,
    /// Where to go on, if known.
    cursor: Option<Cursor>,
}

/// Records from `offset` on have numbers from `seq` on.
#[derive(Clone, Copy, Debug)]
struct Cursor {
    segment: u64,
    seq: u64,
    offset: u64,
}

impl Reader {
    /// Continues where the last reader had advanced to.
    pub(crate) fn open(journal: &Journal) -> Result<Self, JournalError> {
        Ok(Self { journal: journal.clone(), position: recover::shipped(journal.directory())?, cursor: None })
    }

    /// Next sequence number to ship.
    pub(crate) const fn position(&self) -> u64 {
        self.position
    }

    /// The next records below `durable`, at most `limit`; `None` if there are none. What it has read it does not read again.
    pub(crate) fn next(&mut self, durable: u64, limit: usize) -> Result<Option<Batch>, JournalError> {
        if self.position >= durable {
            return Ok(None);
        }
        let first_seq = self.position;
        let segments = segment::list(self.journal.directory())?;
        // What lies before the first segment was shipped and deleted; without a mark of that, it is not known to be.
        let holder = segments.iter().rposition(|first| *first <= first_seq).unwrap_or(0);
        let Some(&first) = segments.get(holder) else { return Ok(None) };
        let next_segment = segments.get(holder + 1).copied();
        let known = self.cursor.filter(|cursor| cursor.segment == first && cursor.seq <= first_seq);
        let mut cursor = known.unwrap_or(Cursor { segment: first, seq: first, offset: segment::HEADER });
        let path = segment::path(self.journal.directory(), first);
        let mut window = WINDOW;
        loop {
            let bytes = Bytes::from(segment::read_from(&path, self.journal.epoch(), cursor.offset, window)?);
            let scan = segment::scan(&bytes, limit, durable);
            let is_all = bytes.len() < window;
            let Some(last) = scan.records.last() else {
                if !is_all {
                    // Damage as long as the window.
                    window *= 2;
                    continue;
                }
                // The segment has no more of them that can be read.
                let end_seq = next_segment.unwrap_or(durable).min(durable);
                return Ok(Some(Batch { first_seq, end_seq, events: Vec::new() }));
            };
            let end = last.seq + 1;
            cursor = Cursor { seq: end, offset: cursor.offset + scan.good_bytes as u64, ..cursor };
            if end > first_seq {
                let records = scan.records.iter().filter(|found| found.seq >= first_seq);
                let readable = records.filter(|found| self.journal.is_own(found.seq) || is_readable(found, &path));
                let events = readable.filter_map(|found| Some(EncodedEvent(bytes.slice_ref(found.event()?))));
                self.cursor = Some(cursor);
                return Ok(Some(Batch { first_seq, end_seq: end, events: events.collect() }));
            }
        }
    }

    /// Everything below `end_seq` is stored by the control plane: remember it and delete segments that hold nothing else.
    pub(crate) fn advance(&mut self, end_seq: u64) -> Result<(), JournalError> {
        self.position = self.position.max(end_seq);
        let directory = self.journal.directory();
        let mark = directory.join("shipped");
        crate::files::write_atomically(&mark, format!("{}\n", self.position).as_bytes()).map_err(io_error(&mark))?;
        let segments = segment::list(directory)?;
        for pair in segments.windows(2) {
            // A segment's first records are carried from the one before, in one group with the next: once more than those are
            // shipped, they are durable. The last segment stays, it carries the numbering on.
            if pair[1] < self.position {
                let path = segment::path(directory, pair[0]);
                let size = std::fs::metadata(&path).map_or(0, |meta| meta.len());
                std::fs::remove_file(&path).map_err(io_error(&path))?;
                self.journal.deleted(size);
            }
        }
        Ok(())
    }
}

/// Whether this version can read a record that another may have written. What it cannot read, nobody else could either: it must
/// not hold up what comes after it.
fn is_readable(found: &Found<'_>, path: &Path) -> bool {
    let is_readable = found.decode().is_some();
    if !is_readable {
        tracing::error!(segment = %path.display(), record = found.seq, "a usage record cannot be read and is not shipped");
    }
    is_readable
}

#[cfg(test)]
mod tests {
    use super::super::segment::fixtures::event;
    use super::*;

    #[tokio::test]
    async fn what_is_not_durable_yet_is_left_and_what_was_read_is_not_read_again() {
        let directory = tempfile::tempdir().unwrap();
        let opened = Journal::open(directory.path(), 1 << 30, |_, _| ()).unwrap();
        for number in 0..10 {
            opened.journal.permit(1).unwrap().record(event(number)).wait().await;
        }
        let mut reader = Reader::open(&opened.journal).unwrap();
        for (durable, limit, wanted) in [(3, 100, 0..3), (7, 2, 3..5), (7, 2, 5..7), (10, 100, 7..10)] {
            let batch = reader.next(durable, limit).unwrap().unwrap();
            let read = batch.events.iter().map(|event| event.decode().unwrap().prompt_tokens);
            assert_eq!(read.collect::<Vec<_>>(), wanted.clone().collect::<Vec<_>>());
            assert_eq!((batch.first_seq, batch.end_seq), (wanted.start.into(), wanted.end.into()));
            assert_eq!(reader.cursor.unwrap().seq, batch.end_seq, "the next reading begins there");
            reader.advance(batch.end_seq).unwrap();
        }
        assert!(reader.next(10, 100).unwrap().is_none());
    }
}
