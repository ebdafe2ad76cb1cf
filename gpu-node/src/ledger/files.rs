//! The ledger's directory: files of records, numbered in the order of their making, each of one hour.

use super::record::{Entry, Outcome, Record, SIZE, event_in};
use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::ops::{ControlFlow, Range};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use turnpike_config::EventId;

/// How a file's name ends.
const SUFFIX: &str = ".ledger";
/// Records read at once.
const CHUNK: usize = 4096;
/// Milliseconds of an hour.
const HOUR_MS: u64 = 3_600_000;

/// A file, as its name says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct FileId {
    /// Counts up from 1, whatever the clock does.
    pub(super) number: u32,
    /// Hour since 1970 in which it was begun.
    pub(super) hour: u32,
}

impl FileId {
    fn name(self) -> String {
        format!("{:010}-{}{SUFFIX}", self.number, self.hour)
    }

    fn from_name(name: &str) -> Option<Self> {
        let (number, hour) = name.strip_suffix(SUFFIX)?.split_once('-')?;
        Some(Self { number: number.parse().ok()?, hour: hour.parse().ok()? })
    }

    pub(super) fn path(self, directory: &Path) -> PathBuf {
        directory.join(self.name())
    }
}

/// A place between two records. Grows with every record written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Position {
    /// Number of the file.
    pub(super) file: u32,
    /// Records before it in that file.
    pub(super) record: u32,
}

impl Position {
    /// As one number, which grows as the position does.
    pub(crate) const fn as_u64(self) -> u64 {
        (self.file as u64) << 32 | self.record as u64
    }

    /// The position that a number stands for.
    pub(super) fn from_u64(number: u64) -> Self {
        let part = |number: u64| u32::try_from(number & u64::from(u32::MAX)).unwrap_or(u32::MAX);
        Self { file: part(number >> 32), record: part(number) }
    }
}

/// The hour since 1970 that a moment falls in. `ms`: Unix milliseconds.
pub(super) fn hour_of(ms: u64) -> u32 {
    u32::try_from(ms / HOUR_MS).unwrap_or(u32::MAX)
}

/// The files there are, oldest first.
pub(super) fn list(directory: &Path) -> io::Result<Vec<FileId>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        files.extend(entry?.file_name().to_str().and_then(FileId::from_name));
    }
    files.sort_unstable();
    Ok(files)
}

/// Shows every whole record of a part of a file to `look`: its index, its bytes as they are on disk.
pub(super) fn scan(
    path: &Path,
    part: Range<u32>,
    mut look: impl FnMut(u32, &[u8; SIZE]) -> ControlFlow<()>,
) -> io::Result<()> {
    let mut file = File::open(path)?;
    file.seek(SeekFrom::Start(u64::from(part.start) * SIZE as u64))?;
    let mut reader = io::BufReader::with_capacity(CHUNK * SIZE, file);
    let mut record = [0; SIZE];
    for index in part {
        match reader.read_exact(&mut record) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => break,
            Err(error) => return Err(error),
        }
        if look(index, &record).is_break() {
            break;
        }
    }
    Ok(())
}

/// What the last files say at a start.
#[derive(Debug, Default)]
pub(super) struct Recovered {
    /// Attempts that are running as far as the files know.
    pub(super) running: HashMap<EventId, u32>,
    /// What had ended, in order.
    pub(super) ended: Vec<(EventId, Outcome)>,
    /// Whole records of the last file.
    pub(super) records: u32,
    /// Records in it and before that are damaged; a torn one at its end is not counted.
    pub(super) damaged: u64,
}

/// Reads the last two files: the last one begins with what was running then, unless that could not be written whole.
pub(super) fn recover(directory: &Path, files: &[FileId]) -> io::Result<Recovered> {
    let mut recovered = Recovered::default();
    for file in &files[files.len().saturating_sub(2)..] {
        let (mut damaged_here, mut trailing) = (0, 0);
        recovered.records = 0;
        scan(&file.path(directory), 0..u32::MAX, |index, bytes| {
            match Record::decode(bytes) {
                Some(record) => {
                    recovered.take(record);
                    recovered.records = index + 1;
                    trailing = 0;
                }
                None => {
                    damaged_here += 1;
                    trailing += 1;
                }
            }
            ControlFlow::Continue(())
        })?;
        recovered.damaged += damaged_here - trailing;
    }
    Ok(recovered)
}

