//! Makes a stream of chunks from one document, such that a client that puts the chunks together has the document.
//!
//! Texts come in words, so that they can be sent at a pace. Everything that a document says once comes once: what is known
//! at the beginning (role, annotations) in a choice's first chunk, what is known at the end (finish reason, log
//! probabilities) in its last. Other chunks carry no `usage`, whether or not the usage chunk was asked for; clients take
//! that as null.

use crate::cache::assemble::TEXTS;
use crate::cache::json::{Fields, Object, Raw, is_composite, is_null, raw, read};
use bytes::Bytes;
use serde_json::value::RawValue;
use std::borrow::Cow;
use turnpike_config::Endpoint;

/// Characters of a text that come at once where it has no words.
const LONGEST_PIECE: usize = 16;

/// The events of a document, `[DONE]` last. `None` if it is no document of the two endpoints that stream.
pub(crate) fn chunks(document: &[u8], endpoint: Endpoint, include_usage: bool) -> Option<Vec<Bytes>> {
    let fields = Fields::parse(std::str::from_utf8(document).ok()?)?;
    if fields.get_some("error").is_some() {
        return None;
    }
    let choices: Vec<Fields<'_>> = fields.get("choices").and_then(read)?;
    let mut out = Stream::new(&fields, endpoint)?;
    for choice in &choices {
        let index = choice.get("index").filter(|index| read::<u64>(index).is_some())?;
        match endpoint {
            Endpoint::Chat => chat(&mut out, index, choice)?,
            Endpoint::Completion => completion(&mut out, index, choice)?,
            Endpoint::Embedding | Endpoint::Moderation => return None,
        }
    }
    if let Some(usage) = fields.get_some("usage").filter(|_| include_usage) {
        out.push_usage(usage);
    }
    (!choices.is_empty()).then(|| out.finish())
}

/// Writes events, all with the same head.
struct Stream {
    /// `data: {"id":…,"choices":[`.
    head: String,
    /// Of the first event only: head with what may be large.
    first_head: Option<String>,
    events: Vec<Bytes>,
}

impl Stream {
    fn new(fields: &Fields<'_>, endpoint: Endpoint) -> Option<Self> {
        let object = match endpoint {
            Endpoint::Chat => "chat.completion.chunk",
            Endpoint::Completion => "text_completion",
            Endpoint::Embedding | Endpoint::Moderation => return None,
        };
        let mut head = format!("data: {{\"object\":\"{object}\",");
        let mut first_head = head.clone();
        for (name, value) in fields.iter() {
            if matches!(&**name, "object" | "choices" | "usage") {
                continue;
            }
            let member = format!("{}:{value},", serde_json::to_string(name).ok()?);
            first_head.push_str(&member);
            if !is_composite(value) {
                head.push_str(&member);
            }
        }
        [&mut head, &mut first_head].into_iter().for_each(|head| head.push_str("\"choices\":["));
        Some(Self { head, first_head: Some(first_head), events: Vec::new() })
    }

    /// An event with one choice.
    fn push(&mut self, choice: &Object<'_>) -> Option<()> {
        let mut event = self.first_head.take().unwrap_or_else(|| self.head.clone()).into_bytes();
        serde_json::to_writer(&mut event, choice).ok()?;
        event.extend_from_slice(b"]}");
        self.push_event(event);
        Some(())
    }

    fn push_usage(&mut self, usage: &RawValue) {
        self.push_event(format!("{}],\"usage\":{usage}}}", self.head).into_bytes());
    }

    /// Values that passed unchanged may be spread over lines, which would end the event. Strings have no line ends of
    /// their own: JSON escapes them.
    fn push_event(&mut self, mut event: Vec<u8>) {
        event.iter_mut().filter(|byte| matches!(byte, b'\n' | b'\r')).for_each(|byte| *byte = b' ');
        event.extend_from_slice(b"\n\n");
        self.events.push(event.into());
    }

    fn finish(mut self) -> Vec<Bytes> {
        self.events.push(Bytes::from_static(b"data: [DONE]\n\n"));
        self.events
    }
}

/// What is common to all chunks of a chat's choice.
struct Chat<'s, 'a> {
    out: &'s mut Stream,
    index: &'a RawValue,
}

impl Chat<'_, '_> {
    fn push(&mut self, delta: &Object<'_>) -> Option<()> {
        let mut choice = Object::default();
        choice.push("index", Cow::Borrowed(self.index));
        choice.push_value("delta", delta)?;
        choice.push("finish_reason", Cow::Borrowed(RawValue::NULL));
        self.out.push(&choice)
    }

