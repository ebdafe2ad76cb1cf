//! Every metric of the control plane. Label values come from closed enums or from names of nodes in the database.

use crate::store::reconcile::Compared;
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};
use std::sync::atomic::AtomicU64;
use turnpike_config::wire::NodeReport;

/// Content type of [`Metrics::render`].
pub(crate) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Upper bounds for durations, seconds.
const SECONDS: [f64; 11] = [0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 2.5, 5.0, 30.0];

/// Upper bounds for rows of an insert.
const ROWS: [f64; 7] = [1.0, 10.0, 100.0, 1_000.0, 4_000.0, 10_000.0, 20_000.0];

/// What became of a usage event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum EventFate {
    /// Stored for the first time.
    Stored,
    /// Had been stored before.
    Duplicate,
    /// Its organization does not exist.
    UnknownOrganization,
    /// Its id carries no time that the request log covers.
    BadTime,
    /// The schema cannot hold it.
    BadValue,
}

/// What was sent to an edge.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum PushKind {
    /// The whole state.
    Snapshot,
    /// Changes.
    Delta,
    /// A change out of turn, for an edge that is busy with a snapshot.
    Urgent,
}

/// Answers of the admin API by class.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum StatusClass {
    /// 1xx to 3xx.
    Ok,
    /// 4xx.
    ClientError,
    /// 5xx.
    ServerError,
}

/// Gives the variants of an enum the names that they have as label values.
macro_rules! label_values {
    ($name:ident { $($variant:ident => $text:literal),+ $(,)? }) => {
        impl EncodeLabelValue for $name {
            fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), std::fmt::Error> {
                match self { $(Self::$variant => $text,)+ }.encode(encoder)
            }
        }
    };
}

