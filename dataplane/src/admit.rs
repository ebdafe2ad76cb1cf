//! From a request's head to a body ready for a node: the stages up to dispatch, in order.

use crate::deadlines::Deadlines;
use crate::edge::Edge;
use crate::fill::Fill;
use crate::ingress::{self, Target};
use crate::limit::{Charges, Need, micros};
use crate::live::{Key, Model, Route, Snapshot};
use crate::plan::{self, Asking, Routed};
use crate::reject::Reject;
use crate::request::{Dispatch, Metered, Request, request_id};
use crate::reuse::{Reuse, reuse};
use crate::size::{Size, to_u32};
use crate::{auth, respond, shadow};
use bytes::Bytes;
use pingora::protocols::http::ServerSession as Session;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use turnpike_config::{KeyDigest, Permissions, headers};

/// How long a client may take to read what is sent to it at once.
const CLIENT_PATIENCE: Duration = Duration::from_secs(60);
/// Longest id that a model can have, bytes.
const LONGEST_ID: usize = 100;
/// Whether a request goes to a node or has been answered here.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Admitted {
    Dispatch,
    Answered,
}

/// Runs the stages. A refusal is for the caller to write.
pub(crate) async fn admit(edge: &Arc<Edge>, session: &mut Session, request: &mut Request) -> Result<Admitted, Reject> {
    // A client that does not read must not hold on to anything.
    session.set_write_timeout(Some(CLIENT_PATIENCE));
    let head = session.req_header();
    request.request_id = request_id(head.headers.get(headers::REQUEST_ID).and_then(|v| v.to_str().ok()), request.id);
    let target = ingress::target(&head.method, head.uri.path())?;
    if edge.draining.load(Ordering::Relaxed) {
        return Err(Reject::Draining);
    }
    let presented = auth::presented(&head.headers)?;
    let key = find_key(edge, &request.snapshot, presented).await;
    let key = key.ok_or_else(|| auth::unknown(&session.req_header().headers))?;
    auth::accept(&key, request.arrived_unix_ms)?;
    let written = match target {
        Target::Inference(endpoint) => {
            let permit = edge.journal.permit(request.arrived_unix_ms).ok_or(Reject::MeteringUnavailable)?;
            request.metered = Some(Metered {
                endpoint,
                key,
                permit: Some(permit),
                request_bytes: 0,
                ask: None,
                model: None,
                deployment: None,
                routed: None,
                charges: Charges::default(),
                cached: None,
                dispatch: None,
            });
            return infer(edge, session, request).await;
        }
        Target::ListModels => {
            auth::authorize(&key, Permissions::MODELS_READ)?;
            respond::list_models(session, request, &key).await
        }
        Target::GetModel(id) => {
            auth::authorize(&key, Permissions::MODELS_READ)?;
            if let Some(route) = request.snapshot.route(&id, &key.record.organization) {
                if !key.may_use_route(route) {
                    return Err(Reject::UnknownModel { model: id });
                }
                respond::get_route(session, request, route).await
            } else {
                let model = find_model(edge, &request.snapshot, &id).await?;
                if !key.may_use(&model) {
                    return Err(Reject::UnknownModel { model: id });
                }
                respond::get_model(session, request, &model).await
            }
        }
    };
    written.map(|()| Admitted::Answered).map_err(|_| Reject::BodyUnreadable)
}

/// A key of the routing or of the region.
pub(crate) async fn find_key(edge: &Edge, snapshot: &Snapshot, digest: KeyDigest) -> Option<Arc<Key>> {
    match (snapshot.key(&digest), &edge.directory) {
        (Some(key), _) => Some(key),
        (None, Some(directory)) => directory.reader.key(snapshot, digest).await,
        (None, None) => None,
    }
}

/// A model of the routing or of the region.
pub(crate) async fn find_model(edge: &Edge, snapshot: &Arc<Snapshot>, id: &str) -> Result<Arc<Model>, Reject> {
    let found = match (snapshot.model(id), &edge.directory) {
        (Some(model), _) => Some(Arc::clone(model)),
        // One that was switched off may not have gone from everywhere.
        (None, Some(directory)) if id.len() <= LONGEST_ID && !snapshot.is_off(id) => {
            directory.reader.model(snapshot, id).await
        }
        (None, _) => None,
    };
    found.ok_or_else(|| Reject::UnknownModel { model: shown(id) })
}

/// An inference request: from the cache, or made ready for a node.
async fn infer(edge: &Arc<Edge>, session: &mut Session, request: &mut Request) -> Result<Admitted, Reject> {
    let body = read(edge, session, request).await?;
    let metered = request.metered.as_mut().ok_or(Reject::Internal)?;
    let model = metered.model.clone().ok_or(Reject::Internal)?;
    let size = Size::of(metered, &model).ok_or(Reject::Internal)?;
    let sent = metered.rewritten(&body, size.longest);
    let fill = match reuse(edge, session, request, &sent, size.most_usage()).await? {
        Reuse::Answered => return Ok(Admitted::Answered),
        Reuse::Node(fill) => fill,
    };
    let metered = request.metered.as_ref().ok_or(Reject::Internal)?;
    let anywhere = anywhere(metered, size);
    match anywhere.cut(metered, &model, edge.now_ns()) {
        None => {
            reserve(request, anywhere).await?;
            dispatch(request, (body, sent), size, anywhere.most, fill)?;
        }
        Some(cut) => {
            let shorter = size.at_most(metered, cut.most);
            // What is cut for want of tokens is not the answer that others would get.
            let fill = fill.filter(|_| shorter.longest == size.longest);
            let sent = metered.rewritten(&body, shorter.longest);
            reserve(request, cut).await?;
            dispatch(request, (body, sent), shorter, cut.most, fill)?;
        }
    }
    shadow::send(edge, session, request);
    Ok(Admitted::Dispatch)
}

