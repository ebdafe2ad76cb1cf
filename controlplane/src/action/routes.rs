//! Routes: where requests for a name go.

use super::models::check_cache;
use super::{ActionError, Checks, Operator, audit};
use crate::context::Context;
use crate::feed::Edit;
use crate::store::routes::{self, Route};
use crate::store::{models, organizations, versions};
use chrono::Utc;
use serde::Deserialize;
use serde_json::json;
use sqlx::types::Json;
use turnpike_config::{Change, RoutePolicy};
use utoipa::ToSchema;
use uuid::Uuid;

/// A new route.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct CreateRoute {
    /// The name that clients send: a model's, or one of its own.
    #[schema(example = "chat-large")]
    name: String,
    /// Whose keys it is for; everybody's if absent. It stands before one of the same name that is everybody's.
    organization_id: Option<Uuid>,
    /// Where requests go.
    #[schema(value_type = Policy)]
    policy: RoutePolicy,
}

/// What to change.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct PatchRoute {
    /// Where requests go; replaces all of it.
    #[schema(value_type = Policy)]
    pub(super) policy: RoutePolicy,
}

/// Where requests go.
#[derive(ToSchema)]
#[schema(example = json!({
    "targets": [{"model": "llama-70b", "version": "v1", "weight": 99}, {"model": "llama-70b", "version": "v2", "weight": 1}],
    "sticky": "key", "fallbacks": [{"model": "llama-8b"}], "regions": {"prefer": ["eu"], "failover": true},
    "timeouts": {"first_byte_ms": 5000}, "retries": {"attempts": 3, "budget_permille": 200}
}))]
#[expect(dead_code, reason = "describes RoutePolicy, which lives in a crate without OpenAPI")]
pub(crate) struct Policy {
    /// Models and versions with their weights, 1 to 16: `{"model", "version", "weight"}`; no version is the default one.
    targets: Vec<serde_json::Value>,
    /// What keeps to a target: `"request"` (nothing, the default), `"key"`, or `{"header": NAME}`.
    sticky: Option<serde_json::Value>,
    /// Where to, in order, if no target can answer: `{"model", "version"}`.
    fallbacks: Option<Vec<serde_json::Value>>,
    /// `{"prefer": [REGION, …], "failover": true}`: the first region that has a node to answer; none is the edge's own.
    regions: Option<serde_json::Value>,
    /// `{"to": {"model", "version"}, "permille"}`: so many of a thousand are also sent there, and their answers dropped.
    shadow: Option<serde_json::Value>,
    /// `{"first_byte_ms", "total_ms"}`.
    timeouts: Option<serde_json::Value>,
    /// `{"attempts", "budget_permille"}`.
    retries: Option<serde_json::Value>,
    /// Whether and how answers are cached, instead of what the models say.
    cache: Option<serde_json::Value>,
    /// `{"message", "retry_after_s"}`: clients are told so with status 503.
    maintenance: Option<serde_json::Value>,
}

async fn check(edit: &mut Edit<'_>, route: &Route) -> Result<(), ActionError> {
    let mut checks = Checks::default();
    let clean = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | '/' | ':');
    let name = (1..=100).contains(&route.name.len()) && route.name.chars().all(clean);
    checks.require(name, "name", "expected 1 to 100 of letters, digits and . - _ / :");
    let policy = &route.policy.0;
    for (path, reason) in policy.mistakes() {
        checks.require(false, &format!("policy.{path}"), &reason);
    }
    if let Some(cache) = policy.cache {
        check_cache(&mut checks, "policy.cache", cache);
    }
    for (path, model, version) in policy.destinations() {
        let path = format!("policy.{path}");
        if models::get(edit.connection(), model).await?.is_none() {
            checks.require(false, &path, &format!("no such model: {model}"));
        } else if let Some(version) = version
            && versions::get(edit.connection(), model, version).await?.is_none()
        {
            checks.require(false, &path, &format!("model {model} has no version {version}"));
        }
    }
    if let Some(organization) = route.organization_id {
        let known = organizations::get(edit.connection(), organization).await?.is_some();
        checks.require(known, "organization_id", "no such organization");
    }
    checks.finish()
}

