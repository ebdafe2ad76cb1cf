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
