//! Responses: whole documents, or streams of server-sent events.

use super::error::json_response;
use super::request::EncodingFormat;
use crate::engine::{Body, EngineError};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures::stream::{self, BoxStream, StreamExt as _};
use futures::{Stream, TryStreamExt as _};
use http::{HeaderName, HeaderValue, Response, StatusCode, header};
use http_body::Frame;
use http_body_util::{BodyExt as _, StreamBody};
use serde::Serialize;
use serde_json::{Value, json};
use std::time::{SystemTime, UNIX_EPOCH};
use turnpike_config::{Endpoint, headers};
use uuid::Uuid;

/// Why generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum FinishReason {
    /// The model was done, or a stop sequence appeared.
    Stop,
    /// `max_tokens` or the context was reached.
    Length,
}

/// Tokens, counted by the engine's own tokenizer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    /// Tokens of the prompt.
    pub(crate) prompt_tokens: u32,
    /// Tokens generated.
    pub(crate) completion_tokens: u32,
}

impl Usage {
    fn json(self) -> Value {
        json!({
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": u64::from(self.prompt_tokens) + u64::from(self.completion_tokens),
        })
    }
}

/// What an engine yields while it generates: any number of texts, then one end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum GenerationEvent {
    /// More text; whole characters. Empty text is not sent on.
    Text(String),
    /// The end.
    Done {
        /// Why.
        finish_reason: FinishReason,
        /// How many tokens it took.
        usage: Usage,
    },
}

/// How to write an answer.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    /// [`Endpoint::Chat`] or [`Endpoint::Completion`].
    pub(crate) endpoint: Endpoint,
    /// The model's name as the client knows it.
    pub(crate) model: String,
    /// `system_fingerprint`: which engine answered.
    pub(crate) fingerprint: &'static str,
    /// As [`super::GenerationOptions::streaming`].
    pub(crate) streaming: Option<bool>,
    /// Tokens of the prompt; told to the edge before the stream begins, so that it can bill a stream that is cut.
    pub(crate) prompt_tokens: u32,
}

/// Writes a generation as the response that the client asked for. A failure before the first event is returned, so that
/// it gets a status of its own; a later one breaks the stream off.
///
/// # Errors
/// What the generation fails with before there is a response.
pub(crate) async fn respond<S>(answer: Answer, events: S) -> Result<Response<Body>, EngineError>
where
    S: Stream<Item = Result<GenerationEvent, EngineError>> + Send + 'static,
{
    let shape = Shape::new(answer);
    let mut events = events.boxed();
    match shape.include_usage {
        None => {
            let (text, finish_reason, usage) = collect(events).await?;
            Ok(json_response(StatusCode::OK, &shape.document(&text, finish_reason, usage)))
        }
        Some(include_usage) => {
            let first = events.next().await.unwrap_or_else(|| Err(cut_short()))?;
            let events = stream::once(std::future::ready(Ok(first))).chain(events).boxed();
            Ok(event_stream(shape, include_usage, events))
        }
    }
}

async fn collect(
    mut events: BoxStream<'static, Result<GenerationEvent, EngineError>>,
) -> Result<(String, FinishReason, Usage), EngineError> {
    let mut text = String::new();
    while let Some(event) = events.try_next().await? {
        match event {
            GenerationEvent::Text(more) => text.push_str(&more),
            GenerationEvent::Done { finish_reason, usage } => return Ok((text, finish_reason, usage)),
        }
    }
    Err(cut_short())
}

fn cut_short() -> EngineError {
    EngineError::Failed("generation ended without a result".to_owned())
}

/// The constant parts of one answer's documents.
struct Shape {
    id: String,
    created: u64,
    chat: bool,
    model: String,
    fingerprint: &'static str,
    include_usage: Option<bool>,
    prompt_tokens: u32,
}

impl Shape {
    fn new(answer: Answer) -> Self {
        let chat = answer.endpoint == Endpoint::Chat;
        let prefix = if chat { "chatcmpl" } else { "cmpl" };
        Self {
            id: format!("{prefix}-{}", Uuid::new_v4().simple()),
            created: unix_seconds(),
            chat,
            model: answer.model,
            fingerprint: answer.fingerprint,
            include_usage: answer.streaming,
            prompt_tokens: answer.prompt_tokens,
        }
    }

    fn envelope(&self, object: &str, choices: &Value) -> Value {
        json!({
            "id": self.id,
            "object": object,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
            "choices": choices,
        })
    }

    fn document(&self, text: &str, finish_reason: FinishReason, usage: Usage) -> Value {
        let (object, mut choice) = if self.chat {
            ("chat.completion", json!({"message": {"role": "assistant", "content": text, "refusal": null}}))
        } else {
            ("text_completion", json!({"text": text}))
        };
        choice["index"] = json!(0);
        choice["logprobs"] = Value::Null;
        choice["finish_reason"] = json!(finish_reason);
        let mut document = self.envelope(object, &json!([choice]));
        document["usage"] = usage.json();
        document
    }

