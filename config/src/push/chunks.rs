//! A state in pieces that are named by their content: what did not change between two states has the same name in both,
//! and what an edge has already it need not be sent.

use crate::change::Change;
use crate::log::Hash;
use crate::routing::Routing;
use minicbor::bytes::ByteVec;

/// Most bytes of one chunk, unpacked.
pub const MAX_CHUNK: usize = 4 << 20;
/// Most records in one chunk.
const MAX_RECORDS: usize = 4096;
/// A chunk ends after a record whose hash has these bits zero, which is so after 1,024 on average. Where it ends depends on
/// the records alone, so that one more or one less moves no other border.
const BORDER: u32 = (1 << 10) - 1;
/// Records are mostly random numbers: more effort packs them no better.
const LEVEL: i32 = 1;

/// Why a chunk is not taken.
#[derive(Debug, thiserror::Error)]
pub enum BadChunk {
    /// Its bytes are not those that its name says.
    #[error("a chunk is not what its hash says")]
    Hash,
    /// It does not unpack within bounds.
    #[error("a chunk does not unpack to at most {MAX_CHUNK} bytes: {0}")]
    Packing(#[from] std::io::Error),
    /// It holds no list of changes.
    #[error("a chunk holds something unknown: {0}")]
    Content(#[from] minicbor::decode::Error),
    /// A record alone is larger than a chunk may be.
    #[error("a record of {0} bytes is over the limit of {MAX_CHUNK}")]
    TooLarge(usize),
}

/// A piece of a state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// Of `bytes`.
    pub hash: Hash,
    /// Changes as a CBOR list, packed.
    pub bytes: ByteVec,
}

impl Chunk {
    /// Packs changes.
    pub fn pack(changes: &[Change]) -> Result<Self, BadChunk> {
        let mut plain = Vec::new();
        // Writing into a Vec cannot fail.
        let _ = minicbor::encode(changes, &mut plain);
        if plain.len() > MAX_CHUNK {
            return Err(BadChunk::TooLarge(plain.len()));
        }
        let bytes = zstd::bulk::compress(&plain, LEVEL)?;
        Ok(Self { hash: Hash::of(&bytes), bytes: bytes.into() })
    }

    /// Unpacks what is named `hash`.
    pub fn open(hash: Hash, bytes: &[u8]) -> Result<Vec<Change>, BadChunk> {
        if Hash::of(bytes) != hash {
            return Err(BadChunk::Hash);
        }
        let plain = zstd::bulk::decompress(bytes, MAX_CHUNK)?;
        Ok(minicbor::decode(&plain)?)
    }
}

/// Cuts a state into chunks.
pub fn cut(routing: &Routing) -> Result<Vec<Chunk>, BadChunk> {
    let (mut chunks, mut changes, mut size) = (Vec::new(), Vec::new(), 0);
    let mut one = Vec::new();
    for change in routing.changes() {
        one.clear();
        let _ = minicbor::encode(&change, &mut one);
        if size + one.len() > MAX_CHUNK / 2 && !changes.is_empty() {
            chunks.push(Chunk::pack(&changes)?);
            (changes, size) = (Vec::new(), 0);
        }
        size += one.len();
        changes.push(change);
        if crc32c::crc32c(&one) & BORDER == 0 || changes.len() == MAX_RECORDS {
            chunks.push(Chunk::pack(&changes)?);
            (changes, size) = (Vec::new(), 0);
        }
    }
    if !changes.is_empty() {
        chunks.push(Chunk::pack(&changes)?);
    }
    Ok(chunks)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::records::OrgRecord;
    use crate::{ModelLimits, OrgId, RateLimits};
    use std::collections::BTreeSet;
    use uuid::Uuid;

    fn org(n: u128) -> Change {
        Change::PutOrg(OrgRecord {
            id: OrgId(Uuid::from_u128(n << 64 | 0x9e37_79b9_7f4a_7c15_u128.wrapping_mul(n) & u128::from(u64::MAX))),
            slug: format!("org-{n}"),
            limits: RateLimits::default(),
            model_limits: ModelLimits::default(),
            budget: None,
            prepaid: None,
            cache_generation: 0,
        })
    }

    #[test]
    fn what_is_cut_adds_up_and_a_change_moves_few_chunks() {
        let mut routing = Routing::default();
        (0..20_000).for_each(|n| routing.apply(org(n)));
        let chunks = cut(&routing).unwrap();
        assert!(chunks.len() > 8, "{} chunks", chunks.len());
        let mut again = Routing::default();
        for chunk in &chunks {
            Chunk::open(chunk.hash, &chunk.bytes).unwrap().into_iter().for_each(|change| again.apply(change));
        }
        assert_eq!(again, routing);
        routing.apply(org(1 << 40));
        routing.apply(Change::DropOrg(OrgId(routing.orgs.keys().nth(9_000).unwrap().0)));
        let before: BTreeSet<_> = chunks.iter().map(|chunk| chunk.hash).collect();
        let new = cut(&routing).unwrap().into_iter().filter(|chunk| !before.contains(&chunk.hash)).count();
        assert!((1..=4).contains(&new), "{new} new chunks");
    }

    #[test]
    fn what_is_damaged_or_too_large_is_refused() {
        let chunk = Chunk::pack(&[org(1)]).unwrap();
        let mut bytes = chunk.bytes.to_vec();
        bytes[5] ^= 1;
        assert!(matches!(Chunk::open(chunk.hash, &bytes), Err(BadChunk::Hash)));
        let bomb = zstd::bulk::compress(&vec![0; MAX_CHUNK + 1], 1).unwrap();
        assert!(matches!(Chunk::open(Hash::of(&bomb), &bomb), Err(BadChunk::Packing(_))));
        let strange = zstd::bulk::compress(&[0x81, 0x82, 0x18, 99, 0x80], 1).unwrap();
        assert!(matches!(Chunk::open(Hash::of(&strange), &strange), Err(BadChunk::Content(_))));
    }
}
