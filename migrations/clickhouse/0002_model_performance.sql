-- How nodes do: a row per minute, node and model, written when the minute's events have come. Written again, the row
-- is replaced.
CREATE TABLE IF NOT EXISTS model_performance{on_cluster} (
    timestamp DateTime('UTC'),
    model_id LowCardinality(String),
    model_version LowCardinality(String),
    region LowCardinality(String),
    node LowCardinality(String),
    gpu_type LowCardinality(String),
    requests_per_second Float64,
    tokens_per_second Float64,
    avg_latency_ms Float64,
    p95_latency_ms Float64,
    p99_latency_ms Float64,
    gpu_utilization Float64,
    memory_utilization Float64,
    error_rate Float64
)
ENGINE = {engine:ReplacingMergeTree()}
PARTITION BY toYYYYMM(timestamp)
ORDER BY (timestamp, model_id, model_version, region, node);
