//! What is asked: the address, the body under a cap, and the few fields of its JSON that the edge needs.

use crate::deadlines::until;
use crate::reject::Reject;
use bytes::{Bytes, BytesMut};
use http::header::{CONTENT_LENGTH, EXPECT};
use http::{HeaderMap, Method};
use pingora::protocols::http::ServerSession as Session;
use serde::Deserialize;
use serde_json::value::RawValue;
use std::ops::Range;
use std::time::{Duration, Instant};
use turnpike_config::Endpoint;

/// Longest body that is read for nothing, bytes, and for how long.
const DISCARDED: usize = 64 << 10;
const DISCARD_PATIENCE: Duration = Duration::from_millis(200);

/// What an address stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    Inference(Endpoint),
    ListModels,
    GetModel(String),
}

/// Reads method and path.
pub(crate) fn target(method: &Method, path: &str) -> Result<Target, Reject> {
    let path = path.strip_suffix('/').filter(|p| !p.is_empty()).unwrap_or(path);
    let expect = |wanted: &Method, allowed, target| {
        let wrong = || Reject::WrongMethod { method: method.to_string(), path: shown(path), allowed };
        if method == wanted { Ok(target) } else { Err(wrong()) }
    };
    if let Some(endpoint) = Endpoint::from_path(path) {
        return expect(&Method::POST, "POST", Target::Inference(endpoint));
    }
    if path == "/v1/models" {
        return expect(&Method::GET, "GET", Target::ListModels);
    }
    if let Some(model) = path.strip_prefix("/v1/models/") {
        return expect(&Method::GET, "GET", Target::GetModel(percent_decode(model)));
    }
    Err(Reject::UnknownUrl { method: shown(method.as_str()), path: shown(path) })
}

/// A client's text, short enough to repeat to him.
fn shown(text: &str) -> String {
    text.chars().take(200).collect()
}

