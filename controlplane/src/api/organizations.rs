//! `/admin/v1/organizations`.

use super::ApiState;
use super::extract::{Body, Page, PageQuery, Path, Query, Window};
use super::problem::Problem;
use crate::action::Operator;
use crate::action::organizations::{self as action, CreateOrganization, PatchOrganization};
use crate::store::organizations::Organization;
use axum::extract::State;
use axum::{Extension, Json};
use http::StatusCode;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

pub(super) fn routes() -> OpenApiRouter<ApiState> {
    OpenApiRouter::new().routes(routes!(list, create)).routes(routes!(get, patch, delete))
}

/// List organizations in the order of their creation.
#[utoipa::path(get, path = "/admin/v1/organizations", tag = "organizations", params(PageQuery),
    responses((status = 200, body = Page<Organization>), (status = "4XX", body = Problem)))]
async fn list(
    State(state): State<ApiState>,
    Query(query): Query<PageQuery>,
) -> Result<Json<Page<Organization>>, Problem> {
    let window = Window::new(query.limit, query.cursor.as_deref())?;
    let found = action::list(&state.context, window.after, window.fetch()).await?;
    Ok(Json(window.page(found, |org| org.id.to_string())))
}

/// Make an organization and its billing account.
#[utoipa::path(post, path = "/admin/v1/organizations", tag = "organizations", request_body = CreateOrganization,
    responses((status = 201, body = Organization), (status = "4XX", body = Problem)))]
async fn create(
    State(state): State<ApiState>,
    Extension(operator): Extension<Operator>,
    Body(input): Body<CreateOrganization>,
) -> Result<(StatusCode, Json<Organization>), Problem> {
    Ok((StatusCode::CREATED, Json(action::create(&state.context, operator, input).await?)))
}

/// Get an organization.
#[utoipa::path(get, path = "/admin/v1/organizations/{id}", tag = "organizations", params(("id" = Uuid, Path)),
    responses((status = 200, body = Organization), (status = "4XX", body = Problem)))]
async fn get(State(state): State<ApiState>, Path(id): Path<Uuid>) -> Result<Json<Organization>, Problem> {
    Ok(Json(action::get(&state.context, id).await?))
}

/// Change an organization.
#[utoipa::path(patch, path = "/admin/v1/organizations/{id}", tag = "organizations", params(("id" = Uuid, Path)),
    request_body = PatchOrganization,
    responses((status = 200, body = Organization), (status = "4XX", body = Problem)))]
async fn patch(
    State(state): State<ApiState>,
    Extension(operator): Extension<Operator>,
    Path(id): Path<Uuid>,
    Body(input): Body<PatchOrganization>,
) -> Result<Json<Organization>, Problem> {
    Ok(Json(action::patch(&state.context, operator, id, input).await?))
}

/// Delete an organization that never used anything, with its users and keys. Owners only.
#[utoipa::path(delete, path = "/admin/v1/organizations/{id}", tag = "organizations", params(("id" = Uuid, Path)),
    responses((status = 204), (status = "4XX", body = Problem)))]
async fn delete(
    State(state): State<ApiState>,
    Extension(operator): Extension<Operator>,
    Path(id): Path<Uuid>,
) -> Result<StatusCode, Problem> {
    action::delete(&state.context, operator, id).await?;
    Ok(StatusCode::NO_CONTENT)
}
