//! `/admin/v1/rollouts`.

use super::ApiState;
use super::config::MAX_DOCUMENTS;
use super::extract::{Body, Page, PageQuery, Path, Query, Window};
use super::problem::Problem;
use crate::action::Operator;
use crate::action::rollouts::{self as action, RolloutAct, StartRollout, StartedRollout};
use crate::store::rollouts::Rollout;
use axum::extract::{DefaultBodyLimit, State};
use axum::{Extension, Json};
use http::StatusCode;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

pub(super) fn routes() -> OpenApiRouter<ApiState> {
    OpenApiRouter::new()
        .merge(OpenApiRouter::new().routes(routes!(list, start)).layer(DefaultBodyLimit::max(MAX_DOCUMENTS)))
        .routes(routes!(get))
        .routes(routes!(pause))
        .routes(routes!(resume))
        .routes(routes!(abort))
}

/// List rollouts, the newest first.
#[utoipa::path(get, path = "/admin/v1/rollouts", tag = "config", params(PageQuery),
    responses((status = 200, body = Page<Rollout>), (status = "4XX", body = Problem)))]
async fn list(State(state): State<ApiState>, Query(query): Query<PageQuery>) -> Result<Json<Page<Rollout>>, Problem> {
    let window = Window::<Uuid>::new(query.limit, query.cursor.as_deref())?;
    let found = action::list(&state.context, window.after, window.fetch()).await?;
    Ok(Json(window.page(found, |rollout| rollout.id.to_string())))
}

/// Start a rollout: documents reach one edge, then its region, then all, as long as nothing speaks against it. One at a
/// time. What takes something away (a revoked key, a model that is switched off) cannot wait and is applied on its own.
#[utoipa::path(post, path = "/admin/v1/rollouts", tag = "config", request_body = StartRollout,
    responses((status = 201, body = StartedRollout), (status = "4XX", body = Problem)))]
async fn start(
    State(state): State<ApiState>,
    Extension(operator): Extension<Operator>,
    Body(input): Body<StartRollout>,
) -> Result<(StatusCode, Json<StartedRollout>), Problem> {
    Ok((StatusCode::CREATED, Json(action::start(&state.context, operator, input).await?)))
}

/// Get a rollout.
#[utoipa::path(get, path = "/admin/v1/rollouts/{id}", tag = "config", params(("id" = Uuid, Path)),
    responses((status = 200, body = Rollout), (status = "4XX", body = Problem)))]
async fn get(State(state): State<ApiState>, Path(id): Path<Uuid>) -> Result<Json<Rollout>, Problem> {
    Ok(Json(action::get(&state.context, id).await?))
}

/// Keep a rollout where it is; should it do harm, it is still taken back.
#[utoipa::path(post, path = "/admin/v1/rollouts/{id}/pause", tag = "config", params(("id" = Uuid, Path)),
    responses((status = 200, body = Rollout), (status = "4XX", body = Problem)))]
async fn pause(
    State(state): State<ApiState>,
    Extension(operator): Extension<Operator>,
    Path(id): Path<Uuid>,
) -> Result<Json<Rollout>, Problem> {
    Ok(Json(action::act(&state.context, operator, id, RolloutAct::Pause).await?))
}

/// Let a rollout go on.
#[utoipa::path(post, path = "/admin/v1/rollouts/{id}/resume", tag = "config", params(("id" = Uuid, Path)),
    responses((status = 200, body = Rollout), (status = "4XX", body = Problem)))]
async fn resume(
    State(state): State<ApiState>,
    Extension(operator): Extension<Operator>,
    Path(id): Path<Uuid>,
) -> Result<Json<Rollout>, Problem> {
    Ok(Json(action::act(&state.context, operator, id, RolloutAct::Resume).await?))
}

/// Take a rollout back: edges that were told get what all others have.
#[utoipa::path(post, path = "/admin/v1/rollouts/{id}/abort", tag = "config", params(("id" = Uuid, Path)),
    responses((status = 200, body = Rollout), (status = "4XX", body = Problem)))]
async fn abort(
    State(state): State<ApiState>,
    Extension(operator): Extension<Operator>,
    Path(id): Path<Uuid>,
) -> Result<Json<Rollout>, Problem> {
    Ok(Json(action::act(&state.context, operator, id, RolloutAct::Abort).await?))
}
