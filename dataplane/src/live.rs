//! What the edge serves by: an immutable index of the routing, and the live counters that outlast it.
//!
//! A request pins one [`Snapshot`] and sees one consistent world. Counters (limits, outstanding work) are shared
//! between successive snapshots, so that a push never resets a limit.

use crate::bucket::Bucket;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU32, AtomicU64, Ordering};
use turnpike_config::link::{Role, domain};
use turnpike_config::{KeyDigest, KeyRecord, ModelRecord, NodeRecord, NodeState, NodeUrl, Routing};

/// The routing, indexed for lookups.
#[derive(Debug, Default)]
pub(crate) struct Snapshot {
    pub(crate) version: u64,
    keys: HashMap<KeyDigest, Arc<Key>>,
    models: HashMap<String, Arc<Model>>,
    nodes: HashMap<String, Arc<Node>>,
    /// Ids of switched-on models in order, for listings.
    listing: Vec<Arc<Model>>,
}

/// A key with its limits.
#[derive(Debug)]
pub(crate) struct Key {
    pub(crate) record: KeyRecord,
    pub(crate) requests: Option<Arc<Bucket>>,
    pub(crate) tokens: Option<Arc<Bucket>>,
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
            .map(|record| (record.id.clone(), Arc::new(compile_model(record, routing, &nodes))))
            .collect();
        let listing =
            routing.models.keys().filter_map(|id| models.get(id)).filter(|m| m.route.is_some()).cloned().collect();
        let keys = routing
            .keys
            .values()
            .map(|record| (record.digest, Arc::new(compile_key(record, previous.keys.get(&record.digest)))))
            .collect();
        (Self { version: routing.version, keys, models, nodes, listing }, unreachable)
    }
}

fn compile_key(record: &KeyRecord, previous: Option<&Arc<Key>>) -> Key {
    let bucket = |limit: Option<u32>, before: Option<&Arc<Bucket>>| {
        let limit = limit?;
        let kept = before.filter(|bucket| bucket.per_minute() == limit);
        Some(kept.map_or_else(|| Arc::new(Bucket::new(limit)), Arc::clone))
    };
    Key {
        record: record.clone(),
        requests: bucket(record.limits.requests_per_minute, previous.and_then(|key| key.requests.as_ref())),
        tokens: bucket(record.limits.tokens_per_minute, previous.and_then(|key| key.tokens.as_ref())),
    }
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

fn compile_model(record: &ModelRecord, routing: &Routing, nodes: &HashMap<String, Arc<Node>>) -> Model {
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
    Model { record: record.clone(), route }
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
        first.key(&digest).unwrap().requests.as_ref().unwrap().take(2, 0).unwrap();
        first.nodes["a"].live.add_outstanding(70);

        routing.version = 2;
        let (second, _) = Snapshot::compile(&routing, &first, &fixtures::loopback);
        assert_eq!(second.key(&digest).unwrap().requests.as_ref().unwrap().remaining(0), 0);
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
