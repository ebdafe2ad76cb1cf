//! What goes to the node: the client's bytes, changed only where they must be.

use crate::ingress::Ask;
use crate::upstream::is_for_one_hop;
use bytes::{Bytes, BytesMut};
use http::HeaderName;
use http::header::{
    ACCEPT_ENCODING, AUTHORIZATION, CONNECTION, CONTENT_LENGTH, COOKIE, EXPECT, HOST, TRANSFER_ENCODING,
};
use http::uri::PathAndQuery;
use pingora::http::RequestHeader;
use serde_json::{Map, Value};
use std::ops::Range;
use turnpike_config::headers;

const INCLUDE_USAGE: &[u8] = br#""stream_options":{"include_usage":true},"#;

/// Bytes that most heads fit in.
const HEAD: usize = 1 << 10;

/// What a body is changed in.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Changes<'a> {
    /// The model's own name, if the client calls it by another.
    pub(crate) model: Option<&'a str>,
    /// Tokens that an answer of open length is held to, over all choices.
    pub(crate) longest: Option<u64>,
    /// The answer is generated, token by token.
    pub(crate) is_generated: bool,
}

/// Names the model as its engine knows it, makes a streaming engine report its usage, which only some clients ask for, and
/// holds an answer whose length the client left open. Other bodies pass as they are.
pub(crate) fn body(ask: &Ask, body: &Bytes, changes: &Changes<'_>) -> Bytes {
    let mut edits: Vec<(Range<usize>, Vec<u8>)> = Vec::new();
    if let Some(model) = changes.model {
        edits.push((ask.model_at.clone(), Value::from(model).to_string().into_bytes()));
    }
    // Peeking found a model inside an object, so a field follows the first brace.
    let after_brace = body.iter().position(|byte| *byte == b'{').map_or(0, |brace| brace + 1);
    if let (Some(longest), None, true) = (changes.longest, ask.max_tokens, changes.is_generated) {
        let each = (longest / ask.choices).max(1);
        edits.push(match &ask.null_max_tokens {
            Some(range) => (range.clone(), each.to_string().into_bytes()),
            None => (after_brace..after_brace, format!("\"max_tokens\":{each},").into_bytes()),
        });
    }
    if ask.stream && !ask.include_usage && changes.is_generated {
        edits.push(match &ask.stream_options {
            Some(range) => {
                let mut options: Map<String, Value> = serde_json::from_slice(&body[range.clone()]).unwrap_or_default();
                options.insert("include_usage".to_owned(), Value::Bool(true));
                (range.clone(), Value::Object(options).to_string().into_bytes())
            }
            None => (after_brace..after_brace, INCLUDE_USAGE.to_vec()),
        });
    }
    if edits.is_empty() { body.clone() } else { splice(body, edits) }
}

/// Replaces parts of a body.
fn splice(body: &Bytes, mut edits: Vec<(Range<usize>, Vec<u8>)>) -> Bytes {
    edits.sort_by_key(|(range, _)| range.start);
    let added: usize = edits.iter().map(|(_, with)| with.len()).sum();
    let mut out = BytesMut::with_capacity(body.len() + added);
    let mut at = 0;
    for (range, with) in edits {
        out.extend_from_slice(&body[at..range.start]);
        out.extend_from_slice(&with);
        at = range.end;
    }
    out.extend_from_slice(&body[at..]);
    out.freeze()
}

/// What the node is told beside the body.
pub(crate) struct Forwarded<'a> {
    pub(crate) request_id: &'a str,
    pub(crate) model: &'a str,
    pub(crate) version: &'a str,
    pub(crate) body_length: usize,
    pub(crate) host: &'a str,
    /// What the node's ledger goes by.
    pub(crate) event: &'a str,
    /// Tokens of the prompt, judged by its bytes.
    pub(crate) prompt_estimate: u32,
}

