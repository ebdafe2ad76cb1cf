//! What came after a whole state, a record for each step.

use super::checked::{self, Damage};
use minicbor::{Decode, Encode};
use std::fs::{File, OpenOptions};
use std::io::{BufReader, Seek as _, SeekFrom, Write as _};
use std::path::Path;
use turnpike_config::Change;
use turnpike_config::log::Position;

const MAGIC: &[u8; 8] = b"TPKSTEP1";
/// Most bytes of one record: more than a push can have.
const MOST: u64 = 64 << 20;

/// A step from one position to another, or an early change at one.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct Record {
    #[n(0)]
    pub(crate) from: Position,
    #[n(1)]
    pub(crate) to: Position,
    #[n(2)]
    pub(crate) changes: Vec<Change>,
    /// The changes are from this version, which is beyond the position: served by already, and not part of its state.
    #[n(3)]
    pub(crate) early: Option<u64>,
}

/// A log that is written to.
#[derive(Debug)]
pub(super) struct Log {
    file: File,
    size: u64,
}

impl Log {
    /// A new one, empty.
    pub(super) fn create(path: &Path) -> std::io::Result<Self> {
        let mut file = File::create(path)?;
        file.write_all(MAGIC)?;
        file.sync_all()?;
        path.parent().map_or(Ok(()), |directory| File::open(directory)?.sync_all())?;
        Ok(Self { file, size: MAGIC.len() as u64 })
    }

    /// One that is there, of which so many bytes are good; the rest is cut off.
    pub(super) fn reopen(path: &Path, size: u64) -> std::io::Result<Self> {
        let mut file = OpenOptions::new().write(true).open(path)?;
        if file.metadata()?.len() != size {
            file.set_len(size)?;
            file.sync_all()?;
        }
        file.seek(SeekFrom::Start(size))?;
        Ok(Self { file, size })
    }

    /// Writes records and waits until they are on the disk. After a failure, none of them is there.
    pub(super) fn append(&mut self, records: &[Record]) -> std::io::Result<()> {
        let mut bytes = Vec::new();
        for record in records {
            let mut body = Vec::new();
            // Writing into a Vec cannot fail.
            let _ = minicbor::encode(record, &mut body);
            checked::write(&mut bytes, &body)?;
        }
        let written = self.file.write_all(&bytes).and_then(|()| self.file.sync_data());
        if written.is_err() {
            // Should this fail too, a record that is torn or unexpected is cut off at the next start.
            let _ = self.file.set_len(self.size);
            let _ = self.file.seek(SeekFrom::Start(self.size));
        } else {
            self.size += bytes.len() as u64;
        }
        written
    }

    pub(super) const fn size(&self) -> u64 {
        self.size
    }
}

/// Reads records one after the other.
pub(super) struct Reader {
    file: BufReader<File>,
    /// Bytes up to the end of the last good record.
    pub(super) good: u64,
}

impl Reader {
    pub(super) fn open(path: &Path) -> Result<Self, Damage> {
        let mut file = BufReader::new(File::open(path)?);
        let mut magic = [0; 8];
        checked::fill(&mut file, &mut magic)?;
        if magic != *MAGIC {
            return Err(Damage::Parts);
        }
        Ok(Self { file, good: MAGIC.len() as u64 })
    }

    /// The next record; `None` at the end.
    pub(super) fn next(&mut self) -> Result<Option<(Record, u64)>, Damage> {
        use std::io::BufRead as _;
        if self.file.fill_buf()?.is_empty() {
            return Ok(None);
        }
        let body = checked::read(&mut self.file, MOST)?;
        let record = minicbor::decode(&body)?;
        let before = self.good;
        self.good += (checked::HEAD + body.len()) as u64;
        Ok(Some((record, before)))
    }
}
