//! Listens in on the answer: finds the engine's token counts, and takes the usage chunk out of streams whose client did
//! not ask for it.
//!
//! Bytes pass in whole events, which is all a client can use; within that nothing waits and, on the usual path, nothing
//! is copied or parsed.

mod document;

pub use document::is_good_end;

use crate::{Endpoint, Tokens};
use bytes::{Bytes, BytesMut};
use document::Document;
use memchr::{memchr_iter, memmem, memrchr_iter};
use serde::Deserialize;
use serde::de::IgnoredAny;
use std::sync::OnceLock;

/// An event larger than this passes through uninspected.
const MAX_EVENT: usize = 1 << 20;
/// A JSON answer larger than this is not searched for its usage.
const MAX_JSON: usize = 64 << 20;

const USAGE: &[u8] = b"\"usage\"";

/// Token counts as engines report them. Engines that do not say what was cached report `null` or leave it out.
#[derive(Clone, Copy, Deserialize)]
struct Usage {
    #[serde(default)]
    prompt_tokens: u32,
    #[serde(default)]
    completion_tokens: u32,
    prompt_tokens_details: Option<PromptDetails>,
}

#[derive(Clone, Copy, Deserialize)]
struct PromptDetails {
    cached_tokens: Option<u32>,
}

impl From<Usage> for Tokens {
    fn from(usage: Usage) -> Self {
        let cached = usage.prompt_tokens_details.and_then(|details| details.cached_tokens).unwrap_or(0);
        Self {
            prompt: usage.prompt_tokens,
            cached: cached.min(usage.prompt_tokens),
            completion: usage.completion_tokens,
        }
    }
}

/// Listens to one answer.
#[derive(Debug)]
pub enum Tap {
    /// One document.
    Json(JsonTap),
    /// Server-sent events.
    Stream(StreamTap),
}

impl Tap {
    /// For an answer that is one JSON document.
    pub fn json() -> Self {
        Self::Json(JsonTap::default())
    }

    /// For an answer that is an event stream. `strip_usage`: the usage chunk is ours, not the client's.
    pub fn stream(strip_usage: bool) -> Self {
        Self::Stream(StreamTap { strip_usage, ..StreamTap::default() })
    }

    /// Takes what came from the node, returns what the client gets now. `end`: nothing comes after.
    pub fn pass(&mut self, chunk: Option<Bytes>, end: bool) -> Option<Bytes> {
        let out = match self {
            Self::Json(tap) => {
                tap.keep(chunk.as_ref());
                chunk
            }
            Self::Stream(tap) => {
                let mut out = chunk.map_or_else(Bytes::new, |chunk| tap.pass(chunk));
                if end {
                    out = tap.flush(out);
                }
                Some(out)
            }
        };
        out.filter(|bytes| !bytes.is_empty())
    }

    /// The engine's own count, if it came.
    pub fn usage(&self) -> Option<Tokens> {
        match self {
            Self::Json(tap) => tap.document().usage,
            // Some engines count along; only what comes last is the count.
            Self::Stream(tap) => tap.usage.filter(|_| tap.done || tap.usage_is_last),
        }
    }

    /// Tokens that passed, judged by the number of events; for streams cut before the engine's own count.
    pub fn tokens_seen(&self) -> u32 {
        match self {
            Self::Json(_) => 0,
            Self::Stream(tap) => tap.events.saturating_sub(u32::from(tap.opens_with_role)),
        }
    }

    /// Whether a JSON document is an answer without an error, with all that its endpoint gives.
    pub fn is_whole_document(&self, endpoint: Endpoint) -> bool {
        match self {
            Self::Json(tap) => tap.document().is_whole(endpoint),
            Self::Stream(_) => false,
        }
    }

    /// Whether the answer ended as its format demands.
    pub fn is_complete(&self) -> bool {
        match self {
            Self::Json(_) => true,
            Self::Stream(tap) => tap.done,
        }
    }
}

