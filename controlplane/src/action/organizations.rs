//! Organizations.

use super::limits::{self, Limits};
use super::{ActionError, Checks, Operator, audit, nullable};
use crate::admission::Role;
use crate::context::Context;
use crate::feed::Edit;
use crate::store::keys;
use crate::store::organizations::{self, Organization, RATE_LIMITS};
use chrono::Utc;
use serde::Deserialize;
use serde_json::{Value, json};
use turnpike_config::{Change, LimitSettings, OrgId};
use utoipa::ToSchema;
use uuid::Uuid;

const PLANS: [&str; 3] = ["free", "pro", "enterprise"];
const DEFAULT_PLAN: &str = "free";

/// A new organization.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct CreateOrganization {
    /// Display name.
    name: String,
    /// Short unique name: lower-case letters, digits and hyphens.
    slug: String,
    /// `free` (default), `pro` or `enterprise`.
    plan_type: Option<String>,
    /// Where invoices go.
    billing_email: Option<String>,
    /// Tax identity for invoices.
    tax_id: Option<String>,
    /// Postal address, an object.
    address: Option<Value>,
    /// Free settings, an object. `rate_limits` in it are the limits of all its keys together.
    #[schema(value_type = Option<OrganizationSettings>)]
    settings: Option<Value>,
}

/// Settings of an organization: free, but for the fields below.
#[derive(ToSchema)]
#[expect(dead_code, reason = "describes the fields of a free document that have a meaning")]
struct OrganizationSettings {
    /// Limits of all its keys together.
    rate_limits: Option<Limits>,
}

/// What to change; absent fields stay, null clears.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct PatchOrganization {
    /// Display name.
    name: Option<String>,
    /// Short unique name.
    slug: Option<String>,
    /// Plan.
    plan_type: Option<String>,
    /// Where invoices go.
    #[serde(default, deserialize_with = "nullable")]
    #[schema(value_type = Option<String>)]
    billing_email: Option<Option<String>>,
    /// Tax identity.
    #[serde(default, deserialize_with = "nullable")]
    #[schema(value_type = Option<String>)]
    tax_id: Option<Option<String>>,
    /// Postal address.
    #[serde(default, deserialize_with = "nullable")]
    #[schema(value_type = Option<Value>)]
    address: Option<Option<Value>>,
    /// Free settings; replaces all of them, `rate_limits` too.
    #[schema(value_type = Option<OrganizationSettings>)]
    settings: Option<Value>,
}

async fn check(edit: &mut Edit<'_>, org: &Organization) -> Result<(), ActionError> {
    let mut checks = Checks::default();
    checks.text("name", &org.name, 255);
    checks.require(is_slug(&org.slug), "slug", "expected 1 to 100 of a-z, 0-9 and inner hyphens");
    checks.one_of("plan_type", &org.plan_type, &PLANS);
    checks.optional_text("billing_email", org.billing_email.as_deref(), 255);
    checks.optional_text("tax_id", org.tax_id.as_deref(), 100);
    if let Some(address) = &org.address {
        checks.object("address", address);
    }
    checks.object("settings", &org.settings);
    if let Some(written) = org.settings.get(RATE_LIMITS) {
        let field = format!("settings.{RATE_LIMITS}");
        match limits::read::<LimitSettings>(&field, written) {
            Ok(limits) => limits::check(&mut checks, edit.connection(), &field, &limits).await?,
            Err(error) => checks.push(error),
        }
    }
    checks.finish()
}

fn is_slug(slug: &str) -> bool {
    let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    (1..=100).contains(&slug.len()) && slug.chars().all(inner) && !slug.starts_with('-') && !slug.ends_with('-')
}

/// Makes an organization with its billing account.
pub(crate) async fn create(
    context: &Context,
    operator: Operator,
    input: CreateOrganization,
) -> Result<Organization, ActionError> {
    let mut edit = context.feed.edit(operator.name()).await?;
    let org = create_in(&mut edit, operator, input).await?;
    edit.commit().await?;
    Ok(org)
}

