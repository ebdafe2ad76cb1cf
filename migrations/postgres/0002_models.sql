-- Models, their versions, and the models that organizations train themselves.

CREATE TABLE models (
    id varchar(100) PRIMARY KEY,
    name varchar(255) NOT NULL,
    provider varchar(100) NOT NULL,
    category varchar(50) NOT NULL
        CHECK (category IN ('text-generation', 'chat', 'embedding', 'image-generation', 'moderation')),
    description text,
    context_length integer NOT NULL CHECK (context_length > 0),
    max_output_tokens integer CHECK (max_output_tokens > 0),
    parameter_count bigint CHECK (parameter_count > 0),
    model_size varchar(20) CHECK (model_size IN ('small', 'medium', 'large', 'xl')),
    capabilities text[] NOT NULL DEFAULT '{}',
    supported_languages text[] NOT NULL DEFAULT '{}',
    -- {"input_tokens": "0.01", "output_tokens": "0.03", "currency": "USD", "per_tokens": 1000}
    pricing jsonb NOT NULL CHECK (jsonb_typeof(pricing) = 'object'),
    is_active boolean NOT NULL DEFAULT true,
    is_public boolean NOT NULL DEFAULT true,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    metadata jsonb NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(metadata) = 'object')
);

CREATE INDEX idx_models_provider ON models (provider);
CREATE INDEX idx_models_category ON models (category);
CREATE INDEX idx_models_is_active ON models (is_active);
CREATE INDEX idx_models_is_public ON models (is_public);

CREATE TABLE model_versions (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    model_id varchar(100) NOT NULL REFERENCES models (id) ON DELETE CASCADE,
    version varchar(50) NOT NULL,
    is_default boolean NOT NULL DEFAULT false,
    model_artifact_path varchar(1000) NOT NULL,
    config jsonb NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(config) = 'object'),
    performance_metrics jsonb NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(performance_metrics) = 'object'),
    deployment_status varchar(50) NOT NULL DEFAULT 'pending'
        CHECK (deployment_status IN ('pending', 'deploying', 'active', 'deprecated')),
    created_at timestamptz NOT NULL DEFAULT now(),
    deployed_at timestamptz,
    deprecated_at timestamptz,
    UNIQUE (model_id, version)
);

CREATE INDEX idx_model_versions_model_id ON model_versions (model_id);
CREATE INDEX idx_model_versions_is_default ON model_versions (is_default);
CREATE INDEX idx_model_versions_deployment_status ON model_versions (deployment_status);
-- A request that names only the model has exactly one version to go to.
CREATE UNIQUE INDEX idx_model_versions_one_default ON model_versions (model_id) WHERE is_default;

CREATE TABLE custom_models (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    organization_id uuid NOT NULL REFERENCES organizations (id) ON DELETE CASCADE,
    base_model_id varchar(100) NOT NULL REFERENCES models (id),
    name varchar(255) NOT NULL,
    description text,
    training_status varchar(50) NOT NULL DEFAULT 'pending'
        CHECK (training_status IN ('pending', 'training', 'completed', 'failed')),
    training_job_id varchar(100),
    model_artifact_path varchar(1000),
    training_config jsonb NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(training_config) = 'object'),
    performance_metrics jsonb NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(performance_metrics) = 'object'),
    created_at timestamptz NOT NULL DEFAULT now(),
    completed_at timestamptz,
    metadata jsonb NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(metadata) = 'object')
);

CREATE INDEX idx_custom_models_organization_id ON custom_models (organization_id);
CREATE INDEX idx_custom_models_base_model_id ON custom_models (base_model_id);
CREATE INDEX idx_custom_models_training_status ON custom_models (training_status);
