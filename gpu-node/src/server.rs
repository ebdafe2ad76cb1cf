//! The front for edges: takes a request, queues it, hands it to the engine and watches the answer go out.

use crate::account;
use crate::engine::{Body, Engine, EngineError, EngineRequest};
use crate::ledger::{Ledger, Recording, Unrecorded};
use crate::listener::{self, Handler};
use crate::metrics::{Metrics, Outcome};
use crate::openai::{ErrorBody, json_response};
use crate::queue::{Queue, Refusal, Slot};
use crate::status::Status;
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body::{Body as HttpBody, Frame, SizeHint};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use hyper::body::Incoming;
use serde::{Deserialize, Serialize};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};
use turnpike_config::link::{Peer, Role};
use turnpike_config::records::Served;
use turnpike_config::wire::LedgerState;
use turnpike_config::{Endpoint, EventId, Tokens, headers};
use uuid::Uuid;

/// For a request's whole body.
const BODY_DEADLINE: Duration = Duration::from_secs(60);
/// For the rest of a body that nobody wants: an answer sent before the peer has finished writing would be lost to it.
const DISCARD_DEADLINE: Duration = Duration::from_secs(5);
/// Where an edge asks what the ledger knows of an event; its UUID comes after it.
const LEDGER_PATH: &str = "/turnpike/ledger/";
/// A request id longer than this is replaced.
const MAX_REQUEST_ID: usize = 128;

const REQUEST_ID: HeaderName = HeaderName::from_static(headers::REQUEST_ID);
const MODEL: HeaderName = HeaderName::from_static(headers::MODEL);
const MODEL_VERSION: HeaderName = HeaderName::from_static(headers::MODEL_VERSION);
const RETRYABLE: HeaderName = HeaderName::from_static(headers::RETRYABLE);

/// What a request goes through.
pub(crate) struct Front {
    pub(crate) engine: Arc<dyn Engine>,
    pub(crate) ledger: Arc<Ledger>,
    pub(crate) queue: Arc<Queue>,
    pub(crate) status: Arc<Status>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) serves: Vec<Served>,
    pub(crate) max_body_bytes: usize,
}

/// A request that gets no answer from the engine.
struct Refused {
    outcome: Outcome,
    error: ErrorBody,
    retryable: bool,
}

impl Handler for Front {
    async fn handle(self: Arc<Self>, request: Request<Incoming>, peer: Option<&Peer>) -> Response<Body> {
        if let Some(stranger) = peer.filter(|peer| peer.role != Role::Edge) {
            tracing::warn!(role = ?stranger.role, name = %stranger.name, "a peer that is no edge was refused");
            let message = format!("this port serves edges; your certificate names «{}», which is none", stranger.name);
            return ErrorBody::new(StatusCode::FORBIDDEN, "permission_error", "peer_not_edge", message).into_response();
        }
        if request.uri().path() == "/livez" {
            return listener::text(StatusCode::OK, "ok\n");
        }
        if let Some(event) = request.uri().path().strip_prefix(LEDGER_PATH) {
            return self.look_up(request.method(), event).await;
        }
        let Some(endpoint) = Endpoint::from_path(request.uri().path()) else {
            let message = format!("there is nothing at {}", request.uri().path());
            return ErrorBody::new(StatusCode::NOT_FOUND, "invalid_request_error", "unknown_url", message)
                .into_response();
        };
        if request.method() != Method::POST {
            return only(endpoint.path(), "POST");
        }
        self.infer(endpoint, request).await
    }
}

/// What the ledger knows of an event.
#[derive(Serialize)]
struct Known {
    state: LedgerState,
    tokens: Tokens,
}

impl Front {
    async fn look_up(&self, method: &Method, event: &str) -> Response<Body> {
        if method != Method::GET {
            return only(LEDGER_PATH, "GET");
        }
        let refuse = |status, kind, code, message| ErrorBody::new(status, kind, code, message).into_response();
        let Ok(event) = event.parse() else {
            let message = format!("expected the UUID of an event after {LEDGER_PATH}");
            return refuse(StatusCode::BAD_REQUEST, "invalid_request_error", "invalid_event", message);
        };
        match self.ledger.find(EventId(event)).await {
            Ok(Some(found)) => json_response(StatusCode::OK, &Known { state: found.state, tokens: found.tokens }),
            Ok(None) => {
                let message = format!("this node's ledger does not know the event {event}");
                refuse(StatusCode::NOT_FOUND, "invalid_request_error", "unknown_event", message)
            }
            Err(error) => {
                tracing::error!(%error, "the ledger cannot be read");
                let message = format!("this node's ledger cannot be read: {error}");
                refuse(StatusCode::INTERNAL_SERVER_ERROR, "server_error", "ledger_unreadable", message)
            }
        }
    }

