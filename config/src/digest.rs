//! SHA-256 sums as they travel and rest: 32 bytes on the wire, 64 hexadecimal digits in text.
//!
//! API keys travel and rest only as digests.

use sha2::{Digest as _, Sha256};

const HEX: &[u8; 16] = b"0123456789abcdef";

/// 32 bytes from 64 hexadecimal digits.
pub(crate) fn bytes_from_hex(hex: &str) -> Option<[u8; 32]> {
    let hex = hex.as_bytes();
    if hex.len() != 64 {
        return None;
    }
    let mut out = [0; 32];
    for (byte, pair) in out.iter_mut().zip(hex.chunks_exact(2)) {
        let digit = |c: u8| char::from(c).to_digit(16);
        *byte = u8::try_from(digit(pair[0])? * 16 + digit(pair[1])?).ok()?;
    }
    Some(out)
}

/// The opposite of [`bytes_from_hex`].
pub(crate) fn write_hex(bytes: &[u8; 32], f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
    // At once, since keys are written in every request: byte by byte through the formatter takes 20 times as long.
    let mut text = [0; 64];
    for (pair, byte) in text.chunks_exact_mut(2).zip(bytes) {
        pair.copy_from_slice(&[HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]]);
    }
    f.write_str(std::str::from_utf8(&text).map_err(|_| std::fmt::Error)?)
}

/// The forms of a sum that is a type of its own: hexadecimal in text and JSON, bytes on the wire.
macro_rules! sum_forms {
    ($name:ident, $what:literal) => {
        impl $name {
            /// Reads 64 hexadecimal digits.
            pub fn from_hex(hex: &str) -> Option<Self> {
                $crate::digest::bytes_from_hex(hex).map(Self)
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                $crate::digest::write_hex(&self.0, f)
            }
        }

        impl std::fmt::Debug for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self)
            }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.collect_str(self)
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                let text = <String as serde::Deserialize>::deserialize(d)?;
                let wrong = || serde::de::Error::custom(concat!($what, " is 64 hexadecimal digits"));
                Self::from_hex(&text).ok_or_else(wrong)
            }
        }

        impl<C> minicbor::Encode<C> for $name {
            fn encode<W: minicbor::encode::Write>(
                &self,
                e: &mut minicbor::Encoder<W>,
                _: &mut C,
            ) -> Result<(), minicbor::encode::Error<W::Error>> {
                e.bytes(&self.0)?.ok()
            }
        }

        impl<'b, C> minicbor::Decode<'b, C> for $name {
            fn decode(d: &mut minicbor::Decoder<'b>, _: &mut C) -> Result<Self, minicbor::decode::Error> {
                let position = d.position();
                let wrong = |_| minicbor::decode::Error::message(concat!($what, " has 32 bytes")).at(position);
                d.bytes()?.try_into().map(Self).map_err(wrong)
            }
        }
    };
}
pub(crate) use sum_forms;

/// SHA-256 of an API key. A plain hash suffices because a key carries 256 random bits: there is no dictionary to try.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyDigest(pub [u8; 32]);

impl KeyDigest {
    /// The digest of a key as the client sends it (`sk-…`).
    pub fn of(key: &str) -> Self {
        Self(Sha256::digest(key.as_bytes()).into())
    }
}

sum_forms!(KeyDigest, "a key digest");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digest_is_sha256_and_survives_hex() {
        let digest = KeyDigest::of("abc");
        assert_eq!(digest.to_string(), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        assert_eq!(KeyDigest::from_hex(&digest.to_string()), Some(digest));
        assert_eq!(KeyDigest::from_hex("ba78"), None);
        assert_eq!(KeyDigest::from_hex(&"g".repeat(64)), None);
    }
}
