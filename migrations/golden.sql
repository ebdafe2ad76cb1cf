CREATE FUNCTION public.guard_credit_note() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
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

CREATE FUNCTION public.guard_invoice() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
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

CREATE FUNCTION public.refuse_change() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
BEGIN
    RAISE EXCEPTION '% of % is refused: its rows stay as they were written', TG_OP, TG_TABLE_NAME
        USING ERRCODE = 'check_violation', CONSTRAINT = TG_TABLE_NAME || '_append_only';
END
$$;

CREATE FUNCTION public.usage_is_invoiced(organization uuid, day date) RETURNS boolean
    LANGUAGE sql STABLE
    AS $$
    SELECT EXISTS (
        SELECT 1 FROM invoices
        WHERE organization_id = organization AND day BETWEEN period_start AND period_end
            AND status IN ('open', 'paid', 'uncollectible'))
$$;

CREATE TABLE public.api_keys (
    id uuid DEFAULT gen_random_uuid() NOT NULL,
    organization_id uuid NOT NULL,
    user_id uuid NOT NULL,
    name character varying(255) NOT NULL,
    key_hash character varying(255) NOT NULL,
    key_prefix character varying(20) NOT NULL,
    permissions text[] DEFAULT '{}'::text[] NOT NULL,
    rate_limits jsonb DEFAULT '{}'::jsonb NOT NULL,
    allowed_models text[],
    is_active boolean DEFAULT true NOT NULL,
    last_used_at timestamp with time zone,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    expires_at timestamp with time zone,
    revoked_at timestamp with time zone,
    rotated_from uuid,
    metadata jsonb DEFAULT '{}'::jsonb NOT NULL,
    CONSTRAINT api_keys_key_hash_check CHECK (((key_hash)::text ~ '^[0-9a-f]{64}$'::text)),
    CONSTRAINT api_keys_metadata_check CHECK ((jsonb_typeof(metadata) = 'object'::text)),
    CONSTRAINT api_keys_rate_limits_check CHECK ((jsonb_typeof(rate_limits) = 'object'::text))
);

CREATE TABLE public.audit_log (
    id bigint NOT NULL,
    at timestamp with time zone DEFAULT now() NOT NULL,
    actor text NOT NULL,
    role text NOT NULL,
    action text NOT NULL,
    resource_type text NOT NULL,
    resource_id text,
    details jsonb DEFAULT '{}'::jsonb NOT NULL,
    ip inet,
    success boolean NOT NULL,
    CONSTRAINT audit_log_details_check CHECK ((jsonb_typeof(details) = 'object'::text))
);

ALTER TABLE public.audit_log ALTER COLUMN id ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME public.audit_log_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);

CREATE TABLE public.batch_jobs (
    id character varying(100) NOT NULL,
    organization_id uuid NOT NULL,
    user_id uuid NOT NULL,
    endpoint character varying(255) NOT NULL,
    input_file_id character varying(100) NOT NULL,
    output_file_id character varying(100),
    error_file_id character varying(100),
    status character varying(50) DEFAULT 'validating'::character varying NOT NULL,
    completion_window character varying(20) NOT NULL,
    request_counts jsonb DEFAULT '{"total": 0, "failed": 0, "completed": 0}'::jsonb NOT NULL,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    in_progress_at timestamp with time zone,
    completed_at timestamp with time zone,
    failed_at timestamp with time zone,
    cancelled_at timestamp with time zone,
    expires_at timestamp with time zone,
    metadata jsonb DEFAULT '{}'::jsonb NOT NULL,
    CONSTRAINT batch_jobs_metadata_check CHECK ((jsonb_typeof(metadata) = 'object'::text)),
    CONSTRAINT batch_jobs_request_counts_check CHECK ((jsonb_typeof(request_counts) = 'object'::text)),
    CONSTRAINT batch_jobs_status_check CHECK (((status)::text = ANY ((ARRAY['validating'::character varying, 'in_progress'::character varying, 'completed'::character varying, 'failed'::character varying, 'cancelled'::character varying])::text[])))
);

CREATE TABLE public.billing_accounts (
    id uuid DEFAULT gen_random_uuid() NOT NULL,
    organization_id uuid NOT NULL,
    stripe_customer_id character varying(100),
    payment_method_id character varying(100),
    billing_email character varying(255),
    billing_address jsonb,
    tax_id character varying(100),
    currency character varying(3) DEFAULT 'USD'::character varying NOT NULL,
    monthly_budget numeric(20,2),
    auto_recharge_enabled boolean DEFAULT false NOT NULL,
    auto_recharge_threshold numeric(20,2),
    auto_recharge_amount numeric(20,2),
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    updated_at timestamp with time zone DEFAULT now() NOT NULL,
    prepaid_since date,
    discount_permille integer DEFAULT 0 NOT NULL,
    tax_rate numeric(6,3) DEFAULT 0 NOT NULL,
    CONSTRAINT billing_accounts_auto_recharge_amount_check CHECK ((auto_recharge_amount > (0)::numeric)),
    CONSTRAINT billing_accounts_auto_recharge_threshold_check CHECK ((auto_recharge_threshold >= (0)::numeric)),
    CONSTRAINT billing_accounts_currency_check CHECK (((currency)::text ~ '^[A-Z]{3}$'::text)),
    CONSTRAINT billing_accounts_discount_permille_check CHECK (((discount_permille >= 0) AND (discount_permille <= 1000))),
    CONSTRAINT billing_accounts_monthly_budget_check CHECK ((monthly_budget >= (0)::numeric)),
    CONSTRAINT billing_accounts_tax_rate_check CHECK (((tax_rate >= (0)::numeric) AND (tax_rate <= (100)::numeric)))
);

CREATE TABLE public.config_head (
    one boolean DEFAULT true NOT NULL,
    version bigint NOT NULL,
    chain bytea NOT NULL,
    rewinds_from bigint DEFAULT 0 NOT NULL,
    updated_at timestamp with time zone DEFAULT now() NOT NULL,
    CONSTRAINT config_head_chain_check CHECK ((octet_length(chain) = 32)),
    CONSTRAINT config_head_one_check CHECK (one),
    CONSTRAINT config_head_rewinds_from_check CHECK ((rewinds_from >= 0)),
    CONSTRAINT config_head_version_check CHECK ((version >= 0))
);

CREATE TABLE public.config_log (
    version bigint NOT NULL,
    change jsonb NOT NULL,
    author text NOT NULL,
    reason text,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    entry bytea NOT NULL,
    chain bytea NOT NULL,
    audience jsonb,
    before jsonb,
    CONSTRAINT config_log_chain_check CHECK ((octet_length(chain) = 32)),
    CONSTRAINT config_log_version_check CHECK ((version > 0))
);

CREATE TABLE public.credit_notes (
    id uuid DEFAULT gen_random_uuid() NOT NULL,
    organization_id uuid NOT NULL,
    invoice_id uuid NOT NULL,
    credit_note_number character varying(100) NOT NULL,
    issued_on date NOT NULL,
    amount numeric(20,2) NOT NULL,
    tax_amount numeric(20,2) NOT NULL,
    reason text NOT NULL,
    to_prepaid boolean NOT NULL,
    idempotency_key character varying(200) NOT NULL,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    CONSTRAINT credit_notes_amount_check CHECK ((amount > (0)::numeric)),
    CONSTRAINT credit_notes_check CHECK (((tax_amount >= (0)::numeric) AND (tax_amount <= amount)))
);

