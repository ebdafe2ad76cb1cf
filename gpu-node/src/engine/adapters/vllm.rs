use super::{Adapter, MetricNames};

/// vLLM's OpenAI-compatible server.
pub(crate) const VLLM: Adapter = Adapter {
    kind: "vllm",
    health_path: "/health",
    metrics: Some(MetricNames {
        running: &["vllm:num_requests_running"],
        waiting: &["vllm:num_requests_waiting"],
        kv_cache: &["vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc"],
        generated: &["vllm:generation_tokens_total"],
    }),
    metrics_hint: "is it started with --disable-log-stats?",
};
