//! Answers that the edge writes itself.

use crate::limit;
use crate::live::{Key, Model, Route};
use crate::reject::{Answer, Reject};
use crate::request::Request;
use bytes::Bytes;
use http::StatusCode;
use http::header::{
    ALLOW, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE, RETRY_AFTER, TRANSFER_ENCODING, WWW_AUTHENTICATE,
};
use pingora::Result;
use pingora::http::ResponseHeader;
use pingora::proxy::Session;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use turnpike_config::{CacheStatus, headers};

/// Tells the client why not.
pub(crate) async fn reject(session: &mut Session, request: &Request, reject: &Reject, now_ns: u64) -> Result<()> {
    let answer = reject.answer();
    let mut head = head(answer.status, request)?;
    if matches!(reject, Reject::Limit(_)) {
        tell_limits(&mut head, request, now_ns)?;
    }
    if let Some(seconds) = answer.retry_after_s {
        head.insert_header(RETRY_AFTER, seconds)?;
    }
    if let Some(methods) = answer.allow {
        head.insert_header(ALLOW, methods)?;
    }
    if answer.status == StatusCode::UNAUTHORIZED {
        head.insert_header(WWW_AUTHENTICATE, "Bearer")?;
    }
    json_body(session, head, answer.body()).await
}

/// The head of an answer that no node made for this request. A stream that comes bit by bit has no length.
pub(crate) fn reused_head(
    request: &Request,
    streamed: bool,
    length: Option<usize>,
    now_ns: u64,
) -> Result<Box<ResponseHeader>> {
    let mut head = head(StatusCode::OK, request)?;
    head.insert_header(CONTENT_TYPE, if streamed { "text/event-stream" } else { "application/json" })?;
    match length {
        Some(length) => head.insert_header(CONTENT_LENGTH, length)?,
        None => head.insert_header(TRANSFER_ENCODING, "chunked")?,
    }
    tell(&mut head, request, now_ns)?;
    Ok(head)
}

/// Tells the client what every answer tells beside the request's id: his limits, which model answers, and what the cache
/// did.
pub(crate) fn tell(head: &mut ResponseHeader, request: &Request, now_ns: u64) -> Result<()> {
    tell_limits(head, request, now_ns)?;
    let deployment = request.metered.as_ref().and_then(|metered| metered.deployment.as_ref());
    if let Some(label) = deployment.and_then(|deployment| deployment.label.as_ref()) {
        head.insert_header(headers::MODEL, label)?;
    }
    let Some(cached) = request.metered.as_ref().and_then(|metered| metered.cached.as_ref()) else { return Ok(()) };
    match cached.status {
        CacheStatus::Hit => head.insert_header(headers::CACHE, format!("hit; age={}", cached.age_s))?,
        status => head.insert_header(headers::CACHE, status.name())?,
    }
    if let Some(key) = &cached.key {
        head.insert_header(headers::CACHE_KEY, key.to_string())?;
    }
    Ok(())
}

fn tell_limits(head: &mut ResponseHeader, request: &Request, now_ns: u64) -> Result<()> {
    let Some(metered) = &request.metered else { return Ok(()) };
    let model = metered.model.as_ref().map(|model| model.record.id.as_str());
    for (name, value) in limit::headers(model, &metered.key.limits, &metered.key.org.limits, now_ns) {
        head.insert_header(name, value)?;
    }
    Ok(())
}

/// Ends a stream that has begun with an error event, which SDKs raise as an exception.
pub(crate) async fn stream_error(session: &mut Session, answer: &Answer) -> Result<()> {
    let mut event = b"data: ".to_vec();
    event.extend(answer.body());
    event.extend_from_slice(b"\n\n");
    session.write_response_body(Some(Bytes::from(event)), true).await
}

/// `GET /v1/models`
pub(crate) async fn list_models(session: &mut Session, request: &Request, key: &Key) -> Result<()> {
    let (snapshot, organization) = (&request.snapshot, &key.record.organization);
    let plain = snapshot.listing().filter(|model| snapshot.route(&model.record.id, organization).is_none());
    let models = plain.filter(|model| key.may_use(model)).map(|model| (&model.record.id, model_object(model)));
    let routes = snapshot.routes_of(organization).filter(|route| key.may_use_route(route));
    let aliases = routes.filter_map(|route| Some((&route.record.id.name, route_object(route)?)));
    let listed: BTreeMap<&String, Value> = models.chain(aliases).collect();
    let data: Vec<Value> = listed.into_values().collect();
    let head = head(StatusCode::OK, request)?;
    json_body(session, head, json!({"object": "list", "data": data}).to_string().into_bytes()).await
}

/// `GET /v1/models/{id}`
pub(crate) async fn get_model(session: &mut Session, request: &Request, model: &Model) -> Result<()> {
    let head = head(StatusCode::OK, request)?;
    json_body(session, head, model_object(model).to_string().into_bytes()).await
}

/// `GET /v1/models/{id}` of a name that has a route.
pub(crate) async fn get_route(session: &mut Session, request: &Request, route: &Route) -> Result<()> {
    match route_object(route) {
        Some(object) => json_body(session, head(StatusCode::OK, request)?, object.to_string().into_bytes()).await,
        None => {
            let unknown = Reject::NoVersion { model: route.record.id.name.clone() };
            reject(session, request, &unknown, 0).await
        }
    }
}

/// An alias looks like a model; it is as old as the first one that it leads to. `None`: it leads to none at the moment.
fn route_object(route: &Route) -> Option<Value> {
    let branches = route.targets.iter().chain(&route.fallbacks);
    let record = &branches.filter_map(|branch| branch.to.as_ref()).next()?.model.record;
    let (id, owner) = (&route.record.id.name, &record.provider);
    Some(json!({"id": id, "object": "model", "created": record.created_s, "owned_by": owner}))
}

fn model_object(model: &Model) -> Value {
    let record = &model.record;
    json!({"id": record.id, "object": "model", "created": record.created_s, "owned_by": record.provider})
}

fn head(status: StatusCode, request: &Request) -> Result<Box<ResponseHeader>> {
    let mut head = ResponseHeader::build(status, Some(6))?;
    head.insert_header(headers::REQUEST_ID, &request.request_id)?;
    head.insert_header(CACHE_CONTROL, "no-store")?;
    Ok(Box::new(head))
}

async fn json_body(session: &mut Session, mut head: Box<ResponseHeader>, body: Vec<u8>) -> Result<()> {
    head.insert_header(CONTENT_TYPE, "application/json")?;
    head.insert_header(CONTENT_LENGTH, body.len())?;
    session.write_response_header(head, false).await?;
    session.write_response_body(Some(Bytes::from(body)), true).await
}
