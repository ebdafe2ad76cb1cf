//! Errors in the shape that every OpenAI client understands.

use crate::engine::{Body, EngineError};
use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full};
use serde::Serialize;

/// `{"error": {…}}`.
#[derive(Clone, Debug)]
pub(crate) struct ErrorBody {
    /// HTTP status.
    pub(crate) status: StatusCode,
    /// OpenAI's `type`: `invalid_request_error`, `server_error`, …
    pub(crate) kind: &'static str,
    /// OpenAI's `code`.
    pub(crate) code: Option<&'static str>,
    /// Name of the field at fault.
    pub(crate) param: Option<String>,
    /// For the client.
    pub(crate) message: String,
}

#[derive(Serialize)]
struct Envelope<'e> {
    error: Inner<'e>,
}

#[derive(Serialize)]
struct Inner<'e> {
    message: &'e str,
    #[serde(rename = "type")]
    kind: &'static str,
    param: Option<&'e str>,
    code: Option<&'static str>,
}

impl ErrorBody {
    /// An error without a field at fault.
    pub(crate) fn new(status: StatusCode, kind: &'static str, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, kind, code: Some(code), param: None, message: message.into() }
    }

    /// The HTTP response.
    pub(crate) fn into_response(self) -> Response<Body> {
        let Self { status, kind, code, param, message } = self;
        json_response(status, &Envelope { error: Inner { message: &message, kind, param: param.as_deref(), code } })
    }
}

impl From<EngineError> for ErrorBody {
    fn from(error: EngineError) -> Self {
        let message = error.to_string();
        match error {
            EngineError::BadRequest { param, code, .. } => {
                Self { status: StatusCode::BAD_REQUEST, kind: "invalid_request_error", code, param, message }
            }
            EngineError::Unavailable(_) => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "server_error", "engine_unavailable", message)
            }
            EngineError::Timeout(_) => {
                Self::new(StatusCode::GATEWAY_TIMEOUT, "server_error", "engine_timeout", message)
            }
            EngineError::Failed(_) => Self::new(StatusCode::BAD_GATEWAY, "server_error", "engine_failed", message),
        }
    }
}

/// A response with a JSON body. A value that cannot be serialised (none of ours) becomes an empty 500.
pub(crate) fn json_response(status: StatusCode, value: &impl Serialize) -> Response<Body> {
    let (status, bytes) = match serde_json::to_vec(value) {
        Ok(bytes) => (status, bytes),
        Err(error) => {
            tracing::error!(%error, "a response could not be serialised");
            (StatusCode::INTERNAL_SERVER_ERROR, Vec::new())
        }
    };
    let mut response = Response::new(whole(bytes));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// A body that is all there.
fn whole(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_error_has_openais_shape() {
        let error = EngineError::invalid("max_tokens", "max_tokens must be at least 1");
        let response = ErrorBody::from(error).into_response();
        assert_eq!(response.status(), 400);
        let body = response.into_body().collect().await.unwrap().to_bytes();
        let value: serde_json::Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(value["error"]["type"], "invalid_request_error");
        assert_eq!(value["error"]["param"], "max_tokens");
        assert!(value["error"]["code"].is_null());
        assert_eq!(value["error"]["message"], "max_tokens must be at least 1");
    }
}
