//! Whether a stream is whole, so that it may be given again.

use crate::cache::sse::{self, Data};
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::collections::BTreeMap;
use turnpike_config::is_good_end;

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
    #[serde(borrow)]
    delta: Option<Delta<'a>>,
}

#[derive(Deserialize)]
struct Delta<'a> {
    #[serde(borrow)]
    content: Option<&'a RawValue>,
}

/// Copied only if it has escapes.
#[derive(Deserialize)]
struct Reason<'a>(#[serde(borrow)] Cow<'a, str>);

impl Choice<'_> {
    /// `None`: goes on. `Some(false)`: broken off.
    fn end(&self) -> Option<bool> {
        self.finish_reason.as_ref().map(|Reason(reason)| is_good_end(reason))
    }
}

/// An event that was read, around the text that a model says in it. Most events of a stream differ by that alone.
struct Pattern<'a> {
    before: &'a [u8],
    after: &'a [u8],
}

impl<'a> Pattern<'a> {
    /// `None` if the event has no such text.
    fn of(event: &'a [u8], chunk: &Chunk<'a>) -> Option<Self> {
        let [choice] = chunk.choices.as_deref()? else { return None };
        let text = choice.delta.as_ref()?.content?.get().strip_prefix('"')?.strip_suffix('"')?;
        let start = (text.as_ptr() as usize).checked_sub(event.as_ptr() as usize)?;
        Some(Self { before: event.get(..start)?, after: event.get(start + text.len()..)? })
    }

    /// Whether another event is the same but for its text, which ends where it seems to.
    fn fits(&self, event: &[u8]) -> bool {
        let text = event.strip_prefix(self.before).and_then(|rest| rest.strip_suffix(self.after));
        let is_plain = |byte: &u8| *byte >= b' ' && !matches!(byte, b'"' | b'\\');
        text.is_some_and(|text| text.iter().all(is_plain) && std::str::from_utf8(text).is_ok())
    }
}

/// Whether a stream of chunks ended well: every choice has its finish reason, no event reports an error or cannot be
/// read, and `[DONE]` is the last.
pub(crate) fn is_complete_stream(stream: &[u8]) -> bool {
    let mut finished: BTreeMap<u64, bool> = BTreeMap::new();
    let mut done = false;
    let mut last: Option<Pattern<'_>> = None;
    for event in sse::split(stream) {
        if !done && last.as_ref().is_some_and(|last| last.fits(event)) {
            continue;
        }
        match sse::data(event) {
            Data::Nothing => {}
            Data::Done if !done => done = true,
            Data::Json(text) if !done => {
                let Ok(chunk) = serde_json::from_str::<Chunk<'_>>(text) else { return false };
                if chunk.error.is_some() {
                    return false;
                }
                for choice in chunk.choices.iter().flatten() {
                    let known = finished.entry(choice.index).or_insert(false);
                    *known = choice.end().unwrap_or(*known);
                }
                last = Pattern::of(event, &chunk);
            }
            Data::Done | Data::Json(_) | Data::Odd => return false,
        }
    }
    done && !finished.is_empty() && finished.into_values().all(|finished| finished)
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
}