/// Keeps a JSON answer's pieces (reference-counted, not copied) to read them once it is over.
#[derive(Debug, Default)]
pub struct JsonTap {
    pieces: Vec<Bytes>,
    length: usize,
    /// Read once from the pieces so far.
    document: OnceLock<Document>,
}

impl JsonTap {
    fn keep(&mut self, chunk: Option<&Bytes>) {
        let Some(chunk) = chunk else { return };
        self.document.take();
        self.length += chunk.len();
        if self.length <= MAX_JSON {
            self.pieces.push(chunk.clone());
        } else {
            self.pieces.clear();
        }
    }

    fn document(&self) -> &Document {
        self.document.get_or_init(|| match self.pieces.as_slice() {
            [whole] => Document::read(whole),
            pieces => Document::read(&pieces.concat()),
        })
    }
}

/// Splits a stream into events.
#[derive(Debug, Default)]
pub struct StreamTap {
    strip_usage: bool,
    /// The beginning of an event whose end has not come.
    carry: BytesMut,
    usage: Option<Tokens>,
    /// It came in a chunk without text, as OpenAI sends it at the end.
    usage_is_last: bool,
    events: u32,
    /// A chat stream's first event says only who speaks.
    opens_with_role: bool,
    done: bool,
}

impl StreamTap {
    fn pass(&mut self, chunk: Bytes) -> Bytes {
        let data = if self.carry.is_empty() {
            chunk
        } else {
            self.carry.extend_from_slice(&chunk);
            self.carry.split().freeze()
        };
        let Some(cut) = last_event_end(&data) else {
            return self.hold(data);
        };
        let rest = data.slice(cut..);
        if !rest.is_empty() {
            self.carry.extend_from_slice(&rest);
        }
        self.inspect(data.slice(..cut))
    }

    fn hold(&mut self, data: Bytes) -> Bytes {
        if data.len() > MAX_EVENT {
            return data;
        }
        self.carry.extend_from_slice(&data);
        Bytes::new()
    }

    fn flush(&mut self, out: Bytes) -> Bytes {
        if self.carry.is_empty() {
            return out;
        }
        let rest = self.carry.split().freeze();
        let rest = self.inspect(rest);
        [out, rest].concat().into()
    }

    /// Looks at whole events.
    fn inspect(&mut self, events: Bytes) -> Bytes {
        if self.events == 0 {
            self.opens_with_role = memmem::find(&events, b"\"role\"").is_some();
        }
        for data in data_lines(&events) {
            self.events = self.events.saturating_add(1);
            self.done |= data.trim_ascii_start().starts_with(b"[DONE]");
        }
        self.take_out_usage(events)
    }

    /// Reads the events that speak of usage, and leaves out those that are there only because we asked for them.
    fn take_out_usage(&mut self, events: Bytes) -> Bytes {
        let (mut kept, mut kept_to) = (BytesMut::new(), 0);
        // Where an event begins, and where to look on.
        let (mut start, mut at) = (0, 0);
        while let Some(found) = memmem::find(&events[at..], USAGE).map(|found| at + found) {
            start += last_event_end(&events[start..found]).unwrap_or(0);
            at = found + USAGE.len();
            if after_colon(&events[at..]).starts_with(b"null") {
                continue;
            }
            let end = first_event_end(&events[at..]).map_or(events.len(), |end| at + end);
            if self.is_ours(&events[start..end]) {
                kept.reserve(events.len() - kept_to);
                kept.extend_from_slice(&events[kept_to..start]);
                kept_to = end;
            }
            (start, at) = (end, end);
        }
        if kept_to == 0 {
            return events;
        }
        kept.extend_from_slice(&events[kept_to..]);
        kept.freeze()
    }

