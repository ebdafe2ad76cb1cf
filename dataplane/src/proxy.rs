//! Pingora's phases, each handing over to the stage that belongs there.

use crate::admit::{Admitted, admit};
use crate::assign::assign;
use crate::edge::Edge;
use crate::reject::Reject;
use crate::request::{Request, own_request_id, unix_ms};
use crate::{body_swap, ingress, meter, respond, rewrite};
use async_trait::async_trait;
use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::modules::http::HttpModules;
use pingora::prelude::HttpPeer;
use pingora::proxy::{FailToProxy, ProxyHttp, ProxyWarnLogContext, Session};
use pingora::{Error, ErrorSource, ErrorType, Result, RetryType};
use std::sync::Arc;
use std::time::{Duration, Instant};
use turnpike_config::{Tap, crash_point, headers};
use uuid::Uuid;

const NO_NODE: ErrorType = ErrorType::Custom("no node");
const NODE_BUSY: ErrorType = ErrorType::Custom("node busy");

/// The edge as Pingora sees it.
pub(crate) struct Proxy {
    pub(crate) edge: Arc<Edge>,
}

#[async_trait]
impl ProxyHttp for Proxy {
    type CTX = Request;

    fn new_ctx(&self) -> Request {
        Request::begin(&self.edge)
    }

    fn init_downstream_modules(&self, _modules: &mut HttpModules) {
        // None: compressing token streams costs more than it saves, and delays them.
    }

    async fn request_filter(&self, session: &mut Session, request: &mut Request) -> Result<bool> {
        match admit(&self.edge, session, request).await {
            Ok(Admitted::Dispatch) => Ok(false),
            Ok(Admitted::Answered) => Ok(true),
            Err(reject) => {
                ingress::discard_body(session).await;
                let written = respond::reject(session, request, &reject, self.edge.now_ns()).await;
                request.reject = Some(reject);
                written.map(|()| true).map_err(|e| e.into_down())
            }
        }
    }

    async fn upstream_peer(&self, _session: &mut Session, request: &mut Request) -> Result<Box<HttpPeer>> {
        assign(&self.edge, request).await.map_err(|reject| {
            request.reject = Some(reject);
            Error::new(NO_NODE)
        })
    }

    async fn upstream_request_filter(
        &self,
        _session: &mut Session,
        head: &mut RequestHeader,
        request: &mut Request,
    ) -> Result<()> {
        let Some(metered) = &mut request.metered else { return Err(Error::new(ErrorType::InternalError)) };
        let is_public = metered.cache_policy().public;
        let version = metered.deployment.as_ref().map_or("", |deployment| &deployment.version);
        let (Some(dispatch), Some(model)) = (&mut metered.dispatch, &metered.model) else {
            return Err(Error::new(ErrorType::InternalError));
        };
        if let Some(intended) = dispatch.intended.take() {
            // Written before the node is asked; synced while it works.
            body_swap::recorded(intended).await?;
            crash_point("edge.after_intent");
        }
        dispatch.sent_at.get_or_insert_with(Instant::now);
        let node = dispatch.assignment.as_ref().map(|assignment| &assignment.node);
        // Engines make an answer's id of this one: what other organizations may get does not have the client's own.
        let shared = dispatch.fill.is_some() && is_public;
        let own_id = shared.then(|| own_request_id(request.id));
        let host = node.map_or("node", |node| node.tls_name.as_deref().unwrap_or(&node.name));
        let mut event = Uuid::encode_buffer();
        rewrite::head(
            head,
            &rewrite::Forwarded {
                request_id: own_id.as_deref().unwrap_or(&request.request_id),
                model: &model.record.id,
                version,
                body_length: dispatch.body.len(),
                host,
                event: request.id.0.hyphenated().encode_lower(&mut event),
                prompt_estimate: dispatch.prompt_estimate,
            },
        )
    }

