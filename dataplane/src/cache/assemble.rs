//! Makes one document of a stream's chunks, as the node would have answered without streaming.
//!
//! Texts that engines send in parts (content, refusal, reasoning, arguments) are joined, log probabilities appended, tool
//! calls merged by index. Of other values the last counts, and null never replaces one. Where two values could not both
//! be kept without guessing, there is no document.

use crate::cache::json::{Fields, is_composite, is_null, is_string, read};
use crate::cache::sse::{self, Data};
use serde::{Serialize, Serializer};
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::collections::BTreeMap;
use turnpike_config::Endpoint;

/// Parts of a message that stream as text.
pub(crate) const TEXTS: [&str; 4] = ["reasoning_content", "reasoning", "content", "refusal"];

/// How a field adds to what came before it.
#[derive(Clone, Copy)]
enum Rule {
    /// The last scalar counts; an object or array must stay the same.
    Last,
    /// The last value counts, whatever it is.
    Latest,
    /// As `Last`, but a string that is not empty must stay the same: it might be a part.
    Once,
    /// Strings are joined.
    Join,
    /// Arrays are joined.
    Append,
    /// Objects are merged by the rules of their fields.
    Merge(fn(&str) -> Rule),
    /// Items of arrays are merged with those of the same `index`, by the rules of their fields.
    ByIndex(fn(&str) -> Rule),
    /// Not part of a document.
    Skip,
}

fn chunk_rule(name: &str) -> Rule {
    match name {
        "choices" => Rule::ByIndex(choice_rule),
        // Some engines count, or tell how long they took, in every chunk.
        "usage" | "timings" => Rule::Latest,
        // Padding that hides how long a chunk is; and the chunk's own type.
        "obfuscation" | "object" => Rule::Skip,
        _ => Rule::Last,
    }
}

fn choice_rule(name: &str) -> Rule {
    match name {
        "delta" => Rule::Merge(delta_rule),
        "text" => Rule::Join,
        "logprobs" => Rule::Merge(|_| Rule::Append),
        _ => Rule::Last,
    }
}

fn delta_rule(name: &str) -> Rule {
    match name {
        name if TEXTS.contains(&name) => Rule::Join,
        "tool_calls" => Rule::ByIndex(call_rule),
        "function_call" => Rule::Merge(function_rule),
        _ => Rule::Once,
    }
}

fn call_rule(name: &str) -> Rule {
    match name {
        "function" => Rule::Merge(function_rule),
        // A place in the stream; documents have it by position.
        "index" => Rule::Skip,
        _ => Rule::Once,
    }
}

fn function_rule(name: &str) -> Rule {
    match name {
        "arguments" => Rule::Join,
        _ => Rule::Once,
    }
}

