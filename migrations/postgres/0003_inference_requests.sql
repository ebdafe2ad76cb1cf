-- One row per usage event. Months are partitions, made ahead and dropped by the control plane:
-- inference_requests_y2026m01 FOR VALUES FROM ('2026-01-01 00:00:00+00') TO ('2026-02-01 00:00:00+00').

CREATE TABLE inference_requests (
    -- The event's UUIDv7, made by the edge. No default: a row without an event's identity could be counted twice.
    id uuid NOT NULL,
    organization_id uuid NOT NULL REFERENCES organizations (id),
    api_key_id uuid REFERENCES api_keys (id),
    -- NULL: refused before a known model was found.
    model_id varchar(100) REFERENCES models (id),
    model_version varchar(50),
    request_type varchar(50) NOT NULL CHECK (request_type IN ('completion', 'chat', 'embedding', 'moderation')),
    prompt_tokens bigint NOT NULL DEFAULT 0 CHECK (prompt_tokens >= 0),
    completion_tokens bigint NOT NULL DEFAULT 0 CHECK (completion_tokens >= 0),
    total_tokens bigint NOT NULL DEFAULT 0 CHECK (total_tokens = prompt_tokens + completion_tokens),
    -- The engine's own count never arrived; the tokens are what the edge saw pass.
    estimated boolean NOT NULL DEFAULT false,
    cost_usd numeric(24, 12) NOT NULL DEFAULT 0,
    request_size_bytes bigint,
    response_size_bytes bigint,
    processing_time_ms integer,
    queue_time_ms integer,
    total_time_ms integer,
    first_byte_ms integer,
    status varchar(50) NOT NULL CHECK (status IN ('success', 'error', 'timeout', 'rate_limited', 'client_gone')),
    -- NULL or 0: nothing was sent to the client.
    http_status smallint,
    error_code varchar(100),
    error_message text,
    streamed boolean NOT NULL DEFAULT false,
    retries smallint NOT NULL DEFAULT 0,
    user_agent text,
    ip_address inet,
    region varchar(50),
    edge text,
    node text,
    -- The time inside the id, so that every delivery of one event meets the same partition and the same key.
    created_at timestamptz NOT NULL,
    completed_at timestamptz,
    PRIMARY KEY (id, created_at)
) PARTITION BY RANGE (created_at);

CREATE INDEX idx_inference_requests_organization_id ON inference_requests (organization_id);
CREATE INDEX idx_inference_requests_api_key_id ON inference_requests (api_key_id);
CREATE INDEX idx_inference_requests_model_id ON inference_requests (model_id);
CREATE INDEX idx_inference_requests_created_at ON inference_requests (created_at);
CREATE INDEX idx_inference_requests_status ON inference_requests (status);