/// Model ids may hold `/`, which SDKs escape.
fn percent_decode(text: &str) -> String {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        let escaped = tail.get(..2).filter(|_| *first == b'%').and_then(|hex| std::str::from_utf8(hex).ok());
        match escaped.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(byte) => {
                out.push(byte);
                rest = &tail[2..];
            }
            None => {
                out.push(*first);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// Reads the whole body, up to `limit` bytes, within `patience`.
pub(crate) async fn read_body(session: &mut Session, limit: usize, patience: Duration) -> Result<Bytes, Reject> {
    if declared_length(&session.req_header().headers).is_some_and(|length| length > limit) {
        return Err(Reject::BodyTooLarge { limit });
    }
    if session.req_header().headers.contains_key(EXPECT) {
        session.write_continue_response().await.map_err(|_| Reject::BodyUnreadable)?;
    }
    tokio::select! {
        biased;
        body = collect_body(session, limit) => body,
        () = until(Instant::now() + patience) => Err(Reject::BodyTooSlow),
    }
}

/// Reads what is left of a small body whose request is refused: a connection with a rest of it on the way could not be used
/// again, and a new one costs both ends more than reading.
pub(crate) async fn discard_body(session: &mut Session) {
    let headers = &session.req_header().headers;
    // Who waits to be asked for it does not send it.
    let is_worth_it = session.as_http1().is_some() && !headers.contains_key(EXPECT);
    if is_worth_it && declared_length(headers).is_none_or(|length| length <= DISCARDED) {
        // Whatever comes of it, the client gets his answer.
        let _ = tokio::time::timeout(DISCARD_PATIENCE, discard(session)).await;
    }
}

async fn discard(session: &mut Session) -> Result<(), Reject> {
    let mut length = 0;
    while let Some(piece) = next_piece(session).await? {
        length += piece.len();
        if length > DISCARDED {
            break;
        }
    }
    Ok(())
}

fn declared_length(headers: &HeaderMap) -> Option<usize> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

async fn collect_body(session: &mut Session, limit: usize) -> Result<Bytes, Reject> {
    let Some(first) = next_piece(session).await? else { return Ok(Bytes::new()) };
    let Some(second) = next_piece(session).await? else {
        // The usual case: one piece, not copied.
        return if first.len() > limit { Err(Reject::BodyTooLarge { limit }) } else { Ok(first) };
    };
    let mut body = BytesMut::with_capacity((first.len() + second.len()) * 2);
    body.extend_from_slice(&first);
    let mut piece = Some(second);
    while let Some(bytes) = piece {
        if body.len() + bytes.len() > limit {
            return Err(Reject::BodyTooLarge { limit });
        }
        body.extend_from_slice(&bytes);
        piece = next_piece(session).await?;
    }
    Ok(body.freeze())
}

async fn next_piece(session: &mut Session) -> Result<Option<Bytes>, Reject> {
    session.read_request_body().await.map_err(|_| Reject::BodyUnreadable)
}

/// The part of a request's JSON that the edge acts on.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Ask {
    pub(crate) model: String,
    /// Where in the body its name stands.
    pub(crate) model_at: Range<usize>,
    pub(crate) stream: bool,
    /// The client wants the usage chunk at the end of its stream.
    pub(crate) include_usage: bool,
    /// Longest answer asked for, tokens, over all choices.
    pub(crate) max_tokens: Option<u64>,
    /// Answers asked for, over all prompts, at least 1.
    pub(crate) choices: u64,
    /// `None` also for what is no number: the node refuses it.
    pub(crate) temperature: Option<f64>,
    /// Where in the body a longest answer of `null` stands.
    pub(crate) null_max_tokens: Option<Range<usize>>,
    /// Where in the body the value of `stream_options` stands.
    pub(crate) stream_options: Option<Range<usize>>,
}

/// Peeks at a body. Everything else in it is skipped, not copied.
pub(crate) fn peek(body: &[u8]) -> Result<Ask, Reject> {
    #[derive(Deserialize)]
    struct Peek<'a> {
        #[serde(borrow, default, deserialize_with = "present")]
        model: Option<&'a RawValue>,
        stream: Option<bool>,
        #[serde(borrow, default, deserialize_with = "present")]
        max_tokens: Option<&'a RawValue>,
        #[serde(borrow, default, deserialize_with = "present")]
        max_completion_tokens: Option<&'a RawValue>,
        n: Option<u64>,
        best_of: Option<u64>,
        #[serde(borrow)]
        prompt: Option<&'a RawValue>,
        #[serde(borrow)]
        temperature: Option<&'a RawValue>,
        #[serde(borrow, default, deserialize_with = "present")]
        stream_options: Option<&'a RawValue>,
    }
    /// A null that is there must be replaced, not doubled.
    fn present<'de, D: serde::Deserializer<'de>>(value: D) -> Result<Option<&'de RawValue>, D::Error> {
        <&RawValue>::deserialize(value).map(Some)
    }
    #[derive(Deserialize)]
    struct StreamOptions {
        #[serde(default)]
        include_usage: Option<bool>,
    }

    let text = std::str::from_utf8(body).map_err(|_| Reject::InvalidJson { reason: "it is not UTF-8".to_owned() })?;
    let peek: Peek<'_> = serde_json::from_str(text).map_err(|error| misread::<Peek<'_>>(text, &error))?;
    let Some(named) = peek.model else { return Err(Reject::MissingParameter { name: "model" }) };
    let model: String = serde_json::from_str(named.get())
        .map_err(|error| Reject::InvalidParameter { name: "model", reason: error.to_string() })?;
    if model.is_empty() {
        return Err(Reject::MissingParameter { name: "model" });
    }
    let options = peek.stream_options.map(|raw| serde_json::from_str::<Option<StreamOptions>>(raw.get())).transpose();
    let options = options
        .map_err(|_| Reject::InvalidParameter { name: "stream_options", reason: "expected an object".to_owned() })?
        .flatten();
    let longest = number("max_tokens", peek.max_tokens)?;
    // Engines differ in which of the two they heed.
    let answer = number("max_completion_tokens", peek.max_completion_tokens)?.max(longest);
    let null = [peek.max_completion_tokens, peek.max_tokens].into_iter().flatten().find(|raw| raw.get() == "null");
    let each = count("n", peek.n)?.max(count("best_of", peek.best_of)?);
    let choices = each.saturating_mul(prompts(peek.prompt));
    Ok(Ask {
        model,
        model_at: range_within(text, named.get()),
        stream: peek.stream.unwrap_or(false),
        include_usage: options.and_then(|o| o.include_usage).unwrap_or(false),
        max_tokens: answer.map(|tokens| tokens.saturating_mul(choices)),
        choices,
        temperature: peek.temperature.and_then(|raw| raw.get().parse().ok()),
        null_max_tokens: null.map(|raw| range_within(text, raw.get())),
        stream_options: peek.stream_options.map(|raw| range_within(text, raw.get())),
    })
}