impl Recovered {
    fn take(&mut self, Record { event, entry }: Record) {
        match entry {
            Entry::Begun => *self.running.entry(event).or_default() += 1,
            Entry::Carried(attempts) => {
                self.running.insert(event, attempts);
            }
            Entry::Ended(outcome) => {
                self.ended.push((event, outcome));
                if let Some(attempts) = self.running.get_mut(&event) {
                    *attempts -= 1;
                    if *attempts == 0 {
                        self.running.remove(&event);
                    }
                }
            }
            Entry::Blank => {}
        }
    }
}

/// Looks events up that memory no longer holds.
#[derive(Debug)]
pub(super) struct Archive {
    directory: PathBuf,
    /// Hours that the ids in a file are of, once somebody has read it. Files that may still grow are not in here.
    hours: Mutex<HashMap<u32, BTreeSet<u32>>>,
}

impl Archive {
    pub(super) fn new(directory: PathBuf) -> Self {
        Self { directory, hours: Mutex::default() }
    }

    /// What counts for an event: its last outcome, in the last file that has one. Reads as many files as have ids of the
    /// same hour; an edge's clock may be off by days, so that may be any. Reads up to `end`; [`Outcome::RUNNING`] is of an
    /// event that has begun and not ended by then.
    pub(super) fn find(&self, event: EventId, end: Position) -> io::Result<Option<Outcome>> {
        let files = list(&self.directory)?;
        let hour = hour_of(event.unix_ms());
        let mut begun = None;
        for file in files.iter().rev().filter(|file| file.number <= end.file) {
            if self.known_hours(file.number, |hours| !hours.contains(&hour)) == Some(true) {
                continue;
            }
            match self.find_in(*file, (file.number == end.file).then_some(end.record), event) {
                Ok(Some(Outcome::RUNNING)) => begun = Some(Outcome::RUNNING),
                Ok(Some(ended)) => return Ok(Some(ended)),
                Ok(None) => {}
                // Retired meanwhile.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(begun)
    }

    /// `records`: how many of them count, of a file that may grow.
    fn find_in(&self, file: FileId, records: Option<u32>, event: EventId) -> io::Result<Option<Outcome>> {
        let mut found = None;
        let note_hours = records.is_none() && self.known_hours(file.number, |_| ()).is_none();
        let mut hours = BTreeSet::new();
        scan(&file.path(&self.directory), 0..records.unwrap_or(u32::MAX), |_, bytes| {
            let id = event_in(bytes);
            if note_hours {
                hours.insert(hour_of(id.unix_ms()));
            }
            if id == event {
                match Record::decode(bytes).map(|record| record.entry) {
                    Some(Entry::Ended(outcome)) => found = Some(outcome),
                    Some(Entry::Begun | Entry::Carried(_)) => {
                        found.get_or_insert(Outcome::RUNNING);
                    }
                    Some(Entry::Blank) | None => {}
                }
            }
            ControlFlow::Continue(())
        })?;
        if note_hours {
            self.hours.lock().unwrap_or_else(PoisonError::into_inner).insert(file.number, hours);
        }
        Ok(found)
    }

    fn known_hours<T>(&self, file: u32, ask: impl FnOnce(&BTreeSet<u32>) -> T) -> Option<T> {
        self.hours.lock().unwrap_or_else(PoisonError::into_inner).get(&file).map(ask)
    }

    /// What ended from `from` on, in order, up to `to`, at most `most`; and where to go on.
    pub(super) fn ended(
        &self,
        from: Position,
        to: Position,
        most: usize,
    ) -> io::Result<(Vec<(EventId, Outcome)>, Position)> {
        let (mut found, mut next) = (Vec::new(), from);
        for file in list(&self.directory)?.into_iter().filter(|file| (from.file..=to.file).contains(&file.number)) {
            let start = if file.number == from.file { from.record } else { 0 };
            let end = if file.number == to.file { to.record } else { u32::MAX };
            next = Position { file: file.number, record: start };
            scan(&file.path(&self.directory), start..end.max(start), |index, bytes| {
                if let Some(Record { event, entry: Entry::Ended(outcome) }) = Record::decode(bytes) {
                    found.push((event, outcome));
                }
                next.record = index + 1;
                if found.len() < most { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
            })?;
            if found.len() >= most {
                return Ok((found, next));
            }
        }
        Ok((found, next.max(to)))
    }

    /// Forgets a file that was removed.
    pub(super) fn forget(&self, file: u32) {
        self.hours.lock().unwrap_or_else(PoisonError::into_inner).remove(&file);
    }
}
