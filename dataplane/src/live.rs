//! What the edge serves by: an immutable index of the routing, and the live counters that outlast it.
//!
//! A request pins one [`Snapshot`] and sees one consistent world. Counters (limits, outstanding work) are shared
//! between successive snapshots, so that a push never resets a limit.

use crate::limit::{Limits, Owner};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::{SocketAddr, ToSocketAddrs as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU32, AtomicU64, Ordering};
use turnpike_config::link::{Role, domain};
use turnpike_config::{
    CacheKey, KeyDigest, KeyRecord, ModelRecord, NodeRecord, NodeState, NodeUrl, OrgId, OrgRecord, Routing, Tokens, Usd,
};

/// The routing, indexed for lookups.
#[derive(Debug, Default)]
pub(crate) struct Snapshot {
    pub(crate) version: u64,
    /// The edge's own.
    region: Arc<str>,
    orgs: HashMap<OrgId, Arc<Org>>,
    keys: HashMap<KeyDigest, Arc<Key>>,
    models: HashMap<String, Arc<Model>>,
    nodes: HashMap<String, Arc<Node>>,
    /// Ids of switched-on models in order, for listings.
    listing: Vec<Arc<Model>>,
    /// Ids of switched-off models.
    off: HashSet<String>,
    /// Purged answers, with the Unix milliseconds of their purge.
    purged: BTreeMap<CacheKey, u64>,
}

/// An organization with its limits.
#[derive(Debug)]
pub(crate) struct Org {
    pub(crate) limits: Limits,
    /// Part of the key of every cached answer.
    pub(crate) cache_generation: u32,
}

/// A key with its limits and its organization.
#[derive(Debug)]
pub(crate) struct Key {
    pub(crate) record: KeyRecord,
    pub(crate) limits: Limits,
    pub(crate) org: Arc<Org>,
}

impl Key {
    /// Whether the key may use the model.
    pub(crate) fn may_use(&self, model: &Model) -> bool {
        match &self.record.models {
            Some(allowed) => allowed.contains(&model.record.id),
            None => model.record.public,
        }
    }
}

/// A model with the nodes that answer for its default version.
#[derive(Debug)]
pub(crate) struct Model {
    pub(crate) record: ModelRecord,
    /// `None` while no version is both default and active.
    pub(crate) route: Option<Route>,
    pub(crate) live: Arc<ModelLive>,
}

impl Model {
    /// What tokens cost a request that began at `unix_ms`.
    pub(crate) fn cost(&self, unix_ms: u64, tokens: Tokens) -> Usd {
        self.record.price_at(unix_ms).1.cost(tokens)
    }

    /// What tokens cost when no node has made them.
    pub(crate) fn reuse_cost(&self, unix_ms: u64, tokens: Tokens) -> Usd {
        self.cost(unix_ms, tokens).permille(self.record.cache.price_permille)
    }
}

/// What is learnt of a model, kept across snapshots.
#[derive(Debug)]
pub(crate) struct ModelLive {
    /// Bytes of a request's body for each token of its prompt, in thousandths: a running mean.
    milli_bytes_per_token: AtomicU32,
}

/// Until more is known: a token has about four bytes of English; code and other scripts have more tokens, the JSON
/// around them fewer.
const FIRST_GUESS: u32 = 4_000;

impl Default for ModelLive {
    fn default() -> Self {
        Self { milli_bytes_per_token: AtomicU32::new(FIRST_GUESS) }
    }
}

impl ModelLive {
    /// Tokens that a body's prompt is likely to have.
    pub(crate) fn prompt_tokens(&self, body_bytes: u64) -> u64 {
        let rate = u64::from(self.milli_bytes_per_token.load(Ordering::Relaxed));
        (body_bytes.saturating_mul(1_000)).div_ceil(rate.max(1))
    }

    /// Takes in what a body's prompt was counted as; what is far from any text (padding, pictures) only in part, since all
    /// who use the model are estimated by it.
    pub(crate) fn learn(&self, body_bytes: u64, prompt_tokens: u32) {
        if prompt_tokens == 0 {
            return;
        }
        let seen = (body_bytes.saturating_mul(1_000) / u64::from(prompt_tokens)).clamp(1_000, 8_000);
        let mean = u64::from(self.milli_bytes_per_token.load(Ordering::Relaxed));
        let next = (mean * 15 + seen) / 16;
        // A lost update among several at once only slows the mean down.
        self.milli_bytes_per_token.store(u32::try_from(next).unwrap_or(FIRST_GUESS), Ordering::Relaxed);
    }
}

