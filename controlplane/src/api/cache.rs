//! `/admin/v1/cache`.

use super::ApiState;
use super::extract::Body;
use super::problem::Problem;
use crate::action::Operator;
use crate::action::cache::{self as action, PurgeCache, Purged};
use axum::extract::State;
use axum::{Extension, Json};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

pub(super) fn routes() -> OpenApiRouter<ApiState> {
    OpenApiRouter::new().routes(routes!(purge))
}

/// Purge the cached answers of an organization or a model, or a single one.
#[utoipa::path(post, path = "/admin/v1/cache/purge", tag = "cache", request_body = PurgeCache,
    responses((status = 200, body = Purged), (status = "4XX", body = Problem)))]
async fn purge(
    State(state): State<ApiState>,
    Extension(operator): Extension<Operator>,
    Body(input): Body<PurgeCache>,
) -> Result<Json<Purged>, Problem> {
    Ok(Json(action::purge(&state.context, operator, input).await?))
}