/// The head of a node's request, as it is sent. The client's key stays here, and so do headers that only concern his own
/// connection, or are his word alone.
pub(crate) fn head(client: &RequestHeader, forwarded: &Forwarded<'_>) -> BytesMut {
    let mut out = BytesMut::with_capacity(HEAD);
    let path = client.uri.path_and_query().map_or("/", PathAndQuery::as_str);
    for part in [b"POST ", path.as_bytes(), b" HTTP/1.1\r\n"] {
        out.extend_from_slice(part);
    }
    let nominated = || client.headers.get_all(CONNECTION).iter().filter_map(|value| value.to_str().ok());
    for (name, value) in &client.headers {
        let is = |other: &str| other.trim().eq_ignore_ascii_case(name.as_str());
        if !stays_here(name) && !nominated().any(|names| names.split(',').any(is)) {
            write_line(&mut out, name.as_str(), value.as_bytes());
        }
    }
    let (length, estimate) = (forwarded.body_length.to_string(), forwarded.prompt_estimate.to_string());
    for (name, value) in [
        ("host", forwarded.host),
        ("content-length", &length),
        (headers::REQUEST_ID, forwarded.request_id),
        (headers::MODEL, forwarded.model),
        (headers::MODEL_VERSION, forwarded.version),
        (headers::EVENT, forwarded.event),
        (headers::PROMPT_ESTIMATE, &estimate),
    ] {
        write_line(&mut out, name, value.as_bytes());
    }
    out.extend_from_slice(b"\r\n");
    out
}

/// Headers that no node gets from a client.
fn stays_here(name: &HeaderName) -> bool {
    const OWN: [&str; 5] =
        [headers::REQUEST_ID, headers::MODEL, headers::MODEL_VERSION, headers::EVENT, headers::PROMPT_ESTIMATE];
    [AUTHORIZATION, HOST, CONTENT_LENGTH, ACCEPT_ENCODING, CONNECTION, EXPECT, TRANSFER_ENCODING, COOKIE].contains(name)
        || is_for_one_hop(name)
        || OWN.contains(&name.as_str())
        || matches!(
            name.as_str(),
            "x-forwarded-for"
                | "x-forwarded-host"
                | "x-forwarded-proto"
                | "forwarded"
                | "proxy-authorization"
                | "http2-settings"
        )
}