    async fn infer(&self, endpoint: Endpoint, request: Request<Incoming>) -> Response<Body> {
        let id = request_id(request.headers());
        let mut ending = Ending {
            endpoint,
            outcome: Outcome::BrokenOff,
            slot_since: None,
            status: Arc::clone(&self.status),
            metrics: Arc::clone(&self.metrics),
        };
        let mut response = match self.answer(endpoint, request, &id, &mut ending).await {
            Ok((response, slot)) => response.map(|body| Watched { body, ending, _slot: slot }.boxed_unsync()),
            Err(refused) => {
                ending.outcome = refused.outcome;
                refused.log(&id);
                refused.into_response()
            }
        };
        if let Ok(id) = HeaderValue::from_str(&id) {
            response.headers_mut().insert(REQUEST_ID, id);
        }
        response
    }

    async fn answer(
        &self,
        endpoint: Endpoint,
        request: Request<Incoming>,
        id: &str,
        ending: &mut Ending,
    ) -> Result<(Response<Body>, Slot), Refused> {
        let (head, body) = request.into_parts();
        let event = event_of(&head.headers)?;
        let ticket = match self.queue.enter() {
            Ok(ticket) => ticket,
            Err(refusal) => {
                discard(body, self.max_body_bytes).await;
                return Err(refusal.into());
            }
        };
        let body = read(body, self.max_body_bytes).await?;
        let Served { model, version } = self.served(&head.headers, &body)?.clone();
        let arrived = Instant::now();
        let slot = self.queue.admit(ticket).await?;
        self.metrics.waited(arrived.elapsed());
        ending.slot_since = Some(Instant::now());
        let mut recording = self.begin(event).await?;
        let estimate = account::number(&head.headers, headers::PROMPT_ESTIMATE).unwrap_or(0);
        if let Some(recording) = &mut recording {
            recording.hand_over(estimate);
        }
        let request = EngineRequest { endpoint, model, version, body, request_id: id.to_owned() };
        tracing::debug!(request_id = id, model = request.model, version = request.version, "to the engine");
        let answered = self.engine.serve(request).await;
        let response = match (answered, recording) {
            (Ok(response), Some(recording)) => account::record(response, recording, estimate).await,
            (Ok(response), None) => response,
            (Err(error), recording) => {
                if let Some(recording) = recording {
                    account::refuse(recording).await;
                }
                return Err(error.into());
            }
        };
        Ok((response, slot))
    }

    /// Records the request as begun; one without an event is nobody's to bill.
    async fn begin(&self, event: Option<EventId>) -> Result<Option<Recording>, Refused> {
        match event {
            Some(event) => Ok(Some(self.ledger.begin(event).await?)),
            None => Ok(None),
        }
    }

    /// Which of the node's models is meant: the headers say it, or for a caller that is no edge the body.
    fn served(&self, headers: &HeaderMap, body: &[u8]) -> Result<&Served, Refused> {
        let header = |name| headers.get(name).and_then(|value| value.to_str().ok());
        let named_in_body;
        let model = match header(MODEL) {
            Some(model) => model,
            None => {
                named_in_body = model_in(body)?;
                &named_in_body
            }
        };
        let version = header(MODEL_VERSION);
        let fits = |served: &&Served| served.model == model && version.is_none_or(|version| served.version == version);
        self.serves.iter().find(fits).ok_or_else(|| {
            let version = version.map(|version| format!("@{version}")).unwrap_or_default();
            let message = format!("this node does not serve the model «{model}{version}»");
            // Another node may: the edge's view of this one is out of date.
            Refused { retryable: true, ..Refused::rejected(StatusCode::NOT_FOUND, "model_not_found", message) }
        })
    }
}

impl Refused {
    fn rejected(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        let error = ErrorBody::new(status, "invalid_request_error", code, message);
        Self { outcome: Outcome::Rejected, error, retryable: false }
    }

    /// What is wrong with a request may quote it, so it is for the client's eyes only.
    fn log(&self, request_id: &str) {
        match self.outcome {
            Outcome::EngineFailed => {
                tracing::warn!(request_id, reason = %self.error.message, "the engine gave no answer")
            }
            outcome => tracing::debug!(request_id, ?outcome, status = self.error.status.as_u16(), "refused"),
        }
    }

