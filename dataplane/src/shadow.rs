//! Copies of requests for a route's shadow: beside the client's request, which never waits for them and never learns of
//! them. Their answers are read and dropped; what they used is recorded apart.

use crate::balance::{Assignment, Pick, Preference};
use crate::edge::Edge;
use crate::ingress::Ask;
use crate::journal::Permit;
use crate::live::{Destination, Route};
use crate::node_client::Place;
use crate::plan;
use crate::request::{Metered, Request, own_request_id};
use crate::rewrite::{self, Changes};
use crate::size::{Size, to_u32};
use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{Method, StatusCode};
use pingora::protocols::http::ServerSession as Session;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use turnpike_config::{EventId, RequestStatus, Tap, Tokens, UsageEvent, Usd, headers};
use uuid::Uuid;

/// A copy that can be sent.
struct Copy {
    assignment: Assignment,
    /// As the client sent it: it is changed for the model once the copy runs.
    original: Bytes,
    ask: Ask,
    longest: Option<u64>,
    prompt_estimate: u32,
    patience: Duration,
    permit: Permit,
    /// With all that is known before.
    event: UsageEvent,
    _place: Place,
}

/// Sends a copy of a request that goes to a node, if its route wants that.
pub(crate) fn send(edge: &Arc<Edge>, session: &Session, request: &Request) {
    let Some(metered) = &request.metered else { return };
    let Some(routed) = &metered.routed else { return };
    if !routed.route.is_shadowed(plan::random(request.id)) {
        return;
    }
    let to = routed.route.shadow.as_ref();
    let Some(copy) = to.and_then(|to| copy(edge, session, metered, &routed.route, to)) else {
        edge.metrics.shadows_skipped.inc();
        return;
    };
    let edge = Arc::clone(edge);
    let runtime = edge.aside.runtime.clone();
    runtime.spawn(async move { run(&edge, copy).await });
}

fn copy(edge: &Edge, session: &Session, metered: &Metered, route: &Route, to: &Destination) -> Option<Copy> {
    let (ask, dispatch) = (metered.ask.as_ref()?, metered.dispatch.as_ref()?);
    let size = Size::of(metered, &to.model)?;
    let policy = &route.record.policy;
    let pick = Pick {
        preference: Preference { own: &edge.settings.region, regions: Some(&policy.regions) },
        tried: &[],
        tokens: size.most,
        turn: edge.turn.fetch_add(1, Ordering::Relaxed),
        now_ns: edge.now_ns(),
    };
    let place = edge.aside.place(dispatch.original.len())?;
    let assignment = pick.of(&to.deployment)?;
    let id = EventId(Uuid::now_v7());
    let permit = edge.journal.permit(id.unix_ms())?;
    let client = session.client_addr().and_then(|address| address.as_inet());
    let patience = policy.timeouts.total_ms.map(|ms| Duration::from_millis(ms.into()));
    let event = UsageEvent {
        id,
        organization: metered.key.record.organization,
        api_key: metered.key.record.id,
        model: Some(to.model.record.id.clone()),
        model_version: Some(to.deployment.version.to_string()),
        endpoint: metered.endpoint,
        status: RequestStatus::Error,
        http_status: 0,
        error_code: None,
        error_message: None,
        prompt_tokens: 0,
        completion_tokens: 0,
        estimated: false,
        cost: Usd::ZERO,
        request_bytes: metered.request_bytes,
        response_bytes: 0,
        processing_ms: 0,
        queue_ms: 0,
        total_ms: 0,
        first_byte_ms: None,
        region: edge.settings.region.clone(),
        edge: edge.name.clone(),
        node: Some(assignment.node.name.to_string()),
        user_agent: None,
        client_ip: client.map(|address| address.ip().to_string()),
        streamed: ask.stream,
        retries: 0,
        cache: None,
        price_version: 0,
        cached_tokens: 0,
        shadow: true,
    };
    Some(Copy {
        assignment,
        original: dispatch.original.clone(),
        ask: ask.clone(),
        longest: size.longest,
        prompt_estimate: to_u32(size.prompt),
        patience: patience.unwrap_or(edge.settings.limits.node_timeout),
        permit,
        event,
        _place: place,
    })
}

