//! What all requests of an edge share.

use crate::bucket::Bucket;
use crate::cache::ResponseCache;
use crate::directory::Directory;
use crate::journal::Journal;
use crate::limit::Limiter;
use crate::live::Snapshot;
use crate::metrics::Metrics;
use crate::node_client::Aside;
use crate::settings::Settings;
use crate::unsettled::Unsettled;
use crate::upstream::Connector;
use arc_swap::ArcSwap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize};

/// Further tries per minute, over all requests: a failing region must not multiply its own load.
const RETRIES_PER_MINUTE: u64 = 6_000;

/// The edge.
pub(crate) struct Edge {
    pub(crate) settings: Settings,
    /// Own name, from the certificate.
    pub(crate) name: String,
    pub(crate) snapshot: ArcSwap<Snapshot>,
    pub(crate) journal: Journal,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) nodes: Connector,
    pub(crate) retry_budget: Bucket,
    pub(crate) limiter: Arc<Limiter>,
    pub(crate) cache: ResponseCache,
    /// Finds out what answers without a count used.
    pub(crate) unsettled: Unsettled,
    /// What the edges of the region tell each other; `None` without Redis.
    pub(crate) directory: Option<Directory>,
    pub(crate) aside: Aside,
    /// Starts each balancing scan elsewhere.
    pub(crate) turn: AtomicUsize,
    /// The client port takes connections.
    pub(crate) listening: AtomicBool,
    /// No new requests: a stop was asked for.
    pub(crate) draining: AtomicBool,
}

/// Where usage goes.
pub(crate) struct Metering {
    pub(crate) journal: Journal,
    pub(crate) unsettled: Unsettled,
}

/// Who the edge is.
pub(crate) struct Own {
    pub(crate) name: String,
    pub(crate) nodes: Connector,
    pub(crate) aside: Aside,
}

impl Edge {
    pub(crate) fn new(
        settings: Settings,
        own: Own,
        metering: Metering,
        metrics: Arc<Metrics>,
        limiter: Arc<Limiter>,
        cache: ResponseCache,
        directory: Option<Directory>,
    ) -> Self {
        let Metering { journal, unsettled } = metering;
        let snapshot = ArcSwap::from_pointee(Snapshot::nothing(&settings.region));
        Self {
            settings,
            name: own.name,
            snapshot,
            journal,
            metrics,
            nodes: own.nodes,
            retry_budget: Bucket::new(RETRIES_PER_MINUTE),
            limiter,
            cache,
            unsettled,
            directory,
            aside: own.aside,
            turn: AtomicUsize::new(0),
            listening: AtomicBool::new(false),
            draining: AtomicBool::new(false),
        }
    }

    /// Nanoseconds on the edge's monotonic clock; what limits and rests are measured by.
    pub(crate) fn now_ns(&self) -> u64 {
        self.limiter.now_ns()
    }
}
