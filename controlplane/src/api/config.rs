//! `/admin/v1/config`: the log of config changes.

use super::ApiState;
use super::extract::{Body, Page, PageQuery, Query, Window};
use super::problem::Problem;
use crate::action::Operator;
use crate::action::config::{self as action, ConfigHead, ConfigVersion, Rewind};
use crate::action::declared::{self, Apply, Documents, Outcome};
use axum::extract::{DefaultBodyLimit, State};
use axum::{Extension, Json};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

/// Largest body of documents, bytes.
pub(super) const MAX_DOCUMENTS: usize = 32 << 20;

pub(super) fn routes() -> OpenApiRouter<ApiState> {
    OpenApiRouter::new()
        .routes(routes!(get))
        .routes(routes!(log))
        .routes(routes!(rewind))
        .merge(OpenApiRouter::new().routes(routes!(export, apply)).layer(DefaultBodyLimit::max(MAX_DOCUMENTS)))
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

/// Get everything that can be declared, as documents. Keys are there by digest alone.
#[utoipa::path(get, path = "/admin/v1/config/documents", tag = "config",
    responses((status = 200, body = Documents), (status = "4XX", body = Problem)))]
async fn export(State(state): State<ApiState>) -> Result<Json<Documents>, Problem> {
    Ok(Json(declared::export(&state.context).await?))
}

/// Bring about what documents declare: all of it, or nothing. With `dry_run` only say what would be done.
#[utoipa::path(post, path = "/admin/v1/config/documents", tag = "config", request_body = Apply,
    responses((status = 200, body = Outcome), (status = "4XX", body = Problem)))]
async fn apply(
    State(state): State<ApiState>,
    Extension(operator): Extension<Operator>,
    Body(input): Body<Apply>,
) -> Result<Json<Outcome>, Problem> {
    Ok(Json(declared::apply(&state.context, operator, input).await?))
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
