//! `/admin/v1/models` and their versions. A model id with a slash is written percent-encoded in paths.

use super::ApiState;
use super::extract::{Body, Page, PageQuery, Path, Query, Window};
use super::problem::Problem;
use crate::action::Operator;
use crate::action::models::{self as action, CreateModel, PatchModel};
use crate::action::versions::{self, CreateVersion, VersionAct};
use crate::store::models::Model;
use crate::store::versions::ModelVersion;
use axum::extract::State;
use axum::{Extension, Json};
use http::StatusCode;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

pub(super) fn routes() -> OpenApiRouter<ApiState> {
    OpenApiRouter::new()
        .routes(routes!(list, create))
        .routes(routes!(get, patch))
        .routes(routes!(list_versions, create_version))
        .routes(routes!(get_version))
        .routes(routes!(activate))
        .routes(routes!(make_default))
        .routes(routes!(deprecate))
}

/// List models in the order of their ids.
#[utoipa::path(get, path = "/admin/v1/models", tag = "models", params(PageQuery),
    responses((status = 200, body = Page<Model>), (status = "4XX", body = Problem)))]
async fn list(State(state): State<ApiState>, Query(query): Query<PageQuery>) -> Result<Json<Page<Model>>, Problem> {
    let window = Window::<String>::new(query.limit, query.cursor.as_deref())?;
    let found = action::list(&state.context, window.after.as_deref(), window.fetch()).await?;
    Ok(Json(window.page(found, |model| model.id.clone())))
}

/// Make a model.
#[utoipa::path(post, path = "/admin/v1/models", tag = "models", request_body = CreateModel,
    responses((status = 201, body = Model), (status = "4XX", body = Problem)))]
async fn create(
    State(state): State<ApiState>,
    Extension(operator): Extension<Operator>,
    Body(input): Body<CreateModel>,
) -> Result<(StatusCode, Json<Model>), Problem> {
    Ok((StatusCode::CREATED, Json(action::create(&state.context, operator, input).await?)))
}

/// Get a model.
#[utoipa::path(get, path = "/admin/v1/models/{id}", tag = "models", params(("id" = String, Path)),
    responses((status = 200, body = Model), (status = "4XX", body = Problem)))]
async fn get(State(state): State<ApiState>, Path(id): Path<String>) -> Result<Json<Model>, Problem> {
    Ok(Json(action::get(&state.context, &id).await?))
}

/// Change a model.
#[utoipa::path(patch, path = "/admin/v1/models/{id}", tag = "models", params(("id" = String, Path)),
    request_body = PatchModel, responses((status = 200, body = Model), (status = "4XX", body = Problem)))]
async fn patch(
    State(state): State<ApiState>,
    Extension(operator): Extension<Operator>,
    Path(id): Path<String>,
    Body(input): Body<PatchModel>,
) -> Result<Json<Model>, Problem> {
    Ok(Json(action::patch(&state.context, operator, &id, input).await?))
}

/// List a model's versions in the order of their creation.
#[utoipa::path(get, path = "/admin/v1/models/{id}/versions", tag = "models", params(("id" = String, Path), PageQuery),
    responses((status = 200, body = Page<ModelVersion>), (status = "4XX", body = Problem)))]
async fn list_versions(
    State(state): State<ApiState>,
    Path(id): Path<String>,
    Query(query): Query<PageQuery>,
) -> Result<Json<Page<ModelVersion>>, Problem> {
    let window = Window::<Uuid>::new(query.limit, query.cursor.as_deref())?;
    let found = versions::list(&state.context, &id, window.after, window.fetch()).await?;
    Ok(Json(window.page(found, |version| version.id.to_string())))
}

/// Make a version of a model.
#[utoipa::path(post, path = "/admin/v1/models/{id}/versions", tag = "models", params(("id" = String, Path)),
    request_body = CreateVersion, responses((status = 201, body = ModelVersion), (status = "4XX", body = Problem)))]
async fn create_version(
    State(state): State<ApiState>,
    Extension(operator): Extension<Operator>,
    Path(id): Path<String>,
    Body(input): Body<CreateVersion>,
) -> Result<(StatusCode, Json<ModelVersion>), Problem> {
    Ok((StatusCode::CREATED, Json(versions::create(&state.context, operator, &id, input).await?)))
}

/// Get a version.
#[utoipa::path(get, path = "/admin/v1/models/{id}/versions/{version}", tag = "models",
    params(("id" = String, Path), ("version" = String, Path)),
    responses((status = 200, body = ModelVersion), (status = "4XX", body = Problem)))]
async fn get_version(
    State(state): State<ApiState>,
    Path((id, version)): Path<(String, String)>,
) -> Result<Json<ModelVersion>, Problem> {
    Ok(Json(versions::get(&state.context, &id, &version).await?))
}

/// Let a version take requests.
#[utoipa::path(post, path = "/admin/v1/models/{id}/versions/{version}/activate", tag = "models",
    params(("id" = String, Path), ("version" = String, Path)),
    responses((status = 200, body = ModelVersion), (status = "4XX", body = Problem)))]
async fn activate(
    State(state): State<ApiState>,
    Extension(operator): Extension<Operator>,
    Path((id, version)): Path<(String, String)>,
) -> Result<Json<ModelVersion>, Problem> {
    Ok(Json(versions::act(&state.context, operator, &id, &version, VersionAct::Activate).await?))
}

/// Send requests that name only the model to this version; activates it too.
#[utoipa::path(post, path = "/admin/v1/models/{id}/versions/{version}/make_default", tag = "models",
    params(("id" = String, Path), ("version" = String, Path)),
    responses((status = 200, body = ModelVersion), (status = "4XX", body = Problem)))]
async fn make_default(
    State(state): State<ApiState>,
    Extension(operator): Extension<Operator>,
    Path((id, version)): Path<(String, String)>,
) -> Result<Json<ModelVersion>, Problem> {
    Ok(Json(versions::act(&state.context, operator, &id, &version, VersionAct::MakeDefault).await?))
}

/// Let a version take no requests any more. Not possible for the default.
#[utoipa::path(post, path = "/admin/v1/models/{id}/versions/{version}/deprecate", tag = "models",
    params(("id" = String, Path), ("version" = String, Path)),
    responses((status = 200, body = ModelVersion), (status = "4XX", body = Problem)))]
async fn deprecate(
    State(state): State<ApiState>,
    Extension(operator): Extension<Operator>,
    Path((id, version)): Path<(String, String)>,
) -> Result<Json<ModelVersion>, Problem> {
    Ok(Json(versions::act(&state.context, operator, &id, &version, VersionAct::Deprecate).await?))
}
