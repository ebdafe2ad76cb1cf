//! `/admin/v1/config`: the log of config changes.

use super::ApiState;
use super::extract::{Body, Page, PageQuery, Query, Window};
use super::problem::Problem;
use crate::action::Operator;
use crate::action::config::{self as action, ConfigHead, ConfigVersion, Rewind};
use axum::extract::State;
use axum::{Extension, Json};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

pub(super) fn routes() -> OpenApiRouter<ApiState> {
    OpenApiRouter::new().routes(routes!(get)).routes(routes!(log)).routes(routes!(rewind))
}

/// Get the newest config version, to compare with what edges hold.
#[utoipa::path(get, path = "/admin/v1/config", tag = "config",
    responses((status = 200, body = ConfigHead), (status = "4XX", body = Problem)))]
async fn get(State(state): State<ApiState>) -> Result<Json<ConfigHead>, Problem> {
    Ok(Json(action::head(&state.context).await?))
}

/// List config versions, the newest first: who changed what, when and why.
#[utoipa::path(get, path = "/admin/v1/config/log", tag = "config", params(PageQuery),
    responses((status = 200, body = Page<ConfigVersion>), (status = "4XX", body = Problem)))]
async fn log(
    State(state): State<ApiState>,
    Query(query): Query<PageQuery>,
) -> Result<Json<Page<ConfigVersion>>, Problem> {
    let window = Window::<u64>::new(query.limit, query.cursor.as_deref())?;
    let found = action::log(&state.context, window.after, window.fetch()).await?;
    Ok(Json(window.page(found, |version| version.version.to_string())))
}

/// Let edges go back to this log from a later version of a log that is no more, as after restoring the database. Owners
/// only.
#[utoipa::path(post, path = "/admin/v1/config/rewind", tag = "config", request_body = Rewind,
    responses((status = 200, body = ConfigHead), (status = "4XX", body = Problem)))]
async fn rewind(
    State(state): State<ApiState>,
    Extension(operator): Extension<Operator>,
    Body(input): Body<Rewind>,
) -> Result<Json<ConfigHead>, Problem> {
    Ok(Json(action::rewind(&state.context, operator, input).await?))
}
