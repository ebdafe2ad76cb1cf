//! Errors as RFC 9457 problem documents.

use crate::action::{ActionError, FieldError};
use crate::store::StoreError;
use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use serde::Serialize;
use tracing::error;
use utoipa::ToSchema;

const CONTENT_TYPE: HeaderValue = HeaderValue::from_static("application/problem+json");
/// Seconds after which a client may try again when the database is away.
const RETRY_AFTER: HeaderValue = HeaderValue::from_static("2");

/// Why a request did nothing.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Problem {
    /// A URN that names the kind of problem.
    #[serde(rename = "type")]
    #[schema(example = "urn:turnpike:problem:validation")]
    kind: String,
    /// The kind in words.
    title: &'static str,
    /// The HTTP status.
    status: u16,
    /// This occurrence in words.
    detail: String,
    /// What is wrong with which field.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    errors: Vec<FieldError>,
}

impl Problem {
    fn new(status: StatusCode, kind: &str, title: &'static str, detail: impl Into<String>) -> Self {
        let kind = format!("urn:turnpike:problem:{kind}");
        Self { kind, title, status: status.as_u16(), detail: detail.into(), errors: Vec::new() }
    }

    /// Fields cannot be accepted.
    pub(crate) fn validation(errors: Vec<FieldError>) -> Self {
        let detail = match errors.as_slice() {
            [one] => format!("{}: {}", one.field, one.detail),
            many => format!("{} fields are not valid", many.len()),
        };
        let problem = Self::new(StatusCode::UNPROCESSABLE_ENTITY, "validation", "The input is not valid", detail);
        Self { errors, ..problem }
    }

    /// One field cannot be accepted.
    pub(crate) fn field(field: &str, detail: impl Into<String>) -> Self {
        Self::validation(vec![FieldError { field: field.to_owned(), detail: detail.into() }])
    }

    /// The body is not JSON.
    pub(crate) fn bad_json(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "bad-json", "The body is not JSON", detail)
    }

    /// The body is too large or did not arrive.
    pub(crate) fn bad_body(status: StatusCode, detail: impl Into<String>) -> Self {
        Self::new(status, "bad-body", "The body cannot be read", detail)
    }

    /// The body is of another type than JSON.
    pub(crate) fn media_type() -> Self {
        let detail = "send the body as content-type: application/json";
        Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "media-type", "The body is not declared as JSON", detail)
    }

    /// Neither an operator nor a customer.
    pub(crate) fn unauthorized() -> Self {
        let detail = "send Authorization: Bearer <token>, a token from admin.token_file or an API key that is not revoked, \
                      expired or switched off";
        Self::new(StatusCode::UNAUTHORIZED, "unauthorized", "No valid token", detail)
    }

    /// A webhook that nobody who may has sent.
    pub(crate) fn bad_signature(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "bad-signature", "The signature is not valid", detail)
    }

    /// An operator or customer who may not.
    pub(crate) fn forbidden(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, "forbidden", "The role does not allow it", detail)
    }

    /// Nothing at this path.
    pub(crate) fn no_route(path: &str) -> Self {
        let detail = format!("nothing is at {path}; see /openapi.json");
        Self::new(StatusCode::NOT_FOUND, "not-found", "Not found", detail)
    }

    /// Something at this path, but not for this method.
    pub(crate) fn method(method: &http::Method, path: &str) -> Self {
        let detail = format!("{method} is not allowed at {path}; see the allow header");
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "method-not-allowed", "Method not allowed", detail)
    }

    /// A part of the system is away.
    pub(crate) fn unavailable(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable", "Not available now", detail)
    }

    /// A defect; the log has more.
    fn internal() -> Self {
        let detail = "this is a defect; the control plane's log says more";
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", "Internal error", detail)
    }
}

impl From<ActionError> for Problem {
    fn from(problem: ActionError) -> Self {
        match problem {
            ActionError::Invalid(errors) => Self::validation(errors),
            ActionError::NotFound { .. } => {
                Self::new(StatusCode::NOT_FOUND, "not-found", "Not found", problem.to_string())
            }
            ActionError::Conflict(detail) => {
                Self::new(StatusCode::CONFLICT, "conflict", "The present state does not allow it", detail)
            }
            ActionError::NotYet(detail) => Self::unavailable(detail),
            ActionError::Forbidden(_) => Self::forbidden(problem.to_string()),
            ActionError::Store(StoreError::Unavailable(reason)) => {
                error!(reason, "an admin request could not reach the database");
                Self::unavailable("the database does not answer; try again")
            }
            ActionError::Store(StoreError::BadValue(detail)) => {
                Self::new(StatusCode::UNPROCESSABLE_ENTITY, "validation", "The input is not valid", detail)
            }
            ActionError::Store(_) | ActionError::Internal(_) => {
                error!(error = %problem, "an admin request failed");
                Self::internal()
            }
        }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let body = serde_json::to_vec(&self).unwrap_or_default();
        let mut response = (status, [(header::CONTENT_TYPE, CONTENT_TYPE)], body).into_response();
        if status == StatusCode::SERVICE_UNAVAILABLE {
            response.headers_mut().insert(header::RETRY_AFTER, RETRY_AFTER);
        }
        if status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}