    /// Notes the event's usage; true if the event is there only because we asked for it.
    fn is_ours(&mut self, event: &[u8]) -> bool {
        #[derive(Deserialize)]
        struct Chunk {
            usage: Option<Usage>,
            #[serde(default)]
            choices: Vec<IgnoredAny>,
        }
        let Some(start) = memmem::find(event, b"data:") else { return false };
        let Ok(chunk) = serde_json::from_slice::<Chunk>(&event[start + 5..]) else { return false };
        let Some(usage) = chunk.usage else { return false };
        self.usage = Some(usage.into());
        self.usage_is_last = chunk.choices.is_empty();
        let ours = self.strip_usage && chunk.choices.is_empty();
        self.events = self.events.saturating_sub(u32::from(ours));
        ours
    }
}

/// What follows each `data:` that begins a line. Inside of generated text, line ends are escaped.
fn data_lines(events: &[u8]) -> impl Iterator<Item = &[u8]> {
    let lines = std::iter::once(0).chain(memchr_iter(b'\n', events).map(|end| end + 1));
    lines.filter_map(|start| events[start..].strip_prefix(b"data:"))
}

/// End of the last whole event: events end with an empty line, after LF or CRLF.
fn last_event_end(data: &[u8]) -> Option<usize> {
    let ends = |at: &usize| matches!(&data[..*at], [.., b'\n'] | [.., b'\n', b'\r']);
    memrchr_iter(b'\n', data).find(ends).map(|at| at + 1)
}

fn first_event_end(data: &[u8]) -> Option<usize> {
    memchr_iter(b'\n', data).find_map(|at| match data.get(at + 1..)? {
        [b'\n', ..] => Some(at + 2),
        [b'\r', b'\n', ..] => Some(at + 3),
        _ => None,
    })
}

