//! From a request's head to a body ready for a node: the stages up to dispatch, in order.

use crate::edge::Edge;
use crate::fill::Fill;
use crate::ingress::{self, Ask, Target};
use crate::limit::{Charges, Need, micros};
use crate::live::{Key, Model, Snapshot};
use crate::reject::Reject;
use crate::request::{Dispatch, Metered, Request, request_id};
use crate::reuse::{Reuse, reuse};
use crate::{auth, body_swap, respond, rewrite};
use bytes::Bytes;
use pingora::proxy::Session;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use turnpike_config::{Endpoint, KeyDigest, Permissions, Tokens, headers};

/// Longest answer assumed when neither the request nor the model bounds it, tokens.
const DEFAULT_ANSWER: u64 = 4_096;

/// How long a client may take to read what is sent to it at once.
const CLIENT_PATIENCE: Duration = Duration::from_secs(60);
/// Longest id that a model can have, bytes.
const LONGEST_ID: usize = 100;
/// An answer of open length is cut for want of tokens to no less than this part of what it could have been.
const FAIR_PART: u64 = 8;
/// And to no less than so many tokens.
const SHORTEST: u64 = 16;

/// Whether a request goes to a node or has been answered here.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Admitted {
    Dispatch,
    Answered,
}

/// Runs the stages. A refusal is for the caller to write.
pub(crate) async fn admit(edge: &Arc<Edge>, session: &mut Session, request: &mut Request) -> Result<Admitted, Reject> {
    // A client that does not read must not hold on to anything.
    session.downstream_session.set_write_timeout(Some(CLIENT_PATIENCE));
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
            let model = find_model(edge, &request.snapshot, &id).await?;
            if !key.may_use(&model) {
                return Err(Reject::UnknownModel { model: id });
            }
            respond::get_model(session, request, &model).await
        }
    };
    written.map(|()| Admitted::Answered).map_err(|_| Reject::BodyUnreadable)
}

/// A key of the routing or of the region.
async fn find_key(edge: &Edge, snapshot: &Snapshot, digest: KeyDigest) -> Option<Arc<Key>> {
    match (snapshot.key(&digest), &edge.directory) {
        (Some(key), _) => Some(key),
        (None, Some(directory)) => directory.reader.key(snapshot, digest).await,
        (None, None) => None,
    }
}

/// A model of the routing or of the region.
async fn find_model(edge: &Edge, snapshot: &Arc<Snapshot>, id: &str) -> Result<Arc<Model>, Reject> {
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
    let size = Size::of(metered).ok_or(Reject::Internal)?;
    let sent = metered.rewritten(&body, size.longest);
    let fill = match reuse(edge, session, request, &sent, size.most_usage()).await? {
        Reuse::Answered => return Ok(Admitted::Answered),
        Reuse::Node(fill) => fill,
    };
    let metered = request.metered.as_ref().ok_or(Reject::Internal)?;
    match size.cut(metered, edge.now_ns()) {
        None => {
            reserve(request, size).await?;
            dispatch(session, request, sent, size, fill)?;
        }
        // What is cut for want of tokens is not the answer that others would get.
        Some(cut) => {
            let sent = metered.rewritten(&body, cut.longest);
            reserve(request, cut).await?;
            dispatch(session, request, sent, cut, None)?;
        }
    }
    Ok(Admitted::Dispatch)
}

impl Metered {
    /// The body as a node gets it.
    fn rewritten(&self, body: &Bytes, longest: Option<u64>) -> Bytes {
        match &self.ask {
            Some(ask) if generates(self.endpoint) => rewrite::body(ask, body, longest),
            _ => body.clone(),
        }
    }
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

    let model = find_model(edge, &snapshot, &ask.model).await?;
    metered.model = Some(Arc::clone(&model));
    if !key.may_use(&model) {
        return Err(Reject::ModelNotAllowed { model: model.record.id.clone() });
    }
    if model.route.is_none() {
        return Err(Reject::NoVersion { model: model.record.id.clone() });
    }
    Ok(body)
}

/// What a request may come to.
#[derive(Clone, Copy, Debug)]
struct Size {
    /// Tokens of the prompt, judged by its bytes.
    prompt: u64,
    /// Tokens needed at the least: the prompt, and the answer if its length was asked for.
    least: u64,
    /// Tokens that the prompt and the answer may come to.
    most: u64,
    /// Tokens that an answer of open length is held to; `None` leaves it to the engine.
    longest: Option<u64>,
}

