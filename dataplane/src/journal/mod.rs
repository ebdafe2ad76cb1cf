//! The usage journal: every metered request is on this disk before its client has had all of the answer.
//!
//! Append-only segment files of checksummed records, numbered without gaps by `(epoch, seq)`. An *intent* is written before
//! a node is asked and an *event* at the end. Requests write their records themselves, into the system's memory; while the
//! disk is busy or refuses a thread does it for them, and another syncs behind them in groups: a killed process loses
//! nothing that was written, a power cut nothing that was synced. Requests hold a permit for a slot among what waits, taken
//! before dispatch, so that none is served that could not be recorded. The shipper reads back from disk
//! and deletes what the control plane has stored. Intents whose events are missing at the next start are for
//! [`crate::resolve`].

mod began;
mod desk;
mod handle;
mod reader;
mod record;
mod recover;
mod segment;
mod state;
mod sync;
#[cfg(test)]
mod tests;
mod writer;

pub(crate) use handle::{Journal, Opened, Permit};
pub(crate) use reader::{Batch, Reader};
pub(crate) use record::Intent;
pub(crate) use state::{Position, Written};

#[cfg(test)]
pub(crate) use segment::fixtures;

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
    /// A file that says where the journal stands holds something else.
    #[error("{path} cannot be read; if the control plane has all usage of this edge, move the whole directory away")]
    Damaged {
        /// The file.
        path: PathBuf,
    },
    /// A segment of another journal, or of an older version of this program.
    #[error("{path} is not a segment of this journal; let the version that wrote it ship it, or move it away")]
    Foreign {
        /// The segment.
        path: PathBuf,
    },
}

fn io_error(path: &std::path::Path) -> impl Fn(std::io::Error) -> JournalError + use<> {
    let path = path.to_owned();
    move |source| JournalError::Io { path: path.clone(), source }
}
