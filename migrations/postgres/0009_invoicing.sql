-- Money: what was paid ahead, what tokens cost since when, and what was invoiced.

-- Usage of days that an invoice covers already; it goes on the next one.
CREATE TABLE usage_adjustments (
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

-- Usage by hour, model and price version.
CREATE TABLE usage_hours (
    organization_id uuid NOT NULL REFERENCES organizations (id),
    model_id varchar(100) NOT NULL REFERENCES models (id),
    price_version integer NOT NULL,
    hour timestamptz NOT NULL,
    requests bigint NOT NULL,
    prompt_tokens bigint NOT NULL,
    cached_tokens bigint NOT NULL,
    completion_tokens bigint NOT NULL,
    cost_usd numeric(24, 12) NOT NULL,
    PRIMARY KEY (organization_id, model_id, price_version, hour)
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
    actor text NOT NULL,
    note text,
    created_at timestamptz NOT NULL DEFAULT now(),
    UNIQUE (organization_id, idempotency_key),
    CHECK (kind NOT IN ('opening', 'usage') OR day IS NOT NULL),
    CHECK (kind <> 'usage' OR amount = -used)
);

CREATE INDEX idx_prepaid_entries_organization_id ON prepaid_entries (organization_id, id);
CREATE INDEX idx_prepaid_entries_day ON prepaid_entries (organization_id, day) WHERE day IS NOT NULL;

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

-- What a model's tokens and requests cost from when on. Versions are never changed; a newer one with the same moment
-- takes its place.
CREATE TABLE model_prices (
    model_id varchar(100) NOT NULL REFERENCES models (id),
    version integer NOT NULL CHECK (version > 0),
    effective_from timestamptz NOT NULL,
    -- As it was written; the columns below are the same per token, in dollars.
    pricing jsonb NOT NULL CHECK (jsonb_typeof(pricing) = 'object'),
    input_token numeric(24, 12) NOT NULL CHECK (input_token >= 0),
    output_token numeric(24, 12) NOT NULL CHECK (output_token >= 0),
    -- NULL: as input_token.
    cached_input_token numeric(24, 12) CHECK (cached_input_token >= 0),
    -- NULL: nothing beside the tokens.
    request numeric(24, 12) CHECK (request >= 0),
    currency varchar(3) NOT NULL DEFAULT 'USD' CHECK (currency = 'USD'),
    actor text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (model_id, version)
);

CREATE INDEX idx_model_prices_effective_from ON model_prices (model_id, effective_from, version);

INSERT INTO model_prices (model_id, version, effective_from, pricing, input_token, output_token, actor)
SELECT id, 1, date_trunc('milliseconds', created_at), pricing,
    (pricing ->> 'input_tokens')::numeric / coalesce((pricing ->> 'per_tokens')::numeric, 1000),
    (pricing ->> 'output_tokens')::numeric / coalesce((pricing ->> 'per_tokens')::numeric, 1000), 'migration'
FROM models;

CREATE TRIGGER model_prices_append_only BEFORE UPDATE OR DELETE ON model_prices
    FOR EACH ROW EXECUTE FUNCTION refuse_change();
CREATE TRIGGER model_prices_no_truncate BEFORE TRUNCATE ON model_prices
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

-- A part of the lines' sum, thousandths, and percent of what is left.
ALTER TABLE billing_accounts
    ADD COLUMN discount_permille integer NOT NULL DEFAULT 0 CHECK (discount_permille BETWEEN 0 AND 1000),
    ADD COLUMN tax_rate numeric(6, 3) NOT NULL DEFAULT 0 CHECK (tax_rate BETWEEN 0 AND 100);

-- The last number given, in each series and year. Numbers are given under this row's lock, in the transaction that
-- uses them: one that is rolled back leaves no gap.
CREATE TABLE document_numbers (
    series varchar(20) NOT NULL,
    year integer NOT NULL,
    last bigint NOT NULL CHECK (last > 0),
    PRIMARY KEY (series, year)
);

-- period_end is the last day that is covered.
ALTER TABLE invoices
    ADD COLUMN issued_on date,
    ADD COLUMN seller jsonb NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(seller) = 'object'),
    ADD COLUMN buyer jsonb NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(buyer) = 'object'),
    -- What the lines add up to before they are rounded, and after.
    ADD COLUMN exact_total numeric(24, 12) NOT NULL,
    ADD COLUMN lines_total numeric(20, 2) NOT NULL,
    ADD COLUMN discount_permille integer NOT NULL,
    ADD COLUMN discount_amount numeric(20, 2) NOT NULL,
    ADD COLUMN tax_rate numeric(6, 3) NOT NULL,
    -- Paid from money that was paid ahead.
    ADD COLUMN credit_applied numeric(20, 2) NOT NULL CHECK (credit_applied >= 0),
    ADD COLUMN amount_due numeric(20, 2) NOT NULL CHECK (amount_due >= 0),
    ADD COLUMN voided_at timestamptz,
    ADD COLUMN uncollectible_at timestamptz,
    ADD COLUMN checksum varchar(64) CHECK (checksum ~ '^[0-9a-f]{64}$'),
    ADD CHECK (subtotal = lines_total - discount_amount),
    ADD CHECK (amount_due = total_amount - credit_applied),
    ADD CHECK (status = 'draft' OR issued_on IS NOT NULL AND due_date IS NOT NULL AND checksum IS NOT NULL),
    ADD CHECK ((status = 'draft') = (invoice_number LIKE 'draft-%')),
    ADD CHECK ((status = 'paid') = (paid_at IS NOT NULL));

