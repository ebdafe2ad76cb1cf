//! `/admin/v1/models/{id}/prices`.

use super::ApiState;
use super::extract::{Body, Page, PageQuery, Path, Query, Window};
use super::problem::Problem;
use crate::action::Operator;
use crate::action::prices::{self as action, CreatePrice};
use crate::store::prices::ModelPrice;
use axum::extract::State;
use axum::{Extension, Json};
use chrono::Utc;
use http::StatusCode;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

pub(super) fn routes() -> OpenApiRouter<ApiState> {
    OpenApiRouter::new().routes(routes!(list, create))
}

/// List what a model cost, costs and will cost, the newest version first.
#[utoipa::path(get, path = "/admin/v1/models/{id}/prices", tag = "models", params(("id" = String, Path), PageQuery),
    responses((status = 200, body = Page<ModelPrice>), (status = "4XX", body = Problem)))]
async fn list(
    State(state): State<ApiState>,
    Path(id): Path<String>,
    Query(query): Query<PageQuery>,
) -> Result<Json<Page<ModelPrice>>, Problem> {
    let window = Window::<i32>::new(query.limit, query.cursor.as_deref())?;
    let found = action::list(&state.context, &id, window.after, window.fetch()).await?;
    Ok(Json(window.page(found, |price| price.version.to_string())))
}

/// Set what a model costs, from now or from a later time on.
#[utoipa::path(post, path = "/admin/v1/models/{id}/prices", tag = "models", params(("id" = String, Path)),
    request_body = CreatePrice, responses((status = 201, body = ModelPrice), (status = "4XX", body = Problem)))]
async fn create(
    State(state): State<ApiState>,
    Extension(operator): Extension<Operator>,
    Path(id): Path<String>,
    Body(input): Body<CreatePrice>,
) -> Result<(StatusCode, Json<ModelPrice>), Problem> {
    Ok((StatusCode::CREATED, Json(action::create(&state.context, operator, &id, input, Utc::now()).await?)))
}
