//! Requests, parsed. What an engine of ours cannot honour is refused by name rather than ignored.

use crate::engine::EngineError;
use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize, Deserializer};
use serde_json::Value;

/// Most inputs in one embeddings or moderations request; OpenAI's own limit.
const MAX_INPUTS: usize = 2048;
/// Most stop sequences; OpenAI's own limit.
const MAX_STOPS: usize = 4;

/// Who wrote a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Role {
    /// Instructions.
    #[serde(alias = "developer")]
    System,
    /// The client.
    User,
    /// The model.
    Assistant,
    /// A tool's result.
    #[serde(alias = "function")]
    Tool,
}

impl Role {
    /// The name that chat templates use.
    #[cfg_attr(not(feature = "builtin-engine"), expect(dead_code, reason = "echo has no chat template"))]
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::User => "user",
            Self::Assistant => "assistant",
            Self::Tool => "tool",
        }
    }
}

/// One message of a chat.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Message {
    /// Who wrote it.
    pub(crate) role: Role,
    /// Its text. A list of text parts is concatenated; other parts are refused.
    #[serde(default, deserialize_with = "text_content")]
    pub(crate) content: String,
}

/// What chat and text completion have in common.
#[derive(Clone, Debug, Default, Deserialize)]
pub(crate) struct GenerationOptions {
    max_tokens: Option<u32>,
    max_completion_tokens: Option<u32>,
    /// 0 (greedy) to 2; `None` is the model's default.
    pub(crate) temperature: Option<f64>,
    /// Above 0, up to 1.
    pub(crate) top_p: Option<f64>,
    /// Same seed, same request, same answer, as far as the engine can.
    #[cfg_attr(not(feature = "builtin-engine"), expect(dead_code, reason = "echo draws no lots"))]
    pub(crate) seed: Option<i64>,
    /// At most four; generation ends before the first that appears.
    #[serde(default, deserialize_with = "one_or_many")]
    pub(crate) stop: Vec<String>,
    #[serde(default, deserialize_with = "null_is_default")]
    stream: bool,
    stream_options: Option<StreamOptions>,
    frequency_penalty: Option<f64>,
    presence_penalty: Option<f64>,
    logit_bias: Option<serde_json::Map<String, Value>>,
    n: Option<u32>,
    best_of: Option<u32>,
    logprobs: Option<Value>,
    tools: Option<Vec<Value>>,
    functions: Option<Vec<Value>>,
    response_format: Option<Value>,
    suffix: Option<String>,
    echo: Option<bool>,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
struct StreamOptions {
    #[serde(default)]
    include_usage: bool,
}

impl GenerationOptions {
    /// Most tokens to generate; `None` leaves it to the context. The newer field wins over the older.
    pub(crate) fn max_tokens(&self) -> Option<u32> {
        self.max_completion_tokens.or(self.max_tokens)
    }

    /// `None`: one JSON document. Otherwise a stream, and whether it ends with a usage chunk.
    pub(crate) fn streaming(&self) -> Option<bool> {
        self.stream.then(|| self.stream_options.is_some_and(|options| options.include_usage))
    }

    fn check(&self) -> Result<(), EngineError> {
        let range = |name: &str, value: Option<f64>, ok: fn(f64) -> bool, expected: &str| match value {
            Some(value) if !ok(value) => Err(EngineError::invalid(name, format!("{name} must be {expected}"))),
            _ => Ok(()),
        };
        range("temperature", self.temperature, |t| (0.0..=2.0).contains(&t), "between 0 and 2")?;
        range("top_p", self.top_p, |p| p > 0.0 && p <= 1.0, "above 0 and at most 1")?;
        if self.max_tokens() == Some(0) {
            return Err(EngineError::invalid("max_tokens", "max_tokens must be at least 1"));
        }
        if self.stop.len() > MAX_STOPS {
            return Err(EngineError::invalid("stop", format!("stop holds at most {MAX_STOPS} sequences")));
        }
        if self.stream_options.is_some() && !self.stream {
            return Err(EngineError::invalid("stream_options", "stream_options needs stream = true"));
        }
        self.check_supported()
    }

