use super::{Adapter, MetricNames};

/// llama.cpp's server. Its newer builds no longer tell how full the KV cache is.
pub(crate) const LLAMACPP: Adapter = Adapter {
    kind: "llamacpp",
    health_path: "/health",
    metrics: Some(MetricNames {
        running: &["llamacpp:requests_processing"],
        waiting: &["llamacpp:requests_deferred"],
        kv_cache: &["llamacpp:kv_cache_usage_ratio"],
        generated: &["llamacpp:tokens_predicted_total"],
    }),
    metrics_hint: "start it with --metrics",
};
