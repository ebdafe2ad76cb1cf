//! The one outcome of a request: what it used, how it ended, what it costs.

use crate::edge::Edge;
use crate::journal::Written;
use crate::limit::micros;
use crate::reject::Reject;
use crate::request::{Dispatch, Metered, Request, Served};
use crate::respond;
use http::header::USER_AGENT;
use pingora::protocols::http::ServerSession as Session;
use pingora::{Error, ErrorSource};
use std::time::{Duration, Instant};
use turnpike_config::{Endpoint, RequestStatus, Tap, Tokens, UsageEvent, Usd};

const USER_AGENT_BYTES: usize = 256;

/// Tokens of a request, and whether they are the edge's own count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counted {
    tokens: Tokens,
    estimated: bool,
}

/// How a request ended, for the event.
struct End {
    status: RequestStatus,
    code: Option<String>,
    message: Option<String>,
}

/// Settles limits and hands the event over; what is returned comes true once it is written. `None` if that was done, or
/// nothing is metered. Called before the last `unsent` bytes of an answer go out, or else when the request is over in
/// whatever way.
pub(crate) fn conclude(
    edge: &Edge,
    session: &Session,
    request: &mut Request,
    unsent: usize,
    error: Option<&Error>,
) -> Option<Written> {
    let now = Instant::now();
    let permit = request.metered.as_mut()?.permit.take()?;
    let metered = request.metered.as_ref()?;
    let client_gone = client_gone(metered, error);
    let counted = count(metered, client_gone);
    if let (Some(model), false) = (&metered.model, counted.estimated || is_reuse(metered)) {
        model.live.learn(metered.request_bytes, counted.tokens.prompt);
    }
    let end = end(request, metered, client_gone, error);
    let mut event = event(edge, session, request, metered, counted, end, now);
    event.response_bytes += unsent as u64;
    // What a node worked on without telling, it has in its ledger.
    let counts = metered.endpoint != Endpoint::Moderation;
    let ask = counted.estimated && counts && !is_reuse(metered) && event.node.is_some();
    let price = metered.model.as_ref().filter(|_| ask).map(|model| model.record.price_at(event.id.unix_ms()).1);
    if matches!(event.status, RequestStatus::Error | RequestStatus::Timeout) && event.http_status >= 500 {
        tracing::warn!(
            request_id = request.request_id,
            event = %event.id,
            node = event.node,
            model = event.model,
            code = event.error_code,
            "request failed"
        );
    }
    // Limits are on what nodes work on.
    let (used, cost) = (if is_reuse(metered) { 0 } else { event.total_tokens() }, micros(event.cost.pico));
    let charges = request.metered.as_mut().map(|metered| std::mem::take(&mut metered.charges)).unwrap_or_default();
    if let Some(price) = price {
        return Some(edge.unsettled.settle(event, price, charges, permit));
    }
    // First recorded, then given back: at no moment is it neither.
    let written = permit.record(event);
    charges.settle(used, cost);
    Some(written)
}

fn is_reuse(metered: &Metered) -> bool {
    metered.cached.as_ref().is_some_and(|cached| cached.status.is_reuse())
}

fn served(metered: &Metered) -> Option<Served> {
    metered.cached.as_ref()?.served
}

/// Whether the client left before it had everything.
fn client_gone(metered: &Metered, error: Option<&Error>) -> bool {
    error.is_some_and(|e| matches!(e.esource(), ErrorSource::Downstream))
        || metered.dispatch.as_ref().is_some_and(|dispatch| dispatch.client_left)
        || served(metered).is_some_and(|served| !served.complete)
}

/// The engine's count if it came; else what passed to the client, once anything did, and for a client that left early the
/// prompt that a node worked on.
fn count(metered: &Metered, client_gone: bool) -> Counted {
    if let Some(Served { usage, estimated, .. }) = served(metered) {
        return Counted { tokens: usage, estimated };
    }
    let Some(dispatch) = &metered.dispatch else { return Counted::default() };
    let worked_on = dispatch.first_byte_at.is_some() && dispatch.node_status == 200
        || client_gone && dispatch.sent_at.is_some() && matches!(dispatch.node_status, 0 | 200);
    let tap = dispatch.tap.as_ref();
    match tap.and_then(Tap::usage) {
        Some(tokens) => Counted { tokens, estimated: false },
        None if worked_on => {
            let completion = tap.map_or(0, Tap::tokens_seen);
            Counted { tokens: Tokens { prompt: dispatch.prompt_estimate, cached: 0, completion }, estimated: true }
        }
        None => Counted::default(),
    }
}

