//! From a request's head to a body ready for a node: the stages up to dispatch, in order.

use crate::edge::Edge;
use crate::ingress::{self, Ask, Target};
use crate::limit::{Charges, Need, micros};
use crate::live::Model;
use crate::reject::Reject;
use crate::request::{Dispatch, Metered, Request, request_id};
use crate::{auth, body_swap, respond, rewrite};
use pingora::proxy::Session;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use turnpike_config::{Endpoint, Permissions, headers};

/// Longest answer assumed when neither the request nor the model bounds it, tokens.
const DEFAULT_ANSWER: u64 = 4_096;

/// Whether a request goes to a node or has been answered here.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Admitted {
    Dispatch,
    Answered,
}

/// Runs the stages. A refusal is for the caller to write.
pub(crate) async fn admit(edge: &Arc<Edge>, session: &mut Session, request: &mut Request) -> Result<Admitted, Reject> {
    let head = session.req_header();
    request.request_id = request_id(head.headers.get(headers::REQUEST_ID).and_then(|v| v.to_str().ok()), request.id);
    let target = ingress::target(&head.method, head.uri.path())?;
    if edge.draining.load(Ordering::Relaxed) {
        return Err(Reject::Draining);
    }
    let key = auth::authenticate(&head.headers, &request.snapshot, request.arrived_unix_ms)?;
    let written = match target {
        Target::Inference(endpoint) => {
            let permit = edge.journal.permit().ok_or(Reject::MeteringUnavailable)?;
            request.metered = Some(Metered {
                endpoint,
                key,
                permit,
                request_bytes: 0,
                ask: None,
                model: None,
                charges: Charges::default(),
                dispatch: None,
            });
            return prepare(edge, session, request).await.map(|()| Admitted::Dispatch);
        }
        Target::ListModels => {
            auth::authorize(&key, Permissions::MODELS_READ)?;
            respond::list_models(session, request, &key).await
        }
        Target::GetModel(id) => {
            auth::authorize(&key, Permissions::MODELS_READ)?;
            let model = request.snapshot.model(&id).filter(|model| key.may_use(model)).cloned();
            let model = model.ok_or(Reject::UnknownModel { model: id })?;
            respond::get_model(session, request, &model).await
        }
    };
    written.map(|()| Admitted::Answered).map_err(|_| Reject::BodyUnreadable)
}

/// Body, model, limits: everything an inference request needs before a node is picked.
async fn prepare(edge: &Edge, session: &mut Session, request: &mut Request) -> Result<(), Reject> {
    let snapshot = Arc::clone(&request.snapshot);
    let Some(metered) = &mut request.metered else { return Err(Reject::Internal) };
    auth::authorize(&metered.key, Permissions::INFERENCE)?;
    let bounds = &edge.settings.limits;
    let (key, organization) = (Arc::clone(&metered.key), Arc::clone(&metered.key.org));
    // A bucket that has to be asked answers while the body arrives.
    let (body, charges) = tokio::join!(
        ingress::read_body(session, bounds.max_body_bytes, bounds.body_timeout),
        Charges::admit(&edge.limiter, &key.limits, &organization.limits),
    );
    let body = body?;
    metered.request_bytes = body.len() as u64;
    metered.charges = charges?;
    let ask = &*metered.ask.insert(ingress::peek(&body)?);

    let model = snapshot.model(&ask.model).ok_or_else(|| Reject::UnknownModel { model: shown(&ask.model) })?;
    metered.model = Some(Arc::clone(model));
    if !metered.key.may_use(model) {
        return Err(Reject::ModelNotAllowed { model: model.record.id.clone() });
    }
    if model.route.is_none() {
        return Err(Reject::NoVersion { model: model.record.id.clone() });
    }

    let prompt = model.live.prompt_tokens(metered.request_bytes).min(model.record.context_length.into());
    let tokens = prompt + longest_answer(metered.endpoint, ask, model);
    let need = Need {
        least_tokens: prompt + ask.max_tokens.unwrap_or(0),
        tokens,
        spend: micros(model.record.price.cost(to_u32(prompt), to_u32(tokens - prompt)).pico),
    };
    let id = &model.record.id;
    let reserved = metered.charges.reserve(id, &key.limits, &organization.limits, need).await?;

    let generates = generates(metered.endpoint);
    let longest = (reserved.is_some() || organization.limits.budget.is_some())
        .then(|| reserved.unwrap_or(tokens).saturating_sub(prompt).max(1));
    let body = if generates { rewrite::body(ask, &body, longest) } else { body };
    metered.dispatch = Some(Dispatch {
        swapped: body_swap::put_in(session, body.clone()),
        body,
        tokens: i64::try_from(tokens).unwrap_or(i64::MAX),
        prompt_estimate: to_u32(prompt),
        assignment: None,
        tried: Vec::new(),
        sent_at: None,
        first_byte_at: None,
        node_status: 0,
        tap: None,
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

/// A client's model name, short enough to repeat to him.
fn shown(model: &str) -> String {
    model.chars().take(100).collect()
}
