//! What an edge must know to serve: organizations, keys, models and nodes, as one versioned state plus changes to it.

use crate::limits::{Budget, ModelLimits, Prepaid, RateLimits};
use crate::{CacheKey, CachePolicy, KeyDigest, KeyId, NodeUrl, OrgId, Price, PriceVersion};
use minicbor::{Decode, Encode};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Most single answers that can be purged at once; purging more drops the oldest purges.
pub const MAX_PURGED: usize = 10_000;

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

/// One change to the routing state. Puts carry the whole new record, so that applying a change twice is harmless.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    /// Adds or replaces an organization.
    #[n(0)]
    PutOrg(#[n(0)] OrgRecord),
    /// Removes an organization.
    #[n(1)]
    DropOrg(#[n(0)] OrgId),
    /// Adds or replaces a key.
    #[n(2)]
    PutKey(#[n(0)] KeyRecord),
    /// Removes a key.
    #[n(3)]
    DropKey(#[n(0)] KeyId),
    /// Adds or replaces a model.
    #[n(4)]
    PutModel(#[n(0)] ModelRecord),
    /// Removes a model.
    #[n(5)]
    DropModel(#[n(0)] String),
    /// Adds or replaces a node.
    #[n(6)]
    PutNode(#[n(0)] NodeRecord),
    /// Removes a node.
    #[n(7)]
    DropNode(#[n(0)] String),
    /// Cached answers of this key that are older than this must not be given out any more.
    #[n(8)]
    PurgeAnswer {
        /// Which answers.
        #[n(0)]
        key: CacheKey,
        /// Unix milliseconds of the purge.
        #[n(1)]
        at_ms: u64,
    },
}

/// Everything an edge routes by, at one version.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct Routing {
    /// Position in the deployment's one log of changes; 0 is the empty state.
    #[n(0)]
    pub version: u64,
    /// Organizations by id.
    #[n(1)]
    pub orgs: BTreeMap<OrgId, OrgRecord>,
    /// Keys by id.
    #[n(2)]
    pub keys: BTreeMap<KeyId, KeyRecord>,
    /// Models by id.
    #[n(3)]
    pub models: BTreeMap<String, ModelRecord>,
    /// Nodes by name.
    #[n(4)]
    pub nodes: BTreeMap<String, NodeRecord>,
    /// Purged answers with the Unix milliseconds of their purge; at most [`MAX_PURGED`].
    #[n(5)]
    #[cbor(default)]
    pub purged: BTreeMap<CacheKey, u64>,
}

impl Routing {
    /// Applies one change; the version is the caller's to set.
    pub fn apply(&mut self, change: Change) {
        match change {
            Change::PutOrg(org) => drop(self.orgs.insert(org.id, org)),
            Change::DropOrg(id) => drop(self.orgs.remove(&id)),
            Change::PutKey(key) => drop(self.keys.insert(key.id, key)),
            Change::DropKey(id) => drop(self.keys.remove(&id)),
            Change::PutModel(model) => drop(self.models.insert(model.id.clone(), model)),
            Change::DropModel(id) => drop(self.models.remove(&id)),
            Change::PutNode(node) => drop(self.nodes.insert(node.name.clone(), node)),
            Change::DropNode(name) => drop(self.nodes.remove(&name)),
            Change::PurgeAnswer { key, at_ms } => self.purge(key, at_ms),
        }
    }

    fn purge(&mut self, key: CacheKey, at_ms: u64) {
        self.purged.insert(key, at_ms);
        if self.purged.len() > MAX_PURGED
            && let Some(oldest) = self.purged.iter().min_by_key(|(_, at)| **at).map(|(key, _)| *key)
        {
            self.purged.remove(&oldest);
        }
    }

    /// Everything that makes this state unfit to serve, each with the record at fault; empty if it is fit.
    ///
    /// A node that serves an unknown model is no fault: it registered before an operator added the model.
    pub fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        let mut digests = BTreeMap::new();
        for key in self.keys.values() {
            if !self.orgs.contains_key(&key.organization) {
                faults.push(format!("key {}: organization {} does not exist", key.id, key.organization));
            }
            if let Some(other) = digests.insert(key.digest, key.id) {
                faults.push(format!("keys {} and {other} have the same digest", key.id));
            }
            if admits_nothing(key.limits, &key.model_limits) {
                faults.push(format!("key {}: a limit of 0 admits nothing; disable the key instead", key.id));
            }
        }
        for org in self.orgs.values().filter(|org| admits_nothing(org.limits, &org.model_limits)) {
            faults.push(format!("organization {}: a limit of 0 admits nothing; disable its keys instead", org.id));
        }
        for model in self.models.values() {
            if model.context_length == 0 {
                faults.push(format!("model {}: context_length is 0", model.id));
            }
            if model.versions.iter().filter(|v| v.is_default).count() > 1 {
                faults.push(format!("model {}: more than one default version", model.id));
            }
        }
        for node in self.nodes.values() {
            if NodeUrl::parse(&node.url).is_none() {
                faults.push(format!("node {}: url «{}» is not http(s)://host:port", node.name, node.url));
            }
        }
        faults
    }
}

fn admits_nothing(limits: RateLimits, models: &ModelLimits) -> bool {
    limits.has_zero() || models.values().any(|limits| limits.has_zero())
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    fn org() -> OrgRecord {
        OrgRecord {
            id: OrgId(Uuid::new_v4()),
            slug: "acme".to_owned(),
            limits: RateLimits::default(),
            model_limits: ModelLimits::default(),
            budget: None,
            cache_generation: 0,
            prepaid: None,
        }
    }

    fn key(organization: OrgId, digest: KeyDigest) -> KeyRecord {
        KeyRecord {
            id: KeyId(Uuid::new_v4()),
            organization,
            digest,
            permissions: Permissions::INFERENCE,
            limits: RateLimits::default(),
            models: None,
            active: true,
            expires_at_ms: None,
            model_limits: ModelLimits::default(),
        }
    }

    #[test]
    fn permissions_have_names_and_refuse_unknown_ones() {
        let both = Permissions::from_names(&["inference", "models.read"]);
        assert!(both.is_ok_and(|p| p.allows(Permissions::INFERENCE) && !p.allows(Permissions::FILES)));
        assert_eq!(Permissions::from_names(&["inference", "root"]), Err("root".to_owned()));
        assert_eq!(Permissions::FINE_TUNING.name(), "fine_tuning");
    }

    #[test]
    fn faults_name_dangling_and_doubled_records() {
        let org = org();
        let mut routing = Routing::default();
        routing.apply(Change::PutOrg(org.clone()));
        routing.apply(Change::PutKey(key(org.id, KeyDigest::of("a"))));
        assert_eq!(routing.faults(), Vec::<String>::new());

        routing.apply(Change::PutKey(key(org.id, KeyDigest::of("a"))));
        assert!(routing.faults().iter().any(|f| f.contains("same digest")));
        routing.apply(Change::DropOrg(org.id));
        assert!(routing.faults().iter().any(|f| f.contains("does not exist")));
    }

    #[test]
    fn a_limit_of_nothing_is_a_fault_wherever_it_stands() {
        let zero = RateLimits { concurrent_requests: Some(0), ..RateLimits::default() };
        let mut routing = Routing::default();
        let mut record = org();
        record.model_limits.insert("m".to_owned(), zero);
        routing.apply(Change::PutOrg(record.clone()));
        assert!(routing.faults().iter().any(|f| f.contains("organization") && f.contains("admits nothing")));
        routing.apply(Change::PutOrg(org()));
        let mut record = key(record.id, KeyDigest::of("a"));
        record.limits = zero;
        routing.apply(Change::PutKey(record));
        assert!(routing.faults().iter().any(|f| f.starts_with("key ") && f.contains("admits nothing")));
    }

    #[test]
    fn purges_are_kept_up_to_a_bound_and_the_oldest_go_first() {
        let mut routing = Routing::default();
        for at in 0..=MAX_PURGED as u64 {
            let key = CacheKey::of(&at.to_be_bytes());
            routing.apply(Change::PurgeAnswer { key, at_ms: at });
        }
        assert_eq!(routing.purged.len(), MAX_PURGED);
        assert!(!routing.purged.contains_key(&CacheKey::of(&0_u64.to_be_bytes())));
    }

    /// A routing file of an older edge has none of the newer fields.
    #[test]
    fn records_without_the_newer_fields_are_read() {
        #[derive(Encode)]
        struct OldOrg {
            #[n(0)]
            id: OrgId,
            #[n(1)]
            slug: String,
        }
        let new = org();
        let mut bytes = Vec::new();
        let old = OldOrg { id: new.id, slug: new.slug.clone() };
        assert!(minicbor::encode(&old, &mut bytes).is_ok());
        assert_eq!(minicbor::decode::<OrgRecord>(&bytes).ok(), Some(new));
    }
}