/// The value behind a member's name.
fn after_colon(text: &[u8]) -> &[u8] {
    text.trim_ascii_start().strip_prefix(b":").unwrap_or_default().trim_ascii_start()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const STREAM: &str = "data: {\"choices\":[{\"delta\":{\"role\":\"assistant\"}}],\"usage\":null}\n\n\
        data: {\"choices\":[{\"delta\":{\"content\":\"say \\\"usage\\\"\"}}]}\n\n\
        data: {\"choices\":[{\"delta\":{},\"finish_reason\":\"stop\"}]}\r\n\r\n\
        data: {\"choices\":[],\"usage\":{\"prompt_tokens\":7,\"completion_tokens\":2,\"total_tokens\":9}}\n\n\
        data: [DONE]\n\n";

    fn run(strip: bool, pieces: &[&[u8]]) -> (Vec<u8>, Tap) {
        let mut tap = Tap::stream(strip);
        let mut out = Vec::new();
        for piece in pieces {
            out.extend(tap.pass(Some(Bytes::copy_from_slice(piece)), false).unwrap_or_default());
        }
        out.extend(tap.pass(None, true).unwrap_or_default());
        (out, tap)
    }

    #[test]
    fn the_usage_chunk_is_counted_and_taken_out() {
        let (out, tap) = run(true, &[STREAM.as_bytes()]);
        let text = String::from_utf8(out).unwrap();
        assert!(!text.contains("prompt_tokens") && text.contains("[DONE]") && text.contains("say"));
        assert_eq!(tap.usage(), Some(Tokens { prompt: 7, cached: 0, completion: 2 }));
        assert!(tap.is_complete());
    }

    #[test]
    fn a_usage_chunk_is_taken_out_wherever_it_is_and_nothing_else() {
        let ours = "data: {\"choices\":[],\"usage\" : {\"prompt_tokens\":7,\"completion_tokens\":2}}\r\n\r\n";
        let along = "data: {\"choices\":[{}],\"usage\":{\"prompt_tokens\":7,\"completion_tokens\":1}}\n\n";
        let null = "data: {\"choices\":[],\"usage\": null}\n\n";
        let nested = "data: {\"x\":{\"usage\":null},\"choices\":[],\"usage\":{\"prompt_tokens\":1}}\n\n";
        assert_eq!(run(true, &[nested.as_bytes(), b"data: [DONE]\n\n"]).0, b"data: [DONE]\n\n");
        for (before, after) in [("", ""), (along, null), (null, along), ("", null), (along, "")] {
            let (out, tap) = run(true, &[[before, ours, after].concat().as_bytes()]);
            assert_eq!(String::from_utf8(out).unwrap(), [before, after].concat());
            assert_eq!(tap.usage().is_some(), after != along, "only the last word counts");
        }
    }

    #[test]
    fn a_client_that_asked_gets_every_byte() {
        let (out, tap) = run(false, &[STREAM.as_bytes()]);
        assert_eq!(out, STREAM.as_bytes());
        assert_eq!(tap.usage().unwrap().completion, 2);
    }

    #[test]
    fn a_cut_stream_is_not_complete_and_its_events_are_counted() {
        let (_, tap) = run(true, &[&STREAM.as_bytes()[..150]]);
        assert!(!tap.is_complete() && tap.usage().is_none());
        assert_eq!(tap.tokens_seen(), 2);
    }

    #[test]
    fn what_a_model_says_does_not_end_its_stream_or_count_as_events() {
        let said = "data: {\"choices\":[{\"delta\":{\"content\":\"data: [DONE]\\n\\ndata: [DONE]\"}}]}\n\n";
        let (_, tap) = run(true, &[said.as_bytes(), said.as_bytes()]);
        assert!(!tap.is_complete());
        assert_eq!(tap.tokens_seen(), 2);
        let (_, tap) = run(true, &[said.as_bytes(), b"data:[DONE]\n\n"]);
        assert!(tap.is_complete());
    }

    #[test]
    fn a_count_that_runs_along_is_not_the_last_word() {
        let along = "data: {\"choices\":[{}],\"usage\":{\"prompt_tokens\":7,\"completion_tokens\":1}}\n\n";
        let (_, tap) = run(false, &[along.as_bytes()]);
        assert_eq!(tap.usage(), None);
        let (_, tap) = run(false, &[along.as_bytes(), b"data: [DONE]\n\n"]);
        assert_eq!(tap.usage().unwrap().completion, 1);
    }

    #[test]
    fn an_event_without_end_is_not_held_for_ever() {
        let mut tap = Tap::stream(true);
        let huge = Bytes::from(vec![b'x'; MAX_EVENT + 1]);
        assert_eq!(tap.pass(Some(huge.clone()), false), Some(huge));
    }

    #[test]
    fn json_usage_is_found_in_pieces() {
        let mut tap = Tap::json();
        for piece in [
            r#"{"choices":[{"message":{"content":"x"}}],"usa"#,
            r#"ge":{"prompt_tokens":3,"prompt_tokens_details":{"cached_tokens":2}}}"#,
        ] {
            assert!(tap.pass(Some(Bytes::from(piece)), false).is_some());
        }
        assert_eq!(tap.usage(), Some(Tokens { prompt: 3, cached: 2, completion: 0 }));
    }

    proptest! {
        /// However the network cuts the stream, the client gets the same bytes and we the same counts.
        #[test]
        fn cuts_do_not_matter(mut cuts in proptest::collection::vec(0..STREAM.len(), 0..20), strip: bool) {
            cuts.extend([0, STREAM.len()]);
            cuts.sort_unstable();
            let pieces: Vec<&[u8]> = cuts.windows(2).map(|w| &STREAM.as_bytes()[w[0]..w[1]]).collect();
            let (whole, _) = run(strip, &[STREAM.as_bytes()]);
            let (cut, tap) = run(strip, &pieces);
            prop_assert_eq!(whole, cut);
            prop_assert_eq!(tap.usage(), Some(Tokens { prompt: 7, cached: 0, completion: 2 }));
        }
    }
}