    async fn upstream_response_filter(
        &self,
        _session: &mut Session,
        head: &mut ResponseHeader,
        request: &mut Request,
    ) -> Result<()> {
        let Some(dispatch) = request.dispatch() else { return Ok(()) };
        if head.headers.contains_key(headers::RETRYABLE) {
            return Err(Error::new_up(NODE_BUSY));
        }
        if let Some(assignment) = &dispatch.assignment {
            assignment.node.live.answered();
        }
        dispatch.node_status = head.status.as_u16();
        dispatch.swapped.has_begun();
        crash_point("edge.after_dispatch");
        let prompt = head.headers.get(headers::PROMPT_TOKENS).and_then(|value| value.to_str().ok()?.parse().ok());
        dispatch.prompt_estimate = prompt.unwrap_or(dispatch.prompt_estimate);
        Ok(())
    }

    async fn response_filter(
        &self,
        _session: &mut Session,
        head: &mut ResponseHeader,
        request: &mut Request,
    ) -> Result<()> {
        for name in ["server", headers::PROMPT_TOKENS, headers::RETRYABLE] {
            head.remove_header(name);
        }
        head.insert_header(headers::REQUEST_ID, &request.request_id)?;
        respond::tell(head, request, self.edge.now_ns())?;
        let Some(metered) = &mut request.metered else { return Ok(()) };
        let wants_usage = metered.ask.as_ref().is_some_and(|ask| ask.include_usage);
        let Some(dispatch) = &mut metered.dispatch else { return Ok(()) };
        dispatch.fill.take_if(|fill| !fill.begin(head));
        let content_type = head.headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        if content_type.starts_with("text/event-stream") {
            dispatch.tap = Some(Tap::stream(!wants_usage));
            if head.remove_header(&CONTENT_LENGTH).is_some() {
                // The tap may shorten the stream.
                head.insert_header(http::header::TRANSFER_ENCODING, "chunked")?;
            }
        } else if head.status.is_success() {
            dispatch.tap = Some(Tap::json());
        }
        Ok(())
    }

    fn response_body_filter(
        &self,
        session: &mut Session,
        body: &mut Option<Bytes>,
        end_of_stream: bool,
        request: &mut Request,
    ) -> Result<Option<Duration>> {
        let Some(dispatch) = request.dispatch() else { return Ok(None) };
        if body.as_ref().is_some_and(|bytes| !bytes.is_empty()) {
            dispatch.first_byte_at.get_or_insert_with(Instant::now);
            crash_point("edge.mid_stream");
        }
        if let Some(piece) = body {
            dispatch.fill.take_if(|fill| !fill.take(piece));
        }
        if let Some(tap) = &mut dispatch.tap {
            *body = tap.pass(body.take(), end_of_stream);
        }
        dispatch.passed_bytes += body.as_ref().map_or(0, Bytes::len);
        if end_of_stream && let Some(fill) = dispatch.fill.take() {
            let usage = dispatch.tap.as_ref().and_then(Tap::usage);
            // What was purged meanwhile was asked for too early.
            let purged = self.edge.snapshot.load().purged_at_ms(fill.key());
            fill.finish(usage, &self.edge.cache, purged, unix_ms());
        }
        // A client may leave at `[DONE]`: that is the end for it, whatever follows.
        let is_done = dispatch.tap.as_ref().is_some_and(|tap| matches!(tap, Tap::Stream(_)) && tap.is_complete());
        if end_of_stream || is_done {
            let swapped = dispatch.swapped.clone();
            // What is on its way to the client counts, unless he has left.
            let on_its_way = dispatch.passed_bytes.saturating_sub(session.body_bytes_sent());
            let unsent = if swapped.client_left() { 0 } else { on_its_way };
            if let Some(written) = meter::conclude(&self.edge, session, request, unsent, None) {
                swapped.hold_end_for(written);
            }
        }
        Ok(None)
    }

    fn fail_to_connect(
        &self,
        session: &mut Session,
        _peer: &HttpPeer,
        request: &mut Request,
        error: Box<Error>,
    ) -> Box<Error> {
        self.node_failed(session, request, error)
    }

    fn error_while_proxy(
        &self,
        _peer: &HttpPeer,
        session: &mut Session,
        error: Box<Error>,
        request: &mut Request,
        _client_reused: bool,
    ) -> Box<Error> {
        self.node_failed(session, request, error)
    }

