//! Models, and where their requests go.

use super::node::Node;
use http::HeaderValue;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use turnpike_config::{ModelRecord, Tokens, Usd};

/// A model with its versions.
#[derive(Debug)]
pub(crate) struct Model {
    pub(crate) record: ModelRecord,
    /// Its active versions.
    versions: Vec<Arc<Deployment>>,
    /// The one among them that answers unless another is named.
    pub(crate) default: Option<Arc<Deployment>>,
    pub(crate) live: Arc<ModelLive>,
}

impl Model {
    /// What tokens cost a request that began at `unix_ms`.
    pub(crate) fn cost(&self, unix_ms: u64, tokens: Tokens) -> Usd {
        self.record.price_at(unix_ms).1.cost(tokens)
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

/// An active version of a model with the nodes that answer for it.
#[derive(Debug)]
pub(crate) struct Deployment {
    pub(crate) version: Arc<str>,
    pub(crate) nodes: Vec<Arc<Node>>,
    /// `model@version`, for clients; `None` if no header can say it.
    pub(crate) label: Option<HeaderValue>,
}

impl Model {
    /// What was learnt of it is kept from `previous`. It has no versions yet.
    pub(super) fn new(record: ModelRecord, previous: Option<&Self>) -> Self {
        let live = previous.map(|model| Arc::clone(&model.live)).unwrap_or_default();
        Self { record, versions: Vec::new(), default: None, live }
    }

    /// With its active versions on those of these nodes that answer for them.
    #[must_use]
    pub(super) fn deployed<'n>(&self, nodes: impl Iterator<Item = &'n Arc<Node>>) -> Self {
        let (id, nodes) = (&self.record.id, nodes.collect::<Vec<_>>());
        let mut default = None;
        let mut versions = Vec::new();
        for record in self.record.versions.iter().filter(|version| version.active) {
            let serving = nodes.iter().filter(|node| node.serves(id, &record.version));
            let deployment = Arc::new(Deployment {
                version: record.version.as_str().into(),
                nodes: serving.map(|node| Arc::clone(node)).collect(),
                label: HeaderValue::try_from(format!("{id}@{}", record.version)).ok(),
            });
            if record.is_default {
                default = Some(Arc::clone(&deployment));
            }
            versions.push(deployment);
        }
        Self { record: self.record.clone(), versions, default, live: Arc::clone(&self.live) }
    }

    /// An active version; of no name the default one.
    pub(super) fn deployment(&self, version: Option<&str>) -> Option<&Arc<Deployment>> {
        match version {
            Some(name) => self.versions.iter().find(|deployment| &*deployment.version == name),
            None => self.default.as_ref(),
        }
    }
}
