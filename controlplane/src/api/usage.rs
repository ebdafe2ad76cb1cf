//! `/admin/v1/usage` and `/admin/v1/requests`.

use super::ApiState;
use super::extract::{Page, Query, Window};
use super::problem::Problem;
use crate::action::usage::{self as action, UsageQuery};
use crate::store::requests::{Filter, LoggedRequest};
use crate::store::usage::UsageSum;
use axum::Json;
use axum::extract::State;
use chrono::{NaiveDate, Utc};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

pub(super) fn routes() -> OpenApiRouter<ApiState> {
    OpenApiRouter::new().routes(routes!(usage)).routes(routes!(requests))
}

/// Which usage.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct UsageParams {
    /// Only this organization.
    organization: Option<Uuid>,
    /// First UTC day; 30 days before `to` if absent.
    from: Option<NaiveDate>,
    /// Day after the last; tomorrow if absent.
    to: Option<NaiveDate>,
    /// Some of `organization`, `model`, `day`, `key`, separated by commas; one sum if absent.
    #[serde(default)]
    group_by: String,
}

/// Summed usage.
#[derive(Serialize, ToSchema)]
struct Usage {
    /// A row per group.
    data: Vec<UsageSum>,
}

/// Sum usage.
#[utoipa::path(get, path = "/admin/v1/usage", tag = "usage", params(UsageParams),
    responses((status = 200, body = Usage), (status = "4XX", body = Problem)))]
async fn usage(State(state): State<ApiState>, Query(params): Query<UsageParams>) -> Result<Json<Usage>, Problem> {
    let UsageParams { organization, from, to, group_by } = params;
    let query = UsageQuery { organization, from, to, group_by };
    Ok(Json(Usage { data: action::sums(&state.context, query, Utc::now()).await? }))
}

/// Which requests.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct RequestParams {
    /// Only of this organization.
    organization: Option<Uuid>,
    /// Only with this key.
    key: Option<Uuid>,
    /// Only for this model.
    model: Option<String>,
    /// Only with this end: `success`, `error`, `timeout`, `rate_limited`, `client_gone`.
    status: Option<String>,
    /// Most entries, 1 to 500; 50 if absent.
    limit: Option<u16>,
    /// `next_cursor` of the page before.
    cursor: Option<String>,
}

/// Read the request log, the newest first.
#[utoipa::path(get, path = "/admin/v1/requests", tag = "usage", params(RequestParams),
    responses((status = 200, body = Page<LoggedRequest>), (status = "4XX", body = Problem)))]
async fn requests(
    State(state): State<ApiState>,
    Query(params): Query<RequestParams>,
) -> Result<Json<Page<LoggedRequest>>, Problem> {
    let window = Window::new(params.limit, params.cursor.as_deref())?;
    let filter =
        Filter { organization: params.organization, key: params.key, model: params.model, status: params.status };
    let found = action::requests(&state.context, filter, window.after, window.fetch()).await?;
    Ok(Json(window.page(found, |request| request.id.to_string())))
}