/// Makes a route.
pub(crate) async fn create(context: &Context, operator: Operator, input: CreateRoute) -> Result<Route, ActionError> {
    let mut edit = context.feed.edit(operator.name()).await?;
    let route = create_in(&mut edit, operator, input).await?;
    edit.commit().await?;
    Ok(route)
}

/// Makes a route as part of a larger change.
pub(crate) async fn create_in(
    edit: &mut Edit<'_>,
    operator: Operator,
    input: CreateRoute,
) -> Result<Route, ActionError> {
    let now = Utc::now();
    let CreateRoute { name, organization_id, policy } = input;
    let route =
        Route { id: Uuid::now_v7(), name, organization_id, policy: Json(policy), created_at: now, updated_at: now };
    check(edit, &route).await?;
    write(edit, operator, "route.create", &route).await?;
    Ok(route)
}

async fn write(edit: &mut Edit<'_>, operator: Operator, action: &str, route: &Route) -> Result<(), ActionError> {
    routes::put(edit.connection(), route).await?;
    let details = json!({"name": route.name, "organization_id": route.organization_id});
    audit(edit, operator, action, ("route", &route.id.to_string()), details).await?;
    edit.push(Change::PutRoute(route.record()));
    Ok(())
}

/// Changes a route.
pub(crate) async fn patch(
    context: &Context,
    operator: Operator,
    id: Uuid,
    patch: PatchRoute,
) -> Result<Route, ActionError> {
    let mut edit = context.feed.edit(operator.name()).await?;
    let before = found(routes::get(edit.connection(), id).await?, id)?;
    let route = patch_in(&mut edit, operator, before, patch.policy).await?;
    edit.commit().await?;
    Ok(route)
}

/// Changes a route as part of a larger change; nothing is told of what stays the same.
pub(crate) async fn patch_in(
    edit: &mut Edit<'_>,
    operator: Operator,
    before: Route,
    policy: RoutePolicy,
) -> Result<Route, ActionError> {
    if before.policy.0 == policy {
        return Ok(before);
    }
    let route = Route { policy: Json(policy), updated_at: Utc::now(), ..before };
    check(edit, &route).await?;
    write(edit, operator, "route.update", &route).await?;
    Ok(route)
}

/// Removes a route: its name is a model's again, or nothing.
pub(crate) async fn delete(context: &Context, operator: Operator, id: Uuid) -> Result<(), ActionError> {
    let mut edit = context.feed.edit(operator.name()).await?;
    let route = found(routes::get(edit.connection(), id).await?, id)?;
    delete_in(&mut edit, operator, &route).await?;
    edit.commit().await?;
    Ok(())
}

/// Removes a route as part of a larger change.
pub(crate) async fn delete_in(edit: &mut Edit<'_>, operator: Operator, route: &Route) -> Result<(), ActionError> {
    routes::delete(edit.connection(), route.id).await?;
    let details = json!({"name": route.name, "organization_id": route.organization_id});
    audit(edit, operator, "route.delete", ("route", &route.id.to_string()), details).await?;
    edit.push(Change::DropRoute(route.edge_id()));
    Ok(())
}

fn found(route: Option<Route>, id: Uuid) -> Result<Route, ActionError> {
    route.ok_or_else(|| ActionError::not_found("route", id))
}

/// One route.
pub(crate) async fn get(context: &Context, id: Uuid) -> Result<Route, ActionError> {
    found(routes::get(&mut *context.store.read().await?, id).await?, id)
}

/// A page of routes.
pub(crate) async fn list(
    context: &Context,
    organization: Option<Uuid>,
    after: Option<Uuid>,
    limit: i64,
) -> Result<Vec<Route>, ActionError> {
    Ok(routes::list(&mut *context.store.read().await?, organization, after, limit).await?)
}
