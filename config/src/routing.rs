//! What an edge must know to serve: organizations, keys, models and nodes, as one versioned state plus changes to it.

use crate::limits::{Budget, ModelLimits, Prepaid, RateLimits};
use crate::route::{RouteId, RouteRecord};
use crate::{CacheKey, CachePolicy, KeyDigest, KeyId, OrgId, Price, PriceVersion};
use minicbor::{Decode, Encode};
use rpds::RedBlackTreeMapSync;
use serde::{Deserialize, Serialize};

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
    DropKey(#[n(0)] KeyDigest),
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
    /// Adds or replaces a route.
    #[n(9)]
    PutRoute(#[n(0)] RouteRecord),
    /// Removes a route.
    #[n(10)]
    DropRoute(#[n(0)] RouteId),
}

/// What a change is about: a later change with the same subject supersedes an earlier one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Subject {
    /// An organization.
    Org(OrgId),
    /// A key.
    Key(KeyDigest),
    /// A model.
    Model(String),
    /// A node.
    Node(String),
    /// A purged answer.
    Purge(CacheKey),
    /// A route.
    Route(RouteId),
}

impl Subject {
    /// The change that drops its record; `None` for a purge, which only time ends.
    pub fn dropped(&self) -> Option<Change> {
        match self {
            Self::Org(id) => Some(Change::DropOrg(*id)),
            Self::Key(digest) => Some(Change::DropKey(*digest)),
            Self::Model(id) => Some(Change::DropModel(id.clone())),
            Self::Node(name) => Some(Change::DropNode(name.clone())),
            Self::Route(id) => Some(Change::DropRoute(id.clone())),
            Self::Purge(_) => None,
        }
    }
}

impl std::fmt::Display for Subject {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Org(id) => write!(f, "organization {id}"),
            Self::Key(digest) => write!(f, "key {digest}"),
            Self::Model(id) => write!(f, "model {id}"),
            Self::Node(name) => write!(f, "node {name}"),
            Self::Route(id) => write!(f, "route {id}"),
            Self::Purge(key) => write!(f, "cached answer {key}"),
        }
    }
}

impl Change {
    /// What it is about.
    pub fn subject(&self) -> Subject {
        match self {
            Self::PutOrg(org) => Subject::Org(org.id),
            Self::DropOrg(id) => Subject::Org(*id),
            Self::PutKey(key) => Subject::Key(key.digest),
            Self::DropKey(digest) => Subject::Key(*digest),
            Self::PutModel(model) => Subject::Model(model.id.clone()),
            Self::DropModel(id) => Subject::Model(id.clone()),
            Self::PutNode(node) => Subject::Node(node.name.clone()),
            Self::DropNode(name) => Subject::Node(name.clone()),
            Self::PurgeAnswer { key, .. } => Subject::Purge(*key),
            Self::PutRoute(route) => Subject::Route(route.id.clone()),
            Self::DropRoute(id) => Subject::Route(id.clone()),
        }
    }

    /// Whether it takes something away that must not be served a moment longer: a key or a model that is switched off or
    /// gone, a name under maintenance. It overtakes what is on its way to an edge, and waits for no stage of a rollout.
    pub const fn is_urgent(&self) -> bool {
        match self {
            Self::PutKey(key) => !key.active,
            Self::PutModel(model) => !model.active,
            Self::PutRoute(route) => route.policy.maintenance.is_some(),
            Self::DropKey(_) | Self::DropModel(_) | Self::DropOrg(_) => true,
            Self::PutOrg(_) | Self::PutNode(_) | Self::DropNode(_) | Self::PurgeAnswer { .. } | Self::DropRoute(_) => {
                false
            }
        }
    }
}

/// A map of which a changed copy shares all but the changed path: a new version of a million records costs no more than
/// what changes in it.
pub type Map<K, V> = RedBlackTreeMapSync<K, V>;

/// Everything an edge routes by, at one version. Cloning it is cheap.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Routing {
    /// Position in the deployment's one log of changes; 0 is the empty state.
    pub version: u64,
    /// Organizations by id.
    pub orgs: Map<OrgId, OrgRecord>,
    /// Keys by digest.
    pub keys: Map<KeyDigest, KeyRecord>,
    /// Models by id.
    pub models: Map<String, ModelRecord>,
    /// Nodes by name.
    pub nodes: Map<String, NodeRecord>,
    /// Purged answers with the Unix milliseconds of their purge; at most [`MAX_PURGED`].
    pub purged: Map<CacheKey, u64>,
    /// Routes by name.
    pub routes: Map<RouteId, RouteRecord>,
    /// How many keys each organization has, where it has some; [`Routing::apply`] counts.
    pub owned: Map<OrgId, u64>,
}

impl Routing {
    /// Applies one change; the version is the caller's to set.
    pub fn apply(&mut self, change: Change) {
        match change {
            Change::PutOrg(org) => self.orgs.insert_mut(org.id, org),
            Change::DropOrg(id) => drop(self.orgs.remove_mut(&id)),
            Change::PutKey(key) => self.put_key(key),
            Change::DropKey(digest) => self.drop_key(&digest),
            Change::PutModel(model) => self.models.insert_mut(model.id.clone(), model),
            Change::DropModel(id) => drop(self.models.remove_mut(&id)),
            Change::PutNode(node) => self.nodes.insert_mut(node.name.clone(), node),
            Change::DropNode(name) => drop(self.nodes.remove_mut(&name)),
            Change::PurgeAnswer { key, at_ms } => self.purge(key, at_ms),
            Change::PutRoute(route) => self.routes.insert_mut(route.id.clone(), route),
            Change::DropRoute(id) => drop(self.routes.remove_mut(&id)),
        }
    }

