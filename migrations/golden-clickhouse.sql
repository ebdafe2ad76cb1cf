CREATE MATERIALIZED VIEW turnpike.daily_usage_refresh
REFRESH EVERY 1 MINUTE APPEND TO turnpike.daily_usage_summary
(
    `date` Date,
    `organization_id` LowCardinality(String),
    `model_id` LowCardinality(String),
    `total_requests` UInt64,
    `total_tokens` UInt64,
    `total_cost_usd` Float64,
    `avg_latency_ms` Float64,
    `error_rate` Float64,
    `summed_at` DateTime64(3, 'UTC')
)
AS SELECT
    toDate(timestamp) AS date,
    organization_id,
    model_id,
    count() AS total_requests,
    sum(request_analytics.total_tokens) AS total_tokens,
    toFloat64(sum(cost)) AS total_cost_usd,
    avg(total_time_ms) AS avg_latency_ms,
    countIf(status != 'success') / count() AS error_rate,
    now64(3, 'UTC') AS summed_at
FROM turnpike.request_analytics
FINAL
WHERE (model_id != '') AND (NOT shadow) AND (toDate(timestamp) IN (
    SELECT toDate(timestamp)
    FROM turnpike.request_analytics
    WHERE stored_at > (now64(3, 'UTC') - toIntervalHour(1))
))
GROUP BY
    date,
    organization_id,
    model_id

CREATE TABLE turnpike.daily_usage_summary
(
    `date` Date,
    `organization_id` LowCardinality(String),
    `model_id` LowCardinality(String),
    `total_requests` UInt64,
    `total_tokens` UInt64,
    `total_cost_usd` Float64,
    `avg_latency_ms` Float64,
    `error_rate` Float64,
    `summed_at` DateTime64(3, 'UTC')
)
ENGINE = ReplacingMergeTree(summed_at)
PARTITION BY toYYYYMM(date)
ORDER BY (date, organization_id, model_id)
SETTINGS index_granularity = 8192

CREATE TABLE turnpike.model_performance
(
    `timestamp` DateTime('UTC'),
    `model_id` LowCardinality(String),
    `model_version` LowCardinality(String),
    `region` LowCardinality(String),
    `node` LowCardinality(String),
    `gpu_type` LowCardinality(String),
    `requests_per_second` Float64,
    `tokens_per_second` Float64,
    `avg_latency_ms` Float64,
    `p95_latency_ms` Float64,
    `p99_latency_ms` Float64,
    `gpu_utilization` Float64,
    `memory_utilization` Float64,
    `error_rate` Float64
)
ENGINE = ReplacingMergeTree
PARTITION BY toYYYYMM(timestamp)
ORDER BY (timestamp, model_id, model_version, region, node)
TTL toStartOfDay(timestamp) + toIntervalDay(400)
SETTINGS index_granularity = 8192

CREATE TABLE turnpike.request_analytics
(
    `timestamp` DateTime('UTC'),
    `event_id` UUID,
    `organization_id` LowCardinality(String),
    `api_key_id` LowCardinality(String),
    `model_id` LowCardinality(String),
    `model_version` LowCardinality(String),
    `request_type` LowCardinality(String),
    `prompt_tokens` UInt32,
    `cached_tokens` UInt32,
    `completion_tokens` UInt32,
    `total_tokens` UInt64,
    `estimated` Bool,
    `price_version` UInt32,
    `cost` Decimal(38, 12),
    `cost_usd` Float64 MATERIALIZED toFloat64(cost),
    `processing_time_ms` UInt32,
    `queue_time_ms` UInt32,
    `total_time_ms` UInt32,
    `first_byte_ms` Nullable(UInt32),
    `status` LowCardinality(String),
    `http_status` UInt16,
    `error_code` LowCardinality(String),
    `cache_status` LowCardinality(String),
    `streamed` Bool,
    `shadow` Bool,
    `retries` UInt8,
    `request_size_bytes` UInt64,
    `response_size_bytes` UInt64,
    `region` LowCardinality(String),
    `edge` LowCardinality(String),
    `node` LowCardinality(String),
    `user_agent` String,
    `stored_at` DateTime64(3, 'UTC') DEFAULT now64(3, 'UTC'),
    `precedence` UInt64 DEFAULT 18446744073709551615 - toUnixTimestamp64Micro(now64(6, 'UTC'))
)
ENGINE = ReplacingMergeTree(precedence)
PARTITION BY toYYYYMM(timestamp)
ORDER BY (timestamp, organization_id, event_id)
TTL toStartOfDay(timestamp) + toIntervalDay(400)
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1, non_replicated_deduplication_window = 1000, index_granularity = 8192

CREATE TABLE turnpike.schema_migrations
(
    `version` UInt32,
    `name` String,
    `checksum` String,
    `applied_at` DateTime('UTC') DEFAULT now('UTC')
)
ENGINE = ReplacingMergeTree
ORDER BY version
SETTINGS index_granularity = 8192
