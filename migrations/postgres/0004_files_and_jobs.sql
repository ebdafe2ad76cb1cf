-- Files, and the jobs that read and write them.

CREATE TABLE files (
    id varchar(100) PRIMARY KEY,
    organization_id uuid NOT NULL REFERENCES organizations (id) ON DELETE CASCADE,
    user_id uuid NOT NULL,
    filename varchar(255) NOT NULL,
    purpose varchar(50) NOT NULL CHECK (purpose IN ('batch', 'fine-tune', 'assistants')),
    bytes bigint NOT NULL CHECK (bytes >= 0),
    mime_type varchar(100),
    storage_path varchar(1000) NOT NULL,
    status varchar(50) NOT NULL DEFAULT 'uploaded' CHECK (status IN ('uploaded', 'processed', 'error')),
    status_details text,
    created_at timestamptz NOT NULL DEFAULT now(),
    processed_at timestamptz,
    metadata jsonb NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(metadata) = 'object'),
    FOREIGN KEY (organization_id, user_id) REFERENCES users (organization_id, id)
);

CREATE INDEX idx_files_organization_id ON files (organization_id);
CREATE INDEX idx_files_user_id ON files (user_id);
CREATE INDEX idx_files_purpose ON files (purpose);
CREATE INDEX idx_files_status ON files (status);

CREATE TABLE batch_jobs (
    id varchar(100) PRIMARY KEY,
    organization_id uuid NOT NULL REFERENCES organizations (id) ON DELETE CASCADE,
    user_id uuid NOT NULL,
    endpoint varchar(255) NOT NULL,
    input_file_id varchar(100) NOT NULL REFERENCES files (id),
    output_file_id varchar(100) REFERENCES files (id),
    error_file_id varchar(100) REFERENCES files (id),
    status varchar(50) NOT NULL DEFAULT 'validating'
        CHECK (status IN ('validating', 'in_progress', 'completed', 'failed', 'cancelled')),
    completion_window varchar(20) NOT NULL,
    request_counts jsonb NOT NULL DEFAULT '{"total": 0, "completed": 0, "failed": 0}'
        CHECK (jsonb_typeof(request_counts) = 'object'),
    created_at timestamptz NOT NULL DEFAULT now(),
    in_progress_at timestamptz,
    completed_at timestamptz,
    failed_at timestamptz,
    cancelled_at timestamptz,
    expires_at timestamptz,
    metadata jsonb NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(metadata) = 'object'),
    FOREIGN KEY (organization_id, user_id) REFERENCES users (organization_id, id)
);

CREATE INDEX idx_batch_jobs_organization_id ON batch_jobs (organization_id);
CREATE INDEX idx_batch_jobs_user_id ON batch_jobs (user_id);
CREATE INDEX idx_batch_jobs_status ON batch_jobs (status);
CREATE INDEX idx_batch_jobs_created_at ON batch_jobs (created_at);

CREATE TABLE fine_tuning_jobs (
    id varchar(100) PRIMARY KEY,
    organization_id uuid NOT NULL REFERENCES organizations (id) ON DELETE CASCADE,
    user_id uuid NOT NULL,
    model_id varchar(100) NOT NULL REFERENCES models (id),
    training_file_id varchar(100) NOT NULL REFERENCES files (id),
    validation_file_id varchar(100) REFERENCES files (id),
    fine_tuned_model_id uuid REFERENCES custom_models (id),
    status varchar(50) NOT NULL DEFAULT 'validating_files'
        CHECK (status IN ('validating_files', 'queued', 'running', 'succeeded', 'failed', 'cancelled')),
    hyperparameters jsonb NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(hyperparameters) = 'object'),
    result_files text[] NOT NULL DEFAULT '{}',
    trained_tokens bigint CHECK (trained_tokens >= 0),
    training_loss numeric(10, 6),
    validation_loss numeric(10, 6),
    error jsonb,
    created_at timestamptz NOT NULL DEFAULT now(),
    started_at timestamptz,
    finished_at timestamptz,
    estimated_finish_at timestamptz,
    metadata jsonb NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(metadata) = 'object'),
    FOREIGN KEY (organization_id, user_id) REFERENCES users (organization_id, id)
);

CREATE INDEX idx_fine_tuning_jobs_organization_id ON fine_tuning_jobs (organization_id);
CREATE INDEX idx_fine_tuning_jobs_user_id ON fine_tuning_jobs (user_id);
CREATE INDEX idx_fine_tuning_jobs_model_id ON fine_tuning_jobs (model_id);
CREATE INDEX idx_fine_tuning_jobs_status ON fine_tuning_jobs (status);
