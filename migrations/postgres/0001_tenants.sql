-- Organizations, their users and their API keys.

CREATE TABLE organizations (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    name varchar(255) NOT NULL,
    slug varchar(100) NOT NULL CHECK (slug ~ '^[a-z0-9]([a-z0-9-]*[a-z0-9])?$'),
    plan_type varchar(50) NOT NULL DEFAULT 'free' CHECK (plan_type IN ('free', 'pro', 'enterprise')),
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    billing_email varchar(255),
    tax_id varchar(100),
    address jsonb,
    settings jsonb NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(settings) = 'object')
);

CREATE UNIQUE INDEX idx_organizations_slug ON organizations (slug);
CREATE INDEX idx_organizations_plan_type ON organizations (plan_type);

CREATE TABLE users (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    organization_id uuid NOT NULL REFERENCES organizations (id) ON DELETE CASCADE,
    email varchar(255) NOT NULL CHECK (email LIKE '%_@_%'),
    password_hash varchar(255),
    first_name varchar(100),
    last_name varchar(100),
    role varchar(50) NOT NULL DEFAULT 'member' CHECK (role IN ('owner', 'admin', 'member', 'viewer')),
    is_active boolean NOT NULL DEFAULT true,
    email_verified boolean NOT NULL DEFAULT false,
    last_login_at timestamptz,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    preferences jsonb NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(preferences) = 'object')
);

-- Unique together with the id, so that other tables can refer to "a user of this organization".
CREATE UNIQUE INDEX idx_users_organization_id ON users (organization_id, id);
-- Mail addresses differ in case only by accident: one account each.
CREATE UNIQUE INDEX idx_users_email ON users (lower(email));
CREATE INDEX idx_users_role ON users (role);

CREATE TABLE api_keys (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    organization_id uuid NOT NULL REFERENCES organizations (id) ON DELETE CASCADE,
    user_id uuid NOT NULL,
    name varchar(255) NOT NULL,
    -- SHA-256 in hexadecimal. The check keeps a key itself from ever being stored here by mistake.
    key_hash varchar(255) NOT NULL CHECK (key_hash ~ '^[0-9a-f]{64}$'),
    key_prefix varchar(20) NOT NULL,
    permissions text[] NOT NULL DEFAULT '{}',
    rate_limits jsonb NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(rate_limits) = 'object'),
    -- Models this key may use; NULL is every model that its organization may use.
    allowed_models text[],
    is_active boolean NOT NULL DEFAULT true,
    last_used_at timestamptz,
    created_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz,
    revoked_at timestamptz,
    -- The key that this one replaces; both work until the old one's expires_at.
    rotated_from uuid REFERENCES api_keys (id) ON DELETE SET NULL,
    metadata jsonb NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(metadata) = 'object'),
    FOREIGN KEY (organization_id, user_id) REFERENCES users (organization_id, id) ON DELETE CASCADE
);

CREATE INDEX idx_api_keys_organization_id ON api_keys (organization_id);
CREATE INDEX idx_api_keys_user_id ON api_keys (user_id);
CREATE UNIQUE INDEX idx_api_keys_key_hash ON api_keys (key_hash);
CREATE INDEX idx_api_keys_is_active ON api_keys (is_active);
