//! What is kept of one key.

use turnpike_config::{KeyDigest, KeyId};
use uuid::Uuid;

/// The first 128 bits of a key's SHA-256, by which it is known. A key has 256 random bits, so whoever wants to pass for
/// any of a million keys has to try 2^108 before one begins alike; the other half of the digest would not make it safer.
pub(crate) type Short = u128;

/// The other half, kept on disk alone: what is told to others has whole digests.
pub(crate) type Rest = [u8; 16];

/// Short digest, key id, index of the organization, index of the profile, expiry.
pub(crate) type Entry = [u8; 46];

/// Expiry of a key that has none. Later ones than the year 10889 count as a millisecond before.
const NEVER: u64 = (1 << 48) - 1;

/// The first half of a digest.
pub(crate) const fn short_of(digest: &KeyDigest) -> Short {
    let (first, _) = halves(&digest.0);
    u128::from_be_bytes(first)
}

/// The other half of a digest.
pub(crate) const fn rest_of(digest: &KeyDigest) -> Rest {
    halves(&digest.0).1
}

const fn halves(digest: &[u8; 32]) -> ([u8; 16], [u8; 16]) {
    let (mut first, mut second) = ([0; 16], [0; 16]);
    first.copy_from_slice(digest.split_at(16).0);
    second.copy_from_slice(digest.split_at(16).1);
    (first, second)
}

/// A digest of its halves.
pub(crate) fn digest_of(short: Short, rest: Rest) -> KeyDigest {
    let mut digest = [0; 32];
    digest[..16].copy_from_slice(&short.to_be_bytes());
    digest[16..].copy_from_slice(&rest);
    KeyDigest(digest)
}

/// An entry, unpacked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fields {
    pub(crate) short: Short,
    pub(crate) id: KeyId,
    pub(crate) org: u32,
    pub(crate) profile: u32,
    pub(crate) expires_at_ms: Option<u64>,
}

impl Fields {
    pub(crate) fn pack(self) -> Entry {
        let mut entry = [0; 46];
        entry[..16].copy_from_slice(&self.short.to_be_bytes());
        entry[16..32].copy_from_slice(self.id.0.as_bytes());
        entry[32..36].copy_from_slice(&self.org.to_be_bytes());
        entry[36..40].copy_from_slice(&self.profile.to_be_bytes());
        let expiry = self.expires_at_ms.map_or(NEVER, |at| at.min(NEVER - 1));
        entry[40..].copy_from_slice(&expiry.to_be_bytes()[2..]);
        entry
    }

    pub(crate) fn unpack(entry: &Entry) -> Self {
        let mut expiry = [0; 8];
        expiry[2..].copy_from_slice(&entry[40..]);
        let expiry = u64::from_be_bytes(expiry);
        Self {
            short: short_at(entry),
            id: KeyId(Uuid::from_bytes(part(entry, 16))),
            org: u32::from_be_bytes(part(entry, 32)),
            profile: u32::from_be_bytes(part(entry, 36)),
            expires_at_ms: (expiry != NEVER).then_some(expiry),
        }
    }
}

/// The short digest inside an entry.
pub(crate) fn short_at(entry: &Entry) -> Short {
    u128::from_be_bytes(part(entry, 0))
}

/// `N` bytes of an entry.
fn part<const N: usize>(entry: &Entry, from: usize) -> [u8; N] {
    let mut bytes = [0; N];
    bytes.copy_from_slice(&entry[from..from + N]);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn an_entry_keeps_what_was_packed(short: u128, id: u128, org: u32, profile: u32, expiry in 0..NEVER) {
            for expires_at_ms in [None, Some(expiry)] {
                let fields = Fields { short, id: KeyId(Uuid::from_u128(id)), org, profile, expires_at_ms };
                prop_assert_eq!(Fields::unpack(&fields.pack()), fields);
            }
        }
    }

    #[test]
    fn a_digest_is_its_halves_and_an_endless_expiry_stays_one() {
        let digest = KeyDigest::of("a");
        assert_eq!(digest_of(short_of(&digest), rest_of(&digest)), digest);
        let far = Fields { short: 0, id: KeyId(Uuid::nil()), org: 0, profile: 0, expires_at_ms: Some(u64::MAX) };
        assert_eq!(Fields::unpack(&far.pack()).expires_at_ms, Some(NEVER - 1));
    }
}
