//! Asks nodes until one answers, and passes the answer on as it comes.

use crate::assign::{Try, assign};
use crate::client::Client;
use crate::deadlines::{Alarm, Deadlines, LATE_END, LATE_FIRST_BYTE, until};
use crate::edge::Edge;
use crate::journal::Written;
use crate::reject::Reject;
use crate::request::{Request, own_request_id, unix_ms};
use crate::respond::{CHUNKED, REQUEST_ID};
use crate::upstream::Head;
use crate::{meter, respond, rewrite};
use bytes::{Bytes, BytesMut};
use http::HeaderValue;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, SERVER, TRANSFER_ENCODING};
use pingora::protocols::http::ServerSession as Session;
use pingora::{Error, ErrorSource, ErrorType, Result};
use std::sync::Arc;
use std::time::{Duration, Instant};
use turnpike_config::{Tap, crash_point, headers};
use uuid::Uuid;

const NO_NODE: ErrorType = ErrorType::Custom("no node");
const NODE_BUSY: ErrorType = ErrorType::Custom("node busy");
const NOT_RECORDED: ErrorType = ErrorType::Custom("usage cannot be recorded");

/// How long a request, or the end of its answer, waits for its usage to be recorded; then it does not come.
const METERING_PATIENCE: Duration = Duration::from_secs(30);
/// So much of an answer is worth a write of its own, bytes.
const MUCH: usize = 16 << 10;

/// Waits until usage is recorded, within its patience.
pub(crate) async fn recorded(written: Written) -> Result<()> {
    if written.is_now() {
        return Ok(());
    }
    let late = || Error::explain(NOT_RECORDED, "usage could not be recorded in time");
    tokio::select! {
        biased;
        () = written.wait() => Ok(()),
        () = until(Instant::now() + METERING_PATIENCE) => Err(late()),
    }
}

/// Gets the answer to a request that is ready for a node. Of an error, the client has not been told.
pub(crate) async fn forward(
    edge: &Arc<Edge>,
    session: &mut Session,
    request: &mut Request,
    alarm: &mut Alarm,
) -> Result<()> {
    let audience = request.dispatch().and_then(|dispatch| dispatch.fill.as_ref()?.audience());
    let mut client = Client::new(session, audience);
    loop {
        let to = assign(edge, request).await.map_err(|reject| {
            request.reject = Some(reject);
            Error::new(NO_NODE)
        })?;
        let tried = attempt(edge, &mut client, request, &to, alarm).await;
        if let Some(dispatch) = request.dispatch() {
            dispatch.client_left = client.has_left();
        }
        match tried {
            Ok(()) => {
                client.leave().await;
                return Ok(());
            }
            Err(error) if may_retry(edge, &mut client, request, &error) => {}
            Err(error) => return Err(error),
        }
    }
}

/// One node's try.
async fn attempt(
    edge: &Arc<Edge>,
    client: &mut Client<'_>,
    request: &mut Request,
    to: &Try,
    alarm: &mut Alarm,
) -> Result<()> {
    let head = head_for_node(client.session(), request).await?;
    let dispatch = request.dispatch().ok_or_else(internal)?;
    let (body, silence) = (dispatch.body.clone(), edge.settings.limits.node_timeout);
    dispatch.sent_at.get_or_insert_with(Instant::now);
    let mut waiting = Waiting { client, alarm, deadlines: dispatch.deadlines, silence };
    let (mut node, mut head) = waiting.until(edge.nodes.ask(&to.node, to.connect, head.freeze(), body)).await?;
    crash_point("edge.after_dispatch");
    has_begun(request, &mut head)?;
    waiting.deadlines.first_byte = None;
    let is_old = client_is_old(waiting.client.session());
    let mut answer = Answer { edge, request };
    answer.begin(&mut head, is_old)?;
    let mut first = node.body_now();
    let mut head = Some(respond::head(head.status, head.headers));
    if first.is_none()
        && let Some(head) = head.take()
    {
        // Nothing comes with it that it could be written with.
        waiting.client.begin(head).await?;
    }
    loop {
        let piece = match first.take() {
            Some(piece) => piece?,
            None => waiting.until(node.body()).await?,
        };
        let piece = node.gather(piece, MUCH).await;
        let (piece, written) = answer.pass(waiting.client, piece, node.is_over());
        if let Some(written) = written {
            recorded(written).await?;
            crash_point("edge.after_final");
        }
        match head.take() {
            Some(head) => waiting.client.begin_with(head, piece, node.is_over()).await?,
            None => waiting.client.pass(piece, node.is_over()).await?,
        }
        if node.is_over() {
            edge.nodes.release(&to.node, node);
            return Ok(());
        }
    }
}