    async fn fail_to_proxy(&self, session: &mut Session, error: &Error, request: &mut Request) -> FailToProxy {
        let ended = FailToProxy { error_code: 0, can_reuse_downstream: false };
        if matches!(error.esource(), ErrorSource::Downstream) {
            return ended;
        }
        let reject = request.reject.take().unwrap_or_else(|| reason(error));
        let answer = reject.answer();
        let streams = request.dispatch().is_some_and(|d| matches!(d.tap, Some(Tap::Stream(_))));
        let written = if session.response_written().is_none() {
            // Its connection is closed afterwards, and must not look as if another request could be sent on it.
            if let Some(dispatch) = request.dispatch() {
                body_swap::take_out(session, &dispatch.swapped);
            }
            session.set_keepalive(None);
            respond::reject(session, request, &reject, self.edge.now_ns()).await
        } else if streams {
            respond::stream_error(session, &answer).await
        } else {
            // A JSON answer that breaks off: closing the connection is the only way left to say so.
            Ok(())
        };
        if let Err(error) = written {
            tracing::debug!(%error, "the client left before it could be told of a failure");
        }
        request.reject = Some(reject);
        FailToProxy { error_code: answer.status.as_u16(), ..ended }
    }

    fn suppress_error_log(&self, _session: &Session, _request: &Request, _error: &Error) -> bool {
        // The outcome is logged once, by the meter.
        true
    }

    fn suppress_proxy_warn_log(
        &self,
        _session: &Session,
        _request: &Request,
        _error: &Error,
        _context: ProxyWarnLogContext,
    ) -> bool {
        // A failed try is logged where the next one is decided on.
        true
    }

    async fn logging(&self, session: &mut Session, error: Option<&Error>, request: &mut Request) {
        if let Some(dispatch) = request.dispatch() {
            let swapped = dispatch.swapped.clone();
            dispatch.assignment = None;
            // A client that left, or was left behind, has not had everything. With its session goes its connection, so that it
            // does not look as if it had.
            if !swapped.client_left() {
                body_swap::take_out(session, &swapped);
            }
        }
        if request.metered.is_none() {
            self.edge.metrics.unmetered.inc();
        }
        // Unless its answer was complete, the request ends here.
        drop(meter::conclude(&self.edge, session, request, 0, error));
    }
}

impl Proxy {
    /// Decides on another try: only while nothing has reached the client, and never after a timeout, since the work may
    /// still be going on; unless a route says that another node is to be tried all the same.
    fn node_failed(&self, session: &Session, request: &mut Request, mut error: Box<Error>) -> Box<Error> {
        let (late_end, late) = (error.etype() == &body_swap::LATE_END, error.etype() == &body_swap::LATE_FIRST_BYTE);
        if late_end || late {
            // Told by the client's session, and not its fault.
            error.as_up();
        }
        let by_node = !matches!(error.esource(), ErrorSource::Downstream) && error.etype() != &body_swap::NOT_RECORDED;
        let timed_out = matches!(error.etype(), ErrorType::ReadTimedout);
        let busy = error.etype() == &NODE_BUSY;
        // A head that came was passed on to those who listen, also if this client has left before.
        let has_begun = session.response_written().is_some() || request.dispatch().is_some_and(|d| d.node_status != 0);
        let may_retry = by_node && !timed_out && !late_end && !has_begun;
        if let Some(dispatch) = request.dispatch() {
            dispatch.was_late = late;
        }
        error.retry = RetryType::Decided(may_retry);
        let assignment = request.dispatch().and_then(|dispatch| dispatch.assignment.as_ref());
        if let Some(assignment) = assignment.filter(|_| by_node && !busy && !late_end) {
            tracing::warn!(node = %assignment.node.name, %error, "node failed");
            assignment.node.live.failed(self.edge.now_ns());
        }
        error
    }
}

/// What an error means to the client when no stage has said so.
fn reason(error: &Error) -> Reject {
    match error.etype() {
        ErrorType::ReadTimedout | ErrorType::WriteTimedout | &body_swap::LATE_FIRST_BYTE | &body_swap::LATE_END => {
            Reject::NodeTimeout
        }
        ErrorType::InternalError => Reject::Internal,
        &body_swap::NOT_RECORDED => Reject::MeteringUnavailable,
        _ => Reject::NodeFailed,
    }
}