label_values!(EventFate {
    Stored => "stored",
    Duplicate => "duplicate",
    UnknownOrganization => "unknown_organization",
    BadTime => "bad_time",
    BadValue => "bad_value",
});
label_values!(PushKind { Snapshot => "snapshot", Delta => "delta", Urgent => "urgent" });
label_values!(StatusClass { Ok => "ok", ClientError => "client_error", ServerError => "server_error" });

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct FateLabels {
    fate: EventFate,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PushLabels {
    kind: PushKind,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StatusLabels {
    status: StatusClass,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct NodeLabels {
    node: String,
}

/// All metrics and the registry that renders them.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    /// Version of the routing that is published to edges.
    pub(crate) config_version: Gauge,
    /// Faults that keep a newer version from being published; 0 when all is well.
    pub(crate) config_faults: Gauge,
    /// Versions that an edge refused.
    pub(crate) push_refusals: Counter,
    /// From the making of a change until an edge said that it serves by it.
    pub(crate) propagation: Histogram,
    /// Edges with a push link.
    pub(crate) edges_connected: Gauge,
    /// Nodes with a link.
    pub(crate) nodes_connected: Gauge,
    /// Batches that could not be stored yet.
    pub(crate) ingest_failures: Counter,
    /// From receiving a batch until it was durable.
    pub(crate) ingest_duration: Histogram,
    /// Rows of one insert into ClickHouse.
    pub(crate) insert_rows: Histogram,
    /// From the end of a request until its event was acknowledged, and so is in every sum asked for from then on.
    pub(crate) event_delay: Histogram,
    /// Events that were received and are not durable yet.
    pub(crate) events_waiting: Gauge,
    /// Records of edges' journals that were skipped.
    pub(crate) journal_gaps: Counter,
    /// Failed runs of the rollup.
    pub(crate) rollup_failures: Counter,
    /// One run of the rollup.
    pub(crate) rollup_duration: Histogram,
    /// Hours of which the ledger knows less than was summed before, and which are left as they are.
    pub(crate) rollup_hours_refused: Gauge,
    /// Days whose books could not be compared.
    pub(crate) reconcile_failures: Counter,
    reconcile_events: Gauge,
    reconcile_tokens: Gauge,
    reconcile_cost: Gauge,
    reconcile_last_run: Gauge,
    /// Entries of nodes' ledgers that came, repeated ones too.
    pub(crate) ledger_entries: Counter,
    /// Those of them that no table can hold.
    pub(crate) ledger_entries_dropped: Counter,
    /// Failed runs of the partition reconciler.
    pub(crate) partition_failures: Counter,
    /// Failed runs of the budget reconciler.
    pub(crate) budget_failures: Counter,
    /// Failed runs of the posting reconciler.
    pub(crate) posting_failures: Counter,
    /// Months or organizations that could not be closed.
    pub(crate) closing_failures: Counter,
    /// Months whose lines and daily books differed.
    pub(crate) closing_mismatches: Counter,
    /// 1 while a month waits for usage that may still come.
    pub(crate) closing_waiting: Gauge,
    /// Months with usage on no invoice that are too old to be closed by themselves.
    pub(crate) closing_forgotten: Gauge,
    /// Times that an invoice did not match its checksum when it was read.
    pub(crate) invoice_checksum_failures: Counter,
    /// Calls to Stripe that failed.
    pub(crate) stripe_failures: Counter,
    /// Invoices of which Stripe says otherwise.
    pub(crate) stripe_conflicts: Counter,
    pushes: Family<PushLabels, Counter>,
    events: Family<FateLabels, Counter>,
    admin_requests: Family<StatusLabels, Counter>,
    node_running: Family<NodeLabels, Gauge>,
    node_waiting: Family<NodeLabels, Gauge>,
    node_kv_cache: Family<NodeLabels, Gauge<f64, AtomicU64>>,
    node_gpu: Family<NodeLabels, Gauge<f64, AtomicU64>>,
}

impl Metrics {
    pub(crate) fn new() -> Self {
        let mut metrics = Self {
            registry: Registry::with_prefix("turnpike_controlplane"),
            config_version: Gauge::default(),
            config_faults: Gauge::default(),
            push_refusals: Counter::default(),
            propagation: Histogram::new(SECONDS),
            edges_connected: Gauge::default(),
            nodes_connected: Gauge::default(),
            ingest_failures: Counter::default(),
            ingest_duration: Histogram::new(SECONDS),
            insert_rows: Histogram::new(ROWS),
            event_delay: Histogram::new(SECONDS),
            events_waiting: Gauge::default(),
            journal_gaps: Counter::default(),
            rollup_failures: Counter::default(),
            rollup_duration: Histogram::new(SECONDS),
            rollup_hours_refused: Gauge::default(),
            reconcile_failures: Counter::default(),
            reconcile_events: Gauge::default(),
            reconcile_tokens: Gauge::default(),
            reconcile_cost: Gauge::default(),
            reconcile_last_run: Gauge::default(),
            ledger_entries: Counter::default(),
            ledger_entries_dropped: Counter::default(),
            partition_failures: Counter::default(),
            budget_failures: Counter::default(),
            posting_failures: Counter::default(),
            closing_failures: Counter::default(),
            closing_mismatches: Counter::default(),
            closing_waiting: Gauge::default(),
            closing_forgotten: Gauge::default(),
            invoice_checksum_failures: Counter::default(),
            stripe_failures: Counter::default(),
            stripe_conflicts: Counter::default(),
            pushes: Family::default(),
            events: Family::default(),
            admin_requests: Family::default(),
            node_running: Family::default(),
            node_waiting: Family::default(),
            node_kv_cache: Family::default(),
            node_gpu: Family::default(),
        };
        metrics.register();
        metrics
    }

    fn register(&mut self) {
        let r = &mut self.registry;
        r.register("config_version", "Version of the routing published to edges", self.config_version.clone());
        r.register("config_faults", "Faults that hold back a newer version", self.config_faults.clone());
        r.register("push_refusals", "Versions refused by an edge", self.push_refusals.clone());
        r.register_with_unit(
            "config_propagation",
            "From the making of a change until an edge serves by it",
            Unit::Seconds,
            self.propagation.clone(),
        );
        r.register("edges_connected", "Edges with a push link", self.edges_connected.clone());
        r.register("nodes_connected", "Nodes with a link", self.nodes_connected.clone());
        r.register("usage_ingest_failures", "Attempts to store a batch that failed", self.ingest_failures.clone());
        r.register_with_unit(
            "usage_ingest_duration",
            "From receiving a batch until it is durable",
            Unit::Seconds,
            self.ingest_duration.clone(),
        );
        r.register("clickhouse_insert_rows", "Rows of one insert into ClickHouse", self.insert_rows.clone());
        let delay = self.event_delay.clone();
        r.register_with_unit("usage_event_delay", "From a request's end until its event counts", Unit::Seconds, delay);
        r.register("usage_events_waiting", "Usage events received and not yet durable", self.events_waiting.clone());
        r.register("usage_journal_gaps", "Records of journals that were skipped", self.journal_gaps.clone());
        r.register("rollup_failures", "Failed rollup runs", self.rollup_failures.clone());
        let rollup = self.rollup_duration.clone();
        r.register_with_unit("rollup_duration", "One run of the rollup", Unit::Seconds, rollup);
        let refused = self.rollup_hours_refused.clone();
        r.register("rollup_hours_refused", "Hours of which the ledger knows less than was summed before", refused);
        r.register("reconcile_failures", "Times the books could not be compared", self.reconcile_failures.clone());
        let apart = "By how much the books of the last day compared differ";
        r.register("reconcile_difference_events", apart, self.reconcile_events.clone());
        r.register("reconcile_difference_tokens", apart, self.reconcile_tokens.clone());
        r.register("reconcile_difference_pico_dollars", apart, self.reconcile_cost.clone());
        let last_run = "When the books were last compared, Unix time";
        r.register_with_unit("reconcile_last_run", last_run, Unit::Seconds, self.reconcile_last_run.clone());
        r.register("node_ledger_entries", "Entries of nodes' ledgers that came", self.ledger_entries.clone());
        r.register("node_ledger_dropped", "Entries without a likely time", self.ledger_entries_dropped.clone());
        r.register("partition_failures", "Failed partition runs", self.partition_failures.clone());
        r.register("budget_failures", "Failed budget runs", self.budget_failures.clone());
        r.register("prepaid_posting_failures", "Failed posting runs", self.posting_failures.clone());
        r.register("closing_failures", "Months that could not be closed", self.closing_failures.clone());
        let mismatches = self.closing_mismatches.clone();
        r.register("closing_mismatches", "Months refused because lines and daily books differ", mismatches);
        r.register("closing_waiting", "Whether a month waits for usage to come", self.closing_waiting.clone());
        let forgotten = self.closing_forgotten.clone();
        r.register("closing_forgotten", "Months with usage on no invoice, too old to be closed", forgotten);
        let failures = self.invoice_checksum_failures.clone();
        r.register("invoice_checksum_failures", "Reads of an invoice that does not match its checksum", failures);
        r.register(
            "stripe_failures",
            "Things that could not be collected through Stripe",
            self.stripe_failures.clone(),
        );
        r.register("stripe_conflicts", "Invoices of which Stripe says otherwise", self.stripe_conflicts.clone());
        r.register("pushes", "Frames sent to edges", self.pushes.clone());
        r.register("usage_events", "Usage events received, by what became of them", self.events.clone());
        r.register("admin_requests", "Admin API answers by class", self.admin_requests.clone());
        r.register("node_requests_running", "Requests a node's engine works on", self.node_running.clone());
        r.register("node_requests_waiting", "Requests waiting at a node", self.node_waiting.clone());
        r.register_with_unit("node_kv_cache_use", "KV-cache use", Unit::Ratios, self.node_kv_cache.clone());
        r.register_with_unit("node_gpu_use", "GPU utilisation", Unit::Ratios, self.node_gpu.clone());
    }

    /// Counts events by what became of them.
    pub(crate) fn count_events(&self, fate: EventFate, count: u64) {
        if count > 0 {
            self.events.get_or_create(&FateLabels { fate }).inc_by(count);
        }
    }

    /// Counts a frame sent to an edge.
    pub(crate) fn count_push(&self, kind: PushKind) {
        self.pushes.get_or_create(&PushLabels { kind }).inc();
    }

    /// Counts an answer of the admin API.
    pub(crate) fn count_admin_request(&self, status: u16) {
        let status = match status {
            ..400 => StatusClass::Ok,
            400..500 => StatusClass::ClientError,
            500.. => StatusClass::ServerError,
        };
        self.admin_requests.get_or_create(&StatusLabels { status }).inc();
    }

    /// Shows what the last comparison of a day's books came to.
    pub(crate) fn show_reconciliation(&self, last: &Compared) {
        self.reconcile_events.set(last.apart.events);
        self.reconcile_tokens.set(last.apart.tokens);
        self.reconcile_cost.set(i64::try_from(last.apart.cost.pico).unwrap_or(i64::MAX));
        self.reconcile_last_run.set(last.ran_at.timestamp());
    }

    /// Shows a node's latest report.
    pub(crate) fn observe_node(&self, name: &str, report: &NodeReport) {
        let labels = NodeLabels { node: name.to_owned() };
        self.node_running.get_or_create(&labels).set(i64::from(report.running));
        self.node_waiting.get_or_create(&labels).set(i64::from(report.waiting));
        if let Some(permille) = report.kv_cache_permille {
            self.node_kv_cache.get_or_create(&labels).set(f64::from(permille) / 1000.0);
        }
        if let Some(permille) = report.gpu_permille {
            self.node_gpu.get_or_create(&labels).set(f64::from(permille) / 1000.0);
        }
    }

    /// Stops showing a node whose link is gone.
    pub(crate) fn forget_node(&self, name: &str) {
        let labels = NodeLabels { node: name.to_owned() };
        self.node_running.remove(&labels);
        self.node_waiting.remove(&labels);
        self.node_kv_cache.remove(&labels);
        self.node_gpu.remove(&labels);
    }

    /// Everything in OpenMetrics text.
    pub(crate) fn render(&self) -> Result<String, std::fmt::Error> {
        let mut out = String::new();
        text::encode(&mut out, &self.registry)?;
        Ok(out)
    }
}