/// Makes an organization as part of a larger change.
pub(super) async fn create_in(
    edit: &mut Edit<'_>,
    operator: Operator,
    input: CreateOrganization,
) -> Result<Organization, ActionError> {
    let now = Utc::now();
    let org = Organization {
        id: Uuid::now_v7(),
        name: input.name,
        slug: input.slug,
        plan_type: input.plan_type.unwrap_or_else(|| DEFAULT_PLAN.to_owned()),
        billing_email: input.billing_email,
        tax_id: input.tax_id,
        address: input.address,
        settings: input.settings.unwrap_or_else(|| json!({})),
        created_at: now,
        updated_at: now,
        cache_generation: 0,
        budget: None,
        prepaid: None,
    };
    check(edit, &org).await?;
    organizations::insert(edit.connection(), &org).await?;
    audit(edit, operator, "organization.create", ("organization", &org.id.to_string()), json!({"slug": org.slug}))
        .await?;
    edit.push(Change::PutOrg(org.record()));
    Ok(org)
}

/// Changes an organization.
pub(crate) async fn patch(
    context: &Context,
    operator: Operator,
    id: Uuid,
    patch: PatchOrganization,
) -> Result<Organization, ActionError> {
    let mut edit = context.feed.edit(operator.name()).await?;
    let before = organizations::get(edit.connection(), id).await?;
    let before = before.ok_or_else(|| ActionError::not_found("organization", id))?;
    let org = patch_in(&mut edit, operator, before, patch).await?;
    edit.commit().await?;
    Ok(org)
}

/// Changes an organization as part of a larger change.
pub(super) async fn patch_in(
    edit: &mut Edit<'_>,
    operator: Operator,
    before: Organization,
    patch: PatchOrganization,
) -> Result<Organization, ActionError> {
    let org = Organization {
        name: patch.name.unwrap_or_else(|| before.name.clone()),
        slug: patch.slug.unwrap_or_else(|| before.slug.clone()),
        plan_type: patch.plan_type.unwrap_or_else(|| before.plan_type.clone()),
        billing_email: patch.billing_email.unwrap_or_else(|| before.billing_email.clone()),
        tax_id: patch.tax_id.unwrap_or_else(|| before.tax_id.clone()),
        address: patch.address.unwrap_or_else(|| before.address.clone()),
        settings: patch.settings.unwrap_or_else(|| before.settings.clone()),
        updated_at: Utc::now(),
        ..before.clone()
    };
    check(edit, &org).await?;
    organizations::update(edit.connection(), &org).await?;
    audit(edit, operator, "organization.update", ("organization", &org.id.to_string()), json!({})).await?;
    if org.record() != before.record() {
        edit.push(Change::PutOrg(org.record()));
    }
    Ok(org)
}

/// Deletes an organization that never used anything, with its users and keys. Owners only.
pub(crate) async fn delete(context: &Context, operator: Operator, id: Uuid) -> Result<(), ActionError> {
    if operator.role < Role::Owner {
        return Err(ActionError::Forbidden(Role::Owner));
    }
    let mut edit = context.feed.edit(operator.name()).await?;
    for digest in keys::digests_of(edit.connection(), id).await? {
        edit.push(Change::DropKey(digest));
    }
    if !organizations::delete(edit.connection(), id).await? {
        return Err(ActionError::not_found("organization", id));
    }
    audit(&mut edit, operator, "organization.delete", ("organization", &id.to_string()), json!({})).await?;
    edit.push(Change::DropOrg(OrgId(id)));
    edit.commit().await?;
    Ok(())
}

/// One organization.
pub(crate) async fn get(context: &Context, id: Uuid) -> Result<Organization, ActionError> {
    let org = organizations::get(&mut *context.store.read().await?, id).await?;
    org.ok_or_else(|| ActionError::not_found("organization", id))
}

/// A page of organizations.
pub(crate) async fn list(context: &Context, after: Option<Uuid>, limit: i64) -> Result<Vec<Organization>, ActionError> {
    Ok(organizations::list(&mut *context.store.read().await?, after, limit).await?)
}
