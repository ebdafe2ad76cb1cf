//! Answers that the edge writes itself.

use crate::limit;
use crate::live::{Key, Model};
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

/// Tells the client what every answer tells beside the request's id: his limits, and what the cache did.
pub(crate) fn tell(head: &mut ResponseHeader, request: &Request, now_ns: u64) -> Result<()> {
    tell_limits(head, request, now_ns)?;
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
    let usable = request.snapshot.listing().filter(|model| key.may_use(model));
    let data: Vec<Value> = usable.map(|model| model_object(model)).collect();
    let head = head(StatusCode::OK, request)?;
    json_body(session, head, json!({"object": "list", "data": data}).to_string().into_bytes()).await
}

/// `GET /v1/models/{id}`
pub(crate) async fn get_model(session: &mut Session, request: &Request, model: &Model) -> Result<()> {
    let head = head(StatusCode::OK, request)?;
    json_body(session, head, model_object(model).to_string().into_bytes()).await
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
