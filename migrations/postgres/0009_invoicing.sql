-- Money: what was paid ahead, what tokens cost since when, and what was invoiced.

-- Usage of days that an invoice covers already; it goes on the next one.
CREATE TABLE IF NOT EXISTS usage_adjustments (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    organization_id uuid NOT NULL REFERENCES organizations (id),
    model_id varchar(100) NOT NULL REFERENCES models (id),
    date date NOT NULL,
    requests bigint NOT NULL,
    prompt_tokens bigint NOT NULL,
    completion_tokens bigint NOT NULL,
    cost_usd numeric(24, 12) NOT NULL,
    invoice_id uuid REFERENCES invoices (id),
    created_at timestamptz NOT NULL DEFAULT now()
);

-- For triggers on tables whose rows stay as they were written.
CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '% of % is refused: its rows stay as they were written', TG_OP, TG_TABLE_NAME
        USING ERRCODE = 'check_violation', CONSTRAINT = TG_TABLE_NAME || '_append_only';
END
$$;

-- The first UTC day whose usage is paid from money paid ahead; NULL: pays afterwards.
ALTER TABLE billing_accounts ADD COLUMN prepaid_since date;

-- Money paid ahead, as a ledger. What is left is the sum of the amounts, less usage since prepaid_since that no entry
-- has covered yet.
CREATE TABLE prepaid_entries (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    organization_id uuid NOT NULL REFERENCES organizations (id),
    kind varchar(20) NOT NULL CHECK (kind IN
        ('opening', 'top_up', 'recharge', 'adjustment', 'usage', 'invoice', 'credit', 'refund')),
    amount numeric(24, 12) NOT NULL,
    -- The same key again is the same entry.
    idempotency_key varchar(200) NOT NULL,
    -- The UTC day whose usage is covered, and how much of it.
    day date,
    used numeric(24, 12) NOT NULL DEFAULT 0,
    -- What usage was debited for that no invoice has settled yet; the sum is what the next one is to settle.
    unsettled numeric(24, 12) NOT NULL DEFAULT 0,
    actor text NOT NULL,
    note text,
    created_at timestamptz NOT NULL DEFAULT now(),
    UNIQUE (organization_id, idempotency_key),
    CHECK (kind NOT IN ('opening', 'usage') OR day IS NOT NULL),
    CHECK (kind <> 'usage' OR amount = -used AND unsettled = used)
);

CREATE INDEX idx_prepaid_entries_organization_id ON prepaid_entries (organization_id, id);

-- Balances from before the ledger: today's usage was debited already.
UPDATE billing_accounts SET prepaid_since = (now() AT TIME ZONE 'UTC')::date WHERE prepaid_balance IS NOT NULL;
INSERT INTO prepaid_entries (organization_id, kind, amount, idempotency_key, day, used, actor, note)
SELECT a.organization_id, 'opening', a.prepaid_balance, 'opening:0', a.prepaid_since,
    coalesce((SELECT sum(u.cost_usd) FROM usage_records u
        WHERE u.organization_id = a.organization_id AND u.date = a.prepaid_since), 0),
    'migration', 'the balance before entries were kept'
FROM billing_accounts a WHERE a.prepaid_balance IS NOT NULL;
ALTER TABLE billing_accounts DROP COLUMN prepaid_balance;

CREATE TRIGGER prepaid_entries_append_only BEFORE UPDATE OR DELETE ON prepaid_entries
    FOR EACH ROW EXECUTE FUNCTION refuse_change();
CREATE TRIGGER prepaid_entries_no_truncate BEFORE TRUNCATE ON prepaid_entries
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
