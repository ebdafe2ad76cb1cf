//! `/admin/v1/organizations/{id}/prepaid_entries`: money paid ahead.

use super::ApiState;
use super::extract::{Body, Page, PageQuery, Path, Query, Window};
use super::problem::Problem;
use crate::action::prepaid::{self as action, CreatePrepaidEntry, PrepaidEntry};
use crate::action::{Operator, Reader};
use axum::extract::State;
use axum::{Extension, Json};
use chrono::Utc;
use http::StatusCode;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

pub(super) fn routes() -> OpenApiRouter<ApiState> {
    OpenApiRouter::new().routes(routes!(list, create))
}

/// List what was paid ahead and what it was used for, the newest first.
#[utoipa::path(get, path = "/admin/v1/organizations/{id}/prepaid_entries", tag = "billing",
    security(("token" = []), ("api_key" = [])), params(("id" = Uuid, Path), PageQuery),
    responses((status = 200, body = Page<PrepaidEntry>), (status = "4XX", body = Problem)))]
async fn list(
    State(state): State<ApiState>,
    Extension(reader): Extension<Reader>,
    Path(id): Path<Uuid>,
    Query(query): Query<PageQuery>,
) -> Result<Json<Page<PrepaidEntry>>, Problem> {
    let window = Window::<i64>::new(query.limit, query.cursor.as_deref())?;
    reader.only(Some(id))?;
    let found = action::list(&state.context, id, window.after, window.fetch()).await?;
    Ok(Json(window.page(found, |entry| entry.id().to_string())))
}

/// Add money paid ahead, give it back, or correct it. A key that was used before appends nothing and answers 200.
#[utoipa::path(post, path = "/admin/v1/organizations/{id}/prepaid_entries", tag = "billing",
    params(("id" = Uuid, Path)), request_body = CreatePrepaidEntry,
    responses((status = 201, body = PrepaidEntry), (status = 200, body = PrepaidEntry),
        (status = "4XX", body = Problem)))]
async fn create(
    State(state): State<ApiState>,
    Extension(operator): Extension<Operator>,
    Path(id): Path<Uuid>,
    Body(input): Body<CreatePrepaidEntry>,
) -> Result<(StatusCode, Json<PrepaidEntry>), Problem> {
    let (entry, new) = action::create(&state.context, operator, id, input, Utc::now()).await?;
    Ok((if new { StatusCode::CREATED } else { StatusCode::OK }, Json(entry)))
}
