//! What an edge must know to serve, record by record: organizations, keys, models and nodes.

use crate::limits::{Budget, ModelLimits, Prepaid, RateLimits};
use crate::{CachePolicy, KeyDigest, KeyId, OrgId, Price, PriceVersion};
use minicbor::{Decode, Encode};
use serde::{Deserialize, Serialize};

/// An organization as the edges know it.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode, Serialize, Deserialize)]
pub struct OrgRecord {
    /// Identity.
    #[n(0)]
    pub id: OrgId,
    /// Short unique name.
    #[n(1)]
    pub slug: String,
    /// Limits of all its keys together.
    #[n(2)]
    #[cbor(default)]
    #[serde(default)]
    pub limits: RateLimits,
    /// Limits of all its keys together, within a model.
    #[n(3)]
    #[cbor(default)]
    #[serde(default)]
    pub model_limits: ModelLimits,
    /// What it may spend; `None` is as much as it likes.
    #[n(4)]
    #[serde(default)]
    pub budget: Option<Budget>,
    /// Part of the key of every cached answer: a purge of the organization raises it.
    #[n(5)]
    #[cbor(default)]
    #[serde(default)]
    pub cache_generation: u32,
    /// Money paid ahead, within `budget`; `None`: it pays afterwards.
    #[n(6)]
    #[serde(default)]
    pub prepaid: Option<Prepaid>,
}