/// Where a model's requests go.
#[derive(Debug)]
pub(crate) struct Route {
    pub(crate) version: Arc<str>,
    pub(crate) nodes: Vec<Arc<Node>>,
}

/// A node that can be reached.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) name: Arc<str>,
    pub(crate) url: String,
    pub(crate) address: SocketAddr,
    /// Mutual TLS with this server name; `None` is plaintext.
    pub(crate) tls_name: Option<String>,
    pub(crate) state: NodeState,
    pub(crate) live: Arc<NodeLive>,
}

/// Counters of a node, kept across snapshots.
#[derive(Debug, Default)]
pub(crate) struct NodeLive {
    /// Tokens (estimated prompt and answer) of requests in flight from this edge.
    outstanding_tokens: AtomicI64,
    /// Failures in a row.
    failures: AtomicU32,
    /// Not picked before this time (nanoseconds of the edge's clock) unless nothing else is left.
    resting_until_ns: AtomicU64,
}

/// First rest after a failure; doubles with each further one.
const FIRST_REST_NS: u64 = 250_000_000;
const LONGEST_REST_NS: u64 = 10_000_000_000;

impl NodeLive {
    pub(crate) fn outstanding(&self) -> i64 {
        self.outstanding_tokens.load(Ordering::Relaxed)
    }

    pub(crate) fn add_outstanding(&self, tokens: i64) {
        self.outstanding_tokens.fetch_add(tokens, Ordering::Relaxed);
    }

    pub(crate) fn is_resting(&self, now_ns: u64) -> bool {
        self.resting_until_ns.load(Ordering::Relaxed) > now_ns
    }

    pub(crate) fn failed(&self, now_ns: u64) {
        let before = self.failures.fetch_add(1, Ordering::Relaxed).min(6);
        let rest = (FIRST_REST_NS << before).min(LONGEST_REST_NS);
        self.resting_until_ns.store(now_ns.saturating_add(rest), Ordering::Relaxed);
    }

    pub(crate) fn answered(&self) {
        // Read first: on the usual path nothing is written, so the cache line stays shared.
        if self.failures.load(Ordering::Relaxed) != 0 {
            self.failures.store(0, Ordering::Relaxed);
            self.resting_until_ns.store(0, Ordering::Relaxed);
        }
    }
}

impl Snapshot {
    /// Of nothing yet, at an edge of this region.
    pub(crate) fn nothing(region: &str) -> Self {
        Self { region: region.into(), ..Self::default() }
    }

    pub(crate) fn key(&self, digest: &KeyDigest) -> Option<&Arc<Key>> {
        self.keys.get(digest)
    }

    /// A switched-on model.
    pub(crate) fn model(&self, id: &str) -> Option<&Arc<Model>> {
        self.models.get(id)
    }

    /// Switched-on models that have a version to answer, by id.
    pub(crate) fn listing(&self) -> impl Iterator<Item = &Arc<Model>> {
        self.listing.iter()
    }

    /// Whether the model is known and switched off.
    pub(crate) fn is_off(&self, id: &str) -> bool {
        self.off.contains(id)
    }

    /// Unix milliseconds of when an answer was purged; 0 if it was not.
    pub(crate) fn purged_at_ms(&self, key: &CacheKey) -> u64 {
        self.purged.get(key).copied().unwrap_or(0)
    }

    pub(crate) fn key_count(&self) -> usize {
        self.keys.len()
    }

    pub(crate) fn nodes(&self) -> impl Iterator<Item = &Arc<Node>> {
        self.nodes.values()
    }

    /// Indexes a routing that has no faults. `resolve` turns a node's host and port into an address; a node that does
    /// not resolve is left out and named in the second result.
    pub(crate) fn compile(
        routing: &Routing,
        previous: &Self,
        resolve: &dyn Fn(&NodeUrl) -> Option<SocketAddr>,
    ) -> (Self, Vec<String>) {
        let mut unreachable = Vec::new();
        let mut nodes = HashMap::with_capacity(routing.nodes.len());
        for record in routing.nodes.values() {
            match compile_node(record, previous, resolve) {
                Some(node) => drop(nodes.insert(record.name.clone(), Arc::new(node))),
                None => unreachable.push(format!("{} ({})", record.name, record.url)),
            }
        }
        let models: HashMap<_, _> = routing
            .models
            .values()
            .filter(|record| record.active)
            .map(|record| {
                let before = previous.models.get(&record.id);
                (record.id.clone(), Arc::new(compile_model(record, routing, &nodes, before)))
            })
            .collect();
        let listing =
            routing.models.keys().filter_map(|id| models.get(id)).filter(|m| m.route.is_some()).cloned().collect();
        let orgs: HashMap<_, _> = routing
            .orgs
            .values()
            .map(|record| {
                (record.id, Arc::new(compile_org(record, Some(&previous.region), previous.orgs.get(&record.id))))
            })
            .collect();
        let keys = routing
            .keys
            .values()
            .filter_map(|record| {
                let org = Arc::clone(orgs.get(&record.organization)?);
                let before = previous.keys.get(&record.digest);
                Some((record.digest, Arc::new(compile_key(record, org, before))))
            })
            .collect();
        let off = routing.models.values().filter(|model| !model.active).map(|model| model.id.clone()).collect();
        let purged = routing.purged.clone();
        let region = Arc::clone(&previous.region);
        (Self { version: routing.version, region, orgs, keys, models, nodes, listing, off, purged }, unreachable)
    }
}

