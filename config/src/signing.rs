//! Signatures of what edges are told (Ed25519, RFC 8032).
//!
//! The link is authenticated already. A signature also holds where what was told passes through other hands: a file on
//! an edge's disk, a control plane whose certificate was stolen but not its signing key.

use crate::log::{Hash, Position};
use minicbor::{Decode, Decoder, Encode, Encoder, decode, encode};
use ring::signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey};

/// The DER in front of the 32 bytes of an Ed25519 public key (RFC 8410).
const SPKI_PREFIX: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

/// A key cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected an Ed25519 key, PEM")]
pub struct BadKey;

/// A signature, 64 bytes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Signature(pub [u8; 64]);

impl std::fmt::Debug for Signature {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Signature")
    }
}

impl<C> Encode<C> for Signature {
    fn encode<W: encode::Write>(&self, e: &mut Encoder<W>, _: &mut C) -> Result<(), encode::Error<W::Error>> {
        e.bytes(&self.0)?.ok()
    }
}

impl<'b, C> Decode<'b, C> for Signature {
    fn decode(d: &mut Decoder<'b>, _: &mut C) -> Result<Self, decode::Error> {
        let position = d.position();
        let bytes = d.bytes()?;
        bytes.try_into().map(Self).map_err(|_| decode::Error::message("a signature has 64 bytes").at(position))
    }
}

/// What is signed. Each kind has its own words in front, so that a signature of one is none of another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Statement {
    /// The log comes to this.
    Head(Position),
    /// The state at a position is in these chunks.
    Snapshot {
        /// Where in the log.
        at: Position,
        /// Hash of the hashes of its chunks.
        chunks: Hash,
        /// The version that an edge may hold and go back from; 0 if none.
        replaces: u64,
    },
    /// This entry is at this version, and may be applied before those in front of it.
    Urgent {
        /// The entry's version.
        version: u64,
        /// Its hash.
        entry: Hash,
    },
}

impl Statement {
    fn to_bytes(self) -> Vec<u8> {
        match self {
            Self::Head(at) => [b"turnpike head".as_slice(), &at.version.to_be_bytes(), &at.chain.0].concat(),
            Self::Snapshot { at, chunks, replaces } => {
                let numbers = [at.version.to_be_bytes(), replaces.to_be_bytes()].concat();
                [b"turnpike snapshot".as_slice(), &numbers, &at.chain.0, &chunks.0].concat()
            }
            Self::Urgent { version, entry } => {
                [b"turnpike urgent".as_slice(), &version.to_be_bytes(), &entry.0].concat()
            }
        }
    }
}

/// Signs for a deployment.
pub struct Signer(Ed25519KeyPair);

impl std::fmt::Debug for Signer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Signer")
    }
}

impl Signer {
    /// From a private key, PKCS#8 DER.
    pub fn from_pkcs8(der: &[u8]) -> Result<Self, BadKey> {
        Ed25519KeyPair::from_pkcs8_maybe_unchecked(der).map(Self).map_err(|_| BadKey)
    }

    /// From 32 secret bytes.
    pub fn from_seed(seed: &[u8; 32]) -> Result<Self, BadKey> {
        Ed25519KeyPair::from_seed_unchecked(seed).map(Self).map_err(|_| BadKey)
    }

    /// Who checks what it signs.
    pub fn trust(&self) -> Trust {
        let key = self.0.public_key().as_ref().try_into().unwrap_or_default();
        Trust { keys: vec![key] }
    }

    /// Signs.
    pub fn sign(&self, statement: Statement) -> Signature {
        let mut out = [0; 64];
        // An Ed25519 signature always has 64 bytes.
        out.copy_from_slice(self.0.sign(&statement.to_bytes()).as_ref());
        Signature(out)
    }
}

/// The keys that may sign; more than one while they are exchanged.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trust {
    keys: Vec<[u8; 32]>,
}

impl Trust {
    /// Trusts one more public key, SubjectPublicKeyInfo DER.
    pub fn add_spki(&mut self, der: &[u8]) -> Result<(), BadKey> {
        let key = der.strip_prefix(&SPKI_PREFIX).and_then(|key| key.try_into().ok()).ok_or(BadKey)?;
        self.keys.push(key);
        Ok(())
    }

    /// Whether one of the keys has signed this.
    pub fn accepts(&self, statement: Statement, signature: &Signature) -> bool {
        let message = statement.to_bytes();
        self.keys.iter().any(|key| UnparsedPublicKey::new(&ED25519, key).verify(&message, &signature.0).is_ok())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_is_of_one_statement_by_one_key() {
        let signer = Signer::from_seed(&[7; 32]).unwrap();
        let other = Signer::from_seed(&[8; 32]).unwrap();
        let head = Statement::Head(Position { version: 3, chain: Hash::of(b"x") });
        let signature = signer.sign(head);
        assert!(signer.trust().accepts(head, &signature));
        assert!(!other.trust().accepts(head, &signature));
        assert!(!Trust::default().accepts(head, &signature), "no key is no trust");
        assert!(!signer.trust().accepts(Statement::Head(Position { version: 4, chain: Hash::of(b"x") }), &signature));
        assert!(!signer.trust().accepts(Statement::Urgent { version: 3, entry: Hash::of(b"x") }, &signature));
        let mut flipped = signature;
        flipped.0[10] ^= 1;
        assert!(!signer.trust().accepts(head, &flipped));
    }

    #[test]
    fn keys_are_read_from_what_tools_write() {
        let mut trust = Trust::default();
        assert_eq!(trust.add_spki(&[0; 44]), Err(BadKey));
        let signer = Signer::from_seed(&[7; 32]).unwrap();
        assert_eq!(trust.add_spki(&[SPKI_PREFIX.as_slice(), &signer.trust().keys[0]].concat()), Ok(()));
        assert_eq!(trust, signer.trust());
        assert!(Signer::from_pkcs8(b"nothing").is_err());
    }
}
