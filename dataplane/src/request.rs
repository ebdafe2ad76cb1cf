//! What is known about one request, filled in by the stages in the order in which they run.

use crate::balance::Assignment;
use crate::clock::{millis, since_epoch};
use crate::deadlines::Deadlines;
use crate::edge::Edge;
use crate::fill::Fill;
use crate::ingress::Ask;
use crate::journal::{Permit, Written};
use crate::limit::{Charges, Within};
use crate::live::{Deployment, Key, Model, Snapshot};
use crate::plan::{Routed, cache_policy};
use crate::reject::Reject;
use crate::rewrite::{self, Changes};
use bytes::Bytes;
use std::sync::Arc;
use std::time::Instant;
use turnpike_config::{CacheKey, CachePolicy, CacheStatus, Endpoint, EventId, Tap, Tokens, Usd};
use uuid::{NoContext, Timestamp, Uuid};

/// One request's context.
pub(crate) struct Request {
    pub(crate) snapshot: Arc<Snapshot>,
    pub(crate) arrived: Instant,
    pub(crate) arrived_unix_ms: u64,
    pub(crate) id: EventId,
    /// Sent to the node and back to the client; the client's own if it sent a sound one.
    pub(crate) request_id: String,
    /// Why it was refused or failed, if it was.
    pub(crate) reject: Option<Reject>,
    /// Set once a key was accepted for inference; from then on the request ends as a usage event.
    pub(crate) metered: Option<Metered>,
    _in_flight: InFlight,
}

/// An inference request with an accepted key.
pub(crate) struct Metered {
    pub(crate) endpoint: Endpoint,
    pub(crate) key: Arc<Key>,
    /// Gone once the event is handed over.
    pub(crate) permit: Option<Permit>,
    pub(crate) request_bytes: u64,
    pub(crate) ask: Option<Ask>,
    /// What answers, as far as it is known.
    pub(crate) model: Option<Arc<Model>>,
    /// Which version of it.
    pub(crate) deployment: Option<Arc<Deployment>>,
    /// Where else it may go; `None` if its name has no route.
    pub(crate) routed: Option<Box<Routed>>,
    pub(crate) charges: Charges,
    /// What the cache did; `None` where nobody spoke of caching.
    pub(crate) cached: Option<Cached>,
    pub(crate) dispatch: Option<Dispatch>,
}

/// What the cache did for a request.
pub(crate) struct Cached {
    pub(crate) status: CacheStatus,
    /// What the answer is kept by, if it may be kept.
    pub(crate) key: Option<CacheKey>,
    /// Age of an answer that was kept, seconds.
    pub(crate) age_s: u64,
    /// Set if no node was asked.
    pub(crate) served: Option<Served>,
}

/// An answer that no node made for this request.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Served {
    pub(crate) usage: Tokens,
    /// The edge's own count: it broke off.
    pub(crate) estimated: bool,
    pub(crate) first_byte_at: Option<Instant>,
    /// The client got all of it.
    pub(crate) complete: bool,
}

/// A request on its way to nodes.
pub(crate) struct Dispatch {
    /// As the client sent it.
    pub(crate) original: Bytes,
    /// As the node gets it.
    pub(crate) body: Bytes,
    /// Prompt and longest answer, tokens, wherever it goes; the weight in balancing.
    pub(crate) tokens: u64,
    /// Prompt tokens judged by bytes, for answers cut before the engine's count.
    pub(crate) prompt_estimate: u32,
    pub(crate) assignment: Option<Assignment>,
    /// That this node is asked is being written down.
    pub(crate) intended: Option<Written>,
    pub(crate) tried: Vec<Arc<str>>,
    /// The last node that was tried did not begin its answer in time.
    pub(crate) was_late: bool,
    pub(crate) sent_at: Option<Instant>,
    pub(crate) first_byte_at: Option<Instant>,
    pub(crate) node_status: u16,
    pub(crate) deadlines: Deadlines,
    /// The client left, or was left behind, while the answer went on for others.
    pub(crate) client_left: bool,
    pub(crate) tap: Option<Tap>,
    /// The answer is to be kept, and others may be waiting for it.
    pub(crate) fill: Option<Box<Fill>>,
}

