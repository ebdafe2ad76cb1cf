//! Every metric of the edge, in one place. Names follow Prometheus' conventions: units inside, counters end in `_total`.
//!
//! Requests are counted from their usage events on the journal's thread, so that the request path touches plain atomics
//! at most.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};
use std::sync::atomic::AtomicU64;
use std::time::Duration;
use turnpike_config::UsageEvent;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    endpoint: &'static str,
    status: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CacheLabels {
    status: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ShadowLabels {
    status: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct EndpointLabel {
    endpoint: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TokenLabels {
    direction: &'static str,
}

/// All of the edge's metrics.
pub(crate) struct Metrics {
    registry: Registry,
    requests: Family<RequestLabels, Counter>,
    duration: Family<EndpointLabel, Histogram, fn() -> Histogram>,
    first_byte: Family<EndpointLabel, Histogram, fn() -> Histogram>,
    input_tokens: Counter,
    output_tokens: Counter,
    cached: Family<CacheLabels, Counter>,
    shadows: Family<ShadowLabels, Counter>,
    /// Shadows that were not sent, since too many were on their way or no node was ready.
    pub(crate) shadows_skipped: Counter,
    /// Requests refused before a key was accepted, or that were no inference.
    pub(crate) unmetered: Counter,
    /// Connections closed because too many were open.
    pub(crate) connections_refused: Counter,
    /// Requests tried on a further node.
    pub(crate) retries: Counter,
    /// Requests being worked on.
    pub(crate) in_flight: Gauge,
    /// Version of the routing that is served by.
    pub(crate) routing_version: Gauge,
    /// Keys that were used lately.
    pub(crate) keys_in_use: Gauge,
    /// Nodes that take requests, by that routing.
    pub(crate) nodes_ready: Gauge,
    /// Pushes applied and refused.
    pub(crate) pushes_applied: Counter,
    pub(crate) pushes_refused: Counter,
    /// Bytes received on the push stream.
    pub(crate) push_bytes: Counter,
    /// How long it took until the last push was served by.
    pub(crate) apply_seconds: Gauge<f64, AtomicU64>,
    /// 1 if this process started by an older version than the newest on disk, by which it had died.
    pub(crate) gave_up_version: Gauge,
    /// Asks for units sent to the region's buckets, those that took long, and requests refused for want of a word.
    pub(crate) limiter_asks: Counter,
    pub(crate) limiter_slow: Counter,
    pub(crate) limiter_untold: Counter,
    /// 1 while Redis cannot be reached and limits are divided by the number of edges.
    pub(crate) limiter_alone: Gauge,
    /// Keys and models that the routing does not have, asked for in the region.
    pub(crate) lookups: Counter,
    /// Answers kept in this process, their bytes, and answers being made that others may wait for.
    pub(crate) cache_answers: Gauge,
    pub(crate) cache_bytes: Gauge,
    pub(crate) cache_flights: Gauge,
    /// 1 while the link to the control plane stands.
    pub(crate) linked: Gauge,
    pub(crate) linked_by_tcp: Gauge,
    /// Journal positions: durable on disk, and stored by the control plane.
    pub(crate) journal_durable: Gauge,
    pub(crate) journal_shipped: Gauge,
    /// 1 while usage can be recorded.
    pub(crate) journal_writable: Gauge,
    /// From when an event was handed over until it was written.
    journal_write: Histogram,
    /// Requests of an earlier life of this process that were accounted for, and answers that broke off.
    pub(crate) orphans: Counter,
    pub(crate) broken_off: Counter,
}

fn latency() -> Histogram {
    // 1 ms to about 2 minutes.
    Histogram::new(exponential_buckets(0.001, 2.0, 18))
}

impl Metrics {
    pub(crate) fn new() -> Self {
        let mut metrics = Self {
            registry: Registry::with_prefix("turnpike_edge"),
            requests: Family::default(),
            duration: Family::new_with_constructor(latency),
            first_byte: Family::new_with_constructor(latency),
            input_tokens: Counter::default(),
            output_tokens: Counter::default(),
            cached: Family::default(),
            shadows: Family::default(),
            shadows_skipped: Counter::default(),
            unmetered: Counter::default(),
            connections_refused: Counter::default(),
            retries: Counter::default(),
            in_flight: Gauge::default(),
            routing_version: Gauge::default(),
            keys_in_use: Gauge::default(),
            nodes_ready: Gauge::default(),
            pushes_applied: Counter::default(),
            pushes_refused: Counter::default(),
            push_bytes: Counter::default(),
            apply_seconds: Gauge::default(),
            gave_up_version: Gauge::default(),
            limiter_asks: Counter::default(),
            limiter_slow: Counter::default(),
            limiter_untold: Counter::default(),
            limiter_alone: Gauge::default(),
            lookups: Counter::default(),
            cache_answers: Gauge::default(),
            cache_bytes: Gauge::default(),
            cache_flights: Gauge::default(),
            linked: Gauge::default(),
            linked_by_tcp: Gauge::default(),
            journal_durable: Gauge::default(),
            journal_shipped: Gauge::default(),
            journal_writable: Gauge::default(),
            journal_write: Histogram::new(exponential_buckets(10e-6, 2.0, 16)),
            orphans: Counter::default(),
            broken_off: Counter::default(),
        };
        metrics.register();
        metrics
    }

    fn register(&mut self) {
        let r = &mut self.registry;
        r.register("requests", "Metered requests by endpoint and end", self.requests.clone());
        let seconds = Unit::Seconds;
        r.register_with_unit("request_duration", "Arrival to last byte", seconds.clone(), self.duration.clone());
        r.register_with_unit(
            "journal_write",
            "From when an event was handed over until it was written",
            seconds.clone(),
            self.journal_write.clone(),
        );
        r.register_with_unit("request_first_byte", "Arrival to first body byte", seconds, self.first_byte.clone());
        let tokens = Family::<TokenLabels, Counter>::default();
        self.input_tokens = tokens.get_or_create_owned(&TokenLabels { direction: "input" });
        self.output_tokens = tokens.get_or_create_owned(&TokenLabels { direction: "output" });
        r.register("tokens", "Tokens metered by direction", tokens);
        r.register("unmetered_requests", "Requests without an accepted key, or listings", self.unmetered.clone());
        r.register("connections_refused", "Connections over the limit", self.connections_refused.clone());
        r.register("retries", "Requests tried on a further node", self.retries.clone());
        r.register("requests_in_flight", "Requests being worked on", self.in_flight.clone());
        r.register("routing_version", "Version of the routing in use", self.routing_version.clone());
        r.register("keys_in_use", "Keys that were used in the last minutes", self.keys_in_use.clone());
        r.register("nodes_ready", "Nodes that take requests", self.nodes_ready.clone());
        r.register("pushes_applied", "Routing versions taken", self.pushes_applied.clone());
        r.register("pushes_refused", "Routing versions refused", self.pushes_refused.clone());
        r.register_with_unit("push_received", "Received on the push stream", Unit::Bytes, self.push_bytes.clone());
        r.register_with_unit("last_apply", "Until the last push was in use", Unit::Seconds, self.apply_seconds.clone());
        r.register(
            "started_by_older_version",
            "1 if the newest version on disk was given up at the start: this edge had died by it",
            self.gave_up_version.clone(),
        );
        r.register("limiter_asks", "Asks sent to the buckets of the region's limits", self.limiter_asks.clone());
        r.register("limiter_slow_asks", "Those without an answer in time", self.limiter_slow.clone());
        r.register("limiter_untold", "Requests refused since no bucket answered", self.limiter_untold.clone());
        r.register("limiter_alone", "1 while limits are divided by the edges", self.limiter_alone.clone());
        r.register("region_lookups", "Keys and models not in the routing, looked up in Redis", self.lookups.clone());
        r.register("shadow_requests", "Copies of requests sent to a route's shadow, by end", self.shadows.clone());
        r.register("shadow_requests_skipped", "Copies that could not be sent", self.shadows_skipped.clone());
        r.register("cache_requests", "Requests that the response cache had a part in", self.cached.clone());
        r.register("cache_answers", "Answers kept in this process", self.cache_answers.clone());
        let kept = "Size of the answers kept in this process";
        r.register_with_unit("cache_size", kept, Unit::Bytes, self.cache_bytes.clone());
        r.register("cache_flights", "Answers being made that others may wait for", self.cache_flights.clone());
        r.register("control_link_up", "1 while linked to the control plane", self.linked.clone());
        r.register("control_link_by_tcp", "1 if that link goes by TCP, as UDP is blocked", self.linked_by_tcp.clone());
        r.register("journal_durable_records", "Journal records synced to disk, ever", self.journal_durable.clone());
        r.register(
            "journal_shipped_records",
            "Journal records stored by the control plane",
            self.journal_shipped.clone(),
        );
        r.register(
            "orphans",
            "Requests that a crash of this edge ended, accounted for as far as their nodes' ledgers know",
            self.orphans.clone(),
        );
        r.register(
            "broken_off",
            "Answers without the engine's count, asked for at their nodes",
            self.broken_off.clone(),
        );
        r.register("journal_writable", "1 while usage can be recorded", self.journal_writable.clone());
    }

    /// Counts a request that has ended, and whose event took so long to be written.
    pub(crate) fn observe(&self, event: &UsageEvent, written_after: Duration) {
        self.journal_write.observe(written_after.as_secs_f64());
        if event.shadow {
            self.shadows.get_or_create(&ShadowLabels { status: event.status.name() }).inc();
            return;
        }
        let endpoint = event.endpoint.name();
        self.requests.get_or_create(&RequestLabels { endpoint, status: event.status.name() }).inc();
        let label = EndpointLabel { endpoint };
        self.duration.get_or_create(&label).observe(f64::from(event.total_ms) / 1000.0);
        if let Some(first) = event.first_byte_ms {
            self.first_byte.get_or_create(&label).observe(f64::from(first) / 1000.0);
        }
        if let Some(status) = event.cache {
            self.cached.get_or_create(&CacheLabels { status: status.name() }).inc();
        }
        self.input_tokens.inc_by(event.prompt_tokens.into());
        self.output_tokens.inc_by(event.completion_tokens.into());
    }

    /// The exposition text.
    pub(crate) fn render(&self) -> Result<String, std::fmt::Error> {
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }
}