/// Waits for a node as long as somebody waits for its answer, and it is in time.
struct Waiting<'a, 'c> {
    client: &'a mut Client<'c>,
    alarm: &'a mut Alarm,
    deadlines: Deadlines,
    /// How long a node may say nothing.
    silence: Duration,
}

impl Waiting<'_, '_> {
    async fn until<T>(&mut self, node: impl Future<Output = Result<T>>) -> Result<T> {
        let (due, late) = self.deadlines.first(Instant::now() + self.silence);
        tokio::select! {
            biased;
            done = node => done,
            error = self.client.nobody_waits() => Err(error),
            () = self.alarm.until(due) => Err(Error::new_up(late)),
        }
    }
}

/// What a node is sent before the body, once it is recorded that it is asked.
async fn head_for_node(session: &Session, request: &mut Request) -> Result<BytesMut> {
    let Some(metered) = &mut request.metered else { return Err(internal()) };
    let is_public = metered.cache_policy().public;
    let (Some(dispatch), Some(model)) = (&mut metered.dispatch, &metered.model) else { return Err(internal()) };
    if let Some(intended) = dispatch.intended.take() {
        // Written before the node is asked; synced while it works.
        recorded(intended).await?;
        crash_point("edge.after_intent");
    }
    let node = dispatch.assignment.as_ref().map(|assignment| &assignment.node);
    // Engines make an answer's id of this one: what other organizations may get does not have the client's own.
    let shared = dispatch.fill.is_some() && is_public;
    let own_id = shared.then(|| own_request_id(request.id));
    let mut event = Uuid::encode_buffer();
    Ok(rewrite::head(
        session.req_header(),
        &rewrite::Forwarded {
            request_id: own_id.as_deref().unwrap_or(&request.request_id),
            model: &model.record.id,
            version: metered.deployment.as_ref().map_or("", |deployment| &deployment.version),
            body_length: dispatch.body.len(),
            host: node.map_or("node", |node| node.tls_name.as_deref().unwrap_or(&node.name)),
            event: request.id.0.hyphenated().encode_lower(&mut event),
            prompt_estimate: dispatch.prompt_estimate,
        },
    ))
}

/// Notes what the node's head says, and takes out what is for the edge alone.
fn has_begun(request: &mut Request, head: &mut Head) -> Result<()> {
    if head.headers.contains_key(headers::RETRYABLE) {
        return Err(Error::new_up(NODE_BUSY));
    }
    let dispatch = request.dispatch().ok_or_else(internal)?;
    if let Some(assignment) = &dispatch.assignment {
        assignment.node.live.answered();
    }
    dispatch.node_status = head.status.as_u16();
    let prompt = head.headers.remove(headers::PROMPT_TOKENS).and_then(|value| value.to_str().ok()?.parse().ok());
    dispatch.prompt_estimate = prompt.unwrap_or(dispatch.prompt_estimate);
    head.headers.remove(SERVER);
    Ok(())
}

/// A client that speaks HTTP/1.0 knows no chunks: for it, an answer of no known length ends with the connection.
fn client_is_old(session: &Session) -> bool {
    session.req_header().version < http::Version::HTTP_11
}

/// An answer on its way through.
struct Answer<'a> {
    edge: &'a Arc<Edge>,
    request: &'a mut Request,
}

