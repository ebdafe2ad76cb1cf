//! The port for operators: `/metrics`, `/livez`, `/readyz`.

use crate::engine::Body;
use crate::listener::{Handler, text};
use crate::metrics::Metrics;
use crate::status::Status;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use hyper::body::Incoming;
use std::sync::Arc;
use turnpike_config::link::Peer;

/// What Prometheus is told the page is.
const OPENMETRICS: HeaderValue = HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8");

/// Answers operators and their tools.
pub(crate) struct Admin {
    pub(crate) status: Arc<Status>,
    pub(crate) metrics: Arc<Metrics>,
}

impl Handler for Admin {
    async fn handle(self: Arc<Self>, request: Request<Incoming>, _peer: Option<&Peer>) -> Response<Body> {
        if request.method() != Method::GET {
            return text(StatusCode::METHOD_NOT_ALLOWED, "GET only\n");
        }
        match request.uri().path() {
            "/livez" => text(StatusCode::OK, "ok\n"),
            "/readyz" => match self.status.ready() {
                Ok(()) => text(StatusCode::OK, "ready\n"),
                Err(missing) => text(StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {missing}\n")),
            },
            "/metrics" => match self.metrics.page() {
                Ok(page) => {
                    let mut response = text(StatusCode::OK, page);
                    response.headers_mut().insert(header::CONTENT_TYPE, OPENMETRICS);
                    response
                }
                Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
            },
            _ => text(StatusCode::NOT_FOUND, "there are /metrics, /livez and /readyz\n"),
        }
    }
}