fn end(request: &Request, metered: &Metered, client_gone: bool, error: Option<&Error>) -> End {
    let failed = |status, code: &str| End { status, code: Some(code.to_owned()), message: None };
    let (dispatch, served) = (metered.dispatch.as_ref(), served(metered));
    if client_gone {
        return failed(RequestStatus::ClientGone, "client_gone");
    }
    if let Some(reject) = &request.reject {
        let answer = reject.answer();
        // What the parser says of a bad body may repeat parts of it: not for the books.
        let quotes_client = matches!(reject, Reject::InvalidJson { .. } | Reject::InvalidParameter { .. });
        let message = (!quotes_client).then(|| answer.message.into_owned());
        return End { status: reject.request_status(), code: Some(answer.code.to_owned()), message };
    }
    match dispatch {
        None if served.is_some() => End { status: RequestStatus::Success, code: None, message: None },
        Some(dispatch) if dispatch.node_status >= 400 => failed(RequestStatus::Error, "engine_refused"),
        Some(dispatch) if error.is_none() && dispatch.tap.as_ref().is_none_or(|tap| tap.is_complete()) => {
            End { status: RequestStatus::Success, code: None, message: None }
        }
        _ => failed(RequestStatus::Error, "answer_incomplete"),
    }
}

fn event(
    edge: &Edge,
    session: &Session,
    request: &Request,
    metered: &Metered,
    counted: Counted,
    end: End,
    now: Instant,
) -> UsageEvent {
    let dispatch = metered.dispatch.as_ref();
    let sent_at = dispatch.and_then(|dispatch| dispatch.sent_at);
    let model = metered.model.as_ref();
    let Counted { tokens, estimated } = counted;
    // The time inside the id: what the books go by.
    let began_ms = request.id.unix_ms();
    let client = session.client_addr().and_then(|address| address.as_inet());
    UsageEvent {
        id: request.id,
        organization: metered.key.record.organization,
        api_key: metered.key.record.id,
        model: model.map(|model| model.record.id.clone()),
        model_version: metered.deployment.as_ref().map(|deployment| deployment.version.to_string()),
        endpoint: metered.endpoint,
        status: end.status,
        http_status: http_status(session, metered, end.status),
        error_code: end.code,
        error_message: end.message,
        prompt_tokens: tokens.prompt,
        completion_tokens: tokens.completion,
        estimated,
        cost: cost(metered, began_ms, tokens),
        request_bytes: metered.request_bytes,
        response_bytes: session.body_bytes_sent() as u64,
        processing_ms: sent_at.map_or(0, |sent| millis(now - sent)),
        queue_ms: millis(sent_at.unwrap_or(now) - request.arrived),
        total_ms: millis(now - request.arrived),
        first_byte_ms: first_byte_at(metered).map(|first| millis(first - request.arrived)),
        region: edge.settings.region.clone(),
        edge: edge.name.clone(),
        node: dispatch.and_then(last_node),
        user_agent: user_agent(session),
        client_ip: client.map(|address| address.ip().to_string()),
        streamed: metered.ask.as_ref().is_some_and(|ask| ask.stream),
        retries: dispatch.map_or(0, |d| u8::try_from(d.tried.len().saturating_sub(1)).unwrap_or(u8::MAX)),
        cache: metered.cached.as_ref().map(|cached| cached.status),
        price_version: model.map_or(0, |model| model.record.price_at(began_ms).0),
        cached_tokens: tokens.cached,
        shadow: false,
    }
}

/// What the client was told, or is about to be told by a node whose answer goes out as a whole.
fn http_status(session: &Session, metered: &Metered, status: RequestStatus) -> u16 {
    let by_node = || metered.dispatch.as_ref().filter(|_| status != RequestStatus::ClientGone).map(|it| it.node_status);
    respond::status_sent(session).map(|sent| sent.as_u16()).or_else(by_node).unwrap_or(0)
}

fn cost(metered: &Metered, began_ms: u64, tokens: Tokens) -> Usd {
    if is_reuse(metered) {
        return metered.reuse_cost(began_ms, tokens);
    }
    metered.model.as_ref().map(|model| model.cost(began_ms, tokens)).unwrap_or_default()
}

fn first_byte_at(metered: &Metered) -> Option<Instant> {
    let served = || served(metered)?.first_byte_at;
    metered.dispatch.as_ref().and_then(|dispatch| dispatch.first_byte_at).or_else(served)
}

fn last_node(dispatch: &Dispatch) -> Option<String> {
    dispatch.tried.last().map(ToString::to_string)
}

fn user_agent(session: &Session) -> Option<String> {
    let text = session.req_header().headers.get(USER_AGENT)?.to_str().ok()?;
    // Visible ASCII only.
    Some(text.get(..USER_AGENT_BYTES).unwrap_or(text).to_owned())
}

fn millis(duration: Duration) -> u32 {
    u32::try_from(duration.as_millis()).unwrap_or(u32::MAX)
}