CREATE TABLE public.custom_models (
    id uuid DEFAULT gen_random_uuid() NOT NULL,
    organization_id uuid NOT NULL,
    base_model_id character varying(100) NOT NULL,
    name character varying(255) NOT NULL,
    description text,
    training_status character varying(50) DEFAULT 'pending'::character varying NOT NULL,
    training_job_id character varying(100),
    model_artifact_path character varying(1000),
    training_config jsonb DEFAULT '{}'::jsonb NOT NULL,
    performance_metrics jsonb DEFAULT '{}'::jsonb NOT NULL,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    completed_at timestamp with time zone,
    metadata jsonb DEFAULT '{}'::jsonb NOT NULL,
    CONSTRAINT custom_models_metadata_check CHECK ((jsonb_typeof(metadata) = 'object'::text)),
    CONSTRAINT custom_models_performance_metrics_check CHECK ((jsonb_typeof(performance_metrics) = 'object'::text)),
    CONSTRAINT custom_models_training_config_check CHECK ((jsonb_typeof(training_config) = 'object'::text)),
    CONSTRAINT custom_models_training_status_check CHECK (((training_status)::text = ANY ((ARRAY['pending'::character varying, 'training'::character varying, 'completed'::character varying, 'failed'::character varying])::text[])))
);

CREATE TABLE public.document_numbers (
    series character varying(20) NOT NULL,
    year integer NOT NULL,
    last bigint NOT NULL,
    CONSTRAINT document_numbers_last_check CHECK ((last > 0))
);

CREATE TABLE public.edge_days (
    edge character varying(255) NOT NULL,
    epoch numeric(20,0) NOT NULL,
    day date NOT NULL,
    through_seq numeric(20,0) NOT NULL,
    requests bigint NOT NULL,
    prompt_tokens bigint NOT NULL,
    completion_tokens bigint NOT NULL,
    cost_usd numeric(24,12) NOT NULL,
    updated_at timestamp with time zone DEFAULT now() NOT NULL,
    CONSTRAINT edge_days_completion_tokens_check CHECK ((completion_tokens >= 0)),
    CONSTRAINT edge_days_prompt_tokens_check CHECK ((prompt_tokens >= 0)),
    CONSTRAINT edge_days_requests_check CHECK ((requests >= 0))
);

CREATE TABLE public.edges (
    name text NOT NULL,
    region text NOT NULL,
    build text NOT NULL,
    holds bigint DEFAULT 0 NOT NULL,
    last_nack text,
    connected boolean DEFAULT false NOT NULL,
    last_seen_at timestamp with time zone,
    complete_to timestamp with time zone DEFAULT now() NOT NULL,
    linked_at timestamp with time zone DEFAULT now() NOT NULL,
    began_to timestamp with time zone,
    settled_to timestamp with time zone,
    nacked_version bigint,
    transport text,
    linked_to uuid
);

CREATE TABLE public.files (
    id character varying(100) NOT NULL,
    organization_id uuid NOT NULL,
    user_id uuid NOT NULL,
    filename character varying(255) NOT NULL,
    purpose character varying(50) NOT NULL,
    bytes bigint NOT NULL,
    mime_type character varying(100),
    storage_path character varying(1000) NOT NULL,
    status character varying(50) DEFAULT 'uploaded'::character varying NOT NULL,
    status_details text,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    processed_at timestamp with time zone,
    metadata jsonb DEFAULT '{}'::jsonb NOT NULL,
    CONSTRAINT files_bytes_check CHECK ((bytes >= 0)),
    CONSTRAINT files_metadata_check CHECK ((jsonb_typeof(metadata) = 'object'::text)),
    CONSTRAINT files_purpose_check CHECK (((purpose)::text = ANY ((ARRAY['batch'::character varying, 'fine-tune'::character varying, 'assistants'::character varying])::text[]))),
    CONSTRAINT files_status_check CHECK (((status)::text = ANY ((ARRAY['uploaded'::character varying, 'processed'::character varying, 'error'::character varying])::text[])))
);

CREATE TABLE public.fine_tuning_jobs (
    id character varying(100) NOT NULL,
    organization_id uuid NOT NULL,
    user_id uuid NOT NULL,
    model_id character varying(100) NOT NULL,
    training_file_id character varying(100) NOT NULL,
    validation_file_id character varying(100),
    fine_tuned_model_id uuid,
    status character varying(50) DEFAULT 'validating_files'::character varying NOT NULL,
    hyperparameters jsonb DEFAULT '{}'::jsonb NOT NULL,
    result_files text[] DEFAULT '{}'::text[] NOT NULL,
    trained_tokens bigint,
    training_loss numeric(10,6),
    validation_loss numeric(10,6),
    error jsonb,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    started_at timestamp with time zone,
    finished_at timestamp with time zone,
    estimated_finish_at timestamp with time zone,
    metadata jsonb DEFAULT '{}'::jsonb NOT NULL,
    CONSTRAINT fine_tuning_jobs_hyperparameters_check CHECK ((jsonb_typeof(hyperparameters) = 'object'::text)),
    CONSTRAINT fine_tuning_jobs_metadata_check CHECK ((jsonb_typeof(metadata) = 'object'::text)),
    CONSTRAINT fine_tuning_jobs_status_check CHECK (((status)::text = ANY ((ARRAY['validating_files'::character varying, 'queued'::character varying, 'running'::character varying, 'succeeded'::character varying, 'failed'::character varying, 'cancelled'::character varying])::text[]))),
    CONSTRAINT fine_tuning_jobs_trained_tokens_check CHECK ((trained_tokens >= 0))
);

CREATE TABLE public.inference_requests (
    id uuid NOT NULL,
    organization_id uuid NOT NULL,
    api_key_id uuid,
    model_id character varying(100),
    model_version character varying(50),
    request_type character varying(50) NOT NULL,
    prompt_tokens bigint DEFAULT 0 NOT NULL,
    completion_tokens bigint DEFAULT 0 NOT NULL,
    total_tokens bigint DEFAULT 0 NOT NULL,
    estimated boolean DEFAULT false NOT NULL,
    cost_usd numeric(24,12) DEFAULT 0 NOT NULL,
    request_size_bytes bigint,
    response_size_bytes bigint,
    processing_time_ms integer,
    queue_time_ms integer,
    total_time_ms integer,
    first_byte_ms integer,
    status character varying(50) NOT NULL,
    http_status smallint,
    error_code character varying(100),
    error_message text,
    streamed boolean DEFAULT false NOT NULL,
    retries smallint DEFAULT 0 NOT NULL,
    user_agent text,
    ip_address inet,
    region character varying(50),
    edge text,
    node text,
    created_at timestamp with time zone NOT NULL,
    completed_at timestamp with time zone,
    cache_status character varying(20),
    price_version bigint DEFAULT 0 NOT NULL,
    cached_tokens bigint DEFAULT 0 NOT NULL,
    shadow boolean DEFAULT false NOT NULL,
    CONSTRAINT inference_requests_cache_status_check CHECK (((cache_status)::text = ANY ((ARRAY['hit'::character varying, 'miss'::character varying, 'coalesced'::character varying, 'bypass'::character varying])::text[]))),
    CONSTRAINT inference_requests_cached_tokens_check CHECK ((cached_tokens >= 0)),
    CONSTRAINT inference_requests_check CHECK ((total_tokens = (prompt_tokens + completion_tokens))),
    CONSTRAINT inference_requests_completion_tokens_check CHECK ((completion_tokens >= 0)),
    CONSTRAINT inference_requests_price_version_check CHECK ((price_version >= 0)),
    CONSTRAINT inference_requests_prompt_tokens_check CHECK ((prompt_tokens >= 0)),
    CONSTRAINT inference_requests_request_type_check CHECK (((request_type)::text = ANY ((ARRAY['completion'::character varying, 'chat'::character varying, 'embedding'::character varying, 'moderation'::character varying])::text[]))),
    CONSTRAINT inference_requests_status_check CHECK (((status)::text = ANY ((ARRAY['success'::character varying, 'error'::character varying, 'timeout'::character varying, 'rate_limited'::character varying, 'client_gone'::character varying])::text[])))
)
PARTITION BY RANGE (created_at);

