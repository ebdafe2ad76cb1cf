//! `/admin/v1/performance`.

use super::ApiState;
use super::extract::Query;
use super::problem::Problem;
use crate::action::usage as action;
use crate::store::performance::Minute;
use axum::Json;
use axum::extract::State;
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

pub(super) fn routes() -> OpenApiRouter<ApiState> {
    OpenApiRouter::new().routes(routes!(performance))
}

/// Which figures.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct PerformanceParams {
    /// Of this model.
    model: String,
    /// Since then, such as 2026-01-31T12:00:00Z; the last hour if absent.
    from: Option<DateTime<Utc>>,
}

/// How a model did.
#[derive(Serialize, ToSchema)]
struct Performance {
    /// A row per minute, version and node, the newest first; at most 10000.
    data: Vec<Minute>,
}

/// Show how a model did on each node, minute by minute. A minute is shown once it is over for another.
#[utoipa::path(get, path = "/admin/v1/performance", tag = "usage", params(PerformanceParams),
    responses((status = 200, body = Performance), (status = "4XX", body = Problem)))]
async fn performance(
    State(state): State<ApiState>,
    Query(params): Query<PerformanceParams>,
) -> Result<Json<Performance>, Problem> {
    let data = action::performance(&state.context, &params.model, params.from, Utc::now()).await?;
    Ok(Json(Performance { data }))
}
