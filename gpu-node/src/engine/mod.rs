//! What the agent asks of an inference engine, whichever it is.
//!
//! An engine answers OpenAI-shaped requests with OpenAI-shaped responses and says how busy it is. The agent in front of
//! it keeps the queue, the drain and the reports, so an engine does none of these.

pub(crate) mod adapters;
pub(crate) mod metrics_text;
pub(crate) mod remote;

use async_trait::async_trait;
use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use turnpike_config::Endpoint;

/// A response body as it travels through the agent: whole or streamed. Dropping it before its end means that the
/// client left, and must stop the generation behind it.
pub(crate) type Body = UnsyncBoxBody<Bytes, std::io::Error>;

/// One request, already admitted by the agent: a slot is free for it.
#[derive(Clone, Debug)]
pub(crate) struct EngineRequest {
    /// What kind of work.
    pub(crate) endpoint: Endpoint,
    /// Model id as the edge resolved it; one of the node's own `serves`.
    pub(crate) model: String,
    /// Version of that model.
    pub(crate) version: String,
    /// The client's JSON body, at most `http.max_body_bytes` long, not yet parsed.
    pub(crate) body: Bytes,
    /// The edge's `x-request-id`, for logs and for the engine's own logs.
    pub(crate) request_id: String,
}

/// How busy an engine is; `None` where it does not say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct EngineLoad {
    /// Requests it works on.
    pub(crate) running: Option<u32>,
    /// Requests that wait inside it.
    pub(crate) waiting: Option<u32>,
    /// KV-cache use, 0 to 1000 thousandths.
    pub(crate) kv_cache_permille: Option<u16>,
    /// Tokens generated since the engine started; falls only when it restarts.
    pub(crate) generated_tokens: Option<u64>,
}

/// Why an engine did not answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EngineError {
    /// The request itself is wrong: 400, never retried.
    #[error("{message}")]
    BadRequest {
        /// For the client.
        message: String,
        /// Name of the request's field at fault.
        param: Option<String>,
        /// OpenAI error code, such as `context_length_exceeded`.
        code: Option<&'static str>,
    },
    /// Nothing was done with the request: 503, another node may take it.
    #[error("the engine cannot take the request: {0}")]
    Unavailable(String),
    /// The engine was silent for longer than its idle timeout: 504.
    #[error("the engine did not answer within {0:?}")]
    Timeout(std::time::Duration),
    /// The engine failed while it worked on the request: 502.
    #[error("the engine failed: {0}")]
    Failed(String),
}

impl EngineError {
    /// A mistake in one field of the request.
    pub(crate) fn invalid(param: &str, message: impl Into<String>) -> Self {
        Self::BadRequest { message: message.into(), param: Some(param.to_owned()), code: None }
    }

    /// A field, or a value of it, that this engine does not know how to honour.
    pub(crate) fn unsupported(param: &str, message: impl Into<String>) -> Self {
        Self::BadRequest { message: message.into(), param: Some(param.to_owned()), code: Some("unsupported_parameter") }
    }
}

/// An inference engine.
#[async_trait]
pub(crate) trait Engine: Send + Sync {
    /// Answers one request. Returns as soon as the response's head is known; a stream goes on in its body. An HTTP
    /// engine's own error responses come back as `Ok`, status and all.
    ///
    /// # Errors
    /// When there is no response to pass on; see [`EngineError`] for what each means.
    async fn serve(&self, request: EngineRequest) -> Result<http::Response<Body>, EngineError>;

    /// Whether the engine works and how busy it is. Called once a second or so, never twice at once, and given up
    /// after a deadline.
    ///
    /// # Errors
    /// When the engine is not fit to take requests.
    async fn observe(&self) -> Result<EngineLoad, EngineError>;

    /// Its name, as reported to the control plane: `builtin`, `vllm`, …
    fn kind(&self) -> &'static str;
}
