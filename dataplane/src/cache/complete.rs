//! Whether an answer is whole, so that it may be given again.

use crate::cache::json::{Fields, read};
use crate::cache::sse::{self, Data};
use serde::Deserialize;
use serde::de::IgnoredAny;
use std::borrow::Cow;
use std::collections::BTreeMap;
use turnpike_config::Endpoint;

/// Ends that engines report when they gave up.
const BROKEN_OFF: [&str; 4] = ["abort", "aborted", "cancelled", "error"];

#[derive(Deserialize)]
struct Chunk<'a> {
    #[serde(borrow)]
    choices: Option<Vec<Choice<'a>>>,
    error: Option<IgnoredAny>,
}

#[derive(Deserialize)]
struct Choice<'a> {
    #[serde(default)]
    index: u64,
    #[serde(borrow)]
    finish_reason: Option<Reason<'a>>,
}

/// Copied only if it has escapes.
#[derive(Deserialize)]
struct Reason<'a>(#[serde(borrow)] Cow<'a, str>);

impl Choice<'_> {
    /// `None`: goes on. `Some(false)`: broken off.
    fn end(&self) -> Option<bool> {
        self.finish_reason.as_ref().map(|Reason(reason)| !reason.is_empty() && !BROKEN_OFF.contains(&&**reason))
    }
}

/// Whether a stream of chunks ended well: every choice has its finish reason, no event reports an error or cannot be
/// read, and `[DONE]` is the last.
pub(crate) fn is_complete_stream(stream: &[u8]) -> bool {
    let mut finished: BTreeMap<u64, bool> = BTreeMap::new();
    let mut done = false;
    for event in sse::split(stream) {
        match sse::data(event) {
            Data::Nothing => {}
            Data::Done if !done => done = true,
            Data::Json(text) if !done => {
                let Ok(chunk) = serde_json::from_str::<Chunk<'_>>(text) else { return false };
                if chunk.error.is_some() {
                    return false;
                }
                for choice in chunk.choices.unwrap_or_default() {
                    let known = finished.entry(choice.index).or_insert(false);
                    *known = choice.end().unwrap_or(*known);
                }
            }
            Data::Done | Data::Json(_) | Data::Odd => return false,
        }
    }
    done && !finished.is_empty() && finished.into_values().all(|finished| finished)
}

/// Whether a JSON answer is whole: an object without an error and with what its endpoint gives; of those that generate, a
/// finish reason in every choice, at least one.
pub(crate) fn is_complete_json(body: &[u8], endpoint: Endpoint) -> bool {
    let Some(fields) = std::str::from_utf8(body).ok().and_then(Fields::parse) else { return false };
    if fields.get_some("error").is_some() {
        return false;
    }
    match endpoint {
        Endpoint::Embedding => fields.get_some("data").is_some(),
        Endpoint::Moderation => fields.get_some("results").is_some(),
        Endpoint::Chat | Endpoint::Completion => {
            let choices = fields.get("choices").and_then(read::<Vec<Choice<'_>>>).unwrap_or_default();
            !choices.is_empty() && choices.iter().all(|choice| choice.end() == Some(true))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: &str = r#"data: {"choices":[{"index":0,"delta":{"content":"x"},"finish_reason":null}]}"#;
    const END: &str = r#"data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}"#;
    const END_OF_SECOND: &str = r#"data: {"choices":[{"index":1,"delta":{},"finish_reason":"length"}]}"#;
    const USAGE: &str = r#"data: {"choices":[],"usage":{"prompt_tokens":1}}"#;
    const DONE: &str = "data: [DONE]";

    fn complete(events: &[&str]) -> bool {
        is_complete_stream(format!("{}\n\n", events.join("\n\n")).as_bytes())
    }

    #[test]
    fn a_stream_is_complete_when_every_choice_ended_and_done_is_last() {
        let second = r#"data: {"choices":[{"index":1,"delta":{"content":"x"}}],"error":null}"#;
        for whole in [
            &[ONE, END, DONE][..],
            &[ONE, END, USAGE, DONE],
            &[": ping", ONE, second, END_OF_SECOND, END, DONE, ": bye"],
            &[END, ONE, DONE],
        ] {
            assert!(complete(whole), "{whole:?}");
        }
        for broken in [
            &[][..],
            &[DONE],
            &[USAGE, DONE],
            &[ONE, END],
            &[ONE, DONE],
            &[ONE, second, END, DONE],
            &[ONE, END, DONE, ONE],
            &[ONE, END, DONE, DONE],
            &[ONE, r#"data: {"error":{"message":"x"}}"#, END, DONE],
            &[ONE, "data: {", END, DONE],
            &[ONE, "data: 1\ndata: 2", END, DONE],
            &[ONE, r#"data: {"choices":[{"index":0,"delta":{},"finish_reason":"abort"}]}"#, DONE],
            &[ONE, r#"data: {"choices":[{"index":0,"delta":{},"finish_reason":""}]}"#, DONE],
        ] {
            assert!(!complete(broken), "{broken:?}");
        }
        // Cut anywhere, it is not complete; only the very last line ends may be missing.
        let whole = [ONE, END, DONE].join("\n\n");
        assert!(is_complete_stream(whole.as_bytes()));
        for cut in 0..whole.len() {
            assert!(!is_complete_stream(&whole.as_bytes()[..cut]), "{cut}");
        }
    }

    #[test]
    fn a_document_is_complete_without_error_and_with_every_end() {
        use Endpoint::{Chat, Completion, Embedding, Moderation};
        for (body, endpoint, expected) in [
            (r#"{"choices":[{"index":0,"finish_reason":"stop"}]}"#, Chat, true),
            (r#"{"choices":[{"finish_reason":"tool_calls"}],"error":null}"#, Chat, true),
            (r#"{"choices":[{"finish_reason":"length"},{"finish_reason":"stop"}]}"#, Completion, true),
            (r#"{"choices":[{"finish_reason":"length"},{"finish_reason":null}]}"#, Completion, false),
            (r#"{"choices":[{"finish_reason":"error"}]}"#, Completion, false),
            (r#"{"choices":[{}]}"#, Chat, false),
            (r#"{"choices":[]}"#, Chat, false),
            (r#"{"choices":null}"#, Chat, false),
            ("{}", Chat, false),
            (r#"{"data":[]}"#, Embedding, true),
            (r#"{"results":[]}"#, Moderation, true),
            (r#"{"error":{"message":"x"}}"#, Embedding, false),
            (r#"{"data":[],"data":[]}"#, Embedding, false),
            ("[]", Embedding, false),
            (r#"{"data":["#, Embedding, false),
            ("", Chat, false),
        ] {
            assert_eq!(is_complete_json(body.as_bytes(), endpoint), expected, "{body}");
        }
        assert!(!is_complete_json(b"{\"a\":\"\xff\"}", Embedding));
    }
}