    fn check_supported(&self) -> Result<(), EngineError> {
        let asks = |value: &Option<Value>| value.as_ref().is_some_and(|v| !v.is_null() && v != &Value::Bool(false));
        let lists = |list: &Option<Vec<Value>>| list.as_ref().is_some_and(|items| !items.is_empty());
        let format = self.response_format.as_ref().and_then(|f| f.get("type")).and_then(Value::as_str);
        let penalises = |penalty: Option<f64>| penalty.is_some_and(|penalty| penalty != 0.0);
        let biased = self.logit_bias.as_ref().is_some_and(|bias| !bias.is_empty());
        let refused = [
            ("frequency_penalty", penalises(self.frequency_penalty), "this engine does not penalise repetition"),
            ("presence_penalty", penalises(self.presence_penalty), "this engine does not penalise repetition"),
            ("logit_bias", biased, "this engine does not bias single tokens"),
            ("n", self.n.is_some_and(|n| n != 1), "this engine gives one choice: n must be 1"),
            ("best_of", self.best_of.is_some_and(|n| n != 1), "this engine gives one choice: best_of must be 1"),
            ("logprobs", asks(&self.logprobs), "this engine gives no log probabilities"),
            ("tools", lists(&self.tools), "this engine's model does not call tools"),
            ("functions", lists(&self.functions), "this engine's model does not call functions"),
            (
                "response_format",
                format.is_some_and(|format| format != "text"),
                "this engine does not constrain its output: response_format must be text",
            ),
            ("suffix", self.suffix.as_ref().is_some_and(|s| !s.is_empty()), "this engine does not insert text"),
            ("echo", self.echo == Some(true), "this engine does not repeat the prompt"),
        ];
        match refused.into_iter().find(|(_, asked, _)| *asked) {
            Some((param, _, reason)) => Err(EngineError::unsupported(param, reason)),
            None => Ok(()),
        }
    }
}

/// `POST /v1/chat/completions`.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct ChatRequest {
    /// At least one.
    pub(crate) messages: Vec<Message>,
    /// The rest.
    #[serde(flatten)]
    pub(crate) options: GenerationOptions,
}

/// `POST /v1/completions`.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct CompletionRequest {
    #[serde(deserialize_with = "one_or_many")]
    prompt: Vec<String>,
    /// The rest.
    #[serde(flatten)]
    pub(crate) options: GenerationOptions,
}

impl CompletionRequest {
    /// The text to go on from.
    pub(crate) fn prompt(&self) -> &str {
        self.prompt.first().map_or("", String::as_str)
    }
}

/// How embeddings are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum EncodingFormat {
    /// A JSON array.
    #[default]
    Float,
    /// Base64 of little-endian 32-bit floats; what OpenAI's own client asks for.
    Base64,
}

/// `POST /v1/embeddings`.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct EmbeddingRequest {
    /// 1 to 2048 texts.
    #[serde(deserialize_with = "one_or_many")]
    pub(crate) input: Vec<String>,
    /// How to write the vectors.
    #[serde(default, deserialize_with = "null_is_default")]
    pub(crate) encoding_format: EncodingFormat,
    /// Length of the vectors, if the client wants another than the model's own.
    pub(crate) dimensions: Option<u32>,
}

/// `POST /v1/moderations`.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct ModerationRequest {
    /// 1 to 2048 texts.
    #[serde(deserialize_with = "one_or_many")]
    pub(crate) input: Vec<String>,
}

/// A request that can check itself beyond its JSON shape.
pub(crate) trait Checked: DeserializeOwned {
    /// # Errors
    /// [`EngineError::BadRequest`] naming the field at fault.
    fn check(&self) -> Result<(), EngineError>;
}

impl Checked for ChatRequest {
    fn check(&self) -> Result<(), EngineError> {
        if self.messages.is_empty() {
            return Err(EngineError::invalid("messages", "messages must hold at least one message"));
        }
        self.options.check()
    }
}

impl Checked for CompletionRequest {
    fn check(&self) -> Result<(), EngineError> {
        if self.prompt.len() != 1 {
            return Err(EngineError::unsupported("prompt", "this engine takes one prompt per request"));
        }
        self.options.check()
    }
}

impl Checked for EmbeddingRequest {
    fn check(&self) -> Result<(), EngineError> {
        check_inputs(&self.input)
    }
}

impl Checked for ModerationRequest {
    fn check(&self) -> Result<(), EngineError> {
        check_inputs(&self.input)
    }
}

fn check_inputs(input: &[String]) -> Result<(), EngineError> {
    match input.len() {
        0 => Err(EngineError::invalid("input", "input must hold at least one text")),
        1..=MAX_INPUTS => Ok(()),
        more => Err(EngineError::invalid("input", format!("input holds {more} texts; at most {MAX_INPUTS} are taken"))),
    }
}

/// Parses and checks a request.
///
/// # Errors
/// [`EngineError::BadRequest`] that says what is wrong and, for a value out of range, which field.
pub(crate) fn parse<T: Checked>(body: &[u8]) -> Result<T, EngineError> {
    let request: T = serde_json::from_slice(body).map_err(|error| EngineError::BadRequest {
        message: format!("the request is not valid: {}", bounded(&error)),
        param: None,
        code: None,
    })?;
    request.check()?;
    Ok(request)
}

/// The parser's complaint. It may quote a wrong value of any length, which goes back only to the client that sent it.
fn bounded(error: &serde_json::Error) -> String {
    error.to_string().chars().take(300).collect()
}

fn null_is_default<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(d: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(d)?.unwrap_or_default())
}