CREATE TABLE public.invoices (
    id uuid DEFAULT gen_random_uuid() NOT NULL,
    organization_id uuid NOT NULL,
    billing_account_id uuid NOT NULL,
    invoice_number character varying(100) NOT NULL,
    stripe_invoice_id character varying(100),
    period_start date NOT NULL,
    period_end date NOT NULL,
    subtotal numeric(20,2) NOT NULL,
    tax_amount numeric(20,2) DEFAULT 0 NOT NULL,
    total_amount numeric(20,2) NOT NULL,
    currency character varying(3) DEFAULT 'USD'::character varying NOT NULL,
    status character varying(50) NOT NULL,
    due_date date,
    paid_at timestamp with time zone,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    line_items jsonb DEFAULT '[]'::jsonb NOT NULL,
    issued_on date,
    seller jsonb DEFAULT '{}'::jsonb NOT NULL,
    buyer jsonb DEFAULT '{}'::jsonb NOT NULL,
    exact_total numeric(24,12) NOT NULL,
    lines_total numeric(20,2) NOT NULL,
    discount_permille integer NOT NULL,
    discount_amount numeric(20,2) NOT NULL,
    tax_rate numeric(6,3) NOT NULL,
    credit_applied numeric(20,2) NOT NULL,
    amount_due numeric(20,2) NOT NULL,
    voided_at timestamp with time zone,
    uncollectible_at timestamp with time zone,
    checksum character varying(64),
    CONSTRAINT invoices_amount_due_check CHECK ((amount_due >= (0)::numeric)),
    CONSTRAINT invoices_buyer_check CHECK ((jsonb_typeof(buyer) = 'object'::text)),
    CONSTRAINT invoices_check CHECK ((period_end >= period_start)),
    CONSTRAINT invoices_check1 CHECK ((total_amount = (subtotal + tax_amount))),
    CONSTRAINT invoices_check2 CHECK ((subtotal = (lines_total - discount_amount))),
    CONSTRAINT invoices_check3 CHECK ((amount_due = (total_amount - credit_applied))),
    CONSTRAINT invoices_check4 CHECK ((((status)::text = 'draft'::text) OR ((issued_on IS NOT NULL) AND (due_date IS NOT NULL) AND (checksum IS NOT NULL)))),
    CONSTRAINT invoices_check5 CHECK ((((status)::text = 'draft'::text) = ((invoice_number)::text ~~ 'draft-%'::text))),
    CONSTRAINT invoices_check6 CHECK ((((status)::text = 'paid'::text) = (paid_at IS NOT NULL))),
    CONSTRAINT invoices_checksum_check CHECK (((checksum)::text ~ '^[0-9a-f]{64}$'::text)),
    CONSTRAINT invoices_credit_applied_check CHECK ((credit_applied >= (0)::numeric)),
    CONSTRAINT invoices_currency_check CHECK (((currency)::text ~ '^[A-Z]{3}$'::text)),
    CONSTRAINT invoices_line_items_check CHECK ((jsonb_typeof(line_items) = 'array'::text)),
    CONSTRAINT invoices_seller_check CHECK ((jsonb_typeof(seller) = 'object'::text)),
    CONSTRAINT invoices_status_check CHECK (((status)::text = ANY ((ARRAY['draft'::character varying, 'open'::character varying, 'paid'::character varying, 'void'::character varying, 'uncollectible'::character varying])::text[])))
);

CREATE TABLE public.model_performance (
    "timestamp" timestamp with time zone NOT NULL,
    model_id character varying(100) NOT NULL,
    model_version character varying(50) NOT NULL,
    region character varying(50) NOT NULL,
    node text NOT NULL,
    gpu_type text NOT NULL,
    requests_per_second double precision NOT NULL,
    tokens_per_second double precision NOT NULL,
    avg_latency_ms double precision NOT NULL,
    p95_latency_ms double precision NOT NULL,
    p99_latency_ms double precision NOT NULL,
    gpu_utilization double precision NOT NULL,
    memory_utilization double precision NOT NULL,
    error_rate double precision NOT NULL
);

CREATE TABLE public.model_prices (
    model_id character varying(100) NOT NULL,
    version integer NOT NULL,
    effective_from timestamp with time zone NOT NULL,
    pricing jsonb NOT NULL,
    input_token numeric(24,12) NOT NULL,
    output_token numeric(24,12) NOT NULL,
    cached_input_token numeric(24,12),
    request numeric(24,12),
    currency character varying(3) DEFAULT 'USD'::character varying NOT NULL,
    actor text NOT NULL,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    CONSTRAINT model_prices_cached_input_token_check CHECK ((cached_input_token >= (0)::numeric)),
    CONSTRAINT model_prices_currency_check CHECK (((currency)::text = 'USD'::text)),
    CONSTRAINT model_prices_input_token_check CHECK ((input_token >= (0)::numeric)),
    CONSTRAINT model_prices_output_token_check CHECK ((output_token >= (0)::numeric)),
    CONSTRAINT model_prices_pricing_check CHECK ((jsonb_typeof(pricing) = 'object'::text)),
    CONSTRAINT model_prices_request_check CHECK ((request >= (0)::numeric)),
    CONSTRAINT model_prices_version_check CHECK ((version > 0))
);

CREATE TABLE public.model_routes (
    id uuid NOT NULL,
    name text NOT NULL,
    organization_id uuid,
    policy jsonb NOT NULL,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    updated_at timestamp with time zone DEFAULT now() NOT NULL,
    CONSTRAINT model_routes_name_check CHECK (((length(name) >= 1) AND (length(name) <= 100))),
    CONSTRAINT model_routes_policy_check CHECK ((jsonb_typeof(policy) = 'object'::text))
);

CREATE TABLE public.model_versions (
    id uuid DEFAULT gen_random_uuid() NOT NULL,
    model_id character varying(100) NOT NULL,
    version character varying(50) NOT NULL,
    is_default boolean DEFAULT false NOT NULL,
    model_artifact_path character varying(1000) NOT NULL,
    config jsonb DEFAULT '{}'::jsonb NOT NULL,
    performance_metrics jsonb DEFAULT '{}'::jsonb NOT NULL,
    deployment_status character varying(50) DEFAULT 'pending'::character varying NOT NULL,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    deployed_at timestamp with time zone,
    deprecated_at timestamp with time zone,
    CONSTRAINT model_versions_config_check CHECK ((jsonb_typeof(config) = 'object'::text)),
    CONSTRAINT model_versions_deployment_status_check CHECK (((deployment_status)::text = ANY ((ARRAY['pending'::character varying, 'deploying'::character varying, 'active'::character varying, 'deprecated'::character varying])::text[]))),
    CONSTRAINT model_versions_performance_metrics_check CHECK ((jsonb_typeof(performance_metrics) = 'object'::text))
);

CREATE TABLE public.models (
    id character varying(100) NOT NULL,
    name character varying(255) NOT NULL,
    provider character varying(100) NOT NULL,
    category character varying(50) NOT NULL,
    description text,
    context_length integer NOT NULL,
    max_output_tokens integer,
    parameter_count bigint,
    model_size character varying(20),
    capabilities text[] DEFAULT '{}'::text[] NOT NULL,
    supported_languages text[] DEFAULT '{}'::text[] NOT NULL,
    pricing jsonb NOT NULL,
    is_active boolean DEFAULT true NOT NULL,
    is_public boolean DEFAULT true NOT NULL,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    updated_at timestamp with time zone DEFAULT now() NOT NULL,
    metadata jsonb DEFAULT '{}'::jsonb NOT NULL,
    cache jsonb DEFAULT '{}'::jsonb NOT NULL,
    cache_generation integer DEFAULT 0 NOT NULL,
    CONSTRAINT models_cache_check CHECK ((jsonb_typeof(cache) = 'object'::text)),
    CONSTRAINT models_cache_generation_check CHECK ((cache_generation >= 0)),
    CONSTRAINT models_category_check CHECK (((category)::text = ANY ((ARRAY['text-generation'::character varying, 'chat'::character varying, 'embedding'::character varying, 'image-generation'::character varying, 'moderation'::character varying])::text[]))),
    CONSTRAINT models_context_length_check CHECK ((context_length > 0)),
    CONSTRAINT models_max_output_tokens_check CHECK ((max_output_tokens > 0)),
    CONSTRAINT models_metadata_check CHECK ((jsonb_typeof(metadata) = 'object'::text)),
    CONSTRAINT models_model_size_check CHECK (((model_size)::text = ANY ((ARRAY['small'::character varying, 'medium'::character varying, 'large'::character varying, 'xl'::character varying])::text[]))),
    CONSTRAINT models_parameter_count_check CHECK ((parameter_count > 0)),
    CONSTRAINT models_pricing_check CHECK ((jsonb_typeof(pricing) = 'object'::text))
);

