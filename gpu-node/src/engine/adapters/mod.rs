//! What differs between engines that are reached over HTTP: where they tell their health and what they call their load.

mod llamacpp;
mod openai;
mod sglang;
mod vllm;

pub(crate) use llamacpp::LLAMACPP;
pub(crate) use openai::OPENAI;
pub(crate) use sglang::SGLANG;
pub(crate) use vllm::VLLM;

/// One kind of engine.
#[derive(Debug)]
pub(crate) struct Adapter {
    /// Its name in settings and reports.
    pub(crate) kind: &'static str,
    /// Answers 2xx when the engine can take requests.
    pub(crate) health_path: &'static str,
    /// Its load, if it tells.
    pub(crate) metrics: Option<MetricNames>,
    /// What to do when the metrics page is not there; for the operator.
    pub(crate) metrics_hint: &'static str,
}

/// What an engine calls its figures on `/metrics`. Each list goes from the newest name to the oldest.
#[derive(Debug)]
pub(crate) struct MetricNames {
    /// Gauge: requests worked on.
    pub(crate) running: &'static [&'static str],
    /// Gauge: requests that wait.
    pub(crate) waiting: &'static [&'static str],
    /// Gauge: share of the KV cache in use, 0 to 1.
    pub(crate) kv_cache: &'static [&'static str],
    /// Counter: tokens generated.
    pub(crate) generated: &'static [&'static str],
}
