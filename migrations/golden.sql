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
    prepaid_balance numeric(24,12),
    CONSTRAINT billing_accounts_auto_recharge_amount_check CHECK ((auto_recharge_amount > (0)::numeric)),
    CONSTRAINT billing_accounts_auto_recharge_threshold_check CHECK ((auto_recharge_threshold >= (0)::numeric)),
    CONSTRAINT billing_accounts_currency_check CHECK (((currency)::text ~ '^[A-Z]{3}$'::text)),
    CONSTRAINT billing_accounts_monthly_budget_check CHECK ((monthly_budget >= (0)::numeric))
);

CREATE TABLE public.config_log (
    version bigint NOT NULL,
    change jsonb NOT NULL,
    author text NOT NULL,
    reason text,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    CONSTRAINT config_log_version_check CHECK ((version > 0))
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
    began_to timestamp with time zone
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
    CONSTRAINT invoices_check CHECK ((period_end >= period_start)),
    CONSTRAINT invoices_check1 CHECK ((total_amount = (subtotal + tax_amount))),
    CONSTRAINT invoices_currency_check CHECK (((currency)::text ~ '^[A-Z]{3}$'::text)),
    CONSTRAINT invoices_line_items_check CHECK ((jsonb_typeof(line_items) = 'array'::text)),
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
    CONSTRAINT organizations_budget_check CHECK ((jsonb_typeof(budget) = 'object'::text)),
    CONSTRAINT organizations_cache_generation_check CHECK ((cache_generation >= 0)),
    CONSTRAINT organizations_plan_type_check CHECK (((plan_type)::text = ANY ((ARRAY['free'::character varying, 'pro'::character varying, 'enterprise'::character varying])::text[]))),
    CONSTRAINT organizations_settings_check CHECK ((jsonb_typeof(settings) = 'object'::text)),
    CONSTRAINT organizations_slug_check CHECK (((slug)::text ~ '^[a-z0-9]([a-z0-9-]*[a-z0-9])?$'::text))
);

CREATE TABLE public.purged_answers (
    cache_key text NOT NULL,
    purged_at timestamp with time zone NOT NULL,
    CONSTRAINT purged_answers_cache_key_check CHECK ((cache_key ~ '^[0-9a-f]{64}$'::text))
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
    ended_from timestamp with time zone NOT NULL
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
    CONSTRAINT usage_hours_cached_tokens_check CHECK ((cached_tokens >= 0)),
    CONSTRAINT usage_hours_completion_tokens_check CHECK ((completion_tokens >= 0)),
    CONSTRAINT usage_hours_hour_check CHECK ((date_trunc('hour'::text, hour, 'UTC'::text) = hour)),
    CONSTRAINT usage_hours_price_version_check CHECK ((price_version >= 0)),
    CONSTRAINT usage_hours_prompt_tokens_check CHECK ((prompt_tokens >= 0)),
    CONSTRAINT usage_hours_requests_check CHECK ((requests >= 0))
);

CREATE TABLE public.usage_ingest (
    edge text NOT NULL,
    epoch numeric(20,0) NOT NULL,
    through_seq numeric(20,0) NOT NULL,
    updated_at timestamp with time zone DEFAULT now() NOT NULL,
    events_to timestamp with time zone
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

ALTER TABLE ONLY public.config_log
    ADD CONSTRAINT config_log_pkey PRIMARY KEY (version);

ALTER TABLE ONLY public.custom_models
    ADD CONSTRAINT custom_models_pkey PRIMARY KEY (id);

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

ALTER TABLE ONLY public.model_versions
    ADD CONSTRAINT model_versions_model_id_version_key UNIQUE (model_id, version);

ALTER TABLE ONLY public.model_versions
    ADD CONSTRAINT model_versions_pkey PRIMARY KEY (id);

ALTER TABLE ONLY public.models
    ADD CONSTRAINT models_pkey PRIMARY KEY (id);

ALTER TABLE ONLY public.nodes
    ADD CONSTRAINT nodes_name_key UNIQUE (name);

ALTER TABLE ONLY public.nodes
    ADD CONSTRAINT nodes_pkey PRIMARY KEY (id);

ALTER TABLE ONLY public.organizations
    ADD CONSTRAINT organizations_pkey PRIMARY KEY (id);

ALTER TABLE ONLY public.purged_answers
    ADD CONSTRAINT purged_answers_pkey PRIMARY KEY (cache_key);

ALTER TABLE ONLY public.usage_adjustments
    ADD CONSTRAINT usage_adjustments_pkey PRIMARY KEY (id);

ALTER TABLE ONLY public.usage_dirty_hours
    ADD CONSTRAINT usage_dirty_hours_pkey PRIMARY KEY (hour, mark);

ALTER TABLE ONLY public.usage_hours
    ADD CONSTRAINT usage_hours_pkey PRIMARY KEY (hour, organization_id, model_id, price_version);

ALTER TABLE ONLY public.usage_ingest
    ADD CONSTRAINT usage_ingest_pkey PRIMARY KEY (edge, epoch);

ALTER TABLE ONLY public.usage_records
    ADD CONSTRAINT usage_records_organization_id_model_id_date_key UNIQUE (organization_id, model_id, date);

ALTER TABLE ONLY public.usage_records
    ADD CONSTRAINT usage_records_pkey PRIMARY KEY (id, date);

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

CREATE INDEX idx_config_log_budgets ON public.config_log USING btree (version) WHERE (author = 'billing'::text);

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

CREATE INDEX idx_invoices_organization_id ON public.invoices USING btree (organization_id);

CREATE INDEX idx_invoices_period_start ON public.invoices USING btree (period_start);

CREATE INDEX idx_invoices_status ON public.invoices USING btree (status);

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

CREATE INDEX idx_purged_answers_purged_at ON public.purged_answers USING btree (purged_at);

CREATE INDEX idx_usage_adjustments_open ON public.usage_adjustments USING btree (organization_id) WHERE (invoice_id IS NULL);

CREATE INDEX idx_usage_hours_model_id ON public.usage_hours USING btree (model_id);

CREATE INDEX idx_usage_hours_organization_id ON public.usage_hours USING btree (organization_id, hour);

CREATE INDEX idx_usage_records_date ON ONLY public.usage_records USING btree (date);

CREATE INDEX idx_usage_records_model_id ON ONLY public.usage_records USING btree (model_id);

CREATE INDEX idx_usage_records_organization_id ON ONLY public.usage_records USING btree (organization_id);

CREATE UNIQUE INDEX idx_users_email ON public.users USING btree (lower((email)::text));

CREATE UNIQUE INDEX idx_users_organization_id ON public.users USING btree (organization_id, id);

CREATE INDEX idx_users_role ON public.users USING btree (role);

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

ALTER TABLE ONLY public.model_versions
    ADD CONSTRAINT model_versions_model_id_fkey FOREIGN KEY (model_id) REFERENCES public.models(id) ON DELETE CASCADE;

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

ALTER TABLE ONLY public.users
    ADD CONSTRAINT users_organization_id_fkey FOREIGN KEY (organization_id) REFERENCES public.organizations(id) ON DELETE CASCADE;
