//! What a simulated engine is asked, and what it says: OpenAI's shapes, made once for each answer.

use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;
use std::hash::{DefaultHasher, Hasher as _};

use super::batch::BLOCK_TOKENS;

/// Bytes that count as a token.
const TOKEN_BYTES: usize = 4;
/// A token of every answer.
const TOKEN: &str = " token";
/// Of answers that nobody bounded, tokens.
const USUAL_TOKENS: u32 = 64;

/// The fields of a request that matter here.
#[derive(Debug, Deserialize)]
pub(super) struct Ask<'b> {
    pub(super) model: String,
    #[serde(default)]
    pub(super) stream: bool,
    max_tokens: Option<u32>,
    max_completion_tokens: Option<u32>,
    #[serde(default)]
    stream_options: StreamOptions,
    #[serde(borrow)]
    messages: Option<&'b RawValue>,
}

#[derive(Debug, Default, Deserialize)]
struct StreamOptions {
    #[serde(default)]
    include_usage: bool,
}

impl Ask<'_> {
    fn prompt(&self) -> &[u8] {
        self.messages.map_or(b"", |messages| messages.get().as_bytes())
    }

    pub(super) fn prompt_tokens(&self) -> u32 {
        u32::try_from(self.prompt().len().div_ceil(TOKEN_BYTES)).unwrap_or(u32::MAX)
    }

    /// As many as it allows, at least one.
    pub(super) fn answer_tokens(&self) -> u32 {
        self.max_completion_tokens.or(self.max_tokens).unwrap_or(USUAL_TOKENS).max(1)
    }

    /// Names of the prompt's full blocks, each of all the text up to its end.
    pub(super) fn prefix(&self) -> Vec<u64> {
        let mut text = DefaultHasher::new();
        let blocks = self.prompt().chunks_exact(BLOCK_TOKENS as usize * TOKEN_BYTES);
        blocks
            .map(|block| {
                text.write(block);
                text.finish()
            })
            .collect()
    }
}

/// An answer's pieces.
pub(super) struct Answer {
    id: u64,
    model: String,
    tokens: u32,
    usage: String,
    include_usage: bool,
}

impl Answer {
    pub(super) fn new(id: u64, ask: &Ask<'_>) -> Self {
        let (prompt, tokens) = (ask.prompt_tokens(), ask.answer_tokens());
        let total = u64::from(prompt) + u64::from(tokens);
        let usage = format!(r#"{{"prompt_tokens":{prompt},"completion_tokens":{tokens},"total_tokens":{total}}}"#);
        let include_usage = ask.stream_options.include_usage;
        Self { id, model: ask.model.clone(), tokens, usage, include_usage }
    }

    /// All of it, as one document.
    pub(super) fn document(&self) -> Bytes {
        let Self { id, model, usage, .. } = self;
        let text = TOKEN.repeat(self.tokens as usize);
        let text = format!(
            r#"{{"id":"chatcmpl-{id}","object":"chat.completion","created":1760000000,"model":"{model}","choices":[{{"index":0,"message":{{"role":"assistant","content":"{text}"}},"finish_reason":"stop"}}],"usage":{usage}}}"#
        );
        text.into()
    }

    /// One token, as an event.
    pub(super) fn token(&self) -> Bytes {
        self.event(&format!(r#"[{{"index":0,"delta":{{"content":"{TOKEN}"}},"finish_reason":null}}]"#), "")
    }

    /// What comes after the last one.
    pub(super) fn end(&self) -> Bytes {
        let mut end = self.event(r#"[{"index":0,"delta":{},"finish_reason":"stop"}]"#, "").to_vec();
        if self.include_usage {
            end.extend_from_slice(&self.event("[]", &format!(r#","usage":{}"#, self.usage)));
        }
        end.extend_from_slice(b"data: [DONE]\n\n");
        end.into()
    }

    fn event(&self, choices: &str, more: &str) -> Bytes {
        let Self { id, model, .. } = self;
        let event = format!(
            "data: {{\"id\":\"chatcmpl-{id}\",\"object\":\"chat.completion.chunk\",\"created\":1760000000,\
             \"model\":\"{model}\",\"choices\":{choices}{more}}}\n\n"
        );
        event.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    fn ask(text: &str) -> Ask<'_> {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn answers_are_json_of_the_length_that_is_asked_for() {
        let ask = ask(r#"{"model":"m","messages":[{"role":"user","content":"hello"}],"max_tokens":3,
            "stream_options":{"include_usage":true}}"#);
        let answer = Answer::new(7, &ask);
        let document: Value = serde_json::from_slice(&answer.document()).unwrap();
        assert_eq!(document["choices"][0]["message"]["content"], " token token token");
        assert_eq!(document["usage"]["completion_tokens"], 3);
        let end = String::from_utf8(answer.end().to_vec()).unwrap();
        let events: Vec<&str> = end.split_terminator("\n\n").map(|event| &event["data: ".len()..]).collect();
        assert_eq!(events.last(), Some(&"[DONE]"));
        let usage: Value = serde_json::from_str(events[1]).unwrap();
        assert_eq!(usage["usage"]["prompt_tokens"], u64::from(ask.prompt_tokens()));
    }

    #[test]
    fn blocks_are_the_same_as_far_as_the_text_is() {
        let body = |end: char| format!(r#"{{"model":"m","messages":["{}{end}"]}}"#, "x".repeat(200));
        let (one, other) = (body('a'), body('b'));
        let (one, other) = (ask(&one).prefix(), ask(&other).prefix());
        assert_eq!((one.len(), &one[..3]), (3, &other[..3]));
        let longer = body('a').replace("\"]", &format!("{}\"]", "y".repeat(64)));
        assert_eq!(ask(&longer).prefix()[..3], one[..3]);
    }
}
