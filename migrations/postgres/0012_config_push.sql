-- The log of changes as edges check it: every entry as the bytes that are hashed and sent, each tied to all before it.

-- Where the log is. `chain` starts as a number drawn for this database alone, so that two logs are never taken for one.
CREATE TABLE config_head (
    one boolean PRIMARY KEY DEFAULT true CHECK (one),
    version bigint NOT NULL CHECK (version >= 0),
    chain bytea NOT NULL CHECK (octet_length(chain) = 32),
    -- Edges that hold another log's version up to this may go back to this one's: the database was restored.
    rewinds_from bigint NOT NULL DEFAULT 0 CHECK (rewinds_from >= 0),
    updated_at timestamptz NOT NULL DEFAULT now()
);

-- The log so far was not kept in that form. It has told every edge all there was, and the tables hold what it led to.
INSERT INTO config_head (version, chain)
SELECT coalesce(max(version), 0), decode(replace(gen_random_uuid()::text || gen_random_uuid()::text, '-', ''), 'hex')
FROM config_log;
DELETE FROM config_log;

ALTER TABLE config_log
    ADD COLUMN entry bytea NOT NULL,
    ADD COLUMN chain bytea NOT NULL CHECK (octet_length(chain) = 32),
    -- Who is told; null is everybody.
    ADD COLUMN audience jsonb,
    -- The record before the change, as a change that brings it back; null if there was none.
    ADD COLUMN before jsonb;

-- Where requests for a name go, beyond the default version of the model that is called so.
CREATE TABLE model_routes (
    id uuid PRIMARY KEY,
    name text NOT NULL CHECK (length(name) BETWEEN 1 AND 100),
    -- Whose keys it is for; null is everybody's.
    organization_id uuid REFERENCES organizations (id),
    policy jsonb NOT NULL CHECK (jsonb_typeof(policy) = 'object'),
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT model_routes_name_organization_key UNIQUE NULLS NOT DISTINCT (name, organization_id)
);

-- The version that `last_nack` is about.
ALTER TABLE edges ADD COLUMN nacked_version bigint;
-- What carries its link: quic or tcp.
ALTER TABLE edges ADD COLUMN transport text;
-- The process of a control plane that a link is or was with: another one does not say that it has ended.
ALTER TABLE edges ADD COLUMN linked_to uuid;
ALTER TABLE nodes ADD COLUMN linked_to uuid;

-- Changes that reach some edges before they reach all.
CREATE TABLE rollouts (
    id uuid PRIMARY KEY,
    author text NOT NULL,
    reason text,
    -- The documents that are applied at the end, and whether what they do not name is taken away.
    documents jsonb NOT NULL,
    prune boolean NOT NULL,
    -- What edges are told, in order.
    changes jsonb NOT NULL CHECK (jsonb_typeof(changes) = 'array'),
    -- Who is told, one audience after the other; all at the end.
    stages jsonb NOT NULL CHECK (jsonb_typeof(stages) = 'array'),
    rules jsonb NOT NULL,
    state text NOT NULL CHECK (state IN ('running', 'paused', 'halted', 'aborted', 'done')),
    -- Stages that were told so far, less one.
    stage integer NOT NULL DEFAULT 0 CHECK (stage >= 0),
    -- The version at which the present stage was told, and since when all of its edges serve by it.
    told_version bigint NOT NULL,
    told_at timestamptz NOT NULL DEFAULT now(),
    held_since timestamptz,
    -- What it waits for, or why it was halted.
    note text,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now()
);

-- One at a time: with two under way nobody could say which of them did harm.
CREATE UNIQUE INDEX idx_rollouts_under_way ON rollouts ((true)) WHERE state IN ('running', 'paused');

-- What passes by itself is trimmed: see `trim_passing` in store/config_log.rs, which has the same condition.
DROP INDEX idx_config_log_budgets;
CREATE INDEX idx_config_log_passing ON config_log (version) WHERE author = 'billing' OR author LIKE 'node:%';

-- A copy of a request that was sent to a route's shadow: nobody pays for it, and it is in no sum.
ALTER TABLE inference_requests ADD COLUMN shadow boolean NOT NULL DEFAULT false;