    fn push_one(&mut self, name: &str, value: Raw<'_>) -> Option<()> {
        let mut delta = Object::default();
        delta.push(name, value);
        self.push(&delta)
    }

    fn text(&mut self, name: &str, text: &str) -> Option<()> {
        pieces(text).try_for_each(|piece| self.push_one(name, raw(&piece)?))
    }

    fn tool_call(&mut self, index: usize, call: &Fields<'_>) -> Option<()> {
        // The place that a call names must be the one that it has.
        if call.get_some("index").is_some_and(|named| read::<usize>(named) != Some(index)) {
            return None;
        }
        let function = match call.get_some("function") {
            Some(function) => Some(Function::read(function)?),
            None => None,
        };
        let mut opening = Object::default();
        opening.push_value("index", &index)?;
        for (name, value) in call.iter().filter(|(name, _)| *name != "index") {
            match &function {
                Some(function) if name == "function" => opening.push_value("function", &function.opening)?,
                _ => opening.push(name.clone(), Cow::Borrowed(value)),
            }
        }
        self.push_one("tool_calls", raw(&[opening])?)?;
        for piece in function.iter().flat_map(|function| pieces(&function.arguments)) {
            let mut part = Object::default();
            part.push_value("index", &index)?;
            part.push_value("function", &arguments(piece)?)?;
            self.push_one("tool_calls", raw(&[part])?)?;
        }
        Some(())
    }

    fn function_call(&mut self, call: &RawValue) -> Option<()> {
        let function = Function::read(call)?;
        self.push_one("function_call", raw(&function.opening)?)?;
        pieces(&function.arguments).try_for_each(|piece| self.push_one("function_call", raw(&arguments(piece)?)?))
    }
}

fn arguments(piece: &str) -> Option<Object<'static>> {
    let mut function = Object::default();
    function.push_value("arguments", &piece)?;
    Some(function)
}

/// A call's function, apart from its arguments, which come in pieces.
struct Function<'a> {
    opening: Object<'a>,
    arguments: String,
}

impl<'a> Function<'a> {
    /// `None` if it is no object, or its arguments are no text.
    fn read(value: &'a RawValue) -> Option<Self> {
        let mut function = Self { opening: Object::default(), arguments: String::new() };
        for (name, value) in read::<Fields<'_>>(value)?.iter() {
            if name == "arguments" && !is_null(value) {
                function.arguments = read(value)?;
                function.opening.push_value("arguments", &"")?;
            } else {
                function.opening.push(name.clone(), Cow::Borrowed(value));
            }
        }
        Some(function)
    }
}

fn chat(out: &mut Stream, index: &RawValue, choice: &Fields<'_>) -> Option<()> {
    if choice.get("delta").is_some() {
        return None;
    }
    let message: Fields<'_> = choice.get("message").and_then(read)?;
    let mut chat = Chat { out, index };
    chat.push(&opening(&message)?)?;
    for name in TEXTS {
        if let Some(text) = message.get_some(name) {
            chat.text(name, &read::<String>(text)?)?;
        }
    }
    let calls: Vec<Fields<'_>> = message.get_some("tool_calls").map_or(Some(Vec::new()), read)?;
    calls.iter().enumerate().try_for_each(|(place, call)| chat.tool_call(place, call))?;
    if let Some(call) = message.get_some("function_call") {
        chat.function_call(call)?;
    }
    let mut last = Object::default();
    last.push("index", Cow::Borrowed(index));
    last.push_value("delta", &Object::default())?;
    push_rest(&mut last, choice, "message");
    chat.out.push(&last)
}

/// A choice's first delta: everything but the texts and calls that follow in pieces, of which it says that they are there.
fn opening<'a>(message: &Fields<'a>) -> Option<Object<'a>> {
    let mut delta = Object::default();
    for (name, value) in message.iter() {
        let follows = match &**name {
            name if TEXTS.contains(&name) => !is_null(value),
            "tool_calls" => !is_null(value) && !read::<Vec<&RawValue>>(value)?.is_empty(),
            "function_call" => !is_null(value),
            _ => false,
        };
        if !follows {
            delta.push(name.clone(), Cow::Borrowed(value));
        } else if TEXTS.contains(&&**name) {
            delta.push_value(name.clone(), &"")?;
        }
    }
    Some(delta)
}

