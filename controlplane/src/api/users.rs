//! `/admin/v1/users`.

use super::ApiState;
use super::extract::{Body, OwnedPageQuery, Page, Path, Query, Window};
use super::problem::Problem;
use crate::action::Operator;
use crate::action::users::{self as action, CreateUser, PatchUser};
use crate::store::users::User;
use axum::extract::State;
use axum::{Extension, Json};
use http::StatusCode;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

pub(super) fn routes() -> OpenApiRouter<ApiState> {
    OpenApiRouter::new().routes(routes!(list, create)).routes(routes!(get, patch))
}

/// List users in the order of their creation.
#[utoipa::path(get, path = "/admin/v1/users", tag = "users", params(OwnedPageQuery),
    responses((status = 200, body = Page<User>), (status = "4XX", body = Problem)))]
async fn list(State(state): State<ApiState>, Query(query): Query<OwnedPageQuery>) -> Result<Json<Page<User>>, Problem> {
    let window = Window::new(query.limit, query.cursor.as_deref())?;
    let found = action::list(&state.context, query.organization, window.after, window.fetch()).await?;
    Ok(Json(window.page(found, |user| user.id.to_string())))
}

/// Make a user.
#[utoipa::path(post, path = "/admin/v1/users", tag = "users", request_body = CreateUser,
    responses((status = 201, body = User), (status = "4XX", body = Problem)))]
async fn create(
    State(state): State<ApiState>,
    Extension(operator): Extension<Operator>,
    Body(input): Body<CreateUser>,
) -> Result<(StatusCode, Json<User>), Problem> {
    Ok((StatusCode::CREATED, Json(action::create(&state.context, operator, input).await?)))
}

/// Get a user.
#[utoipa::path(get, path = "/admin/v1/users/{id}", tag = "users", params(("id" = Uuid, Path)),
    responses((status = 200, body = User), (status = "4XX", body = Problem)))]
async fn get(State(state): State<ApiState>, Path(id): Path<Uuid>) -> Result<Json<User>, Problem> {
    Ok(Json(action::get(&state.context, id).await?))
}

/// Change a user.
#[utoipa::path(patch, path = "/admin/v1/users/{id}", tag = "users", params(("id" = Uuid, Path)),
    request_body = PatchUser, responses((status = 200, body = User), (status = "4XX", body = Problem)))]
async fn patch(
    State(state): State<ApiState>,
    Extension(operator): Extension<Operator>,
    Path(id): Path<Uuid>,
    Body(input): Body<PatchUser>,
) -> Result<Json<User>, Problem> {
    Ok(Json(action::patch(&state.context, operator, id, input).await?))
}
