//! `/admin/v1/api_keys`.

use super::ApiState;
use super::extract::{Body, OwnedPageQuery, Page, Path, Query, Window};
use super::problem::Problem;
use crate::action::Operator;
use crate::action::keys::{self as action, CreateKey, NewKey, PatchKey, RotateKey};
use crate::store::keys::ApiKey;
use axum::extract::State;
use axum::{Extension, Json};
use http::{HeaderName, StatusCode, header};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

/// An answer that holds a key is kept nowhere on its way.
const NO_STORE: [(HeaderName, &str); 1] = [(header::CACHE_CONTROL, "no-store")];

type Created = (StatusCode, [(HeaderName, &'static str); 1], Json<NewKey>);

pub(super) fn routes() -> OpenApiRouter<ApiState> {
    OpenApiRouter::new()
        .routes(routes!(list, create))
        .routes(routes!(get, patch, revoke))
        .routes(routes!(disable))
        .routes(routes!(enable))
        .routes(routes!(rotate))
}

/// List keys in the order of their creation, revoked ones too.
#[utoipa::path(get, path = "/admin/v1/api_keys", tag = "api keys", params(OwnedPageQuery),
    responses((status = 200, body = Page<ApiKey>), (status = "4XX", body = Problem)))]
async fn list(
    State(state): State<ApiState>,
    Query(query): Query<OwnedPageQuery>,
) -> Result<Json<Page<ApiKey>>, Problem> {
    let window = Window::new(query.limit, query.cursor.as_deref())?;
    let found = action::list(&state.context, query.organization, window.after, window.fetch()).await?;
    Ok(Json(window.page(found, |key| key.id.to_string())))
}

/// Make a key. The answer is the only one that ever holds it.
#[utoipa::path(post, path = "/admin/v1/api_keys", tag = "api keys", request_body = CreateKey,
    responses((status = 201, body = NewKey), (status = "4XX", body = Problem)))]
async fn create(
    State(state): State<ApiState>,
    Extension(operator): Extension<Operator>,
    Body(input): Body<CreateKey>,
) -> Result<Created, Problem> {
    Ok((StatusCode::CREATED, NO_STORE, Json(action::create(&state.context, operator, input).await?)))
}

/// Get a key's data, without the key.
#[utoipa::path(get, path = "/admin/v1/api_keys/{id}", tag = "api keys", params(("id" = Uuid, Path)),
    responses((status = 200, body = ApiKey), (status = "4XX", body = Problem)))]
async fn get(State(state): State<ApiState>, Path(id): Path<Uuid>) -> Result<Json<ApiKey>, Problem> {
    Ok(Json(action::get(&state.context, id).await?))
}

/// Change a key's name, permissions, limits, models, end or switch.
#[utoipa::path(patch, path = "/admin/v1/api_keys/{id}", tag = "api keys", params(("id" = Uuid, Path)),
    request_body = PatchKey, responses((status = 200, body = ApiKey), (status = "4XX", body = Problem)))]
async fn patch(
    State(state): State<ApiState>,
    Extension(operator): Extension<Operator>,
    Path(id): Path<Uuid>,
    Body(input): Body<PatchKey>,
) -> Result<Json<ApiKey>, Problem> {
    Ok(Json(action::patch(&state.context, operator, id, input).await?))
}

/// Revoke a key for good.
#[utoipa::path(delete, path = "/admin/v1/api_keys/{id}", tag = "api keys", params(("id" = Uuid, Path)),
    responses((status = 204), (status = "4XX", body = Problem)))]
async fn revoke(
    State(state): State<ApiState>,
    Extension(operator): Extension<Operator>,
    Path(id): Path<Uuid>,
) -> Result<StatusCode, Problem> {
    action::revoke(&state.context, operator, id).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Switch a key off.
#[utoipa::path(post, path = "/admin/v1/api_keys/{id}/disable", tag = "api keys", params(("id" = Uuid, Path)),
    responses((status = 200, body = ApiKey), (status = "4XX", body = Problem)))]
async fn disable(
    State(state): State<ApiState>,
    Extension(operator): Extension<Operator>,
    Path(id): Path<Uuid>,
) -> Result<Json<ApiKey>, Problem> {
    Ok(Json(action::set_active(&state.context, operator, id, false).await?))
}

/// Switch a key on again.
#[utoipa::path(post, path = "/admin/v1/api_keys/{id}/enable", tag = "api keys", params(("id" = Uuid, Path)),
    responses((status = 200, body = ApiKey), (status = "4XX", body = Problem)))]
async fn enable(
    State(state): State<ApiState>,
    Extension(operator): Extension<Operator>,
    Path(id): Path<Uuid>,
) -> Result<Json<ApiKey>, Problem> {
    Ok(Json(action::set_active(&state.context, operator, id, true).await?))
}

/// Make a new key with the same rights; the old one ends after `overlap_seconds`.
#[utoipa::path(post, path = "/admin/v1/api_keys/{id}/rotate", tag = "api keys", params(("id" = Uuid, Path)),
    request_body = RotateKey, responses((status = 201, body = NewKey), (status = "4XX", body = Problem)))]
async fn rotate(
    State(state): State<ApiState>,
    Extension(operator): Extension<Operator>,
    Path(id): Path<Uuid>,
    Body(input): Body<RotateKey>,
) -> Result<Created, Problem> {
    Ok((StatusCode::CREATED, NO_STORE, Json(action::rotate(&state.context, operator, id, input).await?)))
}