CREATE TABLE public.node_ledger (
    day date NOT NULL,
    event_id uuid NOT NULL,
    node character varying(255) NOT NULL,
    state character varying(20) NOT NULL,
    prompt_tokens bigint NOT NULL,
    cached_tokens bigint NOT NULL,
    completion_tokens bigint NOT NULL,
    received_at timestamp with time zone DEFAULT now() NOT NULL,
    CONSTRAINT node_ledger_cached_tokens_check CHECK ((cached_tokens >= 0)),
    CONSTRAINT node_ledger_completion_tokens_check CHECK ((completion_tokens >= 0)),
    CONSTRAINT node_ledger_prompt_tokens_check CHECK ((prompt_tokens >= 0)),
    CONSTRAINT node_ledger_state_check CHECK (((state)::text = ANY ((ARRAY['counted'::character varying, 'seen'::character varying, 'refused'::character varying, 'lost'::character varying])::text[])))
)
PARTITION BY RANGE (day);

CREATE TABLE public.nodes (
    id uuid DEFAULT gen_random_uuid() NOT NULL,
    name text NOT NULL,
    region text NOT NULL,
    url text NOT NULL,
    engine text NOT NULL,
    state text NOT NULL,
    slots integer NOT NULL,
    serves jsonb DEFAULT '[]'::jsonb NOT NULL,
    gpus jsonb DEFAULT '[]'::jsonb NOT NULL,
    metadata jsonb DEFAULT '{}'::jsonb NOT NULL,
    enabled boolean DEFAULT true NOT NULL,
    last_seen_at timestamp with time zone,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    updated_at timestamp with time zone DEFAULT now() NOT NULL,
    linked_to uuid,
    CONSTRAINT nodes_gpus_check CHECK ((jsonb_typeof(gpus) = 'array'::text)),
    CONSTRAINT nodes_metadata_check CHECK ((jsonb_typeof(metadata) = 'object'::text)),
    CONSTRAINT nodes_serves_check CHECK ((jsonb_typeof(serves) = 'array'::text)),
    CONSTRAINT nodes_slots_check CHECK ((slots >= 0)),
    CONSTRAINT nodes_state_check CHECK ((state = ANY (ARRAY['ready'::text, 'draining'::text, 'unhealthy'::text, 'lost'::text, 'disabled'::text])))
);

CREATE TABLE public.organizations (
    id uuid DEFAULT gen_random_uuid() NOT NULL,
    name character varying(255) NOT NULL,
    slug character varying(100) NOT NULL,
    plan_type character varying(50) DEFAULT 'free'::character varying NOT NULL,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    updated_at timestamp with time zone DEFAULT now() NOT NULL,
    billing_email character varying(255),
    tax_id character varying(100),
    address jsonb,
    settings jsonb DEFAULT '{}'::jsonb NOT NULL,
    cache_generation integer DEFAULT 0 NOT NULL,
    budget jsonb,
    prepaid jsonb,
    CONSTRAINT organizations_budget_check CHECK ((jsonb_typeof(budget) = 'object'::text)),
    CONSTRAINT organizations_cache_generation_check CHECK ((cache_generation >= 0)),
    CONSTRAINT organizations_plan_type_check CHECK (((plan_type)::text = ANY ((ARRAY['free'::character varying, 'pro'::character varying, 'enterprise'::character varying])::text[]))),
    CONSTRAINT organizations_prepaid_check CHECK ((jsonb_typeof(prepaid) = 'object'::text)),
    CONSTRAINT organizations_settings_check CHECK ((jsonb_typeof(settings) = 'object'::text)),
    CONSTRAINT organizations_slug_check CHECK (((slug)::text ~ '^[a-z0-9]([a-z0-9-]*[a-z0-9])?$'::text))
);

CREATE TABLE public.prepaid_entries (
    id bigint NOT NULL,
    organization_id uuid NOT NULL,
    kind character varying(20) NOT NULL,
    amount numeric(24,12) NOT NULL,
    idempotency_key character varying(200) NOT NULL,
    day date,
    used numeric(24,12) DEFAULT 0 NOT NULL,
    actor text NOT NULL,
    note text,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    CONSTRAINT prepaid_entries_check CHECK ((((kind)::text <> ALL ((ARRAY['opening'::character varying, 'usage'::character varying])::text[])) OR (day IS NOT NULL))),
    CONSTRAINT prepaid_entries_check1 CHECK ((((kind)::text <> 'usage'::text) OR (amount = (- used)))),
    CONSTRAINT prepaid_entries_kind_check CHECK (((kind)::text = ANY ((ARRAY['opening'::character varying, 'top_up'::character varying, 'recharge'::character varying, 'adjustment'::character varying, 'usage'::character varying, 'invoice'::character varying, 'credit'::character varying, 'refund'::character varying, 'rounding'::character varying])::text[])))
);

ALTER TABLE public.prepaid_entries ALTER COLUMN id ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME public.prepaid_entries_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);

CREATE TABLE public.prepaid_settlements (
    invoice_id uuid NOT NULL,
    organization_id uuid NOT NULL,
    day date NOT NULL,
    amount numeric(24,12) NOT NULL
);

CREATE TABLE public.prepaid_shares (
    organization_id uuid NOT NULL,
    region text NOT NULL,
    cap numeric(24,12) NOT NULL,
    bound numeric(24,12) NOT NULL,
    lowered_version bigint,
    acked_at timestamp with time zone,
    CONSTRAINT prepaid_shares_check CHECK (((cap >= (0)::numeric) AND (bound >= cap))),
    CONSTRAINT prepaid_shares_check1 CHECK (((lowered_version IS NOT NULL) OR ((bound = cap) AND (acked_at IS NULL))))
);

CREATE TABLE public.purged_answers (
    cache_key text NOT NULL,
    purged_at timestamp with time zone NOT NULL,
    CONSTRAINT purged_answers_cache_key_check CHECK ((cache_key ~ '^[0-9a-f]{64}$'::text))
);

CREATE TABLE public.recharges (
    id uuid NOT NULL,
    organization_id uuid NOT NULL,
    amount numeric(20,2) NOT NULL,
    customer character varying(100),
    payment_method character varying(100),
    status character varying(20) DEFAULT 'open'::character varying NOT NULL,
    provider_id character varying(100),
    failures integer DEFAULT 0 NOT NULL,
    retry_at timestamp with time zone,
    error text,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    ended_at timestamp with time zone,
    CONSTRAINT recharges_amount_check CHECK ((amount > (0)::numeric)),
    CONSTRAINT recharges_check CHECK ((((status)::text = 'open'::text) = (ended_at IS NULL))),
    CONSTRAINT recharges_failures_check CHECK ((failures >= 0)),
    CONSTRAINT recharges_status_check CHECK (((status)::text = ANY ((ARRAY['open'::character varying, 'succeeded'::character varying, 'failed'::character varying])::text[])))
);

CREATE TABLE public.reconciliations (
    day date NOT NULL,
    ran_at timestamp with time zone NOT NULL,
    complete boolean NOT NULL,
    events bigint NOT NULL,
    tokens bigint NOT NULL,
    cost_usd numeric(30,12) NOT NULL
);

