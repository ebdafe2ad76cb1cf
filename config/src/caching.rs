//! Which answers may be given again, and what they are known by.

use crate::digest::sum_forms;
use minicbor::{Decode, Encode};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// How long an answer is kept unless set otherwise, seconds: the schema's one hour.
pub const DEFAULT_TTL_S: u32 = 3_600;
/// Longest time an answer may be kept, seconds: 30 days.
pub const MAX_TTL_S: u32 = 30 * 24 * 3_600;

/// Whether and how a model's answers are cached. The JSON form is `models.cache`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CachePolicy {
    /// Answers are cached unless a request says otherwise; if false, only those of requests that ask for it.
    #[n(0)]
    pub enabled: bool,
    /// How long an answer is kept, seconds, at least 1 and at most [`MAX_TTL_S`].
    #[n(1)]
    pub ttl_s: u32,
    /// Organizations share each other's answers.
    #[n(2)]
    pub public: bool,
    /// What an answer from the cache costs, in thousandths of its usual price; 0 is free.
    #[n(3)]
    pub price_permille: u32,
    /// Part of the key of every cached answer: a purge of the model raises it.
    #[n(4)]
    #[serde(skip_serializing_if = "is_zero")]
    pub generation: u32,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the shape that serde asks for")]
const fn is_zero(generation: &u32) -> bool {
    *generation == 0
}

impl Default for CachePolicy {
    fn default() -> Self {
        Self { enabled: false, ttl_s: DEFAULT_TTL_S, public: false, price_permille: 0, generation: 0 }
    }
}

/// So many bytes and more are digested by BLAKE3, which takes parts of them at once; below, SHA-256 is faster, for which
/// processors have instructions.
const LONG: usize = 4 << 10;

/// What a cached answer is known by: a digest (SHA-256 or BLAKE3, by length) over everything that changes the answer.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CacheKey(pub [u8; 32]);

impl CacheKey {
    /// The key of these bytes.
    pub fn of(bytes: &[u8]) -> Self {
        Self(if bytes.len() < LONG { Sha256::digest(bytes).into() } else { blake3::hash(bytes).into() })
    }
}

sum_forms!(CacheKey, "a cache key");

/// What the response cache did for a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Encode, Decode, Serialize, Deserialize)]
#[cbor(index_only)]
#[serde(rename_all = "snake_case")]
pub enum CacheStatus {
    /// Answered from the cache.
    #[n(0)]
    Hit,
    /// Looked up, not found, answered by a node.
    #[n(1)]
    Miss,
    /// Answered with the answer that another, equal request was getting at the same time.
    #[n(2)]
    Coalesced,
    /// Not to be cached.
    #[n(3)]
    Bypass,
}

impl CacheStatus {
    /// Every status.
    pub const ALL: [Self; 4] = [Self::Hit, Self::Miss, Self::Coalesced, Self::Bypass];

    /// As in `x-turnpike-cache` and `inference_requests.cache_status`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Hit => "hit",
            Self::Miss => "miss",
            Self::Coalesced => "coalesced",
            Self::Bypass => "bypass",
        }
    }

    /// Whether no node worked on the request.
    pub const fn is_reuse(self) -> bool {
        matches!(self, Self::Hit | Self::Coalesced)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_is_off_until_switched_on_and_refuses_unknown_fields() {
        let policy: Option<CachePolicy> = serde_json::from_str("{}").ok();
        assert_eq!(policy, Some(CachePolicy::default()));
        let policy: Option<CachePolicy> = serde_json::from_str(r#"{"enabled": true, "ttl_s": 5}"#).ok();
        assert!(policy.is_some_and(|p| p.enabled && p.ttl_s == 5 && !p.public && p.price_permille == 0));
        assert!(serde_json::from_str::<CachePolicy>(r#"{"ttl": 5}"#).is_err());
    }

    #[test]
    fn a_key_survives_hex() {
        let key = CacheKey::of(b"x");
        assert_eq!(CacheKey::from_hex(&key.to_string()), Some(key));
    }

    #[test]
    fn texts_of_any_length_have_keys_of_their_own() {
        let text = vec![b'x'; 3 * LONG];
        let keys: std::collections::BTreeSet<_> = (0..text.len()).map(|to| CacheKey::of(&text[..to])).collect();
        assert_eq!(keys.len(), text.len());
    }
}