/// What has been merged of one field.
enum Merged<'a> {
    Value(&'a RawValue),
    Text(String),
    List(Vec<&'a RawValue>),
    Object(Members<'a>),
    Items(BTreeMap<u64, Members<'a>>),
}

/// What has been merged of an object.
#[derive(Default)]
struct Members<'a>(Vec<(Cow<'a, str>, Merged<'a>)>);

impl<'a> Members<'a> {
    fn merge(&mut self, fields: &Fields<'a>, rule_of: fn(&str) -> Rule) -> Option<()> {
        for (name, value) in fields.iter() {
            let rule = rule_of(name);
            if matches!(rule, Rule::Skip) {
                continue;
            }
            match self.0.iter_mut().find(|(n, _)| n == name) {
                Some((_, merged)) => merged.add(value, rule)?,
                None => {
                    let mut merged = Merged::Value(RawValue::NULL);
                    merged.add(value, rule)?;
                    self.0.push((name.clone(), merged));
                }
            }
        }
        Some(())
    }

    fn get(&mut self, name: &str) -> Option<&mut Merged<'a>> {
        self.0.iter_mut().find(|(n, _)| n == name).map(|(_, merged)| merged)
    }

    fn rename(&mut self, from: &str, to: &'static str) {
        if let Some((name, _)) = self.0.iter_mut().find(|(name, _)| name == from) {
            *name = Cow::Borrowed(to);
        }
    }
}

impl<'a> Merged<'a> {
    /// Takes in one more value. `None` if it does not go together with the others.
    fn add(&mut self, value: &'a RawValue, rule: Rule) -> Option<()> {
        if is_null(value) {
            return Some(());
        }
        match rule {
            Rule::Skip => {}
            Rule::Latest => *self = Self::Value(value),
            Rule::Last | Rule::Once => self.replace(value, matches!(rule, Rule::Once))?,
            Rule::Join => {
                let part: String = read(value)?;
                self.open(Self::Text(String::new())).text()?.push_str(&part);
            }
            Rule::Append => self.open(Self::List(Vec::new())).list()?.extend(read::<Vec<&RawValue>>(value)?),
            Rule::Merge(rule_of) => {
                self.open(Self::Object(Members::default())).object()?.merge(&read(value)?, rule_of)?
            }
            Rule::ByIndex(rule_of) => {
                let items = self.open(Self::Items(BTreeMap::new())).items()?;
                for item in read::<Vec<Fields<'_>>>(value)? {
                    let index = item.get("index").and_then(read::<u64>)?;
                    items.entry(index).or_default().merge(&item, rule_of)?;
                }
            }
        }
        Some(())
    }

    fn replace(&mut self, value: &'a RawValue, once: bool) -> Option<()> {
        let Self::Value(old) = self else { return None };
        let differs = !is_null(old) && old.get() != value.get();
        if differs && (is_composite(old) || is_composite(value)) {
            return None;
        }
        if once && differs && (is_string(old) || is_string(value)) {
            if value.get() == "\"\"" {
                return Some(());
            }
            if old.get() != "\"\"" {
                return None;
            }
        }
        *self = Self::Value(value);
        Some(())
    }

    /// Puts an empty whole in the place of null.
    fn open(&mut self, empty: Self) -> &mut Self {
        if matches!(self, Self::Value(old) if is_null(old)) {
            *self = empty;
        }
        self
    }

    fn text(&mut self) -> Option<&mut String> {
        if let Self::Text(text) = self { Some(text) } else { None }
    }

    fn list(&mut self) -> Option<&mut Vec<&'a RawValue>> {
        if let Self::List(list) = self { Some(list) } else { None }
    }

    fn object(&mut self) -> Option<&mut Members<'a>> {
        if let Self::Object(members) = self { Some(members) } else { None }
    }

    fn items(&mut self) -> Option<&mut BTreeMap<u64, Members<'a>>> {
        if let Self::Items(items) = self { Some(items) } else { None }
    }
}

impl Serialize for Merged<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Value(value) => value.serialize(serializer),
            Self::Text(text) => serializer.serialize_str(text),
            Self::List(list) => serializer.collect_seq(list),
            Self::Object(members) => members.serialize(serializer),
            Self::Items(items) => serializer.collect_seq(items.values()),
        }
    }
}

impl Serialize for Members<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(name, merged)| (name, merged)))
    }
}

/// The document that a stream of chunks amounts to, as JSON. `None` if the stream is not whole, is of another endpoint
/// than the two that stream, or cannot be merged faithfully.
pub(crate) fn assemble(stream: &[u8], endpoint: Endpoint) -> Option<Vec<u8>> {
    let (object, part) = match endpoint {
        Endpoint::Chat => ("\"chat.completion\"", "delta"),
        Endpoint::Completion => ("\"text_completion\"", "text"),
        Endpoint::Embedding | Endpoint::Moderation => return None,
    };
    let mut answer = merge_chunks(stream)?;
    let choices = answer.get("choices")?.items()?;
    for choice in choices.values_mut() {
        choice.get(part)?;
        choice.rename("delta", "message");
    }
    if choices.is_empty() {
        return None;
    }
    answer.0.push((Cow::Borrowed("object"), Merged::Value(serde_json::from_str(object).ok()?)));
    serde_json::to_vec(&answer).ok()
}