CREATE TABLE public.rollouts (
    id uuid NOT NULL,
    author text NOT NULL,
    reason text,
    documents jsonb NOT NULL,
    prune boolean NOT NULL,
    changes jsonb NOT NULL,
    stages jsonb NOT NULL,
    rules jsonb NOT NULL,
    state text NOT NULL,
    stage integer DEFAULT 0 NOT NULL,
    told_version bigint NOT NULL,
    told_at timestamp with time zone DEFAULT now() NOT NULL,
    held_since timestamp with time zone,
    note text,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    updated_at timestamp with time zone DEFAULT now() NOT NULL,
    CONSTRAINT rollouts_changes_check CHECK ((jsonb_typeof(changes) = 'array'::text)),
    CONSTRAINT rollouts_stage_check CHECK ((stage >= 0)),
    CONSTRAINT rollouts_stages_check CHECK ((jsonb_typeof(stages) = 'array'::text)),
    CONSTRAINT rollouts_state_check CHECK ((state = ANY (ARRAY['running'::text, 'paused'::text, 'halted'::text, 'aborted'::text, 'done'::text])))
);

CREATE TABLE public.stripe_credit_notes (
    credit_note_id uuid NOT NULL,
    stripe_id character varying(100),
    failures integer DEFAULT 0 NOT NULL,
    retry_at timestamp with time zone,
    error text,
    CONSTRAINT stripe_credit_notes_failures_check CHECK ((failures >= 0))
);

CREATE TABLE public.stripe_events (
    id character varying(255) NOT NULL,
    type character varying(100) NOT NULL,
    received_at timestamp with time zone DEFAULT now() NOT NULL
);

CREATE TABLE public.stripe_invoices (
    invoice_id uuid NOT NULL,
    finalized_at timestamp with time zone,
    told character varying(50) DEFAULT 'draft'::character varying NOT NULL,
    failures integer DEFAULT 0 NOT NULL,
    retry_at timestamp with time zone,
    error text,
    CONSTRAINT stripe_invoices_failures_check CHECK ((failures >= 0))
);

CREATE TABLE public.usage_adjustments (
    id uuid DEFAULT gen_random_uuid() NOT NULL,
    organization_id uuid NOT NULL,
    model_id character varying(100) NOT NULL,
    date date NOT NULL,
    requests bigint NOT NULL,
    prompt_tokens bigint NOT NULL,
    completion_tokens bigint NOT NULL,
    cost_usd numeric(24,12) NOT NULL,
    invoice_id uuid,
    created_at timestamp with time zone DEFAULT now() NOT NULL
);

CREATE TABLE public.usage_dirty_hours (
    hour timestamp with time zone NOT NULL,
    mark bigint NOT NULL,
    ended_from timestamp with time zone NOT NULL,
    began_from timestamp with time zone NOT NULL
);

ALTER TABLE public.usage_dirty_hours ALTER COLUMN mark ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME public.usage_dirty_hours_mark_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);

CREATE TABLE public.usage_hours (
    organization_id uuid NOT NULL,
    model_id character varying(100) NOT NULL,
    price_version bigint NOT NULL,
    hour timestamp with time zone NOT NULL,
    requests bigint NOT NULL,
    prompt_tokens bigint NOT NULL,
    cached_tokens bigint NOT NULL,
    completion_tokens bigint NOT NULL,
    cost_usd numeric(24,12) NOT NULL,
    region character varying(50) DEFAULT ''::character varying NOT NULL,
    CONSTRAINT usage_hours_check CHECK (((requests >= 0) AND (prompt_tokens >= 0) AND (cached_tokens >= 0))),
    CONSTRAINT usage_hours_completion_tokens_check CHECK ((completion_tokens >= 0)),
    CONSTRAINT usage_hours_hour_check CHECK ((date_trunc('hour'::text, hour, 'UTC'::text) = hour)),
    CONSTRAINT usage_hours_price_version_check CHECK ((price_version >= 0))
);

CREATE TABLE public.usage_ingest (
    edge text NOT NULL,
    epoch numeric(20,0) NOT NULL,
    through_seq numeric(20,0) NOT NULL,
    updated_at timestamp with time zone DEFAULT now() NOT NULL
);

CREATE TABLE public.usage_ledger (
    is_one boolean DEFAULT true NOT NULL,
    clickhouse uuid,
    copied_from timestamp with time zone,
    copied_id uuid,
    CONSTRAINT usage_ledger_check CHECK (((copied_from IS NULL) = (copied_id IS NULL))),
    CONSTRAINT usage_ledger_check1 CHECK (((copied_from IS NULL) OR (clickhouse IS NOT NULL))),
    CONSTRAINT usage_ledger_is_one_check CHECK (is_one)
);

CREATE TABLE public.usage_records (
    id uuid DEFAULT gen_random_uuid() NOT NULL,
    organization_id uuid NOT NULL,
    model_id character varying(100) NOT NULL,
    date date NOT NULL,
    requests bigint DEFAULT 0 NOT NULL,
    prompt_tokens bigint DEFAULT 0 NOT NULL,
    completion_tokens bigint DEFAULT 0 NOT NULL,
    total_tokens bigint DEFAULT 0 NOT NULL,
    cost_usd numeric(24,12) DEFAULT 0 NOT NULL,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    updated_at timestamp with time zone DEFAULT now() NOT NULL,
    CONSTRAINT usage_records_check CHECK ((total_tokens = (prompt_tokens + completion_tokens))),
    CONSTRAINT usage_records_completion_tokens_check CHECK ((completion_tokens >= 0)),
    CONSTRAINT usage_records_prompt_tokens_check CHECK ((prompt_tokens >= 0)),
    CONSTRAINT usage_records_requests_check CHECK ((requests >= 0))
)
PARTITION BY RANGE (date);

CREATE TABLE public.usage_region_days (
    organization_id uuid NOT NULL,
    date date NOT NULL,
    region character varying(50) NOT NULL,
    requests bigint NOT NULL,
    cost_usd numeric(24,12) NOT NULL
);

CREATE TABLE public.users (
    id uuid DEFAULT gen_random_uuid() NOT NULL,
    organization_id uuid NOT NULL,
    email character varying(255) NOT NULL,
    password_hash character varying(255),
    first_name character varying(100),
    last_name character varying(100),
    role character varying(50) DEFAULT 'member'::character varying NOT NULL,
    is_active boolean DEFAULT true NOT NULL,
    email_verified boolean DEFAULT false NOT NULL,
    last_login_at timestamp with time zone,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    updated_at timestamp with time zone DEFAULT now() NOT NULL,
    preferences jsonb DEFAULT '{}'::jsonb NOT NULL,
    CONSTRAINT users_email_check CHECK (((email)::text ~~ '%_@_%'::text)),
    CONSTRAINT users_preferences_check CHECK ((jsonb_typeof(preferences) = 'object'::text)),
    CONSTRAINT users_role_check CHECK (((role)::text = ANY ((ARRAY['owner'::character varying, 'admin'::character varying, 'member'::character varying, 'viewer'::character varying])::text[])))
);

ALTER TABLE ONLY public.api_keys
    ADD CONSTRAINT api_keys_pkey PRIMARY KEY (id);

ALTER TABLE ONLY public.audit_log
    ADD CONSTRAINT audit_log_pkey PRIMARY KEY (id);

ALTER TABLE ONLY public.batch_jobs
    ADD CONSTRAINT batch_jobs_pkey PRIMARY KEY (id);

ALTER TABLE ONLY public.billing_accounts
    ADD CONSTRAINT billing_accounts_pkey PRIMARY KEY (id);

ALTER TABLE ONLY public.config_head
    ADD CONSTRAINT config_head_pkey PRIMARY KEY (one);

ALTER TABLE ONLY public.config_log
    ADD CONSTRAINT config_log_pkey PRIMARY KEY (version);

ALTER TABLE ONLY public.credit_notes
    ADD CONSTRAINT credit_notes_credit_note_number_key UNIQUE (credit_note_number);

ALTER TABLE ONLY public.credit_notes
    ADD CONSTRAINT credit_notes_invoice_id_idempotency_key_key UNIQUE (invoice_id, idempotency_key);

