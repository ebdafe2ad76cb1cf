//! `/admin/v1/organizations/{id}/billing`.

use super::ApiState;
use super::extract::{Body, Path};
use super::problem::Problem;
use crate::action::billing::{self as action, Billing, PatchBilling};
use crate::action::{Operator, Reader};
use axum::extract::State;
use axum::{Extension, Json};
use chrono::Utc;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

pub(super) fn routes() -> OpenApiRouter<ApiState> {
    OpenApiRouter::new().routes(routes!(get, patch))
}

/// Get what an organization may spend, has spent this month, and has left.
#[utoipa::path(get, path = "/admin/v1/organizations/{id}/billing", tag = "organizations", params(("id" = Uuid, Path)),
    security(("token" = []), ("api_key" = [])), responses((status = 200, body = Billing), (status = "4XX", body = Problem)))]
async fn get(
    State(state): State<ApiState>,
    Extension(reader): Extension<Reader>,
    Path(id): Path<Uuid>,
) -> Result<Json<Billing>, Problem> {
    reader.only(Some(id))?;
    Ok(Json(action::get(&state.context, id, Utc::now()).await?))
}

/// Change what an organization may spend.
#[utoipa::path(patch, path = "/admin/v1/organizations/{id}/billing", tag = "organizations",
    params(("id" = Uuid, Path)), request_body = PatchBilling,
    responses((status = 200, body = Billing), (status = "4XX", body = Problem)))]
async fn patch(
    State(state): State<ApiState>,
    Extension(operator): Extension<Operator>,
    Path(id): Path<Uuid>,
    Body(input): Body<PatchBilling>,
) -> Result<Json<Billing>, Problem> {
    Ok(Json(action::patch(&state.context, operator, id, input, Utc::now()).await?))
}