    fn put_key(&mut self, key: KeyRecord) {
        self.drop_key(&key.digest);
        let owned = self.owned.get(&key.organization).copied().unwrap_or(0);
        self.owned.insert_mut(key.organization, owned + 1);
        self.keys.insert_mut(key.digest, key);
    }

    fn drop_key(&mut self, digest: &KeyDigest) {
        let Some(organization) = self.keys.get(digest).map(|key| key.organization) else { return };
        self.keys.remove_mut(digest);
        match self.owned.get(&organization) {
            Some(owned) if *owned > 1 => self.owned.insert_mut(organization, owned - 1),
            _ => drop(self.owned.remove_mut(&organization)),
        }
    }

    fn purge(&mut self, key: CacheKey, at_ms: u64) {
        self.purged.insert_mut(key, at_ms);
        if self.purged.size() > MAX_PURGED
            && let Some(oldest) = self.purged.iter().min_by_key(|(_, at)| **at).map(|(key, _)| *key)
        {
            self.purged.remove_mut(&oldest);
        }
    }

    /// The record of a subject as the change that puts it; `None` if there is none.
    pub fn record(&self, subject: &Subject) -> Option<Change> {
        match subject {
            Subject::Org(id) => self.orgs.get(id).cloned().map(Change::PutOrg),
            Subject::Key(digest) => self.keys.get(digest).cloned().map(Change::PutKey),
            Subject::Model(id) => self.models.get(id).cloned().map(Change::PutModel),
            Subject::Node(name) => self.nodes.get(name).cloned().map(Change::PutNode),
            Subject::Route(id) => self.routes.get(id).cloned().map(Change::PutRoute),
            Subject::Purge(key) => self.purged.get(key).map(|at_ms| Change::PurgeAnswer { key: *key, at_ms: *at_ms }),
        }
    }

    /// The changes that make this state out of nothing: organizations before the keys that refer to them.
    pub fn changes(&self) -> impl Iterator<Item = Change> + '_ {
        let orgs = self.orgs.values().cloned().map(Change::PutOrg);
        let keys = self.keys.values().cloned().map(Change::PutKey);
        let models = self.models.values().cloned().map(Change::PutModel);
        let nodes = self.nodes.values().cloned().map(Change::PutNode);
        let purged = self.purged.iter().map(|(key, at_ms)| Change::PurgeAnswer { key: *key, at_ms: *at_ms });
        let routes = self.routes.values().cloned().map(Change::PutRoute);
        orgs.chain(models).chain(routes).chain(nodes).chain(purged).chain(keys)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::World as _;
    use crate::route::{RoutePolicy, Target};
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
    fn faults_name_dangling_records() {
        let org = org();
        let mut routing = Routing::default();
        routing.apply(Change::PutOrg(org.clone()));
        routing.apply(Change::PutKey(key(org.id, KeyDigest::of("a"))));
        assert_eq!(routing.faults(), Vec::<String>::new());

        assert_eq!(routing.fault(&Change::DropOrg(org.id)), None, "it is there");
        routing.apply(Change::DropOrg(org.id));
        assert!(routing.faults().iter().any(|f| f.contains("does not exist")));
    }

    #[test]
    fn routes_lead_somewhere() {
        let model = |versions: &[&str]| {
            let version = |name: &&str| VersionRecord { version: (*name).to_owned(), is_default: false, active: true };
            Change::PutModel(ModelRecord {
                id: "m".to_owned(),
                provider: "acme".to_owned(),
                created_s: 0,
                context_length: 1,
                max_output_tokens: None,
                price: Price::default(),
                active: true,
                public: true,
                versions: versions.iter().map(version).collect(),
                cache: CachePolicy::default(),
                prices: Vec::new(),
            })
        };
        let to = |version: &str| Target { model: "m".to_owned(), version: Some(version.to_owned()), weight: 1 };
        let policy = RoutePolicy { targets: vec![to("v1"), to("v2")], ..RoutePolicy::default() };
        let id = RouteId { name: "alias".to_owned(), organization: None };
        let route = Change::PutRoute(RouteRecord { id, policy });
        let mut routing = Routing::default();
        let mut apply = |change: Change| {
            routing.apply(change.clone());
            routing.fault(&change).unwrap_or_default()
        };
        assert_eq!(apply(model(&["v1"])), "");
        assert!(apply(route.clone()).contains("targets[1]: model m has no version v2"));
        assert_eq!(apply(model(&["v1", "v2"])), "");
        assert_eq!(apply(route), "");
        assert!(apply(model(&["v2"])).contains("targets[0]"));
        assert!(apply(Change::DropModel("m".to_owned())).contains("route alias leads to it"));
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
        assert_eq!(routing.purged.size(), MAX_PURGED);
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