ALTER TABLE ONLY public.credit_notes
    ADD CONSTRAINT credit_notes_pkey PRIMARY KEY (id);

ALTER TABLE ONLY public.custom_models
    ADD CONSTRAINT custom_models_pkey PRIMARY KEY (id);

ALTER TABLE ONLY public.document_numbers
    ADD CONSTRAINT document_numbers_pkey PRIMARY KEY (series, year);

ALTER TABLE ONLY public.edge_days
    ADD CONSTRAINT edge_days_pkey PRIMARY KEY (day, edge, epoch);

ALTER TABLE ONLY public.edges
    ADD CONSTRAINT edges_pkey PRIMARY KEY (name);

ALTER TABLE ONLY public.files
    ADD CONSTRAINT files_pkey PRIMARY KEY (id);

ALTER TABLE ONLY public.fine_tuning_jobs
    ADD CONSTRAINT fine_tuning_jobs_pkey PRIMARY KEY (id);

ALTER TABLE ONLY public.inference_requests
    ADD CONSTRAINT inference_requests_pkey PRIMARY KEY (id, created_at);

ALTER TABLE ONLY public.invoices
    ADD CONSTRAINT invoices_invoice_number_key UNIQUE (invoice_number);

ALTER TABLE ONLY public.invoices
    ADD CONSTRAINT invoices_pkey PRIMARY KEY (id);

ALTER TABLE ONLY public.invoices
    ADD CONSTRAINT invoices_stripe_invoice_id_key UNIQUE (stripe_invoice_id);

ALTER TABLE ONLY public.model_performance
    ADD CONSTRAINT model_performance_pkey PRIMARY KEY ("timestamp", model_id, model_version, region, node);

ALTER TABLE ONLY public.model_prices
    ADD CONSTRAINT model_prices_pkey PRIMARY KEY (model_id, version);

ALTER TABLE ONLY public.model_routes
    ADD CONSTRAINT model_routes_name_organization_key UNIQUE NULLS NOT DISTINCT (name, organization_id);

ALTER TABLE ONLY public.model_routes
    ADD CONSTRAINT model_routes_pkey PRIMARY KEY (id);

ALTER TABLE ONLY public.model_versions
    ADD CONSTRAINT model_versions_model_id_version_key UNIQUE (model_id, version);

ALTER TABLE ONLY public.model_versions
    ADD CONSTRAINT model_versions_pkey PRIMARY KEY (id);

ALTER TABLE ONLY public.models
    ADD CONSTRAINT models_pkey PRIMARY KEY (id);

ALTER TABLE ONLY public.node_ledger
    ADD CONSTRAINT node_ledger_pkey PRIMARY KEY (day, event_id, node);

ALTER TABLE ONLY public.nodes
    ADD CONSTRAINT nodes_name_key UNIQUE (name);

ALTER TABLE ONLY public.nodes
    ADD CONSTRAINT nodes_pkey PRIMARY KEY (id);

ALTER TABLE ONLY public.organizations
    ADD CONSTRAINT organizations_pkey PRIMARY KEY (id);

ALTER TABLE ONLY public.prepaid_entries
    ADD CONSTRAINT prepaid_entries_organization_id_idempotency_key_key UNIQUE (organization_id, idempotency_key);

ALTER TABLE ONLY public.prepaid_entries
    ADD CONSTRAINT prepaid_entries_pkey PRIMARY KEY (id);

ALTER TABLE ONLY public.prepaid_settlements
    ADD CONSTRAINT prepaid_settlements_pkey PRIMARY KEY (invoice_id, day);

ALTER TABLE ONLY public.prepaid_shares
    ADD CONSTRAINT prepaid_shares_pkey PRIMARY KEY (organization_id, region);

ALTER TABLE ONLY public.purged_answers
    ADD CONSTRAINT purged_answers_pkey PRIMARY KEY (cache_key);

ALTER TABLE ONLY public.recharges
    ADD CONSTRAINT recharges_pkey PRIMARY KEY (id);

ALTER TABLE ONLY public.recharges
    ADD CONSTRAINT recharges_provider_id_key UNIQUE (provider_id);

ALTER TABLE ONLY public.reconciliations
    ADD CONSTRAINT reconciliations_pkey PRIMARY KEY (day);

ALTER TABLE ONLY public.rollouts
    ADD CONSTRAINT rollouts_pkey PRIMARY KEY (id);

ALTER TABLE ONLY public.stripe_credit_notes
    ADD CONSTRAINT stripe_credit_notes_pkey PRIMARY KEY (credit_note_id);

ALTER TABLE ONLY public.stripe_events
    ADD CONSTRAINT stripe_events_pkey PRIMARY KEY (id);

ALTER TABLE ONLY public.stripe_invoices
    ADD CONSTRAINT stripe_invoices_pkey PRIMARY KEY (invoice_id);

ALTER TABLE ONLY public.usage_adjustments
    ADD CONSTRAINT usage_adjustments_pkey PRIMARY KEY (id);

ALTER TABLE ONLY public.usage_dirty_hours
    ADD CONSTRAINT usage_dirty_hours_pkey PRIMARY KEY (hour, mark);

ALTER TABLE ONLY public.usage_hours
    ADD CONSTRAINT usage_hours_pkey PRIMARY KEY (organization_id, hour, model_id, price_version, region);

ALTER TABLE ONLY public.usage_ingest
    ADD CONSTRAINT usage_ingest_pkey PRIMARY KEY (edge, epoch);

ALTER TABLE ONLY public.usage_ledger
    ADD CONSTRAINT usage_ledger_pkey PRIMARY KEY (is_one);

ALTER TABLE ONLY public.usage_records
    ADD CONSTRAINT usage_records_organization_id_model_id_date_key UNIQUE (organization_id, model_id, date);

ALTER TABLE ONLY public.usage_records
    ADD CONSTRAINT usage_records_pkey PRIMARY KEY (id, date);

ALTER TABLE ONLY public.usage_region_days
    ADD CONSTRAINT usage_region_days_pkey PRIMARY KEY (organization_id, date, region);

ALTER TABLE ONLY public.users
    ADD CONSTRAINT users_pkey PRIMARY KEY (id);

CREATE INDEX idx_api_keys_is_active ON public.api_keys USING btree (is_active);

CREATE UNIQUE INDEX idx_api_keys_key_hash ON public.api_keys USING btree (key_hash);

CREATE INDEX idx_api_keys_organization_id ON public.api_keys USING btree (organization_id);

CREATE INDEX idx_api_keys_user_id ON public.api_keys USING btree (user_id);

CREATE INDEX idx_audit_log_at ON public.audit_log USING btree (at);

CREATE INDEX idx_audit_log_resource ON public.audit_log USING btree (resource_type, resource_id);

CREATE INDEX idx_batch_jobs_created_at ON public.batch_jobs USING btree (created_at);

CREATE INDEX idx_batch_jobs_organization_id ON public.batch_jobs USING btree (organization_id);

CREATE INDEX idx_batch_jobs_status ON public.batch_jobs USING btree (status);

CREATE INDEX idx_batch_jobs_user_id ON public.batch_jobs USING btree (user_id);

CREATE UNIQUE INDEX idx_billing_accounts_one_each ON public.billing_accounts USING btree (organization_id);

CREATE UNIQUE INDEX idx_billing_accounts_organization_id ON public.billing_accounts USING btree (organization_id, id);

CREATE UNIQUE INDEX idx_billing_accounts_stripe_customer_id ON public.billing_accounts USING btree (stripe_customer_id);

CREATE INDEX idx_config_log_passing ON public.config_log USING btree (version) WHERE ((author = 'billing'::text) OR (author ~~ 'node:%'::text));

CREATE INDEX idx_credit_notes_organization_id ON public.credit_notes USING btree (organization_id);

CREATE INDEX idx_custom_models_base_model_id ON public.custom_models USING btree (base_model_id);

CREATE INDEX idx_custom_models_organization_id ON public.custom_models USING btree (organization_id);