    fn into_response(self) -> Response<Body> {
        let mut response = self.error.into_response();
        if self.retryable {
            response.headers_mut().insert(RETRYABLE, HeaderValue::from_static("1"));
        }
        if response.status() == StatusCode::SERVICE_UNAVAILABLE {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}

impl From<Refusal> for Refused {
    fn from(refusal: Refusal) -> Self {
        let (outcome, code) = match refusal {
            Refusal::Full => (Outcome::QueueFull, "node_overloaded"),
            Refusal::Deadline(_) => (Outcome::QueueDeadline, "node_overloaded"),
            Refusal::Closed => (Outcome::Draining, "node_draining"),
        };
        let error = ErrorBody::new(StatusCode::SERVICE_UNAVAILABLE, "server_error", code, refusal.to_string());
        Self { outcome, error, retryable: true }
    }
}

impl From<Unrecorded> for Refused {
    fn from(error: Unrecorded) -> Self {
        let (kind, code) = ("server_error", "node_ledger_unwritable");
        let error = ErrorBody::new(StatusCode::SERVICE_UNAVAILABLE, kind, code, error.to_string());
        Self { outcome: Outcome::Unrecorded, error, retryable: true }
    }
}

impl From<EngineError> for Refused {
    fn from(error: EngineError) -> Self {
        // An engine that broke down has shown nobody its answer, so another may try; one that was silent for minutes
        // has used up the client's patience, and a bad request is bad everywhere.
        let retryable = matches!(error, EngineError::Unavailable(_) | EngineError::Failed(_));
        let outcome = match error {
            EngineError::BadRequest { .. } => Outcome::Rejected,
            _ => Outcome::EngineFailed,
        };
        Self { outcome, error: error.into(), retryable }
    }
}

async fn read(body: Incoming, limit: usize) -> Result<Bytes, Refused> {
    match tokio::time::timeout(BODY_DEADLINE, Limited::new(body, limit).collect()).await {
        Ok(Ok(collected)) => Ok(collected.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => {
            let message = format!("the request's body is longer than {limit} bytes");
            Err(Refused::rejected(StatusCode::PAYLOAD_TOO_LARGE, "request_too_large", message))
        }
        Ok(Err(error)) => {
            let message = format!("the request's body broke off: {error}");
            Err(Refused::rejected(StatusCode::BAD_REQUEST, "bad_body", message))
        }
        Err(_elapsed) => {
            let message = format!("the request's body took longer than {BODY_DEADLINE:?}");
            Err(Refused::rejected(StatusCode::REQUEST_TIMEOUT, "request_timeout", message))
        }
    }
}

/// Reads a body to its end and keeps nothing of it.
async fn discard(body: Incoming, limit: usize) {
    let mut body = Limited::new(body, limit);
    let all = async { while let Some(Ok(_)) = body.frame().await {} };
    // A peer that is still writing after this loses the answer.
    let _ = tokio::time::timeout(DISCARD_DEADLINE, all).await;
}

/// The refusal of every other method.
fn only(path: &str, method: &'static str) -> Response<Body> {
    let message = format!("{path} takes {method} only");
    let mut response =
        ErrorBody::new(StatusCode::METHOD_NOT_ALLOWED, "invalid_request_error", "method_not_allowed", message)
            .into_response();
    response.headers_mut().insert(header::ALLOW, HeaderValue::from_static(method));
    response
}

/// The usage event that an edge makes of the request; `None` if the caller is no edge.
fn event_of(headers: &HeaderMap) -> Result<Option<EventId>, Refused> {
    let Some(value) = headers.get(headers::EVENT) else { return Ok(None) };
    let event = value.to_str().ok().and_then(|text| text.parse::<Uuid>().ok());
    event.map(|event| Some(EventId(event))).ok_or_else(|| {
        let message = format!("{}: expected a UUID", headers::EVENT);
        Refused::rejected(StatusCode::BAD_REQUEST, "invalid_event", message)
    })
}

fn model_in(body: &[u8]) -> Result<String, Refused> {
    #[derive(Deserialize)]
    struct Named {
        model: String,
    }
    let named: Named = serde_json::from_slice(body).map_err(|error| {
        let message = format!("the request must be a JSON object with a model: {error}");
        Refused::rejected(StatusCode::BAD_REQUEST, "invalid_json", message)
    })?;
    Ok(named.model)
}

fn request_id(headers: &HeaderMap) -> String {
    let sent = headers.get(REQUEST_ID).and_then(|value| value.to_str().ok());
    sent.filter(|id| !id.is_empty() && id.len() <= MAX_REQUEST_ID)
        .map_or_else(|| uuid::Uuid::new_v4().to_string(), str::to_owned)
}

/// Notes how a request ended, also when its handler is dropped because the edge has left.
struct Ending {
    endpoint: Endpoint,
    outcome: Outcome,
    slot_since: Option<Instant>,
    status: Arc<Status>,
    metrics: Arc<Metrics>,
}

impl Drop for Ending {
    fn drop(&mut self) {
        self.metrics.ended(self.endpoint, self.outcome);
        if let Some(since) = self.slot_since {
            self.metrics.took(since.elapsed());
        }
        if self.outcome == Outcome::Answered {
            self.status.completed();
        }
    }
}

/// An answer on its way out, holding its slot. Dropped at its end, or before it when the edge has left.
struct Watched {
    body: Body,
    ending: Ending,
    _slot: Slot,
}

impl HttpBody for Watched {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, std::io::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(context));
        // A body of known length may never be asked for the frame after its last.
        if frame.is_none() || self.body.is_end_stream() {
            self.ending.outcome = Outcome::Answered;
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