/// A string or a list of strings; null and absence are no string.
fn one_or_many<'de, D: Deserializer<'de>>(d: D) -> Result<Vec<String>, D::Error> {
    match Value::deserialize(d)? {
        Value::Null => Ok(Vec::new()),
        Value::String(one) => Ok(vec![one]),
        Value::Array(many) => many.into_iter().map(text_item).collect::<Result<_, _>>().map_err(D::Error::custom),
        _ => Err(D::Error::custom("expected a string or a list of strings")),
    }
}

fn text_item(item: Value) -> Result<String, &'static str> {
    match item {
        Value::String(text) => Ok(text),
        // Moderations take the parts that chat messages are made of.
        Value::Object(part) => text_part(&part),
        _ => Err("expected a list of strings; token ids are not taken"),
    }
}

/// A string, null, or a list of parts that are all text.
fn text_content<'de, D: Deserializer<'de>>(d: D) -> Result<String, D::Error> {
    match Value::deserialize(d)? {
        Value::Null => Ok(String::new()),
        Value::String(text) => Ok(text),
        Value::Array(parts) => parts
            .iter()
            .map(|part| part.as_object().ok_or("a content part must be an object").and_then(text_part))
            .collect::<Result<String, _>>()
            .map_err(D::Error::custom),
        _ => Err(D::Error::custom("content must be a string or a list of parts")),
    }
}

fn text_part(part: &serde_json::Map<String, Value>) -> Result<String, &'static str> {
    match (part.get("type").and_then(Value::as_str), part.get("text").and_then(Value::as_str)) {
        (Some("text" | "input_text"), Some(text)) => Ok(text.to_owned()),
        _ => Err("this model reads text: every part must be {\"type\": \"text\", \"text\": …}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chat(extra: &str) -> Result<ChatRequest, EngineError> {
        let comma = if extra.is_empty() { "" } else { "," };
        parse(format!(r#"{{"model":"m","messages":[{{"role":"user","content":"hi"}}]{comma}{extra}}}"#).as_bytes())
    }

    fn fault(extra: &str) -> Option<String> {
        match chat(extra) {
            Err(EngineError::BadRequest { param, .. }) => param,
            _ => None,
        }
    }

    #[test]
    fn what_clients_send_is_understood() {
        let request =
            chat(r#""stream":true,"stream_options":{"include_usage":true},"stop":"x","max_tokens":3"#).unwrap();
        assert_eq!(request.options.streaming(), Some(true));
        assert_eq!(request.options.stop, ["x"]);
        assert_eq!(request.options.max_tokens(), Some(3));

        let request = chat(r#""stream":null,"stop":null,"max_tokens":3,"max_completion_tokens":2,"user":"u""#).unwrap();
        assert_eq!(request.options.streaming(), None);
        assert_eq!(request.options.max_tokens(), Some(2));
        assert!(request.options.stop.is_empty());
    }

    #[test]
    fn content_may_be_text_parts_and_nothing_else() {
        let parts =
            br#"{"messages":[{"role":"developer","content":[{"type":"text","text":"a"},{"type":"text","text":"b"}]},
            {"role":"assistant","content":null}]}"#;
        let request: ChatRequest = parse(parts).unwrap();
        assert_eq!(request.messages[0].role, Role::System);
        assert_eq!(request.messages[0].content, "ab");
        assert_eq!(request.messages[1].content, "");
        let image = br#"{"messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":"x"}}]}]}"#;
        assert!(parse::<ChatRequest>(image).err().unwrap().to_string().contains("reads text"));
    }

    #[test]
    fn what_cannot_be_honoured_is_refused_by_name() {
        assert_eq!(fault(""), None);
        for (extra, param) in [
            (r#""n":2"#, "n"),
            (r#""tools":[{}]"#, "tools"),
            (r#""logprobs":true"#, "logprobs"),
            (r#""response_format":{"type":"json_object"}"#, "response_format"),
            (r#""temperature":3"#, "temperature"),
            (r#""top_p":0"#, "top_p"),
            (r#""max_tokens":0"#, "max_tokens"),
            (r#""stop":["1","2","3","4","5"]"#, "stop"),
            (r#""stream_options":{}"#, "stream_options"),
        ] {
            assert_eq!(fault(extra).as_deref(), Some(param), "{extra}");
        }
        assert_eq!(fault(r#""n":1,"tools":[],"logprobs":false,"response_format":{"type":"text"}"#), None);
    }

    #[test]
    fn inputs_are_one_or_many_texts() {
        let one: EmbeddingRequest = parse(br#"{"input":"a","encoding_format":"base64"}"#).unwrap();
        assert_eq!((one.input.len(), one.encoding_format), (1, EncodingFormat::Base64));
        let many: EmbeddingRequest = parse(br#"{"input":["a","b"]}"#).unwrap();
        assert_eq!(many.input, ["a", "b"]);
        for bad in [r#"{"input":[]}"#, r#"{"input":[1,2]}"#, r#"{"input":5}"#, r#"{"input":null}"#, "{}", "["] {
            assert!(parse::<EmbeddingRequest>(bad.as_bytes()).is_err(), "{bad}");
        }
    }
}