impl Answer<'_> {
    /// Makes the node's head the client's.
    fn begin(&mut self, head: &mut Head, client_is_old: bool) -> Result<()> {
        head.headers.insert(REQUEST_ID, respond::text(self.request.request_id.clone()));
        respond::tell(&mut head.headers, self.request, self.edge.now_ns());
        let metered = self.request.metered.as_mut().ok_or_else(internal)?;
        let wants_usage = metered.ask.as_ref().is_some_and(|ask| ask.include_usage);
        let dispatch = metered.dispatch.as_mut().ok_or_else(internal)?;
        dispatch.fill.take_if(|fill| !fill.begin(head));
        let content_type = head.headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let streams = content_type.starts_with("text/event-stream");
        dispatch.tap = match (streams, head.status.is_success()) {
            (true, _) => Some(Tap::stream(!wants_usage)),
            (false, true) => Some(Tap::json()),
            (false, false) => None,
        };
        // The tap may shorten a stream.
        match head.length.filter(|_| !streams) {
            Some(length) => head.headers.insert(CONTENT_LENGTH, HeaderValue::from(length)),
            None if client_is_old => None,
            None => head.headers.insert(TRANSFER_ENCODING, CHUNKED),
        };
        Ok(())
    }

    /// What the client gets of a piece, and what must be written down before.
    fn pass(&mut self, client: &mut Client<'_>, piece: Bytes, end: bool) -> (Option<Bytes>, Option<Written>) {
        let Some(dispatch) = self.request.dispatch() else { return (None, None) };
        let mut piece = (!piece.is_empty()).then_some(piece);
        if let Some(piece) = &piece {
            dispatch.first_byte_at.get_or_insert_with(Instant::now);
            crash_point("edge.mid_stream");
            dispatch.fill.take_if(|fill| !fill.take(piece));
        }
        if let Some(tap) = &mut dispatch.tap {
            piece = tap.pass(piece, end);
        }
        dispatch.client_left = client.has_left();
        if end && let (Some(fill), Some(tap)) = (dispatch.fill.take(), &dispatch.tap) {
            // What was purged meanwhile was asked for too early.
            let purged = self.edge.snapshot.load().purged_at_ms(fill.key());
            fill.finish(tap, &self.edge.cache, purged, unix_ms());
        }
        // A client may leave at `[DONE]`: that is the end for it, whatever follows.
        let is_done = dispatch.tap.as_ref().is_some_and(|tap| matches!(tap, Tap::Stream(_)) && tap.is_complete());
        if !end && !is_done {
            return (piece, None);
        }
        // What is on its way to the client counts, unless he has left.
        let unsent = if client.has_left() { 0 } else { piece.as_ref().map_or(0, Bytes::len) };
        let written = meter::conclude(self.edge, client.session(), self.request, unsent, None);
        (piece, written)
    }
}

/// Decides on another try: only while nothing has reached the client, and never after a timeout, since the work may
/// still be going on; unless a route says that another node is to be tried all the same.
fn may_retry(edge: &Edge, client: &mut Client<'_>, request: &mut Request, error: &Error) -> bool {
    let (late_end, late) = (error.etype() == &LATE_END, error.etype() == &LATE_FIRST_BYTE);
    let by_node = matches!(error.esource(), ErrorSource::Upstream);
    let timed_out = matches!(error.etype(), ErrorType::ReadTimedout);
    let busy = error.etype() == &NODE_BUSY;
    let Some(dispatch) = request.dispatch() else { return false };
    // A head that came was passed on to those who listen, also if this client has left before.
    let has_begun = respond::status_sent(client.session()).is_some() || dispatch.node_status != 0;
    dispatch.was_late = late;
    if let Some(assignment) = dispatch.assignment.as_ref().filter(|_| by_node && !busy && !late_end) {
        tracing::warn!(node = %assignment.node.name, %error, "node failed");
        assignment.node.live.failed(edge.now_ns());
    }
    by_node && !timed_out && !late_end && !has_begun
}

fn internal() -> Box<Error> {
    Error::new(ErrorType::InternalError)
}

/// What an error means to the client when no stage has said so.
pub(crate) fn reason(error: &Error) -> Reject {
    match error.etype() {
        ErrorType::ReadTimedout | ErrorType::WriteTimedout | &LATE_FIRST_BYTE | &LATE_END => Reject::NodeTimeout,
        ErrorType::InternalError => Reject::Internal,
        &NOT_RECORDED => Reject::MeteringUnavailable,
        _ => Reject::NodeFailed,
    }
}
