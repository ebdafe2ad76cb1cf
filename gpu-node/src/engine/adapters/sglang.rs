use super::{Adapter, MetricNames};

/// SGLang's server.
pub(crate) const SGLANG: Adapter = Adapter {
    kind: "sglang",
    health_path: "/health",
    metrics: Some(MetricNames {
        running: &["sglang:num_running_reqs"],
        waiting: &["sglang:num_queue_reqs"],
        kv_cache: &["sglang:token_usage"],
        generated: &["sglang:generation_tokens_total"],
    }),
    metrics_hint: "start it with --enable-metrics",
};