fn completion(out: &mut Stream, index: &RawValue, choice: &Fields<'_>) -> Option<()> {
    let text: String = choice.get("text").and_then(read)?;
    for piece in pieces(&text) {
        let mut part = Object::default();
        part.push("index", Cow::Borrowed(index));
        part.push_value("text", &piece)?;
        part.push("logprobs", Cow::Borrowed(RawValue::NULL));
        part.push("finish_reason", Cow::Borrowed(RawValue::NULL));
        out.push(&part)?;
    }
    let mut last = Object::default();
    last.push("index", Cow::Borrowed(index));
    last.push_value("text", &"")?;
    push_rest(&mut last, choice, "text");
    out.push(&last)
}

/// What a choice says beside its index and its answer.
fn push_rest<'a>(last: &mut Object<'a>, choice: &Fields<'a>, answer: &str) {
    for (name, value) in choice.iter().filter(|(name, _)| *name != "index" && *name != answer) {
        last.push(name.clone(), Cow::Borrowed(value));
    }
}

/// Cuts a text before the white space between its words, and where words are long.
fn pieces(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        let (piece, after) = rest.split_at_checked(piece_end(rest)).filter(|(piece, _)| !piece.is_empty())?;
        rest = after;
        Some(piece)
    })
}

fn piece_end(text: &str) -> usize {
    let mut in_word = false;
    for (count, (at, c)) in text.char_indices().enumerate() {
        if count == LONGEST_PIECE || (in_word && c.is_whitespace()) {
            return at;
        }
        in_word |= !c.is_whitespace();
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::assemble::assemble;
    use proptest::collection::vec;
    use proptest::option;
    use proptest::prelude::*;
    use serde_json::{Map, Value, json};

    /// What a client does with a stream, as OpenAI's SDK for Python does it (`accumulate_delta`), over plain values:
    /// strings are joined, lists merged by index or extended, objects merged, all else replaced.
    fn accumulate(into: &mut Map<String, Value>, delta: &Map<String, Value>) {
        for (name, value) in delta {
            let Some(old) = into.get_mut(name).filter(|old| !old.is_null()) else {
                into.insert(name.clone(), value.clone());
                continue;
            };
            match (old, value) {
                (old, value) if name == "index" || name == "type" => *old = value.clone(),
                (Value::String(old), Value::String(value)) => old.push_str(value),
                (Value::Object(old), Value::Object(value)) => accumulate(old, value),
                (Value::Array(old), Value::Array(value)) => accumulate_list(old, value),
                (_, Value::Null) => {}
                (old, value) => *old = value.clone(),
            }
        }
    }

    fn accumulate_list(into: &mut Vec<Value>, delta: &[Value]) {
        for item in delta {
            let index = item.get("index").and_then(Value::as_u64).and_then(|index| usize::try_from(index).ok());
            match index.and_then(|index| into.get_mut(index)) {
                Some(Value::Object(old)) => accumulate(old, item.as_object().unwrap()),
                _ => into.push(item.clone()),
            }
        }
    }

    fn client(events: &[Bytes]) -> Value {
        let (done, events) = events.split_last().unwrap();
        assert_eq!(&done[..], b"data: [DONE]\n\n");
        let mut whole = Map::new();
        for event in events {
            let text = std::str::from_utf8(event).unwrap();
            let json = text.strip_prefix("data: ").unwrap().strip_suffix("\n\n").unwrap();
            assert!(!json.contains('\n'));
            let chunk: Map<String, Value> = serde_json::from_str(json).unwrap();
            for (name, value) in chunk {
                if name != "choices" {
                    whole.insert(name, value);
                    continue;
                }
                let choices = whole.entry(name).or_insert(json!([]));
                for choice in value.as_array().unwrap() {
                    let choices = choices.as_array_mut().unwrap();
                    let known = choices.iter_mut().find(|known| known["index"] == choice["index"]);
                    match known {
                        Some(known) => accumulate(known.as_object_mut().unwrap(), choice.as_object().unwrap()),
                        None => choices.push(choice.clone()),
                    }
                }
            }
        }
        let mut whole = Value::Object(whole);
        for choice in whole["choices"].as_array_mut().unwrap() {
            let choice = choice.as_object_mut().unwrap();
            if let Some(mut message) = choice.remove("delta") {
                let calls = message.get_mut("tool_calls").and_then(Value::as_array_mut);
                calls.into_iter().flatten().for_each(|call| drop(call.as_object_mut().unwrap().remove("index")));
                choice.insert("message".to_owned(), message);
            }
        }
        if whole["object"] == "chat.completion.chunk" {
            whole["object"] = json!("chat.completion");
        }
        whole
    }

    fn some_text() -> impl Strategy<Value = Value> {
        prop_oneof![
            Just(Value::Null),
            Just(json!("")),
            "[a-z]{1,8}( [a-z]{1,8}){0,6}".prop_map(Value::from),
            "(?s).{0,60}".prop_map(Value::from),
        ]
    }

    fn some_object(members: Vec<(&'static str, Option<Value>)>) -> Value {
        members.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect::<Map<_, _>>().into()
    }

    prop_compose! {
        fn some_function()(name in "[a-z]{1,9}", arguments in "(?s).{0,50}") -> Value {
            json!({"name": name, "arguments": arguments})
        }
    }

    prop_compose! {
        fn some_call()(id in "[a-z]{4}", function in some_function(), custom: bool) -> Value {
            if custom {
                json!({"id": id, "type": "custom", "custom": {"name": "c", "input": "x y"}})
            } else {
                json!({"id": id, "type": "function", "function": function})
            }
        }
    }

    fn some_logprobs() -> impl Strategy<Value = Value> {
        let tokens =
            || vec("[a-z]{1,3}".prop_map(|t| json!({"token": t, "logprob": -0.1234, "top_logprobs": []})), 0..3);
        prop_oneof![Just(Value::Null), tokens().prop_map(|tokens| json!({"content": tokens, "refusal": null}))]
    }

    prop_compose! {
        fn some_message()(
            content in option::of(some_text()),
            refusal in option::of(some_text()),
            reasoning in option::of(some_text()),
            calls in option::of(vec(some_call(), 0..3)),
            call in option::of(some_function()),
            annotations in option::of(Just(json!([{"url": "u"}]))),
        ) -> Value {
            some_object(vec![("role", Some(json!("assistant"))), ("content", content), ("refusal", refusal),
                ("reasoning_content", reasoning), ("tool_calls", calls.map(Value::from)), ("function_call", call),
                ("annotations", annotations)])
        }
    }

    prop_compose! {
        fn some_chat_choice()(message in some_message(), logprobs in option::of(some_logprobs()), stop: bool) -> Value {
            let reason = if stop { "stop" } else { "length" };
            some_object(vec![("message", Some(message)), ("logprobs", logprobs), ("finish_reason", Some(json!(reason))),
                ("stop_reason", stop.then_some(Value::Null))])
        }
    }

    prop_compose! {
        fn some_completion_choice()(text in "(?s).{0,80}") -> Value {
            json!({"text": text, "logprobs": {"tokens": ["a", "b"], "text_offset": [0, 1]}, "finish_reason": "stop"})
        }
    }

    prop_compose! {
        fn some_document(chat: bool)(
            mut choices in if chat { vec(some_chat_choice().boxed(), 1..4) }
                else { vec(some_completion_choice().boxed(), 1..4) },
            counted: bool,
            filter: bool,
        ) -> Value {
            for (index, choice) in choices.iter_mut().enumerate() {
                choice["index"] = json!(index);
            }
            let usage = json!({"prompt_tokens": 3, "completion_tokens": 4, "prompt_tokens_details": {"cached_tokens": 1}});
            some_object(vec![("id", Some(json!("c-1"))), ("created", Some(json!(1_700_000_000))),
                ("object", Some(json!(if chat { "chat.completion" } else { "text_completion" }))),
                ("model", Some(json!("a/b \"c\""))), ("system_fingerprint", Some(Value::Null)),
                ("choices", Some(json!(choices))), ("usage", counted.then_some(usage)),
                ("prompt_filter_results", filter.then(|| json!([{"index": 0}])))])
        }
    }

    fn any_document() -> impl Strategy<Value = (Endpoint, Value)> {
        prop_oneof![
            3 => some_document(true).prop_map(|document| (Endpoint::Chat, document)),
            1 => some_document(false).prop_map(|document| (Endpoint::Completion, document)),
        ]
    }

    fn of(document: &Value, endpoint: Endpoint, include_usage: bool) -> Option<Vec<Bytes>> {
        chunks(document.to_string().as_bytes(), endpoint, include_usage)
    }

    proptest! {
        /// Neither a client nor we can tell a document from the stream made of it.
        #[test]
        fn a_document_survives_its_stream((endpoint, document) in any_document()) {
            let events = of(&document, endpoint, true).unwrap();
            prop_assert_eq!(&client(&events), &document);
            let stream = events.concat();
            prop_assert!(crate::cache::complete::is_complete_stream(&stream));
            let again: Value = serde_json::from_slice(&assemble(&stream, endpoint).unwrap()).unwrap();
            prop_assert_eq!(&again, &document);
            let spread = serde_json::to_string_pretty(&document).unwrap();
            prop_assert_eq!(client(&chunks(spread.as_bytes(), endpoint, true).unwrap()), document);
        }

        /// A stream cut in other places, choices interleaved, amounts to the same document.
        #[test]
        fn how_a_stream_is_cut_does_not_matter((endpoint, document) in any_document(), seed: u64) {
            let mut events = of(&document, endpoint, false).unwrap();
            let done = events.pop().unwrap();
            // Swapping neighbours of different choices changes nothing within a choice.
            let index_of = |event: &Bytes| {
                let chunk: Value = serde_json::from_slice(&event[5..]).unwrap();
                chunk["choices"][0]["index"].as_u64()
            };
            let mut state = seed | 1;
            for at in (1..events.len().max(1)).cycle().take(events.len() * 3) {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                if at + 1 < events.len() && state >> 63 == 1 && index_of(&events[at]) != index_of(&events[at + 1]) {
                    events.swap(at, at + 1);
                }
            }
            events.push(done);
            let assembled = assemble(&events.concat(), endpoint).unwrap();
            let mut without_usage = document;
            without_usage.as_object_mut().unwrap().remove("usage");
            prop_assert_eq!(&serde_json::from_slice::<Value>(&assembled).unwrap(), &without_usage);
            let again = chunks(&assembled, endpoint, true).unwrap();
            prop_assert_eq!(client(&again), without_usage);
        }

        #[test]
        fn pieces_are_the_text(text in "(?s).{0,200}") {
            let pieces: Vec<_> = pieces(&text).collect();
            prop_assert_eq!(pieces.concat(), text.as_str());
            prop_assert!(pieces.iter().all(|piece| !piece.is_empty() && piece.chars().count() <= LONGEST_PIECE));
        }
    }

    #[test]
    fn texts_come_in_words() {
        assert_eq!(pieces("The  quick\nfox. ").collect::<Vec<_>>(), ["The", "  quick", "\nfox.", " "]);
        assert_eq!(pieces(&"é".repeat(20)).map(|piece| piece.chars().count()).collect::<Vec<_>>(), [16, 4]);
    }

    #[test]
    fn a_chat_looks_as_the_sdk_expects() {
        let document = json!({"id": "c", "object": "chat.completion", "choices": [{"index": 0, "finish_reason": "stop",
            "message": {"role": "assistant", "content": "Hi you", "refusal": null}}], "usage": {"prompt_tokens": 1}});
        let texts = |usage| {
            let events = of(&document, Endpoint::Chat, usage).unwrap();
            events.iter().map(|event| String::from_utf8(event.to_vec()).unwrap()).collect::<Vec<_>>()
        };
        let event = |choice: &str| {
            format!("data: {{\"object\":\"chat.completion.chunk\",\"id\":\"c\",\"choices\":[{choice}]}}\n\n")
        };
        let mut expected = vec![
            event(r#"{"index":0,"delta":{"content":"","refusal":null,"role":"assistant"},"finish_reason":null}"#),
            event(r#"{"index":0,"delta":{"content":"Hi"},"finish_reason":null}"#),
            event(r#"{"index":0,"delta":{"content":" you"},"finish_reason":null}"#),
            event(r#"{"index":0,"delta":{},"finish_reason":"stop"}"#),
            "data: [DONE]\n\n".to_owned(),
        ];
        assert_eq!(texts(false), expected);
        let usage = event("").replace("]}", "],\"usage\":{\"prompt_tokens\":1}}");
        expected.insert(4, usage);
        assert_eq!(texts(true), expected);
    }

    #[test]
    fn what_is_no_document_has_no_stream() {
        let chat = |choice: Value| of(&json!({"choices": [choice]}), Endpoint::Chat, true);
        assert!(chat(json!({"index": 0, "message": {"content": "x"}})).is_some());
        for choice in [
            json!({}),
            json!({"index": 0}),
            json!({"message": {"content": "x"}}),
            json!({"index": 0, "message": {"content": ["x"]}}),
            json!({"index": 0, "message": {"tool_calls": [{"index": 1}]}}),
            json!({"index": 0, "message": {"tool_calls": [{"function": {"arguments": {}}}]}}),
            json!({"index": 0, "message": {"content": "x"}, "delta": {}}),
        ] {
            assert_eq!(chat(choice.clone()), None, "{choice}");
        }
        assert_eq!(of(&json!({"choices": []}), Endpoint::Chat, true), None);
        assert_eq!(of(&json!({"error": {}, "choices": [{"index": 0, "text": ""}]}), Endpoint::Completion, true), None);
        assert_eq!(of(&json!({"data": []}), Endpoint::Embedding, true), None);
        assert_eq!(chunks(b"{\"choices\":[", Endpoint::Chat, true), None);
    }
}