/// A whole number that may be null or absent.
fn number(name: &'static str, raw: Option<&RawValue>) -> Result<Option<u64>, Reject> {
    let Some(raw) = raw else { return Ok(None) };
    serde_json::from_str(raw.get()).map_err(|error| Reject::InvalidParameter { name, reason: error.to_string() })
}

/// Answers to a prompt, as OpenAI bounds them.
fn count(name: &'static str, asked: Option<u64>) -> Result<u64, Reject> {
    match asked.unwrap_or(1) {
        number @ 1..=128 => Ok(number),
        _ => Err(Reject::InvalidParameter { name, reason: "expected 1 to 128".to_owned() }),
    }
}

/// Prompts in the field of that name: several texts, or several lists of tokens, or just one.
fn prompts(field: Option<&RawValue>) -> u64 {
    let several = field.filter(|raw| raw.get().starts_with('['));
    let several = several.and_then(|raw| serde_json::from_str::<Vec<&RawValue>>(raw.get()).ok()).unwrap_or_default();
    match several.first().map(|first| first.get().as_bytes()) {
        Some([b'"' | b'[', ..]) => several.len() as u64,
        _ => 1,
    }
}

/// Fields that the edge reads; one of a wrong type is named.
const PEEKED: [&str; 4] = ["stream", "n", "best_of", "stream_options"];

/// Tells JSON with a field of a wrong type from what is no JSON object. Reads again, which only the failed pay for.
fn misread<'a, T: Deserialize<'a>>(text: &'a str, error: &serde_json::Error) -> Reject {
    let again: Result<T, _> = serde_path_to_error::deserialize(&mut serde_json::Deserializer::from_str(text));
    let path = again.err().map(|e| e.path().to_string()).unwrap_or_default();
    match PEEKED.into_iter().find(|name| error.is_data() && *name == path) {
        Some(name) => Reject::InvalidParameter { name, reason: error.to_string() },
        None => Reject::InvalidJson { reason: error.to_string() },
    }
}

