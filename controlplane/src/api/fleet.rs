//! `/admin/v1/nodes` and `/admin/v1/edges`.

use super::ApiState;
use super::extract::{Page, PageQuery, Path, Query, Window};
use super::problem::Problem;
use crate::action::Operator;
use crate::action::nodes::{self as action, EdgeView, NodeView};
use axum::extract::State;
use axum::{Extension, Json};
use http::StatusCode;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

pub(super) fn routes() -> OpenApiRouter<ApiState> {
    OpenApiRouter::new()
        .routes(routes!(list))
        .routes(routes!(get))
        .routes(routes!(enable))
        .routes(routes!(disable))
        .routes(routes!(list_edges))
        .routes(routes!(delete_edge))
}

/// List nodes in the order of their names.
#[utoipa::path(get, path = "/admin/v1/nodes", tag = "fleet", params(PageQuery),
    responses((status = 200, body = Page<NodeView>), (status = "4XX", body = Problem)))]
async fn list(State(state): State<ApiState>, Query(query): Query<PageQuery>) -> Result<Json<Page<NodeView>>, Problem> {
    let window = Window::<String>::new(query.limit, query.cursor.as_deref())?;
    let found = action::list(&state.context, window.after.as_deref(), window.fetch()).await?;
    Ok(Json(window.page(found, |view| view.node.name.clone())))
}

/// Get a node.
#[utoipa::path(get, path = "/admin/v1/nodes/{name}", tag = "fleet", params(("name" = String, Path)),
    responses((status = 200, body = NodeView), (status = "4XX", body = Problem)))]
async fn get(State(state): State<ApiState>, Path(name): Path<String>) -> Result<Json<NodeView>, Problem> {
    Ok(Json(action::get(&state.context, &name).await?))
}

/// Let edges send requests to a node again.
#[utoipa::path(post, path = "/admin/v1/nodes/{name}/enable", tag = "fleet", params(("name" = String, Path)),
    responses((status = 200, body = NodeView), (status = "4XX", body = Problem)))]
async fn enable(
    State(state): State<ApiState>,
    Extension(operator): Extension<Operator>,
    Path(name): Path<String>,
) -> Result<Json<NodeView>, Problem> {
    Ok(Json(action::set_enabled(&state.context, operator, &name, true).await?))
}

/// Let edges send nothing new to a node, whatever it reports.
#[utoipa::path(post, path = "/admin/v1/nodes/{name}/disable", tag = "fleet", params(("name" = String, Path)),
    responses((status = 200, body = NodeView), (status = "4XX", body = Problem)))]
async fn disable(
    State(state): State<ApiState>,
    Extension(operator): Extension<Operator>,
    Path(name): Path<String>,
) -> Result<Json<NodeView>, Problem> {
    Ok(Json(action::set_enabled(&state.context, operator, &name, false).await?))
}

/// List edges in the order of their names, with the version each serves by.
#[utoipa::path(get, path = "/admin/v1/edges", tag = "fleet", params(PageQuery),
    responses((status = 200, body = Page<EdgeView>), (status = "4XX", body = Problem)))]
async fn list_edges(
    State(state): State<ApiState>,
    Query(query): Query<PageQuery>,
) -> Result<Json<Page<EdgeView>>, Problem> {
    let window = Window::<String>::new(query.limit, query.cursor.as_deref())?;
    let found = action::list_edges(&state.context, window.after.as_deref(), window.fetch()).await?;
    Ok(Json(window.page(found, |view| view.edge.name.clone())))
}

/// Remove an edge that is retired and not connected, so that closing months, comparing days and budgets do not wait for
/// its usage. What it has not shipped is not billed. Owners only.
#[utoipa::path(delete, path = "/admin/v1/edges/{name}", tag = "fleet", params(("name" = String, Path)),
    responses((status = 204), (status = "4XX", body = Problem)))]
async fn delete_edge(
    State(state): State<ApiState>,
    Extension(operator): Extension<Operator>,
    Path(name): Path<String>,
) -> Result<StatusCode, Problem> {
    action::delete_edge(&state.context, operator, &name).await?;
    Ok(StatusCode::NO_CONTENT)
}
