-- What decides whether a request is admitted and whether its answer may come from the cache.

-- The cache policy; absent fields have the defaults that the admin API documents.
ALTER TABLE models ADD COLUMN cache jsonb NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(cache) = 'object');

-- Part of the key of every cached answer: a purge raises it, which makes all earlier answers unfindable.
ALTER TABLE models ADD COLUMN cache_generation integer NOT NULL DEFAULT 0 CHECK (cache_generation >= 0);
ALTER TABLE organizations ADD COLUMN cache_generation integer NOT NULL DEFAULT 0 CHECK (cache_generation >= 0);

-- Single answers that must not be given out any more if they are older than the purge.
CREATE TABLE purged_answers (
    cache_key text PRIMARY KEY CHECK (cache_key ~ '^[0-9a-f]{64}$'),
    purged_at timestamptz NOT NULL
);

CREATE INDEX idx_purged_answers_purged_at ON purged_answers (purged_at);

-- NULL: refused before the cache was asked.
ALTER TABLE inference_requests ADD COLUMN cache_status varchar(20)
    CHECK (cache_status IN ('hit', 'miss', 'coalesced', 'bypass'));

-- Money paid ahead, debited by the ingest of usage; NULL: pays afterwards. Below zero once more was used than paid.
ALTER TABLE billing_accounts ADD COLUMN prepaid_balance numeric(24, 12);

-- One account each, so that usage is debited once.
CREATE UNIQUE INDEX idx_billing_accounts_one_each ON billing_accounts (organization_id);

-- The budget that edges were last told, so that every other change to the organization repeats it as it was.
ALTER TABLE organizations ADD COLUMN budget jsonb CHECK (jsonb_typeof(budget) = 'object');

-- When the last event that was taken in had ended: how far the books go for an edge that is behind with its journal.
ALTER TABLE usage_ingest ADD COLUMN events_to timestamptz;

-- Usage of every request that had ended by then is in the books. An edge has spent nothing before it first came.
ALTER TABLE edges ADD COLUMN complete_to timestamptz NOT NULL DEFAULT now();
-- An edge that starts counts budgets anew, and waits for books that are complete up to then.
ALTER TABLE edges ADD COLUMN linked_at timestamptz NOT NULL DEFAULT now();

-- What a budget's publications may be trimmed by without reading the changes of operators, which are kept.
CREATE INDEX idx_config_log_budgets ON config_log (version) WHERE author = 'billing';