/// What a request may come to wherever its route may lead it, `first` being where it goes at first.
fn anywhere(metered: &Metered, first: Size) -> Size {
    let elsewhere = metered.routed.iter().flat_map(|routed| routed.stops.iter().skip(1));
    let sizes = elsewhere.filter_map(|stop| Size::of(metered, &stop.model));
    let all =
        sizes.fold(first, |all, it| Size { prompt: all.prompt.max(it.prompt), most: all.most.max(it.most), ..all });
    // More than what the first model's limits ever hold cannot be had.
    let allowed = metered.model.as_ref().and_then(|model| metered.within(model).most_tokens());
    Size { most: allowed.map_or(all.most, |allowed| all.most.min(allowed).max(first.most)), ..all }
}

/// The body, its model, and what a request takes from limits whatever it asks for.
async fn read(edge: &Edge, session: &mut Session, request: &mut Request) -> Result<Bytes, Reject> {
    let snapshot = Arc::clone(&request.snapshot);
    let metered = request.metered.as_mut().ok_or(Reject::Internal)?;
    auth::authorize(&metered.key, Permissions::INFERENCE)?;
    let bounds = &edge.settings.limits;
    let key = Arc::clone(&metered.key);
    // A bucket that has to be asked answers while the body arrives.
    let (body, charges) = tokio::join!(
        ingress::read_body(session, bounds.max_body_bytes, bounds.body_timeout),
        Charges::admit(&edge.limiter, &key.limits, &key.org.limits),
    );
    let body = body?;
    metered.request_bytes = body.len() as u64;
    metered.charges = charges?;
    let ask = &*metered.ask.insert(ingress::peek(&body)?);

    if let Some(route) = snapshot.route(&ask.model, &key.record.organization) {
        let random = plan::random(request.id);
        let asking =
            Asking { key: &key, headers: &session.req_header().headers, random, region: &edge.settings.region };
        return by_route(metered, route, &asking).map(|()| body);
    }
    let model = find_model(edge, &snapshot, &ask.model).await?;
    metered.model = Some(Arc::clone(&model));
    if !key.may_use(&model) {
        return Err(Reject::ModelNotAllowed { model: model.record.id.clone() });
    }
    if model.default.is_none() {
        return Err(Reject::NoVersion { model: model.record.id.clone() });
    }
    metered.deployment.clone_from(&model.default);
    Ok(body)
}

/// Goes by a route.
fn by_route(metered: &mut Metered, route: &Arc<Route>, asking: &Asking<'_>) -> Result<(), Reject> {
    let stops = asking.stops(route);
    // What is refused from here on is refused for this model, in the books too.
    let first = stops.first().or_else(|| route.targets.iter().find_map(|target| target.to.as_ref()));
    metered.model = first.map(|stop| Arc::clone(&stop.model));
    metered.deployment = first.map(|stop| Arc::clone(&stop.deployment));
    if let Some(refusal) = asking.refusal(route, &stops) {
        return Err(refusal);
    }
    route.live.earn(&route.record.policy.retries);
    metered.routed = Some(Box::new(Routed { route: Arc::clone(route), stops }));
    Ok(())
}

/// Takes what the answer of a node may come to from the limits, at the dearest of the models that may answer.
async fn reserve(request: &mut Request, size: Size) -> Result<(), Reject> {
    let began_ms = request.arrived_unix_ms;
    let metered = request.metered.as_mut().ok_or(Reject::Internal)?;
    let model = metered.model.clone().ok_or(Reject::Internal)?;
    let stops = metered.routed.iter().flat_map(|routed| &routed.stops);
    let at_stops = stops.filter_map(|stop| {
        let usage = Size::of(metered, &stop.model)?.at_most(metered, size.most).most_usage();
        Some(micros(stop.model.cost(began_ms, usage).pico))
    });
    let spend = at_stops.max().unwrap_or_else(|| micros(model.cost(began_ms, size.most_usage()).pico));
    let need = Need { least_tokens: size.least, tokens: size.most, spend };
    let mut charges = std::mem::take(&mut metered.charges);
    let reserved = charges.reserve(&metered.within(&model), need).await;
    metered.charges = charges;
    Ok(reserved?)
}

/// Makes the request ready for a node. `bodies`: as it came, and as it goes; `reserved`: tokens.
fn dispatch(
    request: &mut Request,
    bodies: (Bytes, Bytes),
    size: Size,
    reserved: u64,
    fill: Option<Box<Fill>>,
) -> Result<(), Reject> {
    let metered = request.metered.as_mut().ok_or(Reject::Internal)?;
    let (original, body) = bodies;
    metered.dispatch = Some(Dispatch {
        original,
        body,
        tokens: reserved,
        prompt_estimate: to_u32(size.prompt),
        assignment: None,
        intended: None,
        tried: Vec::new(),
        was_late: false,
        sent_at: None,
        first_byte_at: None,
        node_status: 0,
        deadlines: Deadlines::default(),
        client_left: false,
        tap: None,
        fill,
    });
    Ok(())
}

/// A client's model name, short enough to repeat to him.
fn shown(model: &str) -> String {
    model.chars().take(100).collect()
}