CREATE INDEX idx_custom_models_training_status ON public.custom_models USING btree (training_status);

CREATE INDEX idx_files_organization_id ON public.files USING btree (organization_id);

CREATE INDEX idx_files_purpose ON public.files USING btree (purpose);

CREATE INDEX idx_files_status ON public.files USING btree (status);

CREATE INDEX idx_files_user_id ON public.files USING btree (user_id);

CREATE INDEX idx_fine_tuning_jobs_model_id ON public.fine_tuning_jobs USING btree (model_id);

CREATE INDEX idx_fine_tuning_jobs_organization_id ON public.fine_tuning_jobs USING btree (organization_id);

CREATE INDEX idx_fine_tuning_jobs_status ON public.fine_tuning_jobs USING btree (status);

CREATE INDEX idx_fine_tuning_jobs_user_id ON public.fine_tuning_jobs USING btree (user_id);

CREATE INDEX idx_inference_requests_api_key_id ON ONLY public.inference_requests USING btree (api_key_id);

CREATE INDEX idx_inference_requests_created_at ON ONLY public.inference_requests USING btree (created_at);

CREATE INDEX idx_inference_requests_model_id ON ONLY public.inference_requests USING btree (model_id);

CREATE INDEX idx_inference_requests_organization_id ON ONLY public.inference_requests USING btree (organization_id);

CREATE INDEX idx_inference_requests_status ON ONLY public.inference_requests USING btree (status);

CREATE INDEX idx_invoices_billing_account_id ON public.invoices USING btree (billing_account_id);

CREATE UNIQUE INDEX idx_invoices_one_a_month ON public.invoices USING btree (organization_id, period_start) WHERE ((status)::text <> 'void'::text);

CREATE INDEX idx_invoices_organization_id ON public.invoices USING btree (organization_id);

CREATE INDEX idx_invoices_period_start ON public.invoices USING btree (period_start);

CREATE INDEX idx_invoices_status ON public.invoices USING btree (status);

CREATE INDEX idx_model_prices_effective_from ON public.model_prices USING btree (model_id, effective_from, version);

CREATE INDEX idx_model_versions_deployment_status ON public.model_versions USING btree (deployment_status);

CREATE INDEX idx_model_versions_is_default ON public.model_versions USING btree (is_default);

CREATE INDEX idx_model_versions_model_id ON public.model_versions USING btree (model_id);

CREATE UNIQUE INDEX idx_model_versions_one_default ON public.model_versions USING btree (model_id) WHERE is_default;

CREATE INDEX idx_models_category ON public.models USING btree (category);

CREATE INDEX idx_models_is_active ON public.models USING btree (is_active);

CREATE INDEX idx_models_is_public ON public.models USING btree (is_public);

CREATE INDEX idx_models_provider ON public.models USING btree (provider);

CREATE INDEX idx_organizations_plan_type ON public.organizations USING btree (plan_type);

CREATE UNIQUE INDEX idx_organizations_slug ON public.organizations USING btree (slug);

CREATE INDEX idx_prepaid_entries_day ON public.prepaid_entries USING btree (organization_id, day) WHERE (day IS NOT NULL);

CREATE INDEX idx_prepaid_entries_organization_id ON public.prepaid_entries USING btree (organization_id, id);

CREATE INDEX idx_prepaid_settlements_day ON public.prepaid_settlements USING btree (organization_id, day);

CREATE INDEX idx_purged_answers_purged_at ON public.purged_answers USING btree (purged_at);

CREATE UNIQUE INDEX idx_recharges_one_open ON public.recharges USING btree (organization_id) WHERE ((status)::text = 'open'::text);

CREATE INDEX idx_recharges_organization_id ON public.recharges USING btree (organization_id, created_at);

CREATE UNIQUE INDEX idx_rollouts_under_way ON public.rollouts USING btree ((true)) WHERE (state = ANY (ARRAY['running'::text, 'paused'::text]));

CREATE INDEX idx_stripe_events_received_at ON public.stripe_events USING btree (received_at);

CREATE INDEX idx_usage_adjustments_day ON public.usage_adjustments USING btree (organization_id, date, model_id);

CREATE INDEX idx_usage_hours_hour ON public.usage_hours USING btree (hour);

CREATE INDEX idx_usage_records_date ON ONLY public.usage_records USING btree (date);

CREATE INDEX idx_usage_records_model_id ON ONLY public.usage_records USING btree (model_id);

CREATE INDEX idx_usage_records_organization_id ON ONLY public.usage_records USING btree (organization_id);

CREATE UNIQUE INDEX idx_users_email ON public.users USING btree (lower((email)::text));

CREATE UNIQUE INDEX idx_users_organization_id ON public.users USING btree (organization_id, id);

CREATE INDEX idx_users_role ON public.users USING btree (role);

CREATE TRIGGER credit_notes_append_only BEFORE DELETE OR UPDATE ON public.credit_notes FOR EACH ROW EXECUTE FUNCTION public.refuse_change();

CREATE TRIGGER credit_notes_guard BEFORE INSERT ON public.credit_notes FOR EACH ROW EXECUTE FUNCTION public.guard_credit_note();

CREATE TRIGGER credit_notes_no_truncate BEFORE TRUNCATE ON public.credit_notes FOR EACH STATEMENT EXECUTE FUNCTION public.refuse_change();

CREATE TRIGGER invoices_guard BEFORE INSERT OR DELETE OR UPDATE ON public.invoices FOR EACH ROW EXECUTE FUNCTION public.guard_invoice();

CREATE TRIGGER invoices_no_truncate BEFORE TRUNCATE ON public.invoices FOR EACH STATEMENT EXECUTE FUNCTION public.refuse_change();

CREATE TRIGGER model_prices_append_only BEFORE DELETE OR UPDATE ON public.model_prices FOR EACH ROW EXECUTE FUNCTION public.refuse_change();

CREATE TRIGGER model_prices_no_truncate BEFORE TRUNCATE ON public.model_prices FOR EACH STATEMENT EXECUTE FUNCTION public.refuse_change();

CREATE TRIGGER prepaid_entries_append_only BEFORE DELETE OR UPDATE ON public.prepaid_entries FOR EACH ROW EXECUTE FUNCTION public.refuse_change();

CREATE TRIGGER prepaid_entries_no_truncate BEFORE TRUNCATE ON public.prepaid_entries FOR EACH STATEMENT EXECUTE FUNCTION public.refuse_change();

CREATE TRIGGER prepaid_settlements_append_only BEFORE DELETE OR UPDATE ON public.prepaid_settlements FOR EACH ROW EXECUTE FUNCTION public.refuse_change();

CREATE TRIGGER prepaid_settlements_no_truncate BEFORE TRUNCATE ON public.prepaid_settlements FOR EACH STATEMENT EXECUTE FUNCTION public.refuse_change();

ALTER TABLE ONLY public.api_keys
    ADD CONSTRAINT api_keys_organization_id_fkey FOREIGN KEY (organization_id) REFERENCES public.organizations(id) ON DELETE CASCADE;

ALTER TABLE ONLY public.api_keys
    ADD CONSTRAINT api_keys_organization_id_user_id_fkey FOREIGN KEY (organization_id, user_id) REFERENCES public.users(organization_id, id) ON DELETE CASCADE;

ALTER TABLE ONLY public.api_keys
    ADD CONSTRAINT api_keys_rotated_from_fkey FOREIGN KEY (rotated_from) REFERENCES public.api_keys(id) ON DELETE SET NULL;

ALTER TABLE ONLY public.batch_jobs
    ADD CONSTRAINT batch_jobs_error_file_id_fkey FOREIGN KEY (error_file_id) REFERENCES public.files(id);

ALTER TABLE ONLY public.batch_jobs
    ADD CONSTRAINT batch_jobs_input_file_id_fkey FOREIGN KEY (input_file_id) REFERENCES public.files(id);

