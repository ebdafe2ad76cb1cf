//! The admin API: thin handlers over actions, and the endpoints for machines.

mod access;
mod billing;
mod cache;
mod config;
mod csv;
mod extract;
mod fleet;
mod health;
mod invoices;
mod keys;
mod models;
mod organizations;
mod performance;
mod prepaid;
mod prices;
mod problem;
mod reconcile;
mod rollouts;
mod routes;
mod usage;
mod users;
mod webhooks;

use crate::admission::Tokens;
use crate::context::Context;
use access::{Gate, Schemes, authorize};
use axum::Router;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use http::{StatusCode, header};
use problem::Problem;
use std::sync::Arc;
use std::time::Duration;
use utoipa::OpenApi;
use utoipa_axum::router::OpenApiRouter;

/// Largest body of an admin request, bytes.
const MAX_BODY: usize = 1 << 20;
/// Longest admin request.
const DEADLINE: Duration = Duration::from_secs(30);
/// Longest comparison of a day's books, which reads a day of the ledger event by event.
const RECONCILE_DEADLINE: Duration = Duration::from_secs(1800);

/// What handlers work with.
#[derive(Clone)]
pub(crate) struct ApiState {
    pub(crate) context: Arc<Context>,
    pub(crate) tokens: Arc<Tokens>,
}

#[derive(OpenApi)]
#[openapi(
    info(title = "Turnpike admin API", description = "Organizations, keys, models, nodes, usage and money of a Turnpike deployment."),
    security(("token" = [])),
    modifiers(&Schemes),
    components(schemas(Problem))
)]
struct Document;

/// Everything the HTTP listener answers.
pub(crate) fn router(state: ApiState) -> Router {
    let (admin, document) = OpenApiRouter::with_openapi(Document::openapi())
        .merge(organizations::routes())
        .merge(billing::routes())
        .merge(prepaid::routes())
        .merge(invoices::routes())
        .merge(users::routes())
        .merge(keys::routes())
        .merge(models::routes())
        .merge(prices::routes())
        .merge(routes::routes())
        .merge(fleet::routes())
        .merge(config::routes())
        .merge(rollouts::routes())
        .merge(usage::routes())
        .merge(performance::routes())
        .merge(reconcile::routes())
        .merge(cache::routes())
        .split_for_parts();
    let gate = Gate::new(state.clone(), &document);
    let document = Arc::new(document);
    let admin = admin.layer(DefaultBodyLimit::max(MAX_BODY)).route_layer(from_fn_with_state(gate, authorize));
    Router::new()
        .merge(admin)
        .merge(health::routes())
        .merge(webhooks::routes())
        .route(
            "/openapi.json",
            get(move || {
                let document = Arc::clone(&document);
                async move { axum::Json(document.as_ref().clone()) }
            }),
        )
        .fallback(|request: Request| async move { Problem::no_route(request.uri().path()) })
        .layer(from_fn_with_state(state.clone(), observe))
        .with_state(state)
}

fn deadline(path: &str) -> Duration {
    if path == reconcile::PATH { RECONCILE_DEADLINE } else { DEADLINE }
}

/// Bounds the time of a request, words the refusals that axum makes by itself, and counts.
async fn observe(State(state): State<ApiState>, request: Request, next: Next) -> Response {
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let deadline = deadline(&path);
    let response = match tokio::time::timeout(deadline, next.run(request)).await {
        Ok(response) if response.status() == StatusCode::METHOD_NOT_ALLOWED => {
            let allow = response.headers().get(header::ALLOW).cloned();
            let mut worded = Problem::method(&method, &path).into_response();
            if let Some(allow) = allow {
                worded.headers_mut().insert(header::ALLOW, allow);
            }
            worded
        }
        Ok(response) => response,
        Err(_) => {
            let detail = format!("the request took longer than {} s; it may have been carried out", deadline.as_secs());
            Problem::unavailable(detail).into_response()
        }
    };
    if path.starts_with("/admin/") {
        state.context.metrics.count_admin_request(response.status().as_u16());
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comparing_a_day_may_take_longer_than_anything_else() {
        let (_, document) = reconcile::routes().split_for_parts();
        let paths: Vec<&String> = document.paths.paths.keys().collect();
        assert_eq!(paths, [reconcile::PATH]);
        assert_eq!(deadline(paths[0]), RECONCILE_DEADLINE);
        assert_eq!(deadline("/admin/v1/usage"), DEADLINE);
    }
}