impl Size {
    fn of(metered: &Metered) -> Option<Self> {
        let (ask, model) = (metered.ask.as_ref()?, metered.model.as_ref()?);
        let prompt = model.live.prompt_tokens(metered.request_bytes).min(model.record.context_length.into());
        let wished = prompt + longest_answer(metered.endpoint, ask, model);
        let allowed = metered.within(model).most_tokens();
        let most = allowed.map_or(wished, |allowed| wished.min(allowed));
        let counted = allowed.is_some() || metered.key.org.limits.counts_money();
        let longest = counted.then(|| coarse(most.saturating_sub(prompt).max(1), wished > most));
        // An answer has a token at least.
        let shortest = if generates(metered.endpoint) { ask.choices } else { 0 };
        Some(Self { prompt, least: prompt + ask.max_tokens.unwrap_or(shortest), most, longest })
    }

    /// Less, if an answer of open length would need more tokens than are left now, and a fair part of them is: a shorter
    /// answer is better than none.
    fn cut(&self, metered: &Metered, now_ns: u64) -> Option<Self> {
        let (ask, model) = (metered.ask.as_ref()?, metered.model.as_ref()?);
        let left = metered.within(model).tokens_left(now_ns)?;
        let (wished, longest) = (self.most.saturating_sub(self.prompt), left.saturating_sub(self.prompt));
        let open = generates(metered.endpoint) && ask.max_tokens.is_none();
        let fair = (wished / FAIR_PART).max(SHORTEST).max(ask.choices);
        (open && left < self.most && longest >= fair).then_some(Self {
            most: self.prompt + longest,
            longest: Some(longest),
            ..*self
        })
    }

    fn most_usage(&self) -> Tokens {
        Tokens { prompt: to_u32(self.prompt), cached: 0, completion: to_u32(self.most.saturating_sub(self.prompt)) }
    }
}

/// Takes what the answer of a node may come to from the limits.
async fn reserve(request: &mut Request, size: Size) -> Result<(), Reject> {
    let began_ms = request.arrived_unix_ms;
    let metered = request.metered.as_mut().ok_or(Reject::Internal)?;
    let model = metered.model.clone().ok_or(Reject::Internal)?;
    let spend = micros(model.cost(began_ms, size.most_usage()).pico);
    let need = Need { least_tokens: size.least, tokens: size.most, spend };
    let mut charges = std::mem::take(&mut metered.charges);
    let reserved = charges.reserve(&metered.within(&model), need).await;
    metered.charges = charges;
    Ok(reserved?)
}

/// Makes the request ready for a node.
fn dispatch(
    session: &mut Session,
    request: &mut Request,
    body: Bytes,
    size: Size,
    fill: Option<Box<Fill>>,
) -> Result<(), Reject> {
    let metered = request.metered.as_mut().ok_or(Reject::Internal)?;
    let audience = fill.as_ref().and_then(|fill| fill.audience());
    metered.dispatch = Some(Dispatch {
        swapped: body_swap::put_in(session, body.clone(), audience),
        body,
        tokens: i64::try_from(size.most).unwrap_or(i64::MAX),
        prompt_estimate: to_u32(size.prompt),
        assignment: None,
        intended: None,
        tried: Vec::new(),
        sent_at: None,
        first_byte_at: None,
        node_status: 0,
        tap: None,
        fill,
    });
    Ok(())
}

fn to_u32(tokens: u64) -> u32 {
    u32::try_from(tokens).unwrap_or(u32::MAX)
}

const fn generates(endpoint: Endpoint) -> bool {
    matches!(endpoint, Endpoint::Chat | Endpoint::Completion)
}

/// Tokens that the answer may take.
fn longest_answer(endpoint: Endpoint, ask: &Ask, model: &Model) -> u64 {
    if !generates(endpoint) {
        return 0;
    }
    let most = model.record.max_output_tokens.map_or(DEFAULT_ANSWER, u64::from).min(model.record.context_length.into());
    ask.max_tokens.unwrap_or(most)
}

/// A length cut by a limit moves with every estimate of the prompt, and would make equal requests differ: rounded down to
/// three binary digits.
const fn coarse(tokens: u64, cut: bool) -> u64 {
    let digits = u64::BITS - tokens.leading_zeros();
    if cut && digits > 3 { tokens >> (digits - 3) << (digits - 3) } else { tokens }
}

/// A client's model name, short enough to repeat to him.
fn shown(model: &str) -> String {
    model.chars().take(100).collect()
}
