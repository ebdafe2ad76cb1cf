//! Users.

use super::{ActionError, Checks, Operator, audit, nullable};
use crate::context::Context;
use crate::feed::Edit;
use crate::store::organizations;
use crate::store::users::{self, User};
use chrono::Utc;
use serde::Deserialize;
use serde_json::json;
use utoipa::ToSchema;
use uuid::Uuid;

const ROLES: [&str; 4] = ["owner", "admin", "member", "viewer"];
const DEFAULT_ROLE: &str = "member";

/// A new user of an organization.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct CreateUser {
    /// The organization.
    organization_id: Uuid,
    /// Unique address.
    email: String,
    /// First name.
    first_name: Option<String>,
    /// Last name.
    last_name: Option<String>,
    /// `owner`, `admin`, `member` (default) or `viewer`.
    role: Option<String>,
}

/// What to change; absent fields stay, null clears.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct PatchUser {
    /// Unique address.
    email: Option<String>,
    /// First name.
    #[serde(default, deserialize_with = "nullable")]
    #[schema(value_type = Option<String>)]
    first_name: Option<Option<String>>,
    /// Last name.
    #[serde(default, deserialize_with = "nullable")]
    #[schema(value_type = Option<String>)]
    last_name: Option<Option<String>>,
    /// Role.
    role: Option<String>,
    /// False switches the user off; keys are switched off on their own.
    is_active: Option<bool>,
}

fn check(user: &User) -> Result<(), ActionError> {
    let mut checks = Checks::default();
    let email = user.email.split_once('@').is_some_and(|(name, domain)| !name.is_empty() && !domain.is_empty());
    checks.require(email && user.email.len() <= 255, "email", "expected an address such as name@example.com");
    checks.text("email", &user.email, 255);
    checks.optional_text("first_name", user.first_name.as_deref(), 100);
    checks.optional_text("last_name", user.last_name.as_deref(), 100);
    checks.one_of("role", &user.role, &ROLES);
    checks.finish()
}

/// Makes a user.
pub(crate) async fn create(context: &Context, operator: Operator, input: CreateUser) -> Result<User, ActionError> {
    let mut edit = context.feed.edit(operator.name()).await?;
    let user = create_in(&mut edit, operator, input).await?;
    edit.commit().await?;
    Ok(user)
}

/// Makes a user as part of a larger change.
pub(super) async fn create_in(edit: &mut Edit<'_>, operator: Operator, input: CreateUser) -> Result<User, ActionError> {
    let now = Utc::now();
    let user = User {
        id: Uuid::now_v7(),
        organization_id: input.organization_id,
        email: input.email,
        first_name: input.first_name,
        last_name: input.last_name,
        role: input.role.unwrap_or_else(|| DEFAULT_ROLE.to_owned()),
        is_active: true,
        email_verified: false,
        last_login_at: None,
        created_at: now,
        updated_at: now,
    };
    check(&user)?;
    if organizations::get(edit.connection(), user.organization_id).await?.is_none() {
        return Err(ActionError::field("organization_id", "no such organization"));
    }
    users::insert(edit.connection(), &user).await?;
    audit(edit, operator, "user.create", ("user", &user.id.to_string()), json!({"role": user.role})).await?;
    Ok(user)
}

/// Changes a user.
pub(crate) async fn patch(
    context: &Context,
    operator: Operator,
    id: Uuid,
    patch: PatchUser,
) -> Result<User, ActionError> {
    let mut edit = context.feed.edit(operator.name()).await?;
    let before = users::get(edit.connection(), id).await?;
    let before = before.ok_or_else(|| ActionError::not_found("user", id))?;
    let user = patch_in(&mut edit, operator, before, patch).await?;
    edit.commit().await?;
    Ok(user)
}

/// Changes a user as part of a larger change.
pub(super) async fn patch_in(
    edit: &mut Edit<'_>,
    operator: Operator,
    before: User,
    patch: PatchUser,
) -> Result<User, ActionError> {
    let user = User {
        email: patch.email.unwrap_or(before.email),
        first_name: patch.first_name.unwrap_or(before.first_name),
        last_name: patch.last_name.unwrap_or(before.last_name),
        role: patch.role.unwrap_or(before.role),
        is_active: patch.is_active.unwrap_or(before.is_active),
        updated_at: Utc::now(),
        ..before
    };
    check(&user)?;
    users::update(edit.connection(), &user).await?;
    audit(edit, operator, "user.update", ("user", &user.id.to_string()), json!({"role": user.role})).await?;
    Ok(user)
}

/// One user.
pub(crate) async fn get(context: &Context, id: Uuid) -> Result<User, ActionError> {
    let user = users::get(&mut *context.store.read().await?, id).await?;
    user.ok_or_else(|| ActionError::not_found("user", id))
}

/// A page of users.
pub(crate) async fn list(
    context: &Context,
    organization: Option<Uuid>,
    after: Option<Uuid>,
    limit: i64,
) -> Result<Vec<User>, ActionError> {
    Ok(users::list(&mut *context.store.read().await?, organization, after, limit).await?)
}
