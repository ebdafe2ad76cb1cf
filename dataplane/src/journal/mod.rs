//! The usage journal: every metered request ends as a record on this disk before anything else may lose it.
//!
//! Append-only segment files of checksummed records, numbered without gaps by `(epoch, seq)`. One thread writes and syncs
//! in groups; requests only hold a permit for a slot in its queue, taken before dispatch, so that a request is never
//! served that could not be recorded. The shipper reads back from disk and deletes what the control plane has stored.

mod reader;
mod segment;
mod writer;

pub(crate) use reader::Reader;
pub(crate) use writer::{Journal, Permit};

use std::path::PathBuf;

/// Why the journal cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The disk refused.
    #[error("usage journal {path}: {source}")]
    Io {
        /// File or directory.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// Two edges cannot share a journal.
    #[error("{path} is in use by another process; give every edge a data_dir of its own")]
    InUse {
        /// The directory.
        path: PathBuf,
    },
    /// A record other than the last is damaged: what follows it cannot be trusted to be complete.
    #[error(
        "usage journal {path} is damaged at byte {offset} with records after it; move the file away to start without it"
    )]
    Damaged {
        /// The segment.
        path: PathBuf,
        /// First bad byte.
        offset: u64,
    },
}

fn io_error(path: &std::path::Path) -> impl Fn(std::io::Error) -> JournalError + use<> {
    let path = path.to_owned();
    move |source| JournalError::Io { path: path.clone(), source }
}
