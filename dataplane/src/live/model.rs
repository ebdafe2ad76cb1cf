//! Models, and where their requests go.

use super::node::Node;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use turnpike_config::routing::VersionRecord;
use turnpike_config::{ModelRecord, Tokens, Usd};

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

impl Model {
    /// What was learnt of it is kept from `previous`. It has no nodes yet.
    pub(super) fn new(record: ModelRecord, previous: Option<&Self>) -> Self {
        let live = previous.map(|model| Arc::clone(&model.live)).unwrap_or_default();
        Self { record, route: None, live }
    }

    /// Routed to those of these nodes that answer for its default version.
    #[must_use]
    pub(super) fn routed<'n>(&self, nodes: impl Iterator<Item = &'n Arc<Node>>) -> Self {
        let route = self.default_version().map(|version| Route {
            version: version.version.as_str().into(),
            nodes: nodes.filter(|node| node.serves(&self.record.id, &version.version)).cloned().collect(),
        });
        Self { record: self.record.clone(), route, live: Arc::clone(&self.live) }
    }

    fn default_version(&self) -> Option<&VersionRecord> {
        self.record.versions.iter().find(|version| version.is_default && version.active)
    }
}