impl Snapshot {
    /// A key that this routing does not have yet. Money that its organization has paid ahead is given out to edges by the
    /// control plane alone, which would not know of this one.
    pub(crate) fn adopt_key(&self, record: &KeyRecord, organization: &OrgRecord) -> Arc<Key> {
        let org = self.orgs.get(&organization.id).cloned();
        let org = org.unwrap_or_else(|| Arc::new(compile_org(organization, None, None)));
        Arc::new(compile_key(record, org, None))
    }

    /// A model that this routing does not have yet.
    pub(crate) fn adopt_model(
        &self,
        record: &ModelRecord,
        servers: Vec<NodeRecord>,
        resolve: &dyn Fn(&NodeUrl) -> Option<SocketAddr>,
    ) -> Option<Arc<Model>> {
        let nodes = servers.into_iter().map(|node| (node.name.clone(), node)).collect();
        let models = [(record.id.clone(), record.clone())].into();
        let routing = Routing { nodes, models, ..Routing::default() };
        Self::compile(&routing, self, resolve).0.models.remove(&record.id)
    }
}

/// Addresses as they are; names through the system, off the request path.
pub(crate) fn resolve(url: &NodeUrl) -> Option<SocketAddr> {
    (url.host.as_str(), url.port).to_socket_addrs().ok()?.next()
}

fn compile_org(record: &OrgRecord, region: Option<&str>, previous: Option<&Arc<Org>>) -> Org {
    let (owner, before) = (Owner::Organization(record.id), previous.map(|org| &org.limits));
    let limits = Limits::compile(owner, record.limits, &record.model_limits, before);
    let limits = limits.with_budget(owner, record.budget.as_ref(), before);
    let limits = limits.with_prepaid(owner, record.prepaid.as_ref(), region, before);
    Org { limits, cache_generation: record.cache_generation }
}

fn compile_key(record: &KeyRecord, org: Arc<Org>, previous: Option<&Arc<Key>>) -> Key {
    let owner = Owner::Key(record.id);
    let limits = Limits::compile(owner, record.limits, &record.model_limits, previous.map(|key| &key.limits));
    Key { record: record.clone(), limits, org }
}

fn compile_node(
    record: &NodeRecord,
    previous: &Snapshot,
    resolve: &dyn Fn(&NodeUrl) -> Option<SocketAddr>,
) -> Option<Node> {
    let url = NodeUrl::parse(&record.url)?;
    let before = previous.nodes.get(&record.name);
    let unmoved = before.filter(|node| node.url == record.url);
    // A name that stops resolving keeps its last address.
    let address = resolve(&url).or_else(|| unmoved.map(|node| node.address))?;
    let live = match before {
        // Ready again after an absence: forget the failures that the absence caused.
        Some(node) if record.state != NodeState::Ready || node.state == NodeState::Ready => Arc::clone(&node.live),
        Some(node) => {
            node.live.answered();
            Arc::clone(&node.live)
        }
        None => Arc::default(),
    };
    Some(Node {
        name: record.name.as_str().into(),
        url: record.url.clone(),
        address,
        tls_name: url.tls.then(|| domain(Role::Node, &record.name)),
        state: record.state,
        live,
    })
}

fn compile_model(
    record: &ModelRecord,
    routing: &Routing,
    nodes: &HashMap<String, Arc<Node>>,
    previous: Option<&Arc<Model>>,
) -> Model {
    let version = record.versions.iter().find(|version| version.is_default && version.active);
    let route = version.map(|version| Route {
        version: version.version.as_str().into(),
        nodes: routing
            .nodes
            .values()
            .filter(|node| node.serves.iter().any(|s| s.model == record.id && s.version == version.version))
            .filter_map(|node| nodes.get(&node.name).cloned())
            .collect(),
    });
    Model { record: record.clone(), route, live: previous.map(|model| Arc::clone(&model.live)).unwrap_or_default() }
}