ALTER TABLE ONLY public.batch_jobs
    ADD CONSTRAINT batch_jobs_organization_id_fkey FOREIGN KEY (organization_id) REFERENCES public.organizations(id) ON DELETE CASCADE;

ALTER TABLE ONLY public.batch_jobs
    ADD CONSTRAINT batch_jobs_organization_id_user_id_fkey FOREIGN KEY (organization_id, user_id) REFERENCES public.users(organization_id, id);

ALTER TABLE ONLY public.batch_jobs
    ADD CONSTRAINT batch_jobs_output_file_id_fkey FOREIGN KEY (output_file_id) REFERENCES public.files(id);

ALTER TABLE ONLY public.billing_accounts
    ADD CONSTRAINT billing_accounts_organization_id_fkey FOREIGN KEY (organization_id) REFERENCES public.organizations(id) ON DELETE CASCADE;

ALTER TABLE ONLY public.credit_notes
    ADD CONSTRAINT credit_notes_invoice_id_fkey FOREIGN KEY (invoice_id) REFERENCES public.invoices(id);

ALTER TABLE ONLY public.credit_notes
    ADD CONSTRAINT credit_notes_organization_id_fkey FOREIGN KEY (organization_id) REFERENCES public.organizations(id);

ALTER TABLE ONLY public.custom_models
    ADD CONSTRAINT custom_models_base_model_id_fkey FOREIGN KEY (base_model_id) REFERENCES public.models(id);

ALTER TABLE ONLY public.custom_models
    ADD CONSTRAINT custom_models_organization_id_fkey FOREIGN KEY (organization_id) REFERENCES public.organizations(id) ON DELETE CASCADE;

ALTER TABLE ONLY public.files
    ADD CONSTRAINT files_organization_id_fkey FOREIGN KEY (organization_id) REFERENCES public.organizations(id) ON DELETE CASCADE;

ALTER TABLE ONLY public.files
    ADD CONSTRAINT files_organization_id_user_id_fkey FOREIGN KEY (organization_id, user_id) REFERENCES public.users(organization_id, id);

ALTER TABLE ONLY public.fine_tuning_jobs
    ADD CONSTRAINT fine_tuning_jobs_fine_tuned_model_id_fkey FOREIGN KEY (fine_tuned_model_id) REFERENCES public.custom_models(id);

ALTER TABLE ONLY public.fine_tuning_jobs
    ADD CONSTRAINT fine_tuning_jobs_model_id_fkey FOREIGN KEY (model_id) REFERENCES public.models(id);

ALTER TABLE ONLY public.fine_tuning_jobs
    ADD CONSTRAINT fine_tuning_jobs_organization_id_fkey FOREIGN KEY (organization_id) REFERENCES public.organizations(id) ON DELETE CASCADE;

ALTER TABLE ONLY public.fine_tuning_jobs
    ADD CONSTRAINT fine_tuning_jobs_organization_id_user_id_fkey FOREIGN KEY (organization_id, user_id) REFERENCES public.users(organization_id, id);

ALTER TABLE ONLY public.fine_tuning_jobs
    ADD CONSTRAINT fine_tuning_jobs_training_file_id_fkey FOREIGN KEY (training_file_id) REFERENCES public.files(id);

ALTER TABLE ONLY public.fine_tuning_jobs
    ADD CONSTRAINT fine_tuning_jobs_validation_file_id_fkey FOREIGN KEY (validation_file_id) REFERENCES public.files(id);

ALTER TABLE public.inference_requests
    ADD CONSTRAINT inference_requests_api_key_id_fkey FOREIGN KEY (api_key_id) REFERENCES public.api_keys(id);

ALTER TABLE public.inference_requests
    ADD CONSTRAINT inference_requests_model_id_fkey FOREIGN KEY (model_id) REFERENCES public.models(id);

ALTER TABLE public.inference_requests
    ADD CONSTRAINT inference_requests_organization_id_fkey FOREIGN KEY (organization_id) REFERENCES public.organizations(id);

ALTER TABLE ONLY public.invoices
    ADD CONSTRAINT invoices_organization_id_billing_account_id_fkey FOREIGN KEY (organization_id, billing_account_id) REFERENCES public.billing_accounts(organization_id, id);

ALTER TABLE ONLY public.invoices
    ADD CONSTRAINT invoices_organization_id_fkey FOREIGN KEY (organization_id) REFERENCES public.organizations(id);

ALTER TABLE ONLY public.model_prices
    ADD CONSTRAINT model_prices_model_id_fkey FOREIGN KEY (model_id) REFERENCES public.models(id);

ALTER TABLE ONLY public.model_routes
    ADD CONSTRAINT model_routes_organization_id_fkey FOREIGN KEY (organization_id) REFERENCES public.organizations(id);

ALTER TABLE ONLY public.model_versions
    ADD CONSTRAINT model_versions_model_id_fkey FOREIGN KEY (model_id) REFERENCES public.models(id) ON DELETE CASCADE;

ALTER TABLE ONLY public.prepaid_entries
    ADD CONSTRAINT prepaid_entries_organization_id_fkey FOREIGN KEY (organization_id) REFERENCES public.organizations(id);

ALTER TABLE ONLY public.prepaid_settlements
    ADD CONSTRAINT prepaid_settlements_invoice_id_fkey FOREIGN KEY (invoice_id) REFERENCES public.invoices(id);

ALTER TABLE ONLY public.prepaid_settlements
    ADD CONSTRAINT prepaid_settlements_organization_id_fkey FOREIGN KEY (organization_id) REFERENCES public.organizations(id);

ALTER TABLE ONLY public.prepaid_shares
    ADD CONSTRAINT prepaid_shares_organization_id_fkey FOREIGN KEY (organization_id) REFERENCES public.organizations(id) ON DELETE CASCADE;

ALTER TABLE ONLY public.recharges
    ADD CONSTRAINT recharges_organization_id_fkey FOREIGN KEY (organization_id) REFERENCES public.organizations(id);

ALTER TABLE ONLY public.stripe_credit_notes
    ADD CONSTRAINT stripe_credit_notes_credit_note_id_fkey FOREIGN KEY (credit_note_id) REFERENCES public.credit_notes(id);

ALTER TABLE ONLY public.stripe_invoices
    ADD CONSTRAINT stripe_invoices_invoice_id_fkey FOREIGN KEY (invoice_id) REFERENCES public.invoices(id);

ALTER TABLE ONLY public.usage_adjustments
    ADD CONSTRAINT usage_adjustments_invoice_id_fkey FOREIGN KEY (invoice_id) REFERENCES public.invoices(id);

ALTER TABLE ONLY public.usage_adjustments
    ADD CONSTRAINT usage_adjustments_model_id_fkey FOREIGN KEY (model_id) REFERENCES public.models(id);

ALTER TABLE ONLY public.usage_adjustments
    ADD CONSTRAINT usage_adjustments_organization_id_fkey FOREIGN KEY (organization_id) REFERENCES public.organizations(id);

ALTER TABLE ONLY public.usage_hours
    ADD CONSTRAINT usage_hours_model_id_fkey FOREIGN KEY (model_id) REFERENCES public.models(id);

ALTER TABLE ONLY public.usage_hours
    ADD CONSTRAINT usage_hours_organization_id_fkey FOREIGN KEY (organization_id) REFERENCES public.organizations(id);

ALTER TABLE public.usage_records
    ADD CONSTRAINT usage_records_model_id_fkey FOREIGN KEY (model_id) REFERENCES public.models(id);

ALTER TABLE public.usage_records
    ADD CONSTRAINT usage_records_organization_id_fkey FOREIGN KEY (organization_id) REFERENCES public.organizations(id);

ALTER TABLE ONLY public.usage_region_days
    ADD CONSTRAINT usage_region_days_organization_id_fkey FOREIGN KEY (organization_id) REFERENCES public.organizations(id);

ALTER TABLE ONLY public.users
    ADD CONSTRAINT users_organization_id_fkey FOREIGN KEY (organization_id) REFERENCES public.organizations(id) ON DELETE CASCADE;
