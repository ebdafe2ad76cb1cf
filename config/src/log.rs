//! The deployment's one log of changes: positions, and the hash chain that ties each to all before it.
//!
//! Two states with the same position are the same state: the chain begins with a number that the deployment drew at
//! random, and each link is the hash of the one before, of the position and of the entry. A log that was set back, or
//! that belongs to somebody else, is told by its chain.

use crate::change::Change;
use crate::digest::sum_forms;
use minicbor::bytes::ByteVec;
use minicbor::{Decode, Encode, decode};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// A SHA-256 sum.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Hash(pub [u8; 32]);

impl Hash {
    /// The hash of some bytes.
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }
}

sum_forms!(Hash, "a hash");

/// A place in the log. Version 0 is before the first entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Encode, Decode, Serialize, Deserialize)]
pub struct Position {
    /// Entries up to here.
    #[n(0)]
    pub version: u64,
    /// What they are, all of them.
    #[n(1)]
    pub chain: Hash,
}

impl Position {
    /// The position after one more entry, of which the hash is enough.
    #[must_use]
    pub fn then(self, entry: Hash) -> Self {
        let version = self.version.saturating_add(1);
        let mut hasher = Sha256::new();
        hasher.update(self.chain.0);
        hasher.update(version.to_be_bytes());
        hasher.update(entry.0);
        Self { version, chain: Hash(hasher.finalize().into()) }
    }
}

/// Who is told of an entry; whoever is in one of the lists.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode, Serialize, Deserialize)]
pub struct Audience {
    /// Edges by name.
    #[n(0)]
    pub edges: Vec<String>,
    /// Regions, with all their edges.
    #[n(1)]
    pub regions: Vec<String>,
}

impl Audience {
    /// Whether an edge is told.
    pub fn includes(&self, edge: &str, region: &str) -> bool {
        self.edges.iter().any(|name| name == edge) || self.regions.iter().any(|name| name == region)
    }

    /// Whether everybody of another is told.
    pub fn covers(&self, other: &Self) -> bool {
        other.edges.iter().all(|edge| self.edges.contains(edge))
            && other.regions.iter().all(|region| self.regions.contains(region))
    }
}

/// One entry.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode, Serialize, Deserialize)]
pub struct Entry {
    /// What changes.
    #[n(0)]
    pub change: Change,
    /// For whom; `None` is for all.
    #[n(1)]
    pub audience: Option<Audience>,
}

impl Entry {
    /// The bytes that are hashed, kept and sent. Whoever passes an entry on keeps these: a build that knows fewer fields
    /// would encode it otherwise.
    pub fn to_bytes(&self) -> ByteVec {
        let mut bytes = Vec::with_capacity(128);
        // Writing into a Vec cannot fail.
        let _ = minicbor::encode(self, &mut bytes);
        bytes.into()
    }

    /// The opposite of [`Entry::to_bytes`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, decode::Error> {
        minicbor::decode(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_says_what_came_before_and_in_which_order() {
        let (a, b) = (Hash::of(b"a"), Hash::of(b"b"));
        let start = Position::default();
        let both = start.then(a).then(b);
        assert_eq!(both.version, 2);
        assert_ne!(both, start.then(b).then(a));
        assert_ne!(both, Position { version: 0, chain: Hash::of(b"another deployment") }.then(a).then(b));
        assert_eq!(both, start.then(a).then(b));
    }

    #[test]
    fn an_entry_survives_the_trip_and_names_its_audience() {
        let audience = Audience { edges: vec!["e1".to_owned()], regions: vec!["eu".to_owned()] };
        assert!(audience.includes("e1", "us") && audience.includes("e2", "eu") && !audience.includes("e2", "us"));
        let entry = Entry { change: Change::DropModel("m".to_owned()), audience: Some(audience) };
        assert_eq!(Entry::from_bytes(&entry.to_bytes()).ok(), Some(entry));
    }
}
