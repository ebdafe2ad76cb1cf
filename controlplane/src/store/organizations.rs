//! `organizations` and `billing_accounts`.

use super::{PgConnection, StoreError};
use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::Value;
use sqlx::types::Json;
use tracing::warn;
use turnpike_config::{Budget, LimitSettings, OrgId, OrgRecord, Prepaid, RateLimits};
use utoipa::ToSchema;
use uuid::Uuid;

/// The field of `organizations.settings` that holds the limits of all its keys together.
pub(crate) const RATE_LIMITS: &str = "rate_limits";

/// An organization: the tenant that owns keys and gets the invoice.
#[derive(Clone, Debug, Serialize, ToSchema, sqlx::FromRow)]
pub(crate) struct Organization {
    /// Identity.
    pub(crate) id: Uuid,
    /// Display name.
    pub(crate) name: String,
    /// Short unique name.
    pub(crate) slug: String,
    /// `free`, `pro` or `enterprise`.
    pub(crate) plan_type: String,
    /// Where invoices go.
    pub(crate) billing_email: Option<String>,
    /// Tax identity for invoices.
    pub(crate) tax_id: Option<String>,
    /// Postal address.
    pub(crate) address: Option<Value>,
    /// Free settings; `rate_limits` in them are the limits of all its keys together.
    pub(crate) settings: Value,
    /// When it was made.
    pub(crate) created_at: DateTime<Utc>,
    /// When it was last changed.
    pub(crate) updated_at: DateTime<Utc>,
    /// How often its cached answers were purged.
    pub(crate) cache_generation: i32,
    /// What edges were last told of its budget.
    #[serde(skip)]
    pub(crate) budget: Option<Json<Budget>>,
    /// What edges were last told of its money paid ahead.
    #[serde(skip)]
    pub(crate) prepaid: Option<Json<Prepaid>>,
}

impl Organization {
    /// As the edges know it.
    pub(crate) fn record(&self) -> OrgRecord {
        let limits = self.limits();
        OrgRecord {
            id: OrgId(self.id),
            slug: self.slug.clone(),
            limits: limits.own(),
            model_limits: limits.models,
            budget: self.budget.as_ref().map(|told| told.0),
            cache_generation: self.cache_generation.unsigned_abs(),
            prepaid: self.prepaid.as_ref().map(|told| told.0.clone()),
        }
    }

    /// The limits of all its keys together. What was stored while settings were entirely free may be of any shape: it
    /// held nothing back then, and must not keep everybody's routing from being compiled now.
    fn limits(&self) -> LimitSettings {
        let Some(written) = self.settings.get(RATE_LIMITS) else { return LimitSettings::default() };
        let unfit = match serde_json::from_value::<LimitSettings>(written.clone()) {
            Ok(limits) if ![limits.own()].iter().chain(limits.models.values()).any(RateLimits::has_zero) => {
                return limits;
            }
            Ok(_) => "a limit of 0".to_owned(),
            Err(error) => error.to_string(),
        };
        warn!(organization = %self.id, unfit, "settings.rate_limits make no sense and hold nobody back; set them anew");
        LimitSettings::default()
    }
}

/// Stores a new organization and its billing account.
pub(crate) async fn insert(connection: &mut PgConnection, org: &Organization) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO organizations
             (id, name, slug, plan_type, billing_email, tax_id, address, settings, created_at, updated_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)",
    )
    .bind(org.id)
    .bind(&org.name)
    .bind(&org.slug)
    .bind(&org.plan_type)
    .bind(&org.billing_email)
    .bind(&org.tax_id)
    .bind(&org.address)
    .bind(&org.settings)
    .bind(org.created_at)
    .bind(org.updated_at)
    .execute(&mut *connection)
    .await?;
    sqlx::query(
        "INSERT INTO billing_accounts (id, organization_id, billing_email, billing_address, tax_id)
         VALUES ($1, $2, $3, $4, $5)",
    )
    .bind(Uuid::now_v7())
    .bind(org.id)
    .bind(&org.billing_email)
    .bind(&org.address)
    .bind(&org.tax_id)
    .execute(connection)
    .await?;
    Ok(())
}

/// Writes the fields that an operator may change.
pub(crate) async fn update(connection: &mut PgConnection, org: &Organization) -> Result<(), StoreError> {
    sqlx::query(
        "UPDATE organizations SET name = $2, slug = $3, plan_type = $4, billing_email = $5, tax_id = $6, address = $7,
             settings = $8, updated_at = now() WHERE id = $1",
    )
    .bind(org.id)
    .bind(&org.name)
    .bind(&org.slug)
    .bind(&org.plan_type)
    .bind(&org.billing_email)
    .bind(&org.tax_id)
    .bind(&org.address)
    .bind(&org.settings)
    .execute(connection)
    .await?;
    Ok(())
}

/// One organization.
pub(crate) async fn get(connection: &mut PgConnection, id: Uuid) -> Result<Option<Organization>, StoreError> {
    Ok(sqlx::query_as("SELECT * FROM organizations WHERE id = $1").bind(id).fetch_optional(connection).await?)
}

/// One organization by its slug.
pub(crate) async fn named(connection: &mut PgConnection, slug: &str) -> Result<Option<Organization>, StoreError> {
    Ok(sqlx::query_as("SELECT * FROM organizations WHERE slug = $1").bind(slug).fetch_optional(connection).await?)
}

/// Makes all cached answers of an organization unfindable; `None` if there is no such organization.
pub(crate) async fn purge_answers(connection: &mut PgConnection, id: Uuid) -> Result<Option<Organization>, StoreError> {
    Ok(sqlx::query_as(
        "UPDATE organizations SET cache_generation = cache_generation + 1, updated_at = now()
         WHERE id = $1 RETURNING *",
    )
    .bind(id)
    .fetch_optional(connection)
    .await?)
}

/// Organizations after `after` in the order of their ids (which is the order of creation), at most `limit`.
pub(crate) async fn list(
    connection: &mut PgConnection,
    after: Option<Uuid>,
    limit: i64,
) -> Result<Vec<Organization>, StoreError> {
    Ok(sqlx::query_as("SELECT * FROM organizations WHERE $1::uuid IS NULL OR id > $1 ORDER BY id LIMIT $2")
        .bind(after)
        .bind(limit)
        .fetch_all(connection)
        .await?)
}

/// Removes an organization with its users and keys; false if there was none.
/// Refused by a reference constraint once it has used anything.
pub(crate) async fn delete(connection: &mut PgConnection, id: Uuid) -> Result<bool, StoreError> {
    let deleted = sqlx::query("DELETE FROM organizations WHERE id = $1").bind(id).execute(connection).await?;
    Ok(deleted.rows_affected() > 0)
}

/// Every organization.
pub(crate) async fn all(connection: &mut PgConnection) -> Result<Vec<Organization>, StoreError> {
    Ok(sqlx::query_as("SELECT * FROM organizations").fetch_all(connection).await?)
}