/// Sends it, reads the answer to its end, and records what became of it.
async fn run(edge: &Edge, copy: Copy) {
    let began = Instant::now();
    let tap = if copy.ask.stream { Tap::stream(false) } else { Tap::json() };
    let mut seen = Seen { tap, status: 0, bytes: 0, first_byte_ms: None };
    let outcome = tokio::time::timeout(copy.patience, ask(edge, &copy, began, &mut seen)).await;
    let Copy { mut event, permit, prompt_estimate, .. } = copy;
    let code;
    (event.status, code) = match outcome {
        Ok(Ok(())) if seen.status >= 400 => (RequestStatus::Error, Some("engine_refused")),
        Ok(Ok(())) if seen.tap.is_complete() => (RequestStatus::Success, None),
        Ok(Ok(())) => (RequestStatus::Error, Some("answer_incomplete")),
        Ok(Err(error)) => {
            tracing::debug!(node = event.node, %error, "a shadow failed");
            (RequestStatus::Error, Some("node_failed"))
        }
        Err(_) => (RequestStatus::Timeout, Some("node_timeout")),
    };
    event.error_code = code.map(str::to_owned);
    let told = seen.tap.usage();
    let counted = Tokens { prompt: prompt_estimate, cached: 0, completion: seen.tap.tokens_seen() };
    let was_cut = seen.status == StatusCode::OK.as_u16() && seen.first_byte_ms.is_some();
    let tokens = told.or(was_cut.then_some(counted)).unwrap_or_default();
    event.estimated = told.is_none() && was_cut;
    (event.prompt_tokens, event.cached_tokens, event.completion_tokens) =
        (tokens.prompt, tokens.cached, tokens.completion);
    (event.http_status, event.response_bytes, event.first_byte_ms) = (seen.status, seen.bytes, seen.first_byte_ms);
    event.total_ms = millis(began);
    event.processing_ms = event.total_ms;
    drop(permit.record(event));
}

impl Copy {
    /// What goes to the node.
    fn body(&self) -> Bytes {
        let model = self.event.model.as_deref().filter(|id| *id != self.ask.model);
        let changes = Changes { model, longest: self.longest, is_generated: self.event.endpoint.generates() };
        rewrite::body(&self.ask, &self.original, &changes)
    }
}

/// What came of an answer.
struct Seen {
    tap: Tap,
    status: u16,
    bytes: u64,
    first_byte_ms: Option<u32>,
}

async fn ask(edge: &Edge, copy: &Copy, began: Instant, seen: &mut Seen) -> reqwest::Result<()> {
    let event = &copy.event;
    // Without an event's id: a node's ledger is for what somebody pays.
    let request = edge
        .aside
        .clients
        .request(Method::POST, &copy.assignment.node, event.endpoint.path())?
        .header(CONTENT_TYPE, "application/json")
        .header(headers::REQUEST_ID, own_request_id(event.id))
        .header(headers::MODEL, event.model.as_deref().unwrap_or_default())
        .header(headers::MODEL_VERSION, event.model_version.as_deref().unwrap_or_default())
        .header(headers::PROMPT_ESTIMATE, copy.prompt_estimate)
        .body(copy.body());
    let mut answer = request.send().await?;
    seen.status = answer.status().as_u16();
    while let Some(piece) = answer.chunk().await? {
        seen.first_byte_ms.get_or_insert_with(|| millis(began));
        seen.bytes += piece.len() as u64;
        let _ = seen.tap.pass(Some(piece), false);
    }
    let _ = seen.tap.pass(None, true);
    Ok(())
}

fn millis(since: Instant) -> u32 {
    u32::try_from(since.elapsed().as_millis()).unwrap_or(u32::MAX)
}
