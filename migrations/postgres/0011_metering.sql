-- Metering: what the sums of usage are made of, and which of them are to be made anew.

-- Which of the model's prices `cost_usd` was reckoned by; 0: the model had no numbered prices.
ALTER TABLE inference_requests ADD COLUMN price_version bigint NOT NULL DEFAULT 0 CHECK (price_version >= 0);
-- Of the prompt tokens, those that the engine had from an earlier prompt.
ALTER TABLE inference_requests ADD COLUMN cached_tokens bigint NOT NULL DEFAULT 0 CHECK (cached_tokens >= 0);

-- Hourly sums, set by the rollup to what the ledger of events adds up to.
ALTER TABLE usage_hours ALTER COLUMN price_version TYPE bigint;
ALTER TABLE usage_hours ADD CHECK (price_version >= 0);
-- The UTC hour of the events' own time.
ALTER TABLE usage_hours ADD CHECK (date_trunc('hour', hour, 'UTC') = hour);
ALTER TABLE usage_hours ADD CHECK (requests >= 0 AND prompt_tokens >= 0 AND cached_tokens >= 0);
ALTER TABLE usage_hours ADD CHECK (completion_tokens >= 0);
-- Where they were used. The key is in the order in which an organization's days are read.
ALTER TABLE usage_hours ADD COLUMN region varchar(50) NOT NULL DEFAULT '';
ALTER TABLE usage_hours DROP CONSTRAINT usage_hours_pkey;
ALTER TABLE usage_hours ADD PRIMARY KEY (organization_id, hour, model_id, price_version, region);
CREATE INDEX idx_usage_hours_hour ON usage_hours (hour);

-- Hours that events came for since they were summed. Rows are only added by ingest and only removed by the rollup that
-- has seen them: writers never wait for each other, and what comes meanwhile is summed by the next run.
CREATE TABLE usage_dirty_hours (
    hour timestamptz NOT NULL,
    mark bigint GENERATED ALWAYS AS IDENTITY,
    -- The earliest end of the requests behind the mark: the books are not complete up to then.
    ended_from timestamptz NOT NULL,
    -- And their earliest beginning, by the clock of the edge or ours, whichever is before.
    began_from timestamptz NOT NULL,
    PRIMARY KEY (hour, mark)
);

-- Which ledger is the one. One row.
CREATE TABLE usage_ledger (
    is_one boolean PRIMARY KEY DEFAULT true CHECK (is_one),
    -- The table in ClickHouse, by its UUID there. NULL: the request log.
    clickhouse uuid,
    -- What the request log had when ClickHouse became the ledger is copied there, the newest first. Down to here it has
    -- been; NULL: all of it.
    copied_from timestamptz,
    copied_id uuid,
    CHECK ((copied_from IS NULL) = (copied_id IS NULL)),
    CHECK (copied_from IS NULL OR clickhouse IS NOT NULL)
);
INSERT INTO usage_ledger DEFAULT VALUES;

-- Together with usage_records, these are what the hours of a day add up to.
CREATE INDEX idx_usage_adjustments_day ON usage_adjustments (organization_id, date, model_id);

-- Whether a day's usage is on an invoice that stands, so that its daily sums may not change any more.
CREATE FUNCTION usage_is_invoiced(organization uuid, day date) RETURNS boolean LANGUAGE sql STABLE AS $$
    SELECT EXISTS (
        SELECT 1 FROM invoices
        WHERE organization_id = organization AND day BETWEEN period_start AND period_end
            AND status IN ('open', 'paid', 'uncollectible'))
$$;

-- What requests before this migration add up to.
INSERT INTO usage_hours (organization_id, model_id, price_version, hour, requests, prompt_tokens, cached_tokens,
    completion_tokens, cost_usd, region)
SELECT organization_id, model_id, price_version, date_trunc('hour', created_at, 'UTC'), count(*), sum(prompt_tokens),
    sum(cached_tokens), sum(completion_tokens), sum(cost_usd), coalesce(region, '')
FROM inference_requests WHERE model_id IS NOT NULL GROUP BY 1, 2, 3, 4, coalesce(region, '');

-- What the hours of a day add up to in each region, whatever is invoiced: what money paid ahead is given out by.
CREATE TABLE usage_region_days (
    organization_id uuid NOT NULL REFERENCES organizations (id),
    date date NOT NULL,
    region varchar(50) NOT NULL,
    requests bigint NOT NULL,
    cost_usd numeric(24, 12) NOT NULL,
    PRIMARY KEY (organization_id, date, region)
);
INSERT INTO usage_region_days (organization_id, date, region, requests, cost_usd)
SELECT organization_id, (hour AT TIME ZONE 'UTC')::date, region, sum(requests), sum(cost_usd)
FROM usage_hours GROUP BY 1, 2, 3;

-- Usage of every request that had begun by then, by our clock, is in the books; NULL: not said yet.
ALTER TABLE edges ADD COLUMN settled_to timestamptz;

-- How much of its money paid ahead an organization may spend in each region, counted from the first day that it paid
-- ahead. Written with what is told of it, so that no control plane forgets what may still be spent.
CREATE TABLE prepaid_shares (
    organization_id uuid NOT NULL REFERENCES organizations (id) ON DELETE CASCADE,
    region text NOT NULL,
    -- As edges are told.
    cap numeric(24, 12) NOT NULL,
    -- The largest cap that one of them may still act on.
    bound numeric(24, 12) NOT NULL,
    -- The config version that told a cap below the bound, and when all edges of the region were seen to have it.
    lowered_version bigint,
    acked_at timestamptz,
    PRIMARY KEY (organization_id, region),
    CHECK (cap >= 0 AND bound >= cap),
    CHECK (lowered_version IS NOT NULL OR bound = cap AND acked_at IS NULL)
);

-- What edges were last told of it, so that every other change to the organization repeats it as it was.
ALTER TABLE organizations ADD COLUMN prepaid jsonb CHECK (jsonb_typeof(prepaid) = 'object');

-- An invoice of what was all debited is paid whole: what its lines were rounded up by is waived, by an entry of its own.
ALTER TABLE prepaid_entries DROP CONSTRAINT prepaid_entries_kind_check;
ALTER TABLE prepaid_entries ADD CONSTRAINT prepaid_entries_kind_check CHECK (kind IN
    ('opening', 'top_up', 'recharge', 'adjustment', 'usage', 'invoice', 'credit', 'refund', 'rounding'));

-- How nodes do, a row per minute, node and model; kept where no ClickHouse is. Months are not worth partitions: a node
-- and model make 1,440 small rows a day.
CREATE TABLE model_performance (
    timestamp timestamptz NOT NULL,
    model_id varchar(100) NOT NULL,
    model_version varchar(50) NOT NULL,
    region varchar(50) NOT NULL,
    node text NOT NULL,
    gpu_type text NOT NULL,
    requests_per_second double precision NOT NULL,
    tokens_per_second double precision NOT NULL,
    avg_latency_ms double precision NOT NULL,
    p95_latency_ms double precision NOT NULL,
    p99_latency_ms double precision NOT NULL,
    gpu_utilization double precision NOT NULL,
    memory_utilization double precision NOT NULL,
    error_rate double precision NOT NULL,
    PRIMARY KEY (timestamp, model_id, model_version, region, node)
);
