//! `/admin/v1/reconcile`.

use super::ApiState;
use super::extract::Query;
use super::problem::Problem;
use crate::action::ActionError;
use crate::reconcile::{self, Report};
use axum::Json;
use axum::extract::State;
use chrono::NaiveDate;
use serde::Deserialize;
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

/// Where it is.
pub(super) const PATH: &str = "/admin/v1/reconcile";

pub(super) fn routes() -> OpenApiRouter<ApiState> {
    OpenApiRouter::new().routes(routes!(compare))
}

/// Which day.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct Params {
    /// The UTC day.
    day: NaiveDate,
}

/// Compare the books of a day: edges, nodes, the usage ledger, daily sums, invoices. That takes minutes for a busy day; one
/// is compared at a time.
#[utoipa::path(get, path = "/admin/v1/reconcile", tag = "usage", params(Params),
    responses((status = 200, body = Report), (status = "4XX", body = Problem)))]
async fn compare(State(state): State<ApiState>, Query(params): Query<Params>) -> Result<Json<Report>, Problem> {
    let report = reconcile::compare(&state.context, params.day).await.map_err(ActionError::from)?;
    Ok(Json(report))
}
