-- What the control plane knows of its nodes and edges, and its own log of changes.

CREATE TABLE nodes (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    name text NOT NULL UNIQUE,
    region text NOT NULL,
    url text NOT NULL,
    engine text NOT NULL,
    state text NOT NULL CHECK (state IN ('ready', 'draining', 'unhealthy', 'lost', 'disabled')),
    slots integer NOT NULL CHECK (slots >= 0),
    serves jsonb NOT NULL DEFAULT '[]' CHECK (jsonb_typeof(serves) = 'array'),
    gpus jsonb NOT NULL DEFAULT '[]' CHECK (jsonb_typeof(gpus) = 'array'),
    metadata jsonb NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(metadata) = 'object'),
    -- False: switched off by an operator, whatever the node reports.
    enabled boolean NOT NULL DEFAULT true,
    last_seen_at timestamptz,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now()
);

-- Every accepted change to the routing state, in order. Versions are assigned under a lock, so that none commits
-- behind a later one that an edge has already been given.
CREATE TABLE config_log (
    version bigint PRIMARY KEY CHECK (version > 0),
    change jsonb NOT NULL,
    author text NOT NULL,
    reason text,
    created_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE edges (
    name text PRIMARY KEY,
    region text NOT NULL,
    build text NOT NULL,
    -- The config version it serves by.
    holds bigint NOT NULL DEFAULT 0,
    -- Why it refused a version, if the last it was given was refused.
    last_nack text,
    connected boolean NOT NULL DEFAULT false,
    last_seen_at timestamptz
);

-- How far each edge's journal has been taken in. An epoch is one life of a journal; both numbers are 64 bits unsigned.
CREATE TABLE usage_ingest (
    edge text NOT NULL,
    epoch numeric(20, 0) NOT NULL,
    through_seq numeric(20, 0) NOT NULL,
    updated_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (edge, epoch)
);

CREATE TABLE audit_log (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at timestamptz NOT NULL DEFAULT now(),
    actor text NOT NULL,
    role text NOT NULL,
    action text NOT NULL,
    resource_type text NOT NULL,
    resource_id text,
    details jsonb NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(details) = 'object'),
    ip inet,
    success boolean NOT NULL
);

CREATE INDEX idx_audit_log_at ON audit_log (at);
CREATE INDEX idx_audit_log_resource ON audit_log (resource_type, resource_id);
