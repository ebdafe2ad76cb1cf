//! What goes to the node: the client's bytes, changed only where they must be.

use crate::ingress::Ask;
use bytes::{Bytes, BytesMut};
use http::header::{ACCEPT_ENCODING, AUTHORIZATION, CONTENT_LENGTH, EXPECT, HOST, TRANSFER_ENCODING};
use pingora::http::RequestHeader;
use serde_json::{Map, Value};
use turnpike_config::headers;

const INCLUDE_USAGE: &[u8] = br#""stream_options":{"include_usage":true},"#;

/// Makes a streaming engine report its usage, which only some clients ask for. Other bodies pass as they are.
pub(crate) fn body(ask: &Ask, body: &Bytes) -> Bytes {
    if !ask.stream || ask.include_usage {
        return body.clone();
    }
    match &ask.stream_options {
        Some(range) => {
            let mut options: Map<String, Value> = serde_json::from_slice(&body[range.clone()]).unwrap_or_default();
            options.insert("include_usage".to_owned(), Value::Bool(true));
            splice(body, range.start, range.end, Value::Object(options).to_string().as_bytes())
        }
        None => {
            // Peeking found a model inside an object, so a field follows the first brace.
            let after_brace = body.iter().position(|byte| *byte == b'{').map_or(0, |brace| brace + 1);
            splice(body, after_brace, after_brace, INCLUDE_USAGE)
        }
    }
}

fn splice(body: &Bytes, start: usize, end: usize, with: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(body.len() - (end - start) + with.len());
    out.extend_from_slice(&body[..start]);
    out.extend_from_slice(with);
    out.extend_from_slice(&body[end..]);
    out.freeze()
}

/// What the node is told beside the body.
pub(crate) struct Forwarded<'a> {
    pub(crate) request_id: &'a str,
    pub(crate) model: &'a str,
    pub(crate) version: &'a str,
    pub(crate) body_length: usize,
    pub(crate) host: &'a str,
}

/// Replaces the client's head: his key stays here, and so do headers that only concern his own connection.
pub(crate) fn head(request: &mut RequestHeader, forwarded: &Forwarded<'_>) -> pingora::Result<()> {
    for name in [AUTHORIZATION, EXPECT, TRANSFER_ENCODING, ACCEPT_ENCODING] {
        request.remove_header(&name);
    }
    // Cookies and forwarding headers are the client's word alone.
    for name in
        ["cookie", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "forwarded", "proxy-authorization"]
    {
        request.remove_header(name);
    }
    request.insert_header(HOST, forwarded.host)?;
    request.insert_header(CONTENT_LENGTH, forwarded.body_length)?;
    request.insert_header(headers::REQUEST_ID, forwarded.request_id)?;
    request.insert_header(headers::MODEL, forwarded.model)?;
    request.insert_header(headers::MODEL_VERSION, forwarded.version)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ingress::peek;

    fn sent(text: &str) -> String {
        let bytes = Bytes::copy_from_slice(text.as_bytes());
        String::from_utf8(body(&peek(&bytes).unwrap(), &bytes).to_vec()).unwrap()
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
}
