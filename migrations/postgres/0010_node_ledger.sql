-- What nodes worked on, from their own ledgers: to compare with what edges say was used, not to bill by.
CREATE TABLE node_ledger (
    -- UTC day of the time inside the event's id.
    day date NOT NULL,
    event_id uuid NOT NULL,
    -- An event that was tried on several nodes is in the ledger of each.
    node varchar(255) NOT NULL,
    -- counted: by the engine. seen: it broke off; what passed. refused: nothing was done. lost: the node died meanwhile.
    state varchar(20) NOT NULL CHECK (state IN ('counted', 'seen', 'refused', 'lost')),
    prompt_tokens bigint NOT NULL CHECK (prompt_tokens >= 0),
    -- Of the prompt tokens.
    cached_tokens bigint NOT NULL CHECK (cached_tokens >= 0),
    completion_tokens bigint NOT NULL CHECK (completion_tokens >= 0),
    received_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (day, event_id, node)
) PARTITION BY RANGE (day);

-- What edges counted themselves, by the journal it was in: to compare as well. Each row is set, never added to.
CREATE TABLE edge_days (
    edge varchar(255) NOT NULL,
    epoch numeric(20, 0) NOT NULL,
    day date NOT NULL,
    -- The journal's sequence number up to which this is the count.
    through_seq numeric(20, 0) NOT NULL,
    requests bigint NOT NULL CHECK (requests >= 0),
    prompt_tokens bigint NOT NULL CHECK (prompt_tokens >= 0),
    completion_tokens bigint NOT NULL CHECK (completion_tokens >= 0),
    cost_usd numeric(24, 12) NOT NULL,
    updated_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (day, edge, epoch)
);

-- Days that were compared, the latest time each.
CREATE TABLE reconciliations (
    day date PRIMARY KEY,
    ran_at timestamptz NOT NULL,
    -- All usage of the day was in the books.
    complete boolean NOT NULL,
    -- By how much the books differ, all differences taken together without their signs.
    events bigint NOT NULL,
    tokens bigint NOT NULL,
    cost_usd numeric(30, 12) NOT NULL
);
