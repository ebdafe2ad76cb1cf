//! Every way the edge says no, and what the client reads: OpenAI's error shape, status and code, in one place.

use crate::limit::{Kind, Refused};
use http::StatusCode;
use std::borrow::Cow;
use turnpike_config::RequestStatus;

/// A refused or failed request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Reject {
    UnknownUrl { method: String, path: String },
    WrongMethod { method: String, path: String, allowed: &'static str },
    MissingKey,
    UnknownKey { shown: String },
    KeyDisabled,
    KeyExpired,
    MissingPermission { permission: &'static str },
    ModelNotAllowed { model: String },
    UnknownModel { model: String },
    BodyTooLarge { limit: usize },
    BodyTooSlow,
    BodyUnreadable,
    InvalidJson { reason: String },
    InvalidParameter { name: &'static str, reason: String },
    MissingParameter { name: &'static str },
    Limit(Refused),
    Maintenance { message: String, retry_after_s: u64 },
    NoVersion { model: String },
    NoNode { model: String },
    NodeFailed,
    NodeTimeout,
    MeteringUnavailable,
    Draining,
    Internal,
}

/// What OpenAI calls a limit: the error's `type`, and its name in the message.
const fn limit_names(kind: Kind) -> (&'static str, &'static str) {
    match kind {
        Kind::Requests => ("requests", "requests per min (RPM)"),
        Kind::Tokens => ("tokens", "tokens per min (TPM)"),
        Kind::Concurrent => ("requests", "concurrent requests"),
        Kind::Spend => ("insufficient_quota", "monthly budget"),
    }
}

/// The client's view of a [`Reject`].
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    /// OpenAI's `type`.
    pub(crate) kind: &'static str,
    /// OpenAI's `code`; also the event's `error_code`.
    pub(crate) code: &'static str,
    /// The parameter at fault.
    pub(crate) param: Option<&'static str>,
    pub(crate) message: Cow<'static, str>,
    /// Seconds, rounded up.
    pub(crate) retry_after_s: Option<u64>,
    /// For 405.
    pub(crate) allow: Option<&'static str>,
}

const INVALID: &str = "invalid_request_error";
const SERVER: &str = "server_error";

impl Answer {
    fn new(status: StatusCode, kind: &'static str, code: &'static str, message: impl Into<Cow<'static, str>>) -> Self {
        Self { status, kind, code, param: None, message: message.into(), retry_after_s: None, allow: None }
    }

    fn param(self, name: &'static str) -> Self {
        Self { param: Some(name), ..self }
    }

    fn retry_after(self, seconds: u64) -> Self {
        Self { retry_after_s: Some(seconds), ..self }
    }

    /// The JSON body.
    pub(crate) fn body(&self) -> Vec<u8> {
        let error = serde_json::json!({
            "error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}
        });
        error.to_string().into_bytes()
    }
}

impl Reject {
    /// How the usage event records it.
    pub(crate) const fn request_status(&self) -> RequestStatus {
        match self {
            Self::Limit(_) => RequestStatus::RateLimited,
            Self::NodeTimeout | Self::BodyTooSlow => RequestStatus::Timeout,
            _ => RequestStatus::Error,
        }
    }

    /// What the client is told.
    pub(crate) fn answer(&self) -> Answer {
        match self {
            Self::UnknownUrl { .. } | Self::WrongMethod { .. } => self.address_answer(),
            Self::MissingKey | Self::UnknownKey { .. } | Self::KeyDisabled | Self::KeyExpired => self.key_answer(),
            Self::MissingPermission { .. } | Self::ModelNotAllowed { .. } | Self::UnknownModel { .. } => {
                self.permission_answer()
            }
            Self::Limit(refused) => limit_answer(refused),
            Self::Maintenance { .. }
            | Self::NoVersion { .. }
            | Self::NoNode { .. }
            | Self::NodeFailed
            | Self::NodeTimeout
            | Self::MeteringUnavailable
            | Self::Draining
            | Self::Internal => self.server_answer(),
            _ => self.body_answer(),
        }
    }

    fn address_answer(&self) -> Answer {
        match self {
            Self::WrongMethod { method, path, allowed } => Answer {
                allow: Some(allowed),
                ..Answer::new(
                    StatusCode::METHOD_NOT_ALLOWED,
                    INVALID,
                    "method_not_supported",
                    format!("Not allowed to {method} on {path}. Use {allowed}."),
                )
            },
            Self::UnknownUrl { method, path } => {
                Answer::new(StatusCode::NOT_FOUND, INVALID, "unknown_url", format!("Invalid URL ({method} {path})"))
            }
            _ => Self::internal(),
        }
    }

    fn key_answer(&self) -> Answer {
        let unauthorized = |code, message| Answer::new(StatusCode::UNAUTHORIZED, INVALID, code, message);
        match self {
            Self::MissingKey => unauthorized(
                "missing_api_key",
                Cow::Borrowed(
                    "You didn't provide an API key. Send it in an Authorization header using Bearer auth \
                     (Authorization: Bearer YOUR_KEY).",
                ),
            ),
            Self::UnknownKey { shown } => {
                unauthorized("invalid_api_key", Cow::Owned(format!("Incorrect API key provided: {shown}.")))
            }
            Self::KeyDisabled => unauthorized("api_key_disabled", Cow::Borrowed("This API key has been disabled.")),
            _ => unauthorized("api_key_expired", Cow::Borrowed("This API key has expired.")),
        }
    }

    fn permission_answer(&self) -> Answer {
        match self {
            Self::MissingPermission { permission } => Answer::new(
                StatusCode::FORBIDDEN,
                INVALID,
                "missing_permission",
                format!("You have insufficient permissions for this operation. Missing permission: {permission}."),
            ),
            Self::ModelNotAllowed { model } => Answer::new(
                StatusCode::FORBIDDEN,
                INVALID,
                "model_not_allowed",
                format!("This API key does not have access to the model `{model}`."),
            )
            .param("model"),
            Self::UnknownModel { model } => Answer::new(
                StatusCode::NOT_FOUND,
                INVALID,
                "model_not_found",
                format!("The model `{model}` does not exist or you do not have access to it."),
            )
            .param("model"),
            _ => Self::internal(),
        }
    }

    fn body_answer(&self) -> Answer {
        let bad = |code, message| Answer::new(StatusCode::BAD_REQUEST, INVALID, code, message);
        match self {
            Self::BodyTooLarge { limit } => Answer::new(
                StatusCode::PAYLOAD_TOO_LARGE,
                INVALID,
                "request_too_large",
                format!("The request body is larger than the limit of {limit} bytes."),
            ),
            Self::BodyTooSlow => Answer::new(
                StatusCode::REQUEST_TIMEOUT,
                INVALID,
                "request_timeout",
                "The request body did not arrive in time.",
            ),
            Self::InvalidJson { reason } => bad(
                "invalid_json",
                format!("We could not parse the JSON body of your request. Expected a JSON object: {reason}."),
            ),
            Self::InvalidParameter { name, reason } => {
                bad("invalid_value", format!("Invalid value for `{name}`: {reason}.")).param(name)
            }
            Self::MissingParameter { name } => {
                bad("missing_required_parameter", format!("You must provide the `{name}` parameter.")).param(name)
            }
            _ => bad("unreadable_body", "The request body could not be read.".to_owned()),
        }
    }

    fn server_answer(&self) -> Answer {
        let unavailable =
            |code, message: String| Answer::new(StatusCode::SERVICE_UNAVAILABLE, SERVER, code, message).retry_after(1);
        match self {
            Self::Maintenance { message, retry_after_s } => {
                unavailable("model_maintenance", message.clone()).retry_after(*retry_after_s)
            }
            Self::NoVersion { model } => {
                unavailable("model_not_deployed", format!("The model `{model}` has no active version at the moment."))
            }
            Self::NoNode { model } => unavailable(
                "no_available_node",
                format!("No node can take a request for the model `{model}` at the moment. Please retry."),
            ),
            Self::NodeFailed => Answer::new(
                StatusCode::BAD_GATEWAY,
                SERVER,
                "node_failed",
                "The node that worked on this request failed. Please retry.",
            ),
            Self::NodeTimeout => Answer::new(
                StatusCode::GATEWAY_TIMEOUT,
                SERVER,
                "node_timeout",
                "The node that worked on this request did not answer in time.",
            ),
            Self::MeteringUnavailable => unavailable(
                "metering_unavailable",
                "Usage cannot be recorded at the moment, so no request is taken. Please retry.".to_owned(),
            ),
            Self::Draining => unavailable("edge_draining", "This edge is shutting down. Please retry.".to_owned()),
            _ => Self::internal(),
        }
    }

    fn internal() -> Answer {
        Answer::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            SERVER,
            "internal_error",
            "The edge failed. This is a bug in Turnpike.",
        )
    }
}

fn limit_answer(refused: &Refused) -> Answer {
    match refused {
        Refused::Over { kind: Kind::Spend, subject, .. } => Answer::new(
            StatusCode::TOO_MANY_REQUESTS,
            limit_names(Kind::Spend).0,
            "insufficient_quota",
            format!(
                "You exceeded your current quota: the monthly budget of {subject} does not cover this request. \
                     Please check your plan and billing details."
            ),
        ),
        Refused::Over { kind, subject, allowed, retry_after_ms } => {
            let (name, unit) = limit_names(*kind);
            let seconds = std::time::Duration::from_millis(*retry_after_ms).as_secs_f64();
            let message = format!(
                "Rate limit reached for {subject} on {unit}: Limit {allowed}. Please try again in {seconds:.3}s."
            );
            Answer::new(StatusCode::TOO_MANY_REQUESTS, name, "rate_limit_exceeded", message)
                .retry_after(retry_after_ms.div_ceil(1000).max(1))
        }
        Refused::Unsure { subject, retry_after_ms } => Answer::new(
            StatusCode::TOO_MANY_REQUESTS,
            "requests",
            "rate_limit_exceeded",
            format!(
                "What is left of the monthly budget of {subject} is reserved by running requests, or still being added \
                 up. Please try again in {}s.",
                retry_after_ms.div_ceil(1000)
            ),
        )
        .retry_after(retry_after_ms.div_ceil(1000).max(1)),
        Refused::TooLarge { subject, allowed, wanted } => Answer::new(
            StatusCode::TOO_MANY_REQUESTS,
            "tokens",
            "rate_limit_exceeded",
            format!(
                "Request too large for {subject}: it asks for up to {wanted} tokens and the limit is {allowed} \
                     tokens per min (TPM). Shorten the prompt or lower max_tokens."
            ),
        ),
    }
}

impl From<Refused> for Reject {
    fn from(refused: Refused) -> Self {
        Self::Limit(refused)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_are_those_the_sdk_maps_to_its_exceptions() {
        let status = |reject: Reject| reject.answer().status.as_u16();
        assert_eq!(status(Reject::MissingKey), 401);
        assert_eq!(status(Reject::MissingPermission { permission: "inference" }), 403);
        assert_eq!(status(Reject::ModelNotAllowed { model: "m".into() }), 403);
        assert_eq!(status(Reject::UnknownModel { model: "m".into() }), 404);
        assert_eq!(status(Reject::InvalidJson { reason: "x".into() }), 400);
        assert_eq!(status(Reject::BodyTooLarge { limit: 1 }), 413);
        assert_eq!(status(Reject::NoNode { model: "m".into() }), 503);
    }

    #[test]
    fn a_limit_says_which_whose_and_when() {
        let reject =
            |kind| Reject::from(Refused::Over { kind, subject: "API key 7".into(), allowed: 3, retry_after_ms: 1200 });
        let answer = reject(Kind::Requests).answer();
        assert_eq!((answer.status.as_u16(), answer.retry_after_s), (429, Some(2)));
        let body = String::from_utf8(answer.body()).unwrap();
        for part in ["rate_limit_exceeded", "Limit 3", "1.200s", "API key 7", "RPM"] {
            assert!(body.contains(part), "{part} is not in {body}");
        }
        // Waiting does not help against an empty account, so no time is named.
        let answer = reject(Kind::Spend).answer();
        assert_eq!((answer.code, answer.retry_after_s), ("insufficient_quota", None));
    }
}
