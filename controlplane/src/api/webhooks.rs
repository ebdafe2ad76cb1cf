//! `/webhooks/stripe`: what Stripe says, believed by its signature.

use super::ApiState;
use super::problem::Problem;
use crate::collecting::{Handled, handle};
use crate::stripe::{Event, verify};
use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, State};
use axum::routing::post;
use chrono::Utc;
use http::HeaderMap;

/// Largest body, bytes: an event holds one object.
const MAX_BODY: usize = 1 << 20;

pub(super) fn routes() -> Router<ApiState> {
    Router::new().route("/webhooks/stripe", post(stripe)).layer(DefaultBodyLimit::max(MAX_BODY))
}

/// Any answer but 2xx, and Stripe delivers the event again.
async fn stripe(State(state): State<ApiState>, headers: HeaderMap, body: Bytes) -> Result<&'static str, Problem> {
    let Some(stripe) = &state.context.stripe else { return Err(Problem::no_route("/webhooks/stripe")) };
    let now = Utc::now();
    let signature = headers.get("stripe-signature").and_then(|value| value.to_str().ok()).unwrap_or_default();
    verify(&stripe.webhook_secret, signature, &body, now).map_err(|error| Problem::bad_signature(error.to_string()))?;
    let event: Event = serde_json::from_slice(&body).map_err(|error| Problem::bad_json(error.to_string()))?;
    match handle(&state.context, &event, now).await.map_err(crate::action::ActionError::from)? {
        Handled::New | Handled::Again => Ok("ok\n"),
        Handled::Garbled => Err(Problem::bad_json(format!("the object of event {} is not understood", event.id))),
    }
}
