//! Nodes, and what is known of their load.

use std::net::{SocketAddr, ToSocketAddrs as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU32, AtomicU64, Ordering};
use turnpike_config::link::{Role, domain};
use turnpike_config::{NodeRecord, NodeState, NodeUrl};

/// A node that can be reached.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) name: Arc<str>,
    pub(crate) address: SocketAddr,
    /// Mutual TLS with this server name; `None` is plaintext.
    pub(crate) tls_name: Option<String>,
    pub(crate) record: NodeRecord,
    pub(crate) live: Arc<NodeLive>,
    /// Ready again after an absence, and not served by yet.
    returns: AtomicBool,
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

/// Turns a node's host and port into an address.
pub(crate) type Resolve<'r> = &'r dyn Fn(&NodeUrl) -> Option<SocketAddr>;

/// Addresses as they are, and no names.
pub(crate) fn literal(url: &NodeUrl) -> Option<SocketAddr> {
    Some(SocketAddr::new(url.host.trim_matches(['[', ']']).parse().ok()?, url.port))
}

/// Addresses as they are; names through the system, off the request path.
pub(crate) fn resolve(url: &NodeUrl) -> Option<SocketAddr> {
    (url.host.as_str(), url.port).to_socket_addrs().ok()?.next()
}

impl Node {
    /// Its counters are kept from `previous`. `None`: its address is not known.
    pub(super) fn new(record: NodeRecord, previous: Option<&Self>, resolve: Resolve<'_>) -> Option<Self> {
        let url = NodeUrl::parse(&record.url)?;
        let unmoved = previous.filter(|node| node.record.url == record.url);
        // A name that stops resolving keeps its last address.
        let address = resolve(&url).or_else(|| unmoved.map(|node| node.address))?;
        let live = previous.map(|node| Arc::clone(&node.live)).unwrap_or_default();
        let was_away = |node: &Self| node.record.state != NodeState::Ready || node.returns.load(Ordering::Relaxed);
        let returns = AtomicBool::new(record.state == NodeState::Ready && previous.is_some_and(was_away));
        let tls_name = url.tls.then(|| domain(Role::Node, &record.name));
        Some(Self { name: record.name.as_str().into(), address, tls_name, record, live, returns })
    }

    /// It is served by from now on: after an absence, the failures that the absence caused are forgotten. Not sooner, since
    /// what is being made may yet be refused.
    pub(super) fn take_effect(&self) {
        if self.returns.swap(false, Ordering::Relaxed) {
            self.live.answered();
        }
    }

    /// Whether it answers for a version of a model.
    pub(super) fn serves(&self, model: &str, version: &str) -> bool {
        self.record.serves.iter().any(|served| served.model == model && served.version == version)
    }
}