-- Whoever closes a month makes one invoice, however many try.
CREATE UNIQUE INDEX idx_invoices_one_a_month ON invoices (organization_id, period_start) WHERE status <> 'void';

CREATE FUNCTION guard_invoice() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    -- What may change once it is not a draft any more.
    free CONSTANT text[] := ARRAY['status', 'paid_at', 'voided_at', 'uncollectible_at', 'stripe_invoice_id'];
BEGIN
    IF TG_OP = 'INSERT' THEN
        IF NEW.status <> 'draft' THEN
            RAISE EXCEPTION 'an invoice begins as a draft' USING ERRCODE = 'check_violation',
                CONSTRAINT = 'invoices_transition';
        END IF;
        RETURN NEW;
    END IF;
    IF TG_OP = 'DELETE' THEN
        IF OLD.status <> 'draft' THEN
            RAISE EXCEPTION 'invoice % is kept', OLD.invoice_number USING ERRCODE = 'check_violation',
                CONSTRAINT = 'invoices_frozen';
        END IF;
        RETURN OLD;
    END IF;
    IF NEW.status <> OLD.status AND (OLD.status, NEW.status) NOT IN (('draft', 'open'), ('open', 'paid'),
        ('open', 'void'), ('open', 'uncollectible'), ('uncollectible', 'paid'), ('uncollectible', 'void')) THEN
        RAISE EXCEPTION 'invoice % is %: it cannot become %', OLD.invoice_number, OLD.status, NEW.status
            USING ERRCODE = 'check_violation', CONSTRAINT = 'invoices_transition';
    END IF;
    IF OLD.status <> 'draft' AND (to_jsonb(NEW) - free <> to_jsonb(OLD) - free
        OR OLD.stripe_invoice_id IS NOT NULL AND NEW.stripe_invoice_id IS DISTINCT FROM OLD.stripe_invoice_id) THEN
        RAISE EXCEPTION 'invoice % is frozen: correct it by a credit note', OLD.invoice_number
            USING ERRCODE = 'check_violation', CONSTRAINT = 'invoices_frozen';
    END IF;
    RETURN NEW;
END
$$;

CREATE TRIGGER invoices_guard BEFORE INSERT OR UPDATE OR DELETE ON invoices
    FOR EACH ROW EXECUTE FUNCTION guard_invoice();
CREATE TRIGGER invoices_no_truncate BEFORE TRUNCATE ON invoices
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

-- What is taken back of an invoice. The tax is part of the amount.
CREATE TABLE credit_notes (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    organization_id uuid NOT NULL REFERENCES organizations (id),
    invoice_id uuid NOT NULL REFERENCES invoices (id),
    credit_note_number varchar(100) NOT NULL UNIQUE,
    issued_on date NOT NULL,
    amount numeric(20, 2) NOT NULL CHECK (amount > 0),
    tax_amount numeric(20, 2) NOT NULL CHECK (tax_amount BETWEEN 0 AND amount),
    reason text NOT NULL,
    -- It went into the organization's ledger of money paid ahead.
    to_prepaid boolean NOT NULL,
    idempotency_key varchar(200) NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    UNIQUE (invoice_id, idempotency_key)
);

CREATE INDEX idx_credit_notes_organization_id ON credit_notes (organization_id);