/// Where `part`, a slice of `whole`, begins and ends.
fn range_within(whole: &str, part: &str) -> Range<usize> {
    let start = part.as_ptr() as usize - whole.as_ptr() as usize;
    start..start + part.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        assert_eq!(target(&Method::POST, "/v1/chat/completions"), Ok(Target::Inference(Endpoint::Chat)));
        assert_eq!(target(&Method::GET, "/v1/models/"), Ok(Target::ListModels));
        assert_eq!(target(&Method::GET, "/v1/models/a%2Fb%zz"), Ok(Target::GetModel("a/b%zz".to_owned())));
        assert!(matches!(target(&Method::GET, "/v1/embeddings"), Err(Reject::WrongMethod { allowed: "POST", .. })));
        assert!(matches!(target(&Method::POST, "/v1/nothing"), Err(Reject::UnknownUrl { .. })));
        assert!(matches!(target(&Method::GET, "/"), Err(Reject::UnknownUrl { .. })));
    }

    #[test]
    fn peeking_finds_what_matters_and_skips_the_rest() {
        let body = br#"{"messages":[{"role":"user","content":"hi"}],"model":"a\u002fb","n":2,"max_tokens":7,
                        "stream":true,"stream_options":{"include_usage":true}}"#;
        let ask = peek(body).unwrap();
        assert_eq!((ask.model.as_str(), ask.stream, ask.include_usage, ask.max_tokens), ("a/b", true, true, Some(14)));
        assert_eq!(&body[ask.stream_options.unwrap()], br#"{"include_usage":true}"#);
    }

    #[test]
    fn every_answer_that_an_engine_may_make_is_counted() {
        let most = |rest: &str| peek(format!("{{\"model\":\"m\",{rest}}}").as_bytes()).unwrap().max_tokens;
        for (rest, expected) in [
            (r#""max_tokens":7"#, Some(7)),
            (r#""max_tokens":7,"max_completion_tokens":3"#, Some(7)),
            (r#""max_tokens":null,"max_completion_tokens":3"#, Some(3)),
            (r#""max_tokens":7,"n":2,"best_of":5"#, Some(35)),
            (r#""max_tokens":7,"prompt":["a","b","c"]"#, Some(21)),
            (r#""max_tokens":7,"prompt":[ [1,2],[3]],"n":2"#, Some(28)),
            (r#""max_tokens":7,"prompt":[1,2,3]"#, Some(7)),
            (r#""prompt":["a"]"#, None),
        ] {
            assert_eq!(most(rest), expected, "{rest}");
        }
    }

    #[test]
    fn bad_bodies_are_named() {
        assert!(matches!(peek(b""), Err(Reject::InvalidJson { .. })));
        assert!(matches!(peek(b"[1]"), Err(Reject::InvalidJson { .. })));
        assert!(matches!(peek(b"{\"model\":\"\xff\"}"), Err(Reject::InvalidJson { .. })));
        assert!(matches!(peek(br#"{"model":"a","model":"b"}"#), Err(Reject::InvalidJson { .. })));
        assert!(matches!(peek(br#"{"model":7}"#), Err(Reject::InvalidParameter { name: "model", .. })));
        let odd = peek(br#"{"model":"m","max_tokens":"7"}"#);
        assert!(matches!(odd, Err(Reject::InvalidParameter { name: "max_tokens", .. })));
        for no_json in [
            r#"{"model":"m"}{}"#,
            r#"{"model":"m",}"#,
            r#"{"model":"m","a" 1}"#,
            r#"{"model":"m","a":01}"#,
            r#"{"model":"m","a":+1}"#,
            r#"{"model":"m","a":nul}"#,
            r#"{"model":"m","a":[NaN]}"#,
            r#"{"model":"m","a":{"b":1 "c":2}}"#,
            r#"{"model":"m","a":"\q"}"#,
            "{\"model\":\"m\",\"a\":\"\t\"}",
        ] {
            assert!(matches!(peek(no_json.as_bytes()), Err(Reject::InvalidJson { .. })), "{no_json}");
        }
        for n in ["-1", "0", "129"] {
            let odd = peek(format!(r#"{{"model":"m","n":{n}}}"#).as_bytes());
            assert!(matches!(odd, Err(Reject::InvalidParameter { name: "n", .. })), "{n}");
        }
        assert_eq!(peek(br#"{"messages":[]}"#), Err(Reject::MissingParameter { name: "model" }));
        let odd = peek(br#"{"model":"m","stream_options":3}"#);
        assert!(matches!(odd, Err(Reject::InvalidParameter { name: "stream_options", .. })));
        assert!(peek(br#"{"model":"m","stream":null,"stream_options":null}"#).is_ok());
    }
}
