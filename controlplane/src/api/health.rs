//! Endpoints for machines: is it alive, is it ready, how is it doing.

use super::ApiState;
use super::problem::Problem;
use crate::metrics::CONTENT_TYPE;
use axum::Router;
use axum::extract::State;
use axum::response::IntoResponse;
use axum::routing::get;
use http::header;
use std::time::Duration;
use tokio::time::timeout;

/// How long the database has to answer for this process to count as ready.
const PING_DEADLINE: Duration = Duration::from_secs(2);

pub(super) fn routes() -> Router<ApiState> {
    Router::new().route("/livez", get(|| async { "ok\n" })).route("/readyz", get(ready)).route("/metrics", get(metrics))
}

/// Ready once it answers here at all (migrations are done and both listeners bound before the first request is
/// accepted) and while the database answers.
async fn ready(State(state): State<ApiState>) -> Result<&'static str, Problem> {
    match timeout(PING_DEADLINE, state.context.store.ping()).await {
        Ok(Ok(())) => Ok("ready\n"),
        Ok(Err(error)) => Err(Problem::unavailable(error.to_string())),
        Err(_) => Err(Problem::unavailable("PostgreSQL does not answer within 2 s")),
    }
}

async fn metrics(State(state): State<ApiState>) -> Result<impl IntoResponse, Problem> {
    let text = state.context.metrics.render().map_err(|_| Problem::unavailable("the metrics cannot be written"))?;
    Ok(([(header::CONTENT_TYPE, CONTENT_TYPE)], text))
}
