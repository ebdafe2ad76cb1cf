-- The ledger: every usage event that was acknowledged, counted once by its id.
--
-- Delivered twice, an event meets the same key and the first delivery stands: `timestamp` and `event_id` are both from the
-- event's id, and so is the partition. Parts are merged at the engine's leisure, so whoever needs exact figures reads it
-- FINAL. The key holds nothing that was looked up when the event came: a model made meanwhile would make it another key.
CREATE TABLE IF NOT EXISTS request_analytics{on_cluster} (
    -- The time in the event's id, whole seconds.
    timestamp DateTime('UTC'),
    event_id UUID,
    organization_id LowCardinality(String),
    -- Empty: a key that no longer exists.
    api_key_id LowCardinality(String),
    -- Empty: refused before a known model was found.
    model_id LowCardinality(String),
    model_version LowCardinality(String),
    request_type LowCardinality(String),
    prompt_tokens UInt32,
    -- Of the prompt tokens, those that the engine had from an earlier prompt.
    cached_tokens UInt32,
    completion_tokens UInt32,
    total_tokens UInt64,
    -- The engine's own count never arrived; the tokens are what the edge saw pass.
    estimated Bool,
    -- Which of the model's prices the cost was reckoned by; 0: the model had no numbered prices.
    price_version UInt32,
    -- Exact dollars: what is billed is summed from this.
    cost Decimal(38, 12),
    -- For charts.
    cost_usd Float64 MATERIALIZED toFloat64(cost),
    processing_time_ms UInt32,
    queue_time_ms UInt32,
    total_time_ms UInt32,
    first_byte_ms Nullable(UInt32),
    status LowCardinality(String),
    http_status UInt16,
    error_code LowCardinality(String),
    cache_status LowCardinality(String),
    streamed Bool,
    -- A copy of a request for a route's shadow: in no sum.
    shadow Bool,
    retries UInt8,
    request_size_bytes UInt64,
    response_size_bytes UInt64,
    region LowCardinality(String),
    edge LowCardinality(String),
    node LowCardinality(String),
    user_agent String,
    stored_at DateTime64(3, 'UTC') DEFAULT now64(3, 'UTC'),
    -- The greatest is kept: the first delivery.
    precedence UInt64 DEFAULT 18446744073709551615 - toUnixTimestamp64Micro(now64(6, 'UTC'))
)
ENGINE = {engine:ReplacingMergeTree(precedence)}
PARTITION BY toYYYYMM(timestamp)
ORDER BY (timestamp, organization_id, event_id)
-- What is acknowledged is on the disk. The window is a second belt: an insert tried again is recognised by its token.
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1, non_replicated_deduplication_window = 1000;
