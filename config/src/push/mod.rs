//! How routing gets to an edge: what is said on the push stream, and both ends of the conversation as machines without IO.
//!
//! The control plane sends signed [`Delta`]s. An edge that is too far behind, or whose past is not the log's, is sent a
//! signed [`Manifest`] and fetches the chunks that it lacks on a stream of its own, so that the push stream stays free for
//! [`Urgent`] entries: a revocation does not wait for a snapshot.

pub mod chunks;
mod follower;
#[cfg(test)]
mod golden;
mod session;
#[cfg(test)]
mod simulation;

pub use follower::{Follower, Refusal, Step};
pub use session::{Session, Want};

use crate::log::{Hash, Position};
use crate::signing::{Signature, Signer, Statement};
use minicbor::bytes::ByteVec;
use minicbor::{Decode, Encode};

/// Most entries in one [`Delta`].
pub const MAX_DELTA: usize = 4096;
/// Most chunks in one [`Manifest`].
pub const MAX_CHUNKS: usize = 16_384;

/// An edge introduces itself. Its name comes from its certificate.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct EdgeHello {
    /// Region it serves.
    #[n(0)]
    pub region: String,
    /// Position of the routing it already holds.
    #[n(1)]
    pub holds: Position,
    /// Its build, for the operator.
    #[n(2)]
    pub build: String,
}

/// What an edge is told.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum PushFrame {
    /// What follows on the position that the edge holds.
    #[n(0)]
    Delta(#[n(0)] Delta),
    /// Where to get the whole state; it replaces what the edge holds.
    #[n(1)]
    Manifest(#[n(0)] Manifest),
    /// An entry out of turn.
    #[n(2)]
    Urgent(#[n(0)] Urgent),
}

/// Entries that follow one another, signed by where they lead.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Delta {
    /// Version that the edge must hold. The next entry has the version after it, and so on.
    #[n(0)]
    pub from: u64,
    /// At most [`MAX_DELTA`].
    #[n(1)]
    pub entries: Vec<Item>,
    /// Of [`Statement::Head`] at the position after the last entry.
    #[n(2)]
    pub signature: Signature,
}

impl Delta {
    /// Version after the last entry.
    pub const fn to(&self) -> u64 {
        self.from.saturating_add(self.entries.len() as u64)
    }
}

/// One entry of a [`Delta`].
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Item {
    /// An [`crate::log::Entry`], encoded.
    #[n(0)]
    Entry(#[n(0)] ByteVec),
    /// The hash of one that is for others.
    #[n(1)]
    Hidden(#[n(0)] Hash),
}

impl Item {
    /// The hash of the entry.
    pub fn hash(&self) -> Hash {
        match self {
            Self::Entry(bytes) => Hash::of(bytes),
            Self::Hidden(hash) => *hash,
        }
    }
}

/// The whole state at a position, as the list of its chunks.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Manifest {
    /// Where in the log.
    #[n(0)]
    pub at: Position,
    /// Hashes of the chunks as they are transferred, in the order in which they are applied; at most [`MAX_CHUNKS`].
    #[n(1)]
    pub chunks: Vec<Hash>,
    /// Edges that hold a version up to this may go back to `at`; 0 if none may.
    #[n(2)]
    pub replaces: u64,
    /// Of [`Statement::Snapshot`].
    #[n(3)]
    pub signature: Signature,
}

impl Manifest {
    /// A signed one.
    pub fn new(at: Position, chunks: Vec<Hash>, replaces: u64, signer: &Signer) -> Self {
        let signature = signer.sign(Self::statement(at, &chunks, replaces));
        Self { at, chunks, replaces, signature }
    }

    fn statement(at: Position, chunks: &[Hash], replaces: u64) -> Statement {
        let chunks = Hash::of(&chunks.iter().flat_map(|hash| hash.0).collect::<Vec<_>>());
        Statement::Snapshot { at, chunks, replaces }
    }
}

/// An entry that is applied at once, whatever the edge is waiting for. It comes again in its turn.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Urgent {
    /// Its version.
    #[n(0)]
    pub version: u64,
    /// The entry, encoded.
    #[n(1)]
    pub entry: ByteVec,
    /// Of [`Statement::Urgent`].
    #[n(2)]
    pub signature: Signature,
}

/// An edge's answer to a [`Delta`] or a [`Manifest`]. An [`Urgent`] entry is not answered.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum PushReply {
    /// It serves by this now.
    #[n(0)]
    Ack(#[n(0)] Position),
    /// It refused this version and keeps what it has.
    #[n(1)]
    Nack {
        /// Version refused.
        #[n(0)]
        version: u64,
        /// Why.
        #[n(1)]
        reason: String,
    },
}

/// Asks for a chunk, on a stream of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct ChunkRequest {
    /// Which.
    #[n(0)]
    pub hash: Hash,
}

/// A chunk; `None` if it is not kept any more, and a new manifest is due.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct ChunkReply {
    /// As hashed.
    #[n(0)]
    pub bytes: Option<ByteVec>,
}
