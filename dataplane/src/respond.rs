//! Answers that the edge writes itself.

use crate::limit;
use crate::live::{Key, Model, Route};
use crate::reject::{Answer, Reject};
use crate::request::Request;
use bytes::Bytes;
use http::header::{
    ALLOW, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE, RETRY_AFTER, TRANSFER_ENCODING, WWW_AUTHENTICATE,
};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use pingora::Result;
use pingora::http::ResponseHeader;
use pingora::protocols::http::ServerSession as Session;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use turnpike_config::CacheStatus;
use turnpike_config::headers as named;

pub(crate) const REQUEST_ID: HeaderName = HeaderName::from_static(named::REQUEST_ID);
const MODEL: HeaderName = HeaderName::from_static(named::MODEL);
const CACHE: HeaderName = HeaderName::from_static(named::CACHE);
const CACHE_KEY: HeaderName = HeaderName::from_static(named::CACHE_KEY);
const JSON: HeaderValue = HeaderValue::from_static("application/json");
const EVENTS: HeaderValue = HeaderValue::from_static("text/event-stream");
pub(crate) const CHUNKED: HeaderValue = HeaderValue::from_static("chunked");

/// What the client was told already, interim answers aside.
pub(crate) fn status_sent(session: &Session) -> Option<StatusCode> {
    session.response_written().map(|head| head.status).filter(|status| !status.is_informational())
}

/// Tells the client why not.
pub(crate) async fn reject(session: &mut Session, request: &Request, reject: &Reject, now_ns: u64) -> Result<()> {
    let answer = reject.answer();
    let mut headers = headers(request);
    if matches!(reject, Reject::Limit(_)) {
        tell_limits(&mut headers, request, now_ns);
    }
    if let Some(seconds) = answer.retry_after_s {
        headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
    }
    if let Some(methods) = answer.allow {
        headers.insert(ALLOW, HeaderValue::from_static(methods));
    }
    if answer.status == StatusCode::UNAUTHORIZED {
        headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    json_body(session, answer.status, headers, answer.body()).await
}

/// The head of an answer that no node made for this request. A stream that comes bit by bit has no length.
pub(crate) fn reused_head(
    request: &Request,
    streamed: bool,
    length: Option<usize>,
    now_ns: u64,
) -> Box<ResponseHeader> {
    let mut headers = headers(request);
    headers.insert(CONTENT_TYPE, if streamed { EVENTS } else { JSON });
    match length {
        Some(length) => headers.insert(CONTENT_LENGTH, HeaderValue::from(length)),
        None => headers.insert(TRANSFER_ENCODING, CHUNKED),
    };
    tell(&mut headers, request, now_ns);
    head(StatusCode::OK, headers)
}

/// Tells the client what every answer tells beside the request's id: his limits, which model answers, and what the cache
/// did.
pub(crate) fn tell(headers: &mut HeaderMap, request: &Request, now_ns: u64) {
    tell_limits(headers, request, now_ns);
    let deployment = request.metered.as_ref().and_then(|metered| metered.deployment.as_ref());
    if let Some(label) = deployment.and_then(|deployment| deployment.label.as_ref()) {
        headers.insert(MODEL, label.clone());
    }
    let Some(cached) = request.metered.as_ref().and_then(|metered| metered.cached.as_ref()) else { return };
    let status = match cached.status {
        CacheStatus::Hit => text(format!("hit; age={}", cached.age_s)),
        status => HeaderValue::from_static(status.name()),
    };
    headers.insert(CACHE, status);
    if let Some(key) = &cached.key {
        headers.insert(CACHE_KEY, text(key.to_string()));
    }
}

fn tell_limits(headers: &mut HeaderMap, request: &Request, now_ns: u64) {
    let Some(metered) = &request.metered else { return };
    let model = metered.model.as_ref().map(|model| model.record.id.as_str());
    limit::tell(headers, model, &metered.key.limits, &metered.key.org.limits, now_ns);
}

/// A header's value; empty if the text can be none.
pub(crate) fn text(text: String) -> HeaderValue {
    HeaderValue::from_maybe_shared(Bytes::from(text)).unwrap_or(HeaderValue::from_static(""))
}

/// Ends a stream that has begun with an error event, which SDKs raise as an exception.
pub(crate) async fn stream_error(session: &mut Session, answer: &Answer) -> Result<()> {
    let mut event = b"data: ".to_vec();
    event.extend(answer.body());
    event.extend_from_slice(b"\n\n");
    session.write_response_body(Bytes::from(event), true).await
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
    let body = json!({"object": "list", "data": data}).to_string().into_bytes();
    json_body(session, StatusCode::OK, headers(request), body).await
}

/// `GET /v1/models/{id}`
pub(crate) async fn get_model(session: &mut Session, request: &Request, model: &Model) -> Result<()> {
    json_body(session, StatusCode::OK, headers(request), model_object(model).to_string().into_bytes()).await
}

/// `GET /v1/models/{id}` of a name that has a route.
pub(crate) async fn get_route(session: &mut Session, request: &Request, route: &Route) -> Result<()> {
    match route_object(route) {
        Some(object) => json_body(session, StatusCode::OK, headers(request), object.to_string().into_bytes()).await,
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

/// What every answer has that the edge writes itself.
fn headers(request: &Request) -> HeaderMap {
    let mut headers = HeaderMap::with_capacity(16);
    headers.insert(REQUEST_ID, text(request.request_id.clone()));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers
}

/// A head as Pingora has it. Put together from parts: its own way of adding a header reads the name anew each time.
pub(crate) fn head(status: StatusCode, headers: HeaderMap) -> Box<ResponseHeader> {
    let (mut parts, ()) = http::Response::new(()).into_parts();
    (parts.status, parts.headers) = (status, headers);
    Box::new(ResponseHeader::from(parts))
}

async fn json_body(session: &mut Session, status: StatusCode, mut headers: HeaderMap, body: Vec<u8>) -> Result<()> {
    headers.insert(CONTENT_TYPE, JSON);
    headers.insert(CONTENT_LENGTH, HeaderValue::from(body.len()));
    session.write_response_header(head(status, headers)).await?;
    session.write_response_body(Bytes::from(body), true).await
}
