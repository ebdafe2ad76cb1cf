-- Daily sums for dashboards; read it FINAL. Nothing is billed from it.
--
-- A view that adds up what is inserted would count deliveries, not events. This one is refreshed instead: every minute
-- it sums anew the days that events came for within the last hour, and a newer sum replaces the older one.
CREATE TABLE IF NOT EXISTS daily_usage_summary{on_cluster} (
    date Date,
    organization_id LowCardinality(String),
    model_id LowCardinality(String),
    total_requests UInt64,
    total_tokens UInt64,
    total_cost_usd Float64,
    avg_latency_ms Float64,
    error_rate Float64,
    summed_at DateTime64(3, 'UTC')
)
ENGINE = {engine:ReplacingMergeTree(summed_at)}
PARTITION BY toYYYYMM(date)
ORDER BY (date, organization_id, model_id);

CREATE MATERIALIZED VIEW IF NOT EXISTS daily_usage_refresh{on_cluster}
REFRESH EVERY 1 MINUTE APPEND TO daily_usage_summary AS
SELECT
    toDate(timestamp) AS date,
    organization_id,
    model_id,
    count() AS total_requests,
    sum(request_analytics.total_tokens) AS total_tokens,
    toFloat64(sum(cost)) AS total_cost_usd,
    avg(total_time_ms) AS avg_latency_ms,
    countIf(status != 'success') / count() AS error_rate,
    now64(3, 'UTC') AS summed_at
FROM request_analytics FINAL
WHERE model_id != '' AND NOT shadow AND toDate(timestamp) IN (
    SELECT toDate(timestamp) FROM request_analytics WHERE stored_at > now64(3, 'UTC') - INTERVAL 1 HOUR
)
GROUP BY date, organization_id, model_id;