-- How much of each day's usage was debited from money paid ahead and came back with the settlement of an invoice that
-- charges it. Those of void invoices do not count.
CREATE TABLE prepaid_settlements (
    invoice_id uuid NOT NULL REFERENCES invoices (id),
    organization_id uuid NOT NULL REFERENCES organizations (id),
    day date NOT NULL,
    amount numeric(24, 12) NOT NULL,
    PRIMARY KEY (invoice_id, day)
);

CREATE INDEX idx_prepaid_settlements_day ON prepaid_settlements (organization_id, day);

CREATE TRIGGER prepaid_settlements_append_only BEFORE UPDATE OR DELETE ON prepaid_settlements
    FOR EACH ROW EXECUTE FUNCTION refuse_change();
CREATE TRIGGER prepaid_settlements_no_truncate BEFORE TRUNCATE ON prepaid_settlements
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

CREATE FUNCTION guard_credit_note() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    invoice invoices;
BEGIN
    SELECT * INTO invoice FROM invoices WHERE id = NEW.invoice_id FOR UPDATE;
    IF invoice.status NOT IN ('open', 'paid', 'uncollectible') OR invoice.organization_id <> NEW.organization_id THEN
        RAISE EXCEPTION 'invoice % is %: nothing of it can be credited', invoice.invoice_number, invoice.status
            USING ERRCODE = 'check_violation', CONSTRAINT = 'credit_notes_invoice';
    END IF;
    IF NEW.amount + coalesce((SELECT sum(amount) FROM credit_notes WHERE invoice_id = NEW.invoice_id), 0)
        > invoice.total_amount THEN
        RAISE EXCEPTION 'credit notes of invoice % would be more than its total', invoice.invoice_number
            USING ERRCODE = 'check_violation', CONSTRAINT = 'credit_notes_total';
    END IF;
    RETURN NEW;
END
$$;

CREATE TRIGGER credit_notes_guard BEFORE INSERT ON credit_notes
    FOR EACH ROW EXECUTE FUNCTION guard_credit_note();
CREATE TRIGGER credit_notes_append_only BEFORE UPDATE OR DELETE ON credit_notes
    FOR EACH ROW EXECUTE FUNCTION refuse_change();
CREATE TRIGGER credit_notes_no_truncate BEFORE TRUNCATE ON credit_notes
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

-- Money that is asked for because little is left of what was paid ahead: one request at a time and organization.
CREATE TABLE recharges (
    id uuid PRIMARY KEY,
    organization_id uuid NOT NULL REFERENCES organizations (id),
    amount numeric(20, 2) NOT NULL CHECK (amount > 0),
    -- What the provider is asked with, so that asking again is the same request.
    customer varchar(100),
    payment_method varchar(100),
    status varchar(20) NOT NULL DEFAULT 'open' CHECK (status IN ('open', 'succeeded', 'failed')),
    provider_id varchar(100) UNIQUE,
    -- Failures in a row, this one included; none is asked for before retry_at.
    failures integer NOT NULL DEFAULT 0 CHECK (failures >= 0),
    retry_at timestamptz,
    error text,
    created_at timestamptz NOT NULL DEFAULT now(),
    ended_at timestamptz,
    CHECK ((status = 'open') = (ended_at IS NULL))
);

CREATE UNIQUE INDEX idx_recharges_one_open ON recharges (organization_id) WHERE status = 'open';
CREATE INDEX idx_recharges_organization_id ON recharges (organization_id, created_at);

-- How far an invoice has come at Stripe.
CREATE TABLE stripe_invoices (
    invoice_id uuid PRIMARY KEY REFERENCES invoices (id),
    finalized_at timestamptz,
    -- The status that Stripe knows.
    told varchar(50) NOT NULL DEFAULT 'draft',
    failures integer NOT NULL DEFAULT 0 CHECK (failures >= 0),
    retry_at timestamptz,
    error text
);

-- Events that were handled: one that is delivered again changes nothing.
CREATE TABLE stripe_events (
    id varchar(255) PRIMARY KEY,
    type varchar(100) NOT NULL,
    received_at timestamptz NOT NULL DEFAULT now()
);

CREATE INDEX idx_stripe_events_received_at ON stripe_events (received_at);

-- Credit notes that Stripe was told of.
CREATE TABLE stripe_credit_notes (
    credit_note_id uuid PRIMARY KEY REFERENCES credit_notes (id),
    stripe_id varchar(100),
    failures integer NOT NULL DEFAULT 0 CHECK (failures >= 0),
    retry_at timestamptz,
    error text
);