#[cfg(test)]
pub(crate) mod fixtures {
    //! A small deployment for the unit tests of the stages.

    use super::*;
    use turnpike_config::routing::{Served, VersionRecord};
    use turnpike_config::{CachePolicy, Change, KeyId, ModelLimits, OrgId, OrgRecord, Permissions, Price, RateLimits};
    use uuid::Uuid;

    pub(crate) const KEY: &str = "sk-tp-fixture";

    /// One organization, one key for everything, model `m` at version `v1` on nodes `a` and `b`.
    pub(crate) fn routing() -> Routing {
        let organization = OrgId(Uuid::from_u128(1));
        let mut routing = Routing { version: 1, ..Routing::default() };
        let served = vec![Served { model: "m".into(), version: "v1".into() }];
        let node = |name: &str, port| {
            Change::PutNode(NodeRecord {
                name: name.into(),
                region: "r".into(),
                url: format!("http://127.0.0.1:{port}"),
                state: NodeState::Ready,
                serves: served.clone(),
                slots: 4,
            })
        };
        for change in [
            Change::PutOrg(OrgRecord {
                id: organization,
                slug: "acme".into(),
                limits: RateLimits::default(),
                model_limits: ModelLimits::default(),
                budget: None,
                cache_generation: 0,
                prepaid: None,
            }),
            Change::PutKey(KeyRecord {
                id: KeyId(Uuid::from_u128(2)),
                organization,
                digest: KeyDigest::of(KEY),
                permissions: Permissions(u16::MAX),
                limits: RateLimits {
                    requests_per_minute: Some(2),
                    tokens_per_minute: Some(1000),
                    concurrent_requests: None,
                },
                models: None,
                active: true,
                expires_at_ms: None,
                model_limits: ModelLimits::default(),
            }),
            Change::PutModel(ModelRecord {
                id: "m".into(),
                provider: "acme".into(),
                created_s: 0,
                context_length: 4096,
                max_output_tokens: Some(256),
                price: Price::default(),
                prices: Vec::new(),
                active: true,
                public: true,
                versions: vec![VersionRecord { version: "v1".into(), is_default: true, active: true }],
                cache: CachePolicy::default(),
            }),
            node("a", 1),
            node("b", 2),
        ] {
            routing.apply(change);
        }
        routing
    }

    pub(crate) fn loopback(url: &NodeUrl) -> Option<SocketAddr> {
        format!("{}:{}", url.host, url.port).parse().ok()
    }

    pub(crate) fn snapshot() -> Snapshot {
        Snapshot::compile(&routing(), &Snapshot::default(), &loopback).0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_push_keeps_limits_and_loads_of_what_did_not_change() {
        let mut routing = fixtures::routing();
        let (first, _) = Snapshot::compile(&routing, &Snapshot::default(), &fixtures::loopback);
        let digest = KeyDigest::of(fixtures::KEY);
        first.nodes["a"].live.add_outstanding(70);
        first.model("m").unwrap().live.learn(32_000, 1_000);

        routing.version = 2;
        let (second, _) = Snapshot::compile(&routing, &first, &fixtures::loopback);
        let share =
            |snapshot: &Snapshot| Arc::as_ptr(snapshot.key(&digest).unwrap().limits.own.requests.as_ref().unwrap());
        assert_eq!(share(&first), share(&second));
        assert!(second.model("m").unwrap().live.prompt_tokens(4_000) < 1_000);
        assert_eq!(second.nodes["a"].live.outstanding(), 70);
    }

    #[test]
    fn a_model_without_an_active_default_version_is_not_listed() {
        let mut routing = fixtures::routing();
        routing.models.get_mut("m").unwrap().versions[0].active = false;
        let (snapshot, _) = Snapshot::compile(&routing, &Snapshot::default(), &fixtures::loopback);
        assert!(snapshot.model("m").unwrap().route.is_none());
        assert_eq!(snapshot.listing().count(), 0);
    }

    #[test]
    fn a_name_that_stops_resolving_keeps_its_address() {
        let routing = fixtures::routing();
        let first = fixtures::snapshot();
        let (second, unreachable) = Snapshot::compile(&routing, &first, &|_| None);
        assert_eq!((second.nodes.len(), unreachable.len()), (2, 0));
        let (third, unreachable) = Snapshot::compile(&routing, &Snapshot::default(), &|_| None);
        assert_eq!((third.nodes.len(), unreachable.len()), (0, 2));
    }
}
