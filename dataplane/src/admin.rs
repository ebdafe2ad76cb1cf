//! The operator's side door: metrics, health, and what would be done with a request.

use crate::edge::Edge;
use crate::explain::{Explanation, Question};
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// `/metrics`, `/livez`, `/readyz`, `/explain`.
pub(crate) fn router(edge: Arc<Edge>) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/livez", get(|| std::future::ready("ok\n")))
        .route("/readyz", get(readyz))
        .route("/explain", post(explain))
        .with_state(edge)
}

async fn explain(
    State(edge): State<Arc<Edge>>,
    Json(question): Json<Question>,
) -> Result<Json<Explanation>, (StatusCode, String)> {
    Explanation::of(&edge, question).await.map(Json).map_err(|reason| (StatusCode::BAD_REQUEST, reason + "\n"))
}

async fn metrics(State(edge): State<Arc<Edge>>) -> Response {
    let durable = edge.journal.position().borrow().durable;
    edge.metrics.journal_durable.set(i64::try_from(durable).unwrap_or(i64::MAX));
    edge.metrics.journal_writable.set(i64::from(edge.journal.trouble().is_none()));
    let cache = edge.cache.size();
    edge.metrics.cache_bytes.set(i64::try_from(cache.bytes).unwrap_or(i64::MAX));
    edge.metrics.cache_answers.set(i64::try_from(cache.answers).unwrap_or(i64::MAX));
    edge.metrics.cache_flights.set(i64::try_from(cache.flights).unwrap_or(i64::MAX));
    match edge.metrics.render() {
        Ok(text) => {
            ([(CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")], text).into_response()
        }
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

/// Ready: it could serve a request that came now.
async fn readyz(State(edge): State<Arc<Edge>>) -> Response {
    let mut troubles = Vec::new();
    if edge.draining.load(Ordering::Relaxed) {
        troubles.push("draining".to_owned());
    }
    if !edge.listening.load(Ordering::Relaxed) {
        troubles.push(format!("not listening on {} yet", edge.settings.listen));
    }
    if edge.snapshot.load().at.version == 0 {
        troubles.push("no routing yet: waiting for the control plane".to_owned());
    }
    if let Some(trouble) = edge.journal.trouble() {
        troubles.push(format!("usage cannot be recorded: {trouble}"));
    }
    if troubles.is_empty() {
        "ok\n".into_response()
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, troubles.join("\n") + "\n").into_response()
    }
}
