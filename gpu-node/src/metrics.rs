//! Every metric of a node agent. Names carry their unit; label values come from closed sets.

use crate::status::Status;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric, text};
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};
use std::sync::Arc;
use std::time::Duration;
use turnpike_config::{Endpoint, NodeState};

/// How a request ended, as far as the agent knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The engine's answer went out to its end, whatever its status.
    Answered,
    /// The answer broke off: the edge left or the engine failed.
    BrokenOff,
    /// Refused before the engine saw it: the queue was full.
    QueueFull,
    /// Refused before the engine saw it: waited too long.
    QueueDeadline,
    /// Refused before the engine saw it: draining.
    Draining,
    /// Refused before the engine saw it: body too large or too slow, unknown model.
    Rejected,
    /// The engine gave no answer.
    EngineFailed,
    /// Refused before the engine saw it: the ledger cannot be written.
    Unrecorded,
}

impl Outcome {
    const fn name(self) -> &'static str {
        match self {
            Self::Answered => "answered",
            Self::BrokenOff => "broken_off",
            Self::QueueFull => "queue_full",
            Self::QueueDeadline => "queue_deadline",
            Self::Draining => "draining",
            Self::Rejected => "rejected",
            Self::EngineFailed => "engine_failed",
            Self::Unrecorded => "unrecorded",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    endpoint: &'static str,
    outcome: &'static str,
}

/// The agent's metrics.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    requests: Family<RequestLabels, Counter>,
    queue_wait: Histogram,
    duration: Histogram,
    probe_failures: Counter,
    engine_restarts: Counter,
}

impl Metrics {
    pub(crate) fn new(status: Arc<Status>) -> Self {
        let requests = Family::default();
        // 1 ms to 65 s.
        let queue_wait = Histogram::new(exponential_buckets(0.001, 2.0, 17));
        // 5 ms to 11 min.
        let duration = Histogram::new(exponential_buckets(0.005, 2.0, 18));
        let (probe_failures, engine_restarts) = (Counter::default(), Counter::default());

        let mut registry = Registry::with_prefix("turnpike_node");
        let r = &mut registry;
        r.register("requests", "Requests by endpoint and end", Family::clone(&requests));
        r.register_with_unit("queue_wait", "Admission until a slot was free", Unit::Seconds, queue_wait.clone());
        r.register_with_unit("request_duration", "Slot until the last byte", Unit::Seconds, duration.clone());
        r.register("engine_probe_failures", "Looks at the engine that failed", probe_failures.clone());
        r.register("engine_restarts", "Times the engine's process was started again", engine_restarts.clone());
        r.register_collector(Box::new(Figures(status)));
        Self { registry, requests, queue_wait, duration, probe_failures, engine_restarts }
    }

    /// A request ended.
    pub(crate) fn ended(&self, endpoint: Endpoint, outcome: Outcome) {
        let labels = RequestLabels { endpoint: endpoint.name(), outcome: outcome.name() };
        self.requests.get_or_create(&labels).inc();
    }

    /// A request got its slot after so long.
    pub(crate) fn waited(&self, wait: Duration) {
        self.queue_wait.observe(wait.as_secs_f64());
    }

    /// A request held its slot so long.
    pub(crate) fn took(&self, duration: Duration) {
        self.duration.observe(duration.as_secs_f64());
    }

    /// A look at the engine failed.
    pub(crate) fn probe_failed(&self) {
        self.probe_failures.inc();
    }

    /// The engine's process is started again.
    pub(crate) fn engine_restarted(&self) {
        self.engine_restarts.inc();
    }

    /// The page for Prometheus, OpenMetrics text.
    pub(crate) fn page(&self) -> Result<String, std::fmt::Error> {
        let mut page = String::new();
        text::encode(&mut page, &self.registry)?;
        Ok(page)
    }
}

/// Figures that are read from the status when somebody looks.
#[derive(Debug)]
struct Figures(Arc<Status>);

impl Collector for Figures {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let report = self.0.report();
        let mut write = |name: &str, help: &str, value: &dyn EncodeMetricDyn| value.write(&mut encoder, name, help);
        let gauge = |value: u32| ConstGauge::new(i64::from(value));
        let flag = |value: bool| ConstGauge::new(i64::from(value));
        let share = |permille: Option<u16>| permille.map(|permille| ConstGauge::new(f64::from(permille) / 1000.0));

        write("requests_running", "Requests that the engine works on", &gauge(report.running))?;
        write("requests_waiting", "Requests that wait, here and in the engine", &gauge(report.waiting))?;
        write("requests_completed", "Answers that went out to their end", &ConstCounter::new(report.completed))?;
        write("generated_tokens", "Tokens generated", &ConstCounter::new(report.generated_tokens))?;
        write("engine_healthy", "1 while the engine answers", &flag(self.0.engine_healthy()))?;
        write("ledger_writable", "1 while requests can be recorded", &flag(self.0.can_record()))?;
        write("draining", "1 while nothing new is taken", &flag(report.state == NodeState::Draining))?;
        write("link_up", "1 while the control plane hears us", &flag(self.0.linked()))?;
        for (name, help, permille) in [
            ("kv_cache_usage_ratio", "KV cache in use, 0 to 1", report.kv_cache_permille),
            ("gpu_utilization_ratio", "Mean over the GPUs, 0 to 1", report.gpu_permille),
            ("gpu_memory_usage_ratio", "Over all GPUs, 0 to 1", report.gpu_memory_permille),
        ] {
            if let Some(gauge) = share(permille) {
                write(name, help, &gauge)?;
            }
        }
        Ok(())
    }
}

/// [`EncodeMetric`] without the type parameter that keeps it from being a trait object.
trait EncodeMetricDyn {
    fn write(&self, encoder: &mut DescriptorEncoder<'_>, name: &str, help: &str) -> Result<(), std::fmt::Error>;
}

impl<M: EncodeMetric> EncodeMetricDyn for M {
    fn write(&self, encoder: &mut DescriptorEncoder<'_>, name: &str, help: &str) -> Result<(), std::fmt::Error> {
        self.encode(encoder.encode_descriptor(name, help, None, self.metric_type())?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::EngineLoad;
    use crate::queue::Queue;

    #[test]
    fn the_page_has_every_figure_once() {
        let status = Arc::new(Status::new(Arc::new(Queue::new(1, 1, Duration::from_secs(1)))));
        let load = EngineLoad { kv_cache_permille: Some(250), waiting: Some(3), ..EngineLoad::default() };
        status.observed(load, None);
        let metrics = Metrics::new(status);
        metrics.ended(Endpoint::Chat, Outcome::Answered);
        metrics.waited(Duration::from_millis(3));
        let page = metrics.page().unwrap();
        for line in [
            "turnpike_node_requests_total{endpoint=\"chat\",outcome=\"answered\"} 1",
            "turnpike_node_requests_waiting 3",
            "turnpike_node_kv_cache_usage_ratio 0.25",
            "turnpike_node_engine_healthy 1",
            "turnpike_node_generated_tokens_total 0",
            "turnpike_node_queue_wait_seconds_count 1",
        ] {
            assert_eq!(page.lines().filter(|l| *l == line).count(), 1, "{line} in\n{page}");
        }
        assert!(!page.contains("gpu_"), "{page}");
    }
}
