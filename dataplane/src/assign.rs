//! The node for a try: of the model that is asked for, or of what its route says comes next.

use crate::balance::{Assignment, Pick, Preference};
use crate::deadlines::Deadlines;
use crate::edge::Edge;
use crate::journal::Intent;
use crate::limit::Refused;
use crate::live::{Destination, Node};
use crate::reject::Reject;
use crate::request::{Dispatch, Metered, Request};
use crate::size::{Size, to_u32};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use turnpike_config::crash_point;
use turnpike_config::route::Retries;

/// Nodes tried for one request, where its route does not say.
const TRIES: usize = 3;

/// A node that is to be asked.
pub(crate) struct Try {
    pub(crate) node: Arc<Node>,
    /// How long a connection to it may take to be made.
    pub(crate) connect: Duration,
}

/// Picks the node for this try.
pub(crate) async fn assign(edge: &Edge, request: &mut Request) -> Result<Try, Reject> {
    let now_ns = edge.now_ns();
    let Request { id, metered, .. } = request;
    let metered = metered.as_mut().ok_or(Reject::Internal)?;
    let timeouts = metered.routed.as_ref().map(|routed| routed.route.record.policy.timeouts).unwrap_or_default();
    let dispatch = metered.dispatch.as_mut().ok_or(Reject::Internal)?;
    // The last node is let go first, so that its load does not count this request.
    dispatch.assignment = None;
    if !dispatch.tried.is_empty() {
        if !may_try_again(edge, metered, now_ns) {
            return Err(out_of_nodes(metered));
        }
        edge.metrics.retries.inc();
    }
    let assignment = find(edge, metered, now_ns).await?;
    let began_ms = id.unix_ms();
    let model = metered.model.as_ref().ok_or(Reject::Internal)?;
    let (price_version, price) = model.record.price_at(began_ms);
    let intent = |dispatch: &Dispatch| Intent {
        id: *id,
        organization: metered.key.record.organization,
        api_key: metered.key.record.id,
        model: model.record.id.clone(),
        model_version: metered.version().to_owned(),
        endpoint: metered.endpoint,
        price_version,
        price,
        reserved_tokens: dispatch.tokens,
        node: assignment.node.name.to_string(),
        streamed: metered.ask.as_ref().is_some_and(|ask| ask.stream),
        request_bytes: metered.request_bytes,
    };
    let intent = metered.dispatch.as_ref().map(intent).ok_or(Reject::Internal)?;
    crash_point("edge.before_intent");
    let intended = metered.permit.as_ref().and_then(|permit| permit.intend(intent));
    let dispatch = metered.dispatch.as_mut().ok_or(Reject::Internal)?;
    dispatch.tried.push(Arc::clone(&assignment.node.name));
    dispatch.intended = Some(intended.ok_or(Reject::MeteringUnavailable)?);
    let node = Arc::clone(&assignment.node);
    dispatch.assignment = Some(assignment);
    let (now, after) = (Instant::now(), |ms: Option<u32>| ms.map(|ms| Duration::from_millis(ms.into())));
    let (first_byte, end) = (after(timeouts.first_byte_ms), after(timeouts.total_ms));
    let end = dispatch.deadlines.end.or(end.map(|it| now + it));
    dispatch.deadlines = Deadlines { first_byte: first_byte.map(|it| now + it), end };
    let connect = edge.settings.limits.connect_timeout;
    Ok(Try { node, connect: first_byte.map_or(connect, |first| first.min(connect)) })
}

/// Whether another node may be tried: as often as the route says, and as its budget and the edge's allow.
fn may_try_again(edge: &Edge, metered: &Metered, now_ns: u64) -> bool {
    let route = metered.routed.as_ref().map(|routed| &routed.route);
    let retries = route.map_or(Retries::default(), |route| route.record.policy.retries);
    let tried = metered.dispatch.as_ref().map_or(0, |dispatch| dispatch.tried.len());
    let is_left = || route.is_none_or(|route| route.live.spend(&retries));
    tried < retries.attempts.map_or(TRIES, usize::from) && is_left() && edge.retry_budget.take(1, 1, now_ns).is_ok()
}

/// What the client is told once there is nothing left to try.
fn out_of_nodes(metered: &Metered) -> Reject {
    if metered.dispatch.as_ref().is_some_and(|dispatch| dispatch.was_late) {
        return Reject::NodeTimeout;
    }
    Reject::NoNode { model: metered.ask.as_ref().map(|ask| ask.model.clone()).unwrap_or_default() }
}

/// A node for the request, which is made ready for it.
async fn find(edge: &Edge, metered: &mut Metered, now_ns: u64) -> Result<Assignment, Reject> {
    let mut refused: Option<Refused> = None;
    loop {
        let dispatch = metered.dispatch.as_ref().ok_or(Reject::Internal)?;
        let regions = metered.routed.as_ref().map(|routed| &routed.route.record.policy.regions);
        let pick = Pick {
            preference: Preference { own: &edge.settings.region, regions },
            tried: &dispatch.tried,
            tokens: dispatch.tokens,
            turn: edge.turn.fetch_add(1, Ordering::Relaxed),
            now_ns,
        };
        let Some(routed) = &metered.routed else {
            let deployment = metered.deployment.as_ref().ok_or(Reject::Internal)?;
            return pick.of(deployment).ok_or_else(|| out_of_nodes(metered));
        };
        let stops = || routed.stops.iter().enumerate();
        let awake = stops().find_map(|(place, stop)| Some((place, pick.awake(&stop.deployment)?)));
        let any = || stops().find_map(|(place, stop)| Some((place, pick.of(&stop.deployment)?)));
        let Some((place, assignment)) = awake.or_else(any) else {
            return Err(refused.map_or_else(|| out_of_nodes(metered), Reject::from));
        };
        let stop = routed.stops[place].clone();
        match go_to(metered, stop).await {
            Ok(()) => return Ok(assignment),
            Err(refusal) => {
                refused = Some(refusal);
                if let Some(routed) = &mut metered.routed {
                    routed.stops.remove(place);
                }
            }
        }
    }
}

/// Makes the request one for another model or version. Refused if that model's limits do.
async fn go_to(metered: &mut Metered, stop: Destination) -> Result<(), Refused> {
    let (Some(model), Some(deployment)) = (metered.model.clone(), &metered.deployment) else { return Ok(()) };
    let is_same_model = model.record.id == stop.model.record.id;
    if is_same_model && deployment.version == stop.deployment.version {
        return Ok(());
    }
    let reserved = metered.dispatch.as_ref().map_or(0, |dispatch| dispatch.tokens);
    let Some(size) = Size::of(metered, &stop.model).map(|size| size.at_most(metered, reserved)) else { return Ok(()) };
    if !is_same_model {
        let mut charges = std::mem::take(&mut metered.charges);
        let gone = charges.go_over(&model.record.id, &metered.within(&stop.model), size.most).await;
        metered.charges = charges;
        gone?;
    }
    metered.model = Some(stop.model);
    metered.deployment = Some(stop.deployment);
    // What was looked for is kept by another version's name.
    if let Some(cached) = &mut metered.cached {
        cached.key = None;
    }
    let body = metered.dispatch.as_ref().map(|dispatch| metered.rewritten(&dispatch.original, size.longest));
    if let (Some(dispatch), Some(body)) = (&mut metered.dispatch, body) {
        dispatch.fill = None;
        dispatch.prompt_estimate = to_u32(size.prompt);
        dispatch.body = body;
    }
    Ok(())
}
