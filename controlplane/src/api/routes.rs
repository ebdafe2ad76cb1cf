//! `/admin/v1/routes`.

use super::ApiState;
use super::extract::{Body, OwnedPageQuery, Page, Path, Query, Window};
use super::problem::Problem;
use crate::action::Operator;
use crate::action::routes::{self as action, CreateRoute, PatchRoute};
use crate::store::routes::Route;
use axum::extract::State;
use axum::{Extension, Json};
use http::StatusCode;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

pub(super) fn routes() -> OpenApiRouter<ApiState> {
    OpenApiRouter::new().routes(routes!(list, create)).routes(routes!(get, patch, delete))
}

/// List routes in the order of their creation.
#[utoipa::path(get, path = "/admin/v1/routes", tag = "routes", params(OwnedPageQuery),
    responses((status = 200, body = Page<Route>), (status = "4XX", body = Problem)))]
async fn list(
    State(state): State<ApiState>,
    Query(query): Query<OwnedPageQuery>,
) -> Result<Json<Page<Route>>, Problem> {
    let window = Window::new(query.limit, query.cursor.as_deref())?;
    let found = action::list(&state.context, query.organization, window.after, window.fetch()).await?;
    Ok(Json(window.page(found, |route| route.id.to_string())))
}

/// Make a route: an alias, a canary, a fallback, an organization's own way for a name.
#[utoipa::path(post, path = "/admin/v1/routes", tag = "routes", request_body = CreateRoute,
    responses((status = 201, body = Route), (status = "4XX", body = Problem)))]
async fn create(
    State(state): State<ApiState>,
    Extension(operator): Extension<Operator>,
    Body(input): Body<CreateRoute>,
) -> Result<(StatusCode, Json<Route>), Problem> {
    Ok((StatusCode::CREATED, Json(action::create(&state.context, operator, input).await?)))
}

/// Get a route.
#[utoipa::path(get, path = "/admin/v1/routes/{id}", tag = "routes", params(("id" = Uuid, Path)),
    responses((status = 200, body = Route), (status = "4XX", body = Problem)))]
async fn get(State(state): State<ApiState>, Path(id): Path<Uuid>) -> Result<Json<Route>, Problem> {
    Ok(Json(action::get(&state.context, id).await?))
}

/// Change where a route's requests go.
#[utoipa::path(patch, path = "/admin/v1/routes/{id}", tag = "routes", params(("id" = Uuid, Path)),
    request_body = PatchRoute, responses((status = 200, body = Route), (status = "4XX", body = Problem)))]
async fn patch(
    State(state): State<ApiState>,
    Extension(operator): Extension<Operator>,
    Path(id): Path<Uuid>,
    Body(input): Body<PatchRoute>,
) -> Result<Json<Route>, Problem> {
    Ok(Json(action::patch(&state.context, operator, id, input).await?))
}

/// Remove a route: requests for its name go to the model that is called so, if there is one.
#[utoipa::path(delete, path = "/admin/v1/routes/{id}", tag = "routes", params(("id" = Uuid, Path)),
    responses((status = 204), (status = "4XX", body = Problem)))]
async fn delete(
    State(state): State<ApiState>,
    Extension(operator): Extension<Operator>,
    Path(id): Path<Uuid>,
) -> Result<StatusCode, Problem> {
    action::delete(&state.context, operator, id).await?;
    Ok(StatusCode::NO_CONTENT)
}
