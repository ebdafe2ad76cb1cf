//! A JSON answer, read once: what it used, and whether it is all that was asked for.

use super::Usage;
use crate::{Endpoint, Tokens};
use serde::Deserialize;
use serde::de::IgnoredAny;
use std::borrow::Cow;

/// Ends that engines report when they gave up.
const BROKEN_OFF: [&str; 4] = ["abort", "aborted", "cancelled", "error"];

/// Whether a finish reason tells of an end that was meant.
pub fn is_good_end(reason: &str) -> bool {
    !reason.is_empty() && !BROKEN_OFF.contains(&reason)
}

/// What a document says.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Document {
    pub(super) usage: Option<Tokens>,
    has_error: bool,
    /// An embedding's.
    has_data: bool,
    /// A moderation's.
    has_results: bool,
    /// It has choices, and each came to a good end.
    all_ended: bool,
}

#[derive(Deserialize)]
struct Answer<'a> {
    usage: Option<Usage>,
    error: Option<IgnoredAny>,
    data: Option<IgnoredAny>,
    results: Option<IgnoredAny>,
    #[serde(borrow)]
    choices: Option<Vec<Choice<'a>>>,
}

#[derive(Deserialize)]
struct Choice<'a> {
    #[serde(borrow)]
    finish_reason: Option<Reason<'a>>,
}

/// Copied only if it has escapes.
#[derive(Deserialize)]
struct Reason<'a>(#[serde(borrow)] Cow<'a, str>);

/// What counts also in an answer that is odd otherwise.
#[derive(Deserialize)]
struct Counted {
    usage: Option<Usage>,
}

impl Document {
    pub(super) fn read(bytes: &[u8]) -> Self {
        let Some(answer) = std::str::from_utf8(bytes).ok().and_then(|text| serde_json::from_str(text).ok()) else {
            let counted = serde_json::from_slice::<Counted>(bytes).ok();
            return Self { usage: counted.and_then(|counted| counted.usage).map(Tokens::from), ..Self::default() };
        };
        let Answer { usage, error, data, results, choices } = answer;
        let ended = |Choice { finish_reason }: &Choice<'_>| {
            finish_reason.as_ref().is_some_and(|Reason(reason)| is_good_end(reason))
        };
        Self {
            usage: usage.map(Tokens::from),
            has_error: error.is_some(),
            has_data: data.is_some(),
            has_results: results.is_some(),
            all_ended: choices.is_some_and(|choices| !choices.is_empty() && choices.iter().all(ended)),
        }
    }

    /// An object without an error and with what its endpoint gives; of those that generate, a finish reason in every choice,
    /// at least one.
    pub(super) const fn is_whole(&self, endpoint: Endpoint) -> bool {
        !self.has_error
            && match endpoint {
                Endpoint::Embedding => self.has_data,
                Endpoint::Moderation => self.has_results,
                Endpoint::Chat | Endpoint::Completion => self.all_ended,
            }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_document_is_whole_without_error_and_with_every_end() {
        use Endpoint::{Chat, Completion, Embedding, Moderation};
        for (body, endpoint, expected) in [
            (r#"{"choices":[{"index":0,"finish_reason":"stop"}]}"#, Chat, true),
            (r#"{"choices":[{"finish_reason":"tool_calls"}],"error":null}"#, Chat, true),
            (r#"{"choices":[{"finish_reason":"length"},{"finish_reason":"stop"}]}"#, Completion, true),
            (r#"{"choices":[{"finish_reason":"length"},{"finish_reason":null}]}"#, Completion, false),
            (r#"{"choices":[{"finish_reason":"error"}]}"#, Completion, false),
            (r#"{"choices":[{"finish_reason":""}]}"#, Completion, false),
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
            assert_eq!(Document::read(body.as_bytes()).is_whole(endpoint), expected, "{body}");
        }
        assert!(!Document::read(b"{\"data\":\"\xff\"}").is_whole(Embedding));
    }

    #[test]
    fn usage_counts_also_where_the_rest_is_odd() {
        let expected = Some(Tokens { prompt: 3, cached: 0, completion: 0 });
        for odd in
            [&b"{\"usage\":{\"prompt_tokens\":3},\"x\":\"\xff\"}"[..], br#"{"choices":7,"usage":{"prompt_tokens":3}}"#]
        {
            let document = Document::read(odd);
            assert_eq!(document.usage, expected);
            assert!(!document.is_whole(Endpoint::Chat));
        }
    }
}