/// What a key may do. Stored as names in `api_keys.permissions`, pushed as bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Encode, Decode, Serialize, Deserialize)]
#[cbor(transparent)]
#[serde(transparent)]
pub struct Permissions(#[n(0)] pub u16);

impl Permissions {
    /// Chat, completions, embeddings and moderations.
    pub const INFERENCE: Self = Self(1);
    /// Listing models.
    pub const MODELS_READ: Self = Self(1 << 1);
    /// Fine-tuning jobs.
    pub const FINE_TUNING: Self = Self(1 << 2);
    /// Files and batches.
    pub const FILES: Self = Self(1 << 3);

    /// Every permission with the name that `api_keys.permissions` uses.
    pub const NAMES: [(&'static str, Self); 4] = [
        ("inference", Self::INFERENCE),
        ("models.read", Self::MODELS_READ),
        ("fine_tuning", Self::FINE_TUNING),
        ("files", Self::FILES),
    ];

    /// The union of named permissions, or the first name that is unknown.
    pub fn from_names<S: AsRef<str>>(names: &[S]) -> Result<Self, String> {
        names.iter().try_fold(Self::default(), |all, name| {
            let name = name.as_ref();
            let known = Self::NAMES.iter().find(|(known, _)| *known == name);
            known.map(|(_, bit)| Self(all.0 | bit.0)).ok_or_else(|| name.to_owned())
        })
    }

    /// Whether all of `needed` is granted.
    pub const fn allows(self, needed: Self) -> bool {
        self.0 & needed.0 == needed.0
    }

    /// The name of a single permission, for error messages.
    pub fn name(self) -> &'static str {
        Self::NAMES.iter().find(|(_, bit)| *bit == self).map_or("unknown", |(name, _)| name)
    }
}

/// An API key as the edges know it: its digest, never the key.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode, Serialize, Deserialize)]
pub struct KeyRecord {
    /// Identity.
    #[n(0)]
    pub id: KeyId,
    /// The organization that owns it and pays for it.
    #[n(1)]
    pub organization: OrgId,
    /// SHA-256 of the key.
    #[n(2)]
    pub digest: KeyDigest,
    /// What it may do.
    #[n(3)]
    pub permissions: Permissions,
    /// Its limits.
    #[n(4)]
    pub limits: RateLimits,
    /// Models it may use; `None` is every model its organization may use.
    #[n(5)]
    pub models: Option<Vec<String>>,
    /// False once disabled or revoked.
    #[n(6)]
    pub active: bool,
    /// Unix milliseconds from which on it is refused.
    #[n(7)]
    pub expires_at_ms: Option<u64>,
    /// Its limits within a model.
    #[n(8)]
    #[cbor(default)]
    #[serde(default)]
    pub model_limits: ModelLimits,
}

/// One deployable version of a model.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode, Serialize, Deserialize)]
pub struct VersionRecord {
    /// Name, unique within the model.
    #[n(0)]
    pub version: String,
    /// Takes the model's requests. At most one version per model.
    #[n(1)]
    pub is_default: bool,
    /// Deployed and allowed to take requests.
    #[n(2)]
    pub active: bool,
}

/// A model as the edges know it.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode, Serialize, Deserialize)]
pub struct ModelRecord {
    /// The name that clients send, such as `smollm2-135m-instruct`.
    #[n(0)]
    pub id: String,
    /// `owned_by` in the OpenAI API.
    #[n(1)]
    pub provider: String,
    /// Unix seconds, `created` in the OpenAI API.
    #[n(2)]
    pub created_s: u64,
    /// Tokens that prompt and answer may have together, at least 1.
    #[n(3)]
    pub context_length: u32,
    /// Most tokens it generates; `None` is bounded by the context alone.
    #[n(4)]
    pub max_output_tokens: Option<u32>,
    /// What its tokens cost where `prices` does not say.
    #[n(5)]
    pub price: Price,
    /// False: known but switched off.
    #[n(6)]
    pub active: bool,
    /// Usable by every organization; otherwise only by keys whose allow-list names it.
    #[n(7)]
    pub public: bool,
    /// Its versions.
    #[n(8)]
    pub versions: Vec<VersionRecord>,
    /// Whether and how its answers are cached.
    #[n(9)]
    #[cbor(default)]
    #[serde(default)]
    pub cache: CachePolicy,
    /// What its tokens cost from when on, ascending by time: the price in effect, and those that follow.
    #[n(10)]
    #[cbor(default)]
    #[serde(default)]
    pub prices: Vec<PriceVersion>,
}

impl ModelRecord {
    /// The number and the price of a request that begins at `unix_ms`.
    pub fn price_at(&self, unix_ms: u64) -> (u32, Price) {
        let in_effect = self.prices.iter().rev().find(|price| price.from_ms <= unix_ms);
        in_effect.map_or((0, self.price), |price| (price.version, price.price))
    }
}

/// A (model, version) pair that a node can answer for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Encode, Decode, Serialize, Deserialize)]
pub struct Served {
    /// Model id.
    #[n(0)]
    pub model: String,
    /// Version name.
    #[n(1)]
    pub version: String,
}

/// Whether a node takes requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode, Serialize, Deserialize)]
#[cbor(index_only)]
#[serde(rename_all = "snake_case")]
pub enum NodeState {
    /// Takes requests.
    #[n(0)]
    Ready,
    /// Finishes what it has, takes nothing new.
    #[n(1)]
    Draining,
    /// Its engine does not answer.
    #[n(2)]
    Unhealthy,
    /// Its link to the control plane is gone.
    #[n(3)]
    Lost,
    /// Switched off by an operator.
    #[n(4)]
    Disabled,
}

impl NodeState {
    /// The name used in PostgreSQL and the admin API.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Draining => "draining",
            Self::Unhealthy => "unhealthy",
            Self::Lost => "lost",
            Self::Disabled => "disabled",
        }
    }
}

/// A node agent as the edges know it.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode, Serialize, Deserialize)]
pub struct NodeRecord {
    /// Unique name, from its certificate.
    #[n(0)]
    pub name: String,
    /// Region.
    #[n(1)]
    pub region: String,
    /// `https://host:port` or `http://host:port`, without a path.
    #[n(2)]
    pub url: String,
    /// Whether it takes requests.
    #[n(3)]
    pub state: NodeState,
    /// What it answers for.
    #[n(4)]
    pub serves: Vec<Served>,
    /// Requests it works on at once; more wait in its queue.
    #[n(5)]
    pub slots: u32,
}
