//! What every request goes through before a node is asked, without its connections and without waiting.

use crate::balance::{Pick, Preference};
use crate::cache::{self, Scope};
use crate::clock::Clock;
use crate::limit::{Charges, Limiter, Need, Within};
use crate::live::{Key, Snapshot, fixtures};
use crate::metrics::Metrics;
use crate::{auth, ingress};
use futures::FutureExt as _;
use http::HeaderMap;
use http::header::AUTHORIZATION;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use turnpike_config::{Change, Endpoint, NodeRecord, Permissions, RateLimits};

/// Nodes that a request may go to.
const NODES: u16 = 8;

/// One key's chat, asked again and again; each stage says whether it let the request pass.
pub struct HotPath {
    snapshot: Snapshot,
    headers: HeaderMap,
    body: String,
    limiter: Arc<Limiter>,
    turn: AtomicUsize,
}

impl HotPath {
    /// With a body of about so many bytes. `None` if the deployment that is made up for it is none.
    pub fn new(body_bytes: usize) -> Option<Self> {
        let mut routing = fixtures::routing();
        let mut key = routing.keys.values().next()?.clone();
        key.limits = RateLimits {
            requests_per_minute: Some(u32::MAX),
            tokens_per_minute: Some(u32::MAX),
            concurrent_requests: None,
        };
        let node = routing.nodes.get("a")?.clone();
        let nodes = (0..NODES).map(|n| NodeRecord {
            name: format!("node-{n}"),
            url: format!("http://127.0.0.1:{}", 1_000 + n),
            ..node.clone()
        });
        let changes: Vec<_> = nodes.map(Change::PutNode).chain([Change::PutKey(key)]).collect();
        changes.into_iter().for_each(|change| routing.apply(change));
        let mut headers = HeaderMap::new();
        headers.insert(AUTHORIZATION, format!("Bearer {}", fixtures::KEY).parse().ok()?);
        let words = "word ".repeat(body_bytes / 5);
        Some(Self {
            snapshot: fixtures::after(&Snapshot::default(), &routing).ok()?.snapshot,
            headers,
            body: format!(
                r#"{{"model":"m","temperature":0,"max_tokens":64,"messages":[{{"role":"user","content":"{words}"}}]}}"#
            ),
            limiter: Arc::new(Limiter::alone(Clock, Arc::new(Metrics::new()))),
            turn: AtomicUsize::new(0),
        })
    }

    fn key(&self) -> Option<Arc<Key>> {
        let key = self.snapshot.key(&auth::presented(&self.headers).ok()?)?;
        auth::accept(&key, 0).and_then(|()| auth::authorize(&key, Permissions::INFERENCE)).ok()?;
        Some(key)
    }

    /// Who asks.
    pub fn auth(&self) -> bool {
        self.key().is_some()
    }

    /// What is asked.
    pub fn peek(&self) -> bool {
        ingress::peek(self.body.as_bytes()).is_ok()
    }

    /// Requests and tokens of the key, taken and given back.
    pub fn limit(&self) -> bool {
        self.key().is_some_and(|key| self.charge(&key))
    }

    fn charge(&self, key: &Key) -> bool {
        let charged = async {
            let mut charges = Charges::admit(&self.limiter, &key.limits, &key.org.limits).await.ok()?;
            let within = Within { model: "m", key: &key.limits, organization: &key.org.limits };
            charges.enter(&within).await.ok()?;
            charges.reserve(&within, Need { least_tokens: 100, tokens: 200, spend: 0 }).await.ok()?;
            charges.settle(150, 0);
            Some(())
        };
        charged.now_or_never().flatten().is_some()
    }

    /// What the answer is cached by.
    pub fn cache_key(&self) -> bool {
        let Some(model) = self.snapshot.model("m") else { return false };
        let scope = Scope {
            organization: None,
            model: &model.record.id,
            version: "v1",
            model_generation: 0,
            endpoint: Endpoint::Chat,
        };
        cache::key(&scope, self.body.as_bytes()).is_some()
    }

    /// Which node works on it.
    pub fn balance(&self) -> bool {
        let deployment = self.snapshot.model("m").and_then(|model| model.default.as_ref());
        let pick = Pick {
            preference: Preference { own: "r", regions: None },
            tried: &[],
            tokens: 200,
            turn: self.turn.fetch_add(1, Ordering::Relaxed),
            now_ns: 1,
        };
        deployment.and_then(|deployment| pick.of(deployment)).is_some()
    }

    /// All of it, in order.
    pub fn request(&self) -> bool {
        let Some(key) = self.key() else { return false };
        self.peek() && self.charge(&key) && self.cache_key() && self.balance()
    }
}