impl Metered {
    /// The limits that it meets within its model.
    pub(crate) fn within<'a>(&'a self, model: &'a Model) -> Within<'a> {
        Within { model: &model.record.id, key: &self.key.limits, organization: &self.key.org.limits }
    }

    /// Whether and how its answer is kept.
    pub(crate) fn cache_policy(&self) -> CachePolicy {
        let of_model = self.model.as_ref().map(|model| model.record.cache).unwrap_or_default();
        cache_policy(self.routed.as_ref().map(|routed| &*routed.route), of_model)
    }

    /// Which version of its model it is for.
    pub(crate) fn version(&self) -> &str {
        self.deployment.as_ref().map_or("", |deployment| &deployment.version)
    }

    /// What tokens cost when no node has made them for it.
    pub(crate) fn reuse_cost(&self, unix_ms: u64, tokens: Tokens) -> Usd {
        let cost = self.model.as_ref().map(|model| model.cost(unix_ms, tokens)).unwrap_or_default();
        cost.permille(self.cache_policy().price_permille)
    }

    /// The body as a node gets it, with an answer of open length held to so many tokens.
    pub(crate) fn rewritten(&self, body: &Bytes, longest: Option<u64>) -> Bytes {
        let Some(ask) = &self.ask else { return body.clone() };
        let model = self.model.as_ref().map(|model| model.record.id.as_str()).filter(|id| *id != ask.model);
        rewrite::body(ask, body, &Changes { model, longest, is_generated: self.endpoint.generates() })
    }
}

impl Request {
    pub(crate) fn begin(edge: &Arc<Edge>) -> Self {
        let since_epoch = since_epoch();
        let stamp = Timestamp::from_unix(NoContext, since_epoch.as_secs(), since_epoch.subsec_nanos());
        Self {
            snapshot: edge.snapshot.load_full(),
            arrived: Instant::now(),
            arrived_unix_ms: millis(since_epoch),
            id: EventId(Uuid::new_v7(stamp)),
            request_id: String::new(),
            reject: None,
            metered: None,
            _in_flight: InFlight::begin(edge),
        }
    }

    /// The dispatch, if the request got that far.
    pub(crate) fn dispatch(&mut self) -> Option<&mut Dispatch> {
        self.metered.as_mut()?.dispatch.as_mut()
    }
}

/// Now, Unix milliseconds.
pub(crate) fn unix_ms() -> u64 {
    millis(since_epoch())
}

/// Counts the request as running until dropped, so that a drain knows when it is over.
struct InFlight(Arc<Edge>);

impl InFlight {
    fn begin(edge: &Arc<Edge>) -> Self {
        edge.metrics.in_flight.inc();
        Self(Arc::clone(edge))
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.metrics.in_flight.dec();
    }
}

/// The client's request id if it is sound (1 to 128 visible ASCII characters), else one made from the event's.
pub(crate) fn request_id(sent: Option<&str>, id: EventId) -> String {
    let sound = |text: &&str| (1..=128).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic());
    sent.filter(sound).map_or_else(|| own_request_id(id), str::to_owned)
}

/// A request id made from the event's.
pub(crate) fn own_request_id(id: EventId) -> String {
    format!("req_{}", id.0.simple())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_sound_request_ids_are_kept() {
        let id = EventId(Uuid::from_u128(7));
        assert_eq!(request_id(Some("abc-1"), id), "abc-1");
        let own = "req_00000000000000000000000000000007";
        for unsound in [None, Some(""), Some("a b"), Some("a\u{e9}"), Some(&*"x".repeat(129))] {
            assert_eq!(request_id(unsound, id), own);
        }
    }
}
