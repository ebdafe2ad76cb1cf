-- Who pays, what was used each day, and what was invoiced.

CREATE TABLE billing_accounts (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    organization_id uuid NOT NULL REFERENCES organizations (id) ON DELETE CASCADE,
    stripe_customer_id varchar(100),
    payment_method_id varchar(100),
    billing_email varchar(255),
    billing_address jsonb,
    tax_id varchar(100),
    currency varchar(3) NOT NULL DEFAULT 'USD' CHECK (currency ~ '^[A-Z]{3}$'),
    monthly_budget numeric(20, 2) CHECK (monthly_budget >= 0),
    auto_recharge_enabled boolean NOT NULL DEFAULT false,
    auto_recharge_threshold numeric(20, 2) CHECK (auto_recharge_threshold >= 0),
    auto_recharge_amount numeric(20, 2) CHECK (auto_recharge_amount > 0),
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now()
);

-- Unique together with the id, so that an invoice can refer to "an account of this organization".
CREATE UNIQUE INDEX idx_billing_accounts_organization_id ON billing_accounts (organization_id, id);
CREATE UNIQUE INDEX idx_billing_accounts_stripe_customer_id ON billing_accounts (stripe_customer_id);

-- Daily sums. Months are partitions, made ahead by the control plane:
-- usage_records_y2026m01 FOR VALUES FROM ('2026-01-01') TO ('2026-02-01').
CREATE TABLE usage_records (
    id uuid NOT NULL DEFAULT gen_random_uuid(),
    organization_id uuid NOT NULL REFERENCES organizations (id),
    model_id varchar(100) NOT NULL REFERENCES models (id),
    -- The UTC day of the events' own time.
    date date NOT NULL,
    requests bigint NOT NULL DEFAULT 0 CHECK (requests >= 0),
    prompt_tokens bigint NOT NULL DEFAULT 0 CHECK (prompt_tokens >= 0),
    completion_tokens bigint NOT NULL DEFAULT 0 CHECK (completion_tokens >= 0),
    total_tokens bigint NOT NULL DEFAULT 0 CHECK (total_tokens = prompt_tokens + completion_tokens),
    cost_usd numeric(24, 12) NOT NULL DEFAULT 0,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (id, date),
    UNIQUE (organization_id, model_id, date)
) PARTITION BY RANGE (date);

CREATE INDEX idx_usage_records_organization_id ON usage_records (organization_id);
CREATE INDEX idx_usage_records_model_id ON usage_records (model_id);
CREATE INDEX idx_usage_records_date ON usage_records (date);

CREATE TABLE invoices (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    -- No cascade: an invoice outlives its organization's wish to be deleted.
    organization_id uuid NOT NULL REFERENCES organizations (id),
    billing_account_id uuid NOT NULL,
    invoice_number varchar(100) UNIQUE NOT NULL,
    stripe_invoice_id varchar(100) UNIQUE,
    period_start date NOT NULL,
    period_end date NOT NULL CHECK (period_end >= period_start),
    subtotal numeric(20, 2) NOT NULL,
    tax_amount numeric(20, 2) NOT NULL DEFAULT 0,
    total_amount numeric(20, 2) NOT NULL CHECK (total_amount = subtotal + tax_amount),
    currency varchar(3) NOT NULL DEFAULT 'USD' CHECK (currency ~ '^[A-Z]{3}$'),
    status varchar(50) NOT NULL CHECK (status IN ('draft', 'open', 'paid', 'void', 'uncollectible')),
    due_date date,
    paid_at timestamptz,
    created_at timestamptz NOT NULL DEFAULT now(),
    line_items jsonb NOT NULL DEFAULT '[]' CHECK (jsonb_typeof(line_items) = 'array'),
    FOREIGN KEY (organization_id, billing_account_id) REFERENCES billing_accounts (organization_id, id)
);

CREATE INDEX idx_invoices_organization_id ON invoices (organization_id);
CREATE INDEX idx_invoices_billing_account_id ON invoices (billing_account_id);
CREATE INDEX idx_invoices_status ON invoices (status);
CREATE INDEX idx_invoices_period_start ON invoices (period_start);