/// Of a value that may be anything a record holds, what would end its line is left out.
fn write_line(out: &mut BytesMut, name: &str, value: &[u8]) {
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b": ");
    if memchr::memchr3(b'\r', b'\n', 0, value).is_none() {
        out.extend_from_slice(value);
    } else {
        out.extend(value.iter().copied().filter(|byte| !matches!(byte, b'\r' | b'\n' | 0)));
    }
    out.extend_from_slice(b"\r\n");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ingress::peek;

    fn sent(text: &str) -> String {
        let bytes = Bytes::copy_from_slice(text.as_bytes());
        String::from_utf8(body(&peek(&bytes).unwrap(), &bytes, &GENERATED).to_vec()).unwrap()
    }

    const GENERATED: Changes<'_> = Changes { model: None, longest: None, is_generated: true };

    #[test]
    fn an_alias_becomes_the_models_own_name() {
        let named = |text: &str| {
            let bytes = Bytes::copy_from_slice(text.as_bytes());
            let changes = Changes { model: Some("o\"rg/m"), ..GENERATED };
            String::from_utf8(body(&peek(&bytes).unwrap(), &bytes, &changes).to_vec()).unwrap()
        };
        for (from, to) in [
            (r#"{"model":"alias"}"#, r#"{"model":"o\"rg/m"}"#),
            (
                r#"{"x":{"model":"y"}, "model" : "al\u0069as" ,"a":1}"#,
                r#"{"x":{"model":"y"}, "model" : "o\"rg/m" ,"a":1}"#,
            ),
            (
                r#"{"model":"alias","stream":true}"#,
                r#"{"stream_options":{"include_usage":true},"model":"o\"rg/m","stream":true}"#,
            ),
        ] {
            assert_eq!(named(from), to);
        }
    }

    #[test]
    fn a_node_gets_nothing_that_is_for_the_edge_alone() {
        let mut client = RequestHeader::build("POST", b"/v1/chat/completions?x=y", None).unwrap();
        for (name, value) in [
            ("Authorization", "Bearer secret"),
            ("Host", "edge"),
            ("Content-Length", "999"),
            ("Transfer-Encoding", "chunked"),
            ("Cookie", "secret"),
            ("X-Forwarded-For", "1.2.3.4"),
            ("Connection", "close, X-Hop"),
            ("Connection", "X-Other"),
            ("X-Hop", "secret"),
            ("X-Other", "secret"),
            ("TE", "trailers"),
            ("x-turnpike-model", "another"),
            ("Content-Type", "application/json"),
            ("User-Agent", "a client"),
        ] {
            client.append_header(name, value).unwrap();
        }
        let forwarded = Forwarded {
            request_id: "id",
            model: "m\r\nx: y",
            version: "v1",
            body_length: 3,
            host: "node",
            event: "event",
            prompt_estimate: 7,
        };
        let head = String::from_utf8(head(&client, &forwarded).to_vec()).unwrap();
        let (first, lines) = head.split_once("\r\n").unwrap();
        assert_eq!(first, "POST /v1/chat/completions?x=y HTTP/1.1");
        let mut lines: Vec<_> = lines.strip_suffix("\r\n\r\n").unwrap().split("\r\n").collect();
        lines.sort_unstable();
        let mut expected = [
            "content-type: application/json".to_owned(),
            "user-agent: a client".to_owned(),
            "host: node".to_owned(),
            "content-length: 3".to_owned(),
            format!("{}: id", headers::REQUEST_ID),
            format!("{}: mx: y", headers::MODEL),
            format!("{}: v1", headers::MODEL_VERSION),
            format!("{}: event", headers::EVENT),
            format!("{}: 7", headers::PROMPT_ESTIMATE),
        ];
        expected.sort_unstable();
        assert_eq!(lines, expected);
    }

    #[test]
    fn only_streams_that_lack_it_get_the_usage_option() {
        for same in [r#"{"model":"m"}"#, r#"{"model":"m","stream":true,"stream_options":{"include_usage":true}}"#] {
            assert_eq!(sent(same), same);
        }
        for (from, to) in [
            (
                r#" { "model":"m","stream":true}"#,
                r#" {"stream_options":{"include_usage":true}, "model":"m","stream":true}"#,
            ),
            (
                r#"{"stream":true,"stream_options":{"include_usage":false,"x":1},"model":"m"}"#,
                r#"{"stream":true,"stream_options":{"include_usage":true,"x":1},"model":"m"}"#,
            ),
            (
                r#"{"stream":true,"stream_options":null,"model":"m"}"#,
                r#"{"stream":true,"stream_options":{"include_usage":true},"model":"m"}"#,
            ),
        ] {
            assert_eq!(sent(from), to);
            assert!(peek(to.as_bytes()).unwrap().include_usage);
        }
    }

    #[test]
    fn an_answer_of_open_length_is_held_to_what_is_reserved() {
        let held = |text: &str| {
            let bytes = Bytes::copy_from_slice(text.as_bytes());
            String::from_utf8(
                body(&peek(&bytes).unwrap(), &bytes, &Changes { longest: Some(90), ..GENERATED }).to_vec(),
            )
            .unwrap()
        };
        for (from, to) in [
            (r#"{"model":"m"}"#, r#"{"max_tokens":90,"model":"m"}"#),
            (r#"{"model":"m","n":3}"#, r#"{"max_tokens":30,"model":"m","n":3}"#),
            (r#"{"model":"m","max_tokens":null}"#, r#"{"model":"m","max_tokens":90}"#),
            (r#"{"model":"m","max_tokens":5}"#, r#"{"model":"m","max_tokens":5}"#),
            (
                r#"{"model":"m","max_completion_tokens":null,"stream":true}"#,
                r#"{"stream_options":{"include_usage":true},"model":"m","max_completion_tokens":90,"stream":true}"#,
            ),
        ] {
            assert_eq!(held(from), to);
        }
    }
}