    fn chunk(&self, choices: &Value) -> Value {
        let mut chunk = self.envelope(if self.chat { "chat.completion.chunk" } else { "text_completion" }, choices);
        if self.include_usage == Some(true) {
            chunk["usage"] = Value::Null;
        }
        chunk
    }

    /// The chunk that announces who speaks; chat only.
    fn opening(&self) -> Option<Bytes> {
        self.chat.then(|| self.choice_chunk(json!({"role": "assistant", "content": ""}), None))
    }

    fn text(&self, text: &str) -> Bytes {
        self.choice_chunk(if self.chat { json!({"content": text}) } else { json!(text) }, None)
    }

    fn closing(&self, finish_reason: FinishReason) -> Bytes {
        self.choice_chunk(if self.chat { json!({}) } else { json!("") }, Some(finish_reason))
    }

    fn choice_chunk(&self, content: Value, finish_reason: Option<FinishReason>) -> Bytes {
        let mut choice = json!({"index": 0, "logprobs": null, "finish_reason": finish_reason});
        choice[if self.chat { "delta" } else { "text" }] = content;
        sse(&self.chunk(&json!([choice])))
    }

    fn usage(&self, usage: Usage) -> Bytes {
        let mut chunk = self.chunk(&json!([]));
        chunk["usage"] = usage.json();
        sse(&chunk)
    }
}

/// One server-sent event.
fn sse(document: &Value) -> Bytes {
    format!("data: {document}\n\n").into()
}

const PROMPT_TOKENS: HeaderName = HeaderName::from_static(headers::PROMPT_TOKENS);

const DONE: Bytes = Bytes::from_static(b"data: [DONE]\n\n");

/// The stream ends for its client only with `[DONE]`; a generation that fails breaks the body off, which the edge sees.
fn event_stream(
    shape: Shape,
    include_usage: bool,
    events: BoxStream<'static, Result<GenerationEvent, EngineError>>,
) -> Response<Body> {
    let opening = stream::iter(shape.opening().map(Ok));
    let prompt_tokens = HeaderValue::from(shape.prompt_tokens);
    let rest = stream::unfold(Some((shape, events)), move |state| async move {
        let (shape, mut events) = state?;
        let (frames, state) = match events.next().await {
            Some(Ok(GenerationEvent::Text(text))) if text.is_empty() => (Ok(Vec::new()), Some((shape, events))),
            Some(Ok(GenerationEvent::Text(text))) => (Ok(vec![shape.text(&text)]), Some((shape, events))),
            Some(Ok(GenerationEvent::Done { finish_reason, usage })) => {
                let mut frames = vec![shape.closing(finish_reason)];
                frames.extend(include_usage.then(|| shape.usage(usage)));
                frames.push(DONE);
                (Ok(frames), None)
            }
            Some(Err(error)) => (Err(error), None),
            None => (Err(cut_short()), None),
        };
        let frames = frames.map_err(|error| {
            tracing::warn!(%error, "a stream broke off");
            std::io::Error::other(error)
        });
        Some((frames, state))
    })
    .map_ok(|frames| stream::iter(frames.into_iter().map(Ok)))
    .try_flatten();
    let body = StreamBody::new(opening.chain(rest).map_ok(Frame::data));
    let mut response = Response::new(body.boxed_unsync());
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream; charset=utf-8"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    headers.insert(PROMPT_TOKENS, prompt_tokens);
    response
}

/// `POST /v1/embeddings`' response: a vector per input, in order. `prompt_tokens` is the count over all inputs.
pub(crate) fn embeddings_response(
    model: &str,
    format: EncodingFormat,
    vectors: &[Vec<f32>],
    prompt_tokens: u32,
) -> Response<Body> {
    let data: Vec<Value> = vectors
        .iter()
        .enumerate()
        .map(|(index, vector)| {
            let embedding = match format {
                EncodingFormat::Float => json!(vector),
                EncodingFormat::Base64 => {
                    json!(STANDARD.encode(vector.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>()))
                }
            };
            json!({"object": "embedding", "index": index, "embedding": embedding})
        })
        .collect();
    let usage = json!({"prompt_tokens": prompt_tokens, "total_tokens": prompt_tokens});
    json_response(StatusCode::OK, &json!({"object": "list", "data": data, "model": model, "usage": usage}))
}

/// `POST /v1/moderations`' response: per input, whether each named category flags it and with which score, 0 to 1.
pub(crate) fn moderations_response(model: &str, results: &[Vec<(&str, bool, f64)>]) -> Response<Body> {
    let results: Vec<Value> = results
        .iter()
        .map(|categories| {
            let flags: serde_json::Map<_, _> = categories.iter().map(|(n, f, _)| ((*n).to_owned(), json!(f))).collect();
            let scores: serde_json::Map<_, _> =
                categories.iter().map(|(n, _, s)| ((*n).to_owned(), json!(s))).collect();
            let flagged = categories.iter().any(|(_, flag, _)| *flag);
            json!({"flagged": flagged, "categories": flags, "category_scores": scores})
        })
        .collect();
    let id = format!("modr-{}", Uuid::new_v4().simple());
    json_response(StatusCode::OK, &json!({"id": id, "model": model, "results": results}))
}

fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(endpoint: Endpoint, streaming: Option<bool>) -> Answer {
        Answer { endpoint, model: "m".to_owned(), fingerprint: "test", streaming, prompt_tokens: 2 }
    }

    fn events(texts: &[&str]) -> Vec<Result<GenerationEvent, EngineError>> {
        let usage = Usage { prompt_tokens: 2, completion_tokens: 3 };
        let done = GenerationEvent::Done { finish_reason: FinishReason::Length, usage };
        texts.iter().map(|t| Ok(GenerationEvent::Text((*t).to_owned()))).chain([Ok(done)]).collect()
    }

    async fn body(response: Response<Body>) -> String {
        String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap()
    }

    fn chunks(body: &str) -> Vec<Value> {
        let data: Vec<&str> = body.split_terminator("\n\n").map(|e| e.strip_prefix("data: ").unwrap()).collect();
        let (last, chunks) = data.split_last().unwrap();
        assert_eq!(*last, "[DONE]");
        chunks.iter().map(|chunk| serde_json::from_str(chunk).unwrap()).collect()
    }

    #[tokio::test]
    async fn a_whole_chat_answer() {
        let response = respond(answer(Endpoint::Chat, None), stream::iter(events(&["a", "b"]))).await.unwrap();
        assert_eq!(response.headers()["content-type"], "application/json");
        let value: Value = serde_json::from_str(&body(response).await).unwrap();
        assert_eq!(value["object"], "chat.completion");
        assert_eq!(value["choices"][0]["message"]["content"], "ab");
        assert_eq!(value["choices"][0]["finish_reason"], "length");
        assert_eq!(value["usage"]["total_tokens"], 5);
        assert_eq!(value["system_fingerprint"], "test");
    }

    #[tokio::test]
    async fn a_chat_stream_opens_speaks_closes_and_counts() {
        let response =
            respond(answer(Endpoint::Chat, Some(true)), stream::iter(events(&["a", "", "b"]))).await.unwrap();
        assert!(response.headers()["content-type"].to_str().unwrap().starts_with("text/event-stream"));
        let chunks = chunks(&body(response).await);
        assert_eq!(chunks.len(), 5);
        assert_eq!(chunks[0]["choices"][0]["delta"]["role"], "assistant");
        assert_eq!(chunks[1]["choices"][0]["delta"]["content"], "a");
        assert!(chunks[1]["usage"].is_null() && chunks[1].get("usage").is_some());
        assert_eq!(chunks[3]["choices"][0]["finish_reason"], "length");
        assert_eq!(chunks[4]["choices"], json!([]));
        assert_eq!(chunks[4]["usage"]["completion_tokens"], 3);
    }

    #[tokio::test]
    async fn a_completion_stream_without_usage_does_not_mention_it() {
        let response = respond(answer(Endpoint::Completion, Some(false)), stream::iter(events(&["a"]))).await.unwrap();
        let chunks = chunks(&body(response).await);
        assert_eq!(chunks.len(), 2);
        assert_eq!(chunks[0]["object"], "text_completion");
        assert_eq!(chunks[0]["choices"][0]["text"], "a");
        assert!(chunks.iter().all(|chunk| chunk.get("usage").is_none()));
    }

    #[tokio::test]
    async fn an_early_failure_is_returned_and_a_late_one_breaks_the_body() {
        let failure = || Err(EngineError::Failed("out of memory".to_owned()));
        assert!(respond(answer(Endpoint::Chat, Some(false)), stream::iter([failure()])).await.is_err());
        assert!(respond(answer(Endpoint::Chat, None), stream::iter([])).await.is_err());

        let late = [Ok(GenerationEvent::Text("a".to_owned())), failure()];
        let response = respond(answer(Endpoint::Chat, Some(false)), stream::iter(late)).await.unwrap();
        assert!(response.into_body().collect().await.is_err());
    }

    #[tokio::test]
    async fn embeddings_are_written_both_ways() {
        let vectors = [vec![1.0_f32, -0.5]];
        let float: Value =
            serde_json::from_str(&body(embeddings_response("m", EncodingFormat::Float, &vectors, 2)).await).unwrap();
        assert_eq!(float["data"][0]["embedding"], json!([1.0, -0.5]));
        let base64: Value =
            serde_json::from_str(&body(embeddings_response("m", EncodingFormat::Base64, &vectors, 2)).await).unwrap();
        assert_eq!(base64["data"][0]["embedding"], "AACAPwAAAL8=");
        assert_eq!(base64["usage"]["prompt_tokens"], 2);
    }
}
