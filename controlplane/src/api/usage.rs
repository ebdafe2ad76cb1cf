//! `/admin/v1/usage` and `/admin/v1/requests`.

use super::extract::{Page, Query, Window};
use super::problem::Problem;
use super::{ApiState, csv};
use crate::action::Reader;
use crate::action::usage::{self as action, UsageQuery};
use crate::store::requests::{Filter, LoggedRequest};
use crate::store::usage::UsageSum;
use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use axum::{Extension, Json};
use chrono::{DateTime, NaiveDate, Utc};
use http::{HeaderMap, header};
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
    /// Some of `organization`, `model`, `day`, `hour`, `price_version`, `key`, separated by commas; one sum if absent.
    /// `key` does not go with `hour` or `price_version`.
    #[serde(default)]
    group_by: String,
    /// `json` or `csv`; as the header `Accept` has it if absent.
    format: Option<Format>,
}

/// How sums are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum Format {
    Json,
    Csv,
}

impl Format {
    /// CSV only where it is asked for by name.
    fn accepted(headers: &HeaderMap) -> Self {
        let accept = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let types = accept.split(',').map(|part| part.split(';').next().unwrap_or_default().trim());
        if types.into_iter().any(|name| name.eq_ignore_ascii_case("text/csv")) { Self::Csv } else { Self::Json }
    }
}

/// Summed usage.
#[derive(Serialize, ToSchema)]
struct Usage {
    /// A row per group.
    data: Vec<UsageSum>,
}

/// Sum usage.
#[utoipa::path(get, path = "/admin/v1/usage", tag = "usage", params(UsageParams),
    security(("token" = []), ("api_key" = [])),
    responses((status = 200, content((Usage = "application/json"), (String = "text/csv"))),
        (status = "4XX", body = Problem)))]
async fn usage(
    State(state): State<ApiState>,
    Extension(reader): Extension<Reader>,
    headers: HeaderMap,
    Query(params): Query<UsageParams>,
) -> Result<Response, Problem> {
    let UsageParams { organization, from, to, group_by, format } = params;
    let query = UsageQuery { organization: reader.only(organization)?, from, to, group_by };
    let data = action::sums(&state.context, query, Utc::now()).await?;
    Ok(match format.unwrap_or_else(|| Format::accepted(&headers)) {
        Format::Json => Json(Usage { data }).into_response(),
        Format::Csv => csv::answer(&data),
    })
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
    /// Only those that arrived then or later, such as 2026-01-31T12:00:00Z.
    from: Option<DateTime<Utc>>,
    /// Only those that arrived before then.
    to: Option<DateTime<Utc>>,
    /// Only through this edge.
    edge: Option<String>,
    /// Only by this node.
    node: Option<String>,
    /// Only of this region.
    region: Option<String>,
    /// Only of this cache status: `hit`, `miss`, `coalesced`, `bypass`.
    cache_status: Option<String>,
    /// Only with this OpenAI error code.
    error_code: Option<String>,
    /// Only copies that were sent to a route's shadow, or only requests that are none. Customers never see such copies.
    shadow: Option<bool>,
    /// Most entries, 1 to 500; 50 if absent.
    limit: Option<u16>,
    /// `next_cursor` of the page before.
    cursor: Option<String>,
}

/// Read the request log, the newest first.
#[utoipa::path(get, path = "/admin/v1/requests", tag = "usage", params(RequestParams),
    security(("token" = []), ("api_key" = [])),
    responses((status = 200, body = Page<LoggedRequest>), (status = "4XX", body = Problem)))]
async fn requests(
    State(state): State<ApiState>,
    Extension(reader): Extension<Reader>,
    Query(params): Query<RequestParams>,
) -> Result<Json<Page<LoggedRequest>>, Problem> {
    let window = Window::new(params.limit, params.cursor.as_deref())?;
    let filter = Filter {
        organization: reader.only(params.organization)?,
        key: params.key,
        model: params.model,
        status: params.status,
        from: params.from,
        to: params.to,
        edge: params.edge,
        node: params.node,
        region: params.region,
        cache_status: params.cache_status,
        error_code: params.error_code,
        shadow: if matches!(reader, Reader::Customer(_)) { Some(false) } else { params.shadow },
    };
    let found = action::requests(&state.context, filter, window.after, window.fetch()).await?;
    Ok(Json(window.page(found, |request| request.id.to_string())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn csv_is_for_who_asks_for_it_by_name() {
        let format = |accept: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::ACCEPT, accept.parse().expect("a header"));
            Format::accepted(&headers)
        };
        assert_eq!(format("text/csv"), Format::Csv);
        assert_eq!(format("text/html, TEXT/CSV;q=0.9"), Format::Csv);
        assert_eq!(format("*/*"), Format::Json);
        assert_eq!(Format::accepted(&HeaderMap::new()), Format::Json);
    }
}