fn merge_chunks(stream: &[u8]) -> Option<Members<'_>> {
    let mut answer = Members::default();
    let mut done = false;
    for event in sse::split(stream) {
        match sse::data(event) {
            Data::Nothing => {}
            Data::Done => done = true,
            Data::Json(text) if !done => answer.merge(&Fields::parse(text)?, chunk_rule)?,
            Data::Json(_) | Data::Odd => return None,
        }
    }
    let failed = answer.get("error").is_some_and(|error| !matches!(error, Merged::Value(error) if is_null(error)));
    (done && !failed).then_some(answer)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn stream(chunks: &[Value]) -> String {
        let events: String = chunks.iter().map(|chunk| format!("data: {chunk}\n\n")).collect();
        format!("{events}data: [DONE]\n\n")
    }

    fn assembled(endpoint: Endpoint, chunks: &[Value]) -> Option<Value> {
        assemble(stream(chunks).as_bytes(), endpoint).map(|bytes| serde_json::from_slice(&bytes).unwrap())
    }

    fn chunk(choice: &Value) -> Value {
        json!({"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]})
    }

    fn delta(delta: &Value) -> Value {
        chunk(&json!({"index": 0, "delta": delta, "finish_reason": null}))
    }

    #[test]
    fn a_chat_is_put_together() {
        let logprob = |token: &str| json!({"content": [{"token": token, "logprob": -0.5}], "refusal": null});
        let chunks = [
            json!({"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", "system_fingerprint": null,
                "obfuscation": "xxx", "usage": null,
                "choices": [{"index": 0, "delta": {"role": "assistant", "content": "", "refusal": null}, "logprobs": null,
                    "finish_reason": null}]}),
            chunk(&json!({"index": 1, "delta": {"role": "assistant", "reasoning_content": "Hm"}})),
            chunk(&json!({"index": 0, "delta": {"content": "He"}, "logprobs": logprob("He")})),
            chunk(&json!({"index": 1, "delta": {"reasoning_content": "m.", "content": "no"}})),
            chunk(&json!({"index": 0, "delta": {"content": "y"}, "logprobs": logprob("y")})),
            chunk(&json!({"index": 1, "delta": {}, "finish_reason": "length", "stop_reason": null})),
            chunk(&json!({"index": 0, "delta": {}, "finish_reason": "stop"})),
            json!({"id": "c", "system_fingerprint": "fp", "choices": [], "usage": {"prompt_tokens": 7}}),
        ];
        let content = json!([{"token": "He", "logprob": -0.5}, {"token": "y", "logprob": -0.5}]);
        assert_eq!(
            assembled(Endpoint::Chat, &chunks),
            Some(
                json!({"id": "c", "object": "chat.completion", "created": 1, "model": "m", "system_fingerprint": "fp",
                "choices": [
                    {"index": 0, "message": {"role": "assistant", "content": "Hey", "refusal": null},
                        "logprobs": {"content": content, "refusal": null}, "finish_reason": "stop"},
                    {"index": 1, "message": {"role": "assistant", "reasoning_content": "Hmm.", "content": "no"},
                        "finish_reason": "length", "stop_reason": null}
                ],
                "usage": {"prompt_tokens": 7}})
            )
        );
    }

    #[test]
    fn tool_calls_are_merged_by_index() {
        let call = |call: Value| delta(&json!({"tool_calls": [call]}));
        let chunks = [
            delta(&json!({"role": "assistant", "content": null})),
            call(json!({"index": 0, "id": "a", "type": "function", "function": {"name": "f", "arguments": ""}})),
            call(json!({"index": 0, "function": {"arguments": "{\"x\""}})),
            call(json!({"index": 1, "id": "b", "type": "function", "function": {"name": "g", "arguments": "{}"}})),
            // Some engines repeat what they said.
            call(json!({"index": 0, "id": "a", "type": "function", "function": {"name": "", "arguments": ":1}"}})),
            chunk(&json!({"index": 0, "delta": {}, "finish_reason": "tool_calls"})),
        ];
        let answer = assembled(Endpoint::Chat, &chunks).unwrap();
        assert_eq!(
            answer["choices"][0]["message"],
            json!({"role": "assistant", "content": null, "tool_calls": [
                {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{\"x\":1}"}},
                {"id": "b", "type": "function", "function": {"name": "g", "arguments": "{}"}}]})
        );
        let old = [
            delta(&json!({"role": "assistant", "function_call": {"name": "f", "arguments": "{"}})),
            delta(&json!({"function_call": {"arguments": "}"}})),
        ];
        let answer = assembled(Endpoint::Chat, &old).unwrap();
        assert_eq!(answer["choices"][0]["message"]["function_call"], json!({"name": "f", "arguments": "{}"}));
    }

    #[test]
    fn a_completion_is_put_together() {
        let part = |text: &str, tokens: Value, reason: Value| {
            json!({"id": "c", "object": "text_completion", "choices": [{"index": 0, "text": text, "finish_reason": reason,
                "logprobs": {"tokens": tokens, "top_logprobs": null}}]})
        };
        let chunks = [part("a", json!(["a"]), Value::Null), part(" b", json!([" b"]), json!("stop"))];
        assert_eq!(
            assembled(Endpoint::Completion, &chunks),
            Some(json!({"id": "c", "object": "text_completion", "choices": [{"index": 0, "text": "a b",
                "finish_reason": "stop", "logprobs": {"tokens": ["a", " b"], "top_logprobs": null}}]}))
        );
    }

    #[test]
    fn what_would_be_a_guess_is_none() {
        let twice = |a: Value, b: Value| assembled(Endpoint::Chat, &[delta(&a), delta(&b)]);
        assert!(twice(json!({"content": "a"}), json!({"content": "b"})).is_some());
        assert!(twice(json!({"x": 1}), json!({"x": 2})).is_some());
        assert!(twice(json!({"x": [1]}), json!({"x": [1]})).is_some());
        assert!(twice(json!({"x": "a"}), json!({"x": "a"})).is_some());
        for (a, b) in [
            (json!({"x": "a"}), json!({"x": "b"})),
            (json!({"x": [1]}), json!({"x": [2]})),
            (json!({"x": {}}), json!({"x": 1})),
            (json!({"content": "a"}), json!({"content": ["b"]})),
            (json!({"tool_calls": [{"index": 0, "id": "a"}]}), json!({"tool_calls": [{"index": 0, "id": "b"}]})),
            (json!({"tool_calls": [{"id": "a"}]}), json!({})),
            (json!({"role": "assistant"}), json!({"role": "tool"})),
        ] {
            assert_eq!(twice(a.clone(), b.clone()), None, "{a} {b}");
        }
        let whole = stream(&[delta(&json!({"content": "a"}))]);
        assert!(assemble(whole.as_bytes(), Endpoint::Chat).is_some());
        for (text, endpoint) in [
            (whole.as_str(), Endpoint::Embedding),
            (whole.as_str(), Endpoint::Completion),
            (whole.trim_end().trim_end_matches("[DONE]"), Endpoint::Chat),
            (&format!("{whole}{whole}"), Endpoint::Chat),
            (&format!("data: {{\"error\":{{}}}}\n\n{whole}"), Endpoint::Chat),
            ("data: [DONE]\n\n", Endpoint::Chat),
            ("data: {\"choices\":[]}\n\ndata: [DONE]\n\n", Endpoint::Chat),
        ] {
            assert_eq!(assemble(text.as_bytes(), endpoint), None, "{text}");
        }
    }

    #[test]
    fn numbers_keep_their_digits() {
        let text = "data: {\"x\":0.10000000000000000001,\"choices\":[{\"index\":0,\"text\":\"a\",\
            \"logprobs\":{\"token_logprobs\":[-1.00]}}]}\n\ndata: [DONE]\n\n";
        let json = String::from_utf8(assemble(text.as_bytes(), Endpoint::Completion).unwrap()).unwrap();
        assert!(json.contains("0.10000000000000000001") && json.contains("[-1.00]"), "{json}");
    }
}
