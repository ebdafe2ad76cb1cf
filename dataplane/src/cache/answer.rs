//! An answer as it is kept, and the two forms in which it is given again.

use crate::cache::assemble::assemble;
use crate::cache::chunks::chunks;
use crate::cache::json::{Fields, read};
use crate::cache::sse::{self, Data};
use bytes::Bytes;
use lz4_flex::block;
use memchr::memmem;
use serde_json::value::RawValue;
use turnpike_config::{Endpoint, Tokens};

/// Largest body that is kept, bytes.
pub(crate) const MAX_BODY: usize = 64 << 20;
/// Bodies up to this many bytes are not worth compressing.
const COMPRESS_ABOVE: usize = 4 << 10;

const FORMAT: u8 = 2;
const STREAMED: u8 = 1;
const COMPRESSED: u8 = 1 << 1;
/// Format, flags, time, two token counts, the body's checksum (CRC-32C) and length.
const HEAD: usize = 1 + 1 + 8 + 4 + 4 + 4 + 4;

/// A whole answer, as a node sent it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct StoredAnswer {
    /// When it was asked for, Unix milliseconds: it is as old as that.
    pub(crate) stored_at_ms: u64,
    /// Whether the body is an event stream, its usage chunk and `[DONE]` included; else it is a JSON document.
    pub(crate) streamed: bool,
    pub(crate) prompt_tokens: u32,
    pub(crate) completion_tokens: u32,
    pub(crate) body: Bytes,
}

/// Why bytes are no stored answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BadAnswer {
    /// Another version wrote it, or nobody.
    #[error("a cached answer of an unknown format")]
    Format,
    #[error("a cached answer is cut short or has something after its end")]
    Length,
    #[error("a cached answer says that it has more than 64 MiB")]
    TooLarge,
    #[error("a cached answer cannot be decompressed")]
    Compression,
    #[error("a cached answer was damaged")]
    Checksum,
}

impl StoredAnswer {
    /// What its request used.
    pub(crate) fn tokens(&self) -> Tokens {
        Tokens { prompt: self.prompt_tokens, cached: 0, completion: self.completion_tokens }
    }

    /// The form for stores outside this process; `None` if the body is larger than [`MAX_BODY`].
    pub(crate) fn to_bytes(&self) -> Option<Vec<u8>> {
        let length = u32::try_from(self.body.len()).ok().filter(|_| self.body.len() <= MAX_BODY)?;
        let compressed = compress(&self.body);
        let body = compressed.as_deref().unwrap_or(&self.body);
        let flag = |set: bool, flag: u8| if set { flag } else { 0 };
        let mut out = Vec::with_capacity(HEAD + body.len());
        out.extend([FORMAT, flag(self.streamed, STREAMED) | flag(compressed.is_some(), COMPRESSED)]);
        out.extend_from_slice(&self.stored_at_ms.to_le_bytes());
        for number in [self.prompt_tokens, self.completion_tokens, crc32c::crc32c(&self.body), length] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        out.extend_from_slice(body);
        Some(out)
    }

    /// The opposite of [`StoredAnswer::to_bytes`].
    pub(crate) fn from_bytes(bytes: &[u8]) -> Result<Self, BadAnswer> {
        let mut rest = bytes;
        let [format, flags] = take(&mut rest)?;
        if format != FORMAT || flags & !(STREAMED | COMPRESSED) != 0 {
            return Err(BadAnswer::Format);
        }
        let stored_at_ms = u64::from_le_bytes(take(&mut rest)?);
        let prompt_tokens = u32::from_le_bytes(take(&mut rest)?);
        let completion_tokens = u32::from_le_bytes(take(&mut rest)?);
        let checksum = u32::from_le_bytes(take(&mut rest)?);
        let length = u32::from_le_bytes(take(&mut rest)?) as usize;
        if length > MAX_BODY {
            return Err(BadAnswer::TooLarge);
        }
        let body = match flags & COMPRESSED {
            0 => Bytes::copy_from_slice(rest),
            // Writes no more than the declared length, whatever the compressed data hold.
            _ => block::decompress(rest, length).map_err(|_| BadAnswer::Compression)?.into(),
        };
        if body.len() != length {
            return Err(BadAnswer::Length);
        }
        if crc32c::crc32c(&body) != checksum {
            return Err(BadAnswer::Checksum);
        }
        Ok(Self { stored_at_ms, streamed: flags & STREAMED != 0, prompt_tokens, completion_tokens, body })
    }

    /// The answer for a client that does not stream: a JSON document. `None` if there is no faithful one.
    pub(crate) fn json(&self, endpoint: Endpoint) -> Option<Bytes> {
        if self.streamed { assemble(&self.body, endpoint).map(Bytes::from) } else { Some(self.body.clone()) }
    }

    /// The answer for a client that streams: its events, each `data: …` with an empty line, `[DONE]` last. `None` if there
    /// are none that are faithful.
    ///
    /// Events that a node sent are given again as they were, but for the usage chunk, which comes if `include_usage`;
    /// `"usage":null` in other chunks stays where it was.
    pub(crate) fn events(&self, endpoint: Endpoint, include_usage: bool) -> Option<Vec<Bytes>> {
        if !self.streamed {
            return chunks(&self.body, endpoint, include_usage);
        }
        let (mut events, mut counted) = (Vec::new(), false);
        for event in sse::split(&self.body) {
            let usage = usage_of(event);
            counted |= usage != Usage::None;
            let wanted = include_usage || usage != Usage::Alone;
            if wanted && sse::data(event) != Data::Nothing {
                events.push(self.body.slice_ref(event));
            }
        }
        let done = events.last().is_some_and(|event| sse::data(event) == Data::Done);
        (done && (counted || !include_usage)).then_some(events)
    }
}

/// Where an event counts tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Usage {
    None,
    /// In a chunk of its own.
    Alone,
    /// Beside choices.
    Beside,
}

fn usage_of(event: &[u8]) -> Usage {
    // Most events need no parsing.
    if memmem::find(event, b"\"usage\"").is_none() {
        return Usage::None;
    }
    let Data::Json(text) = sse::data(event) else { return Usage::None };
    let Some(fields) = Fields::parse(text).filter(|fields| fields.get_some("usage").is_some()) else {
        return Usage::None;
    };
    let choices: Vec<&RawValue> = fields.get("choices").and_then(read).unwrap_or_default();
    if choices.is_empty() { Usage::Alone } else { Usage::Beside }
}

/// `None` where compressing gains nothing.
fn compress(body: &[u8]) -> Option<Vec<u8>> {
    let compressed = (body.len() > COMPRESS_ABOVE).then(|| block::compress(body))?;
    (compressed.len() < body.len()).then_some(compressed)
}

fn take<const N: usize>(rest: &mut &[u8]) -> Result<[u8; N], BadAnswer> {
    let (taken, after) = rest.split_first_chunk().ok_or(BadAnswer::Length)?;
    *rest = after;
    Ok(*taken)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const STREAM: &str = ": ping\n\n\
        data: {\"id\":\"c\",\"choices\":[{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"\"}}],\"usage\":null}\n\n\
        data: {\"id\":\"c\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\"say \\\"usage\\\"\"}}],\"usage\":null}\n\n\
        data: {\"id\":\"c\",\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"stop\"}]}\r\n\r\n\
        data: {\"id\":\"c\",\"choices\":[],\"usage\":{\"prompt_tokens\":7,\"completion_tokens\":2}}\n\n\
        data: [DONE]\n\n";

    fn answer(streamed: bool, body: impl Into<Bytes>) -> StoredAnswer {
        StoredAnswer { stored_at_ms: 1 << 41, streamed, prompt_tokens: 7, completion_tokens: 2, body: body.into() }
    }

    #[test]
    fn a_stream_is_given_again_with_or_without_its_usage() {
        let stored = answer(true, STREAM);
        let with = stored.events(Endpoint::Chat, true).unwrap();
        assert_eq!(with.concat(), STREAM.strip_prefix(": ping\n\n").unwrap().as_bytes());
        let without = stored.events(Endpoint::Chat, false).unwrap();
        assert_eq!(without.len(), with.len() - 1);
        assert!(memmem::find(&without.concat(), b"prompt_tokens").is_none());
        let json = String::from_utf8(stored.json(Endpoint::Chat).unwrap().to_vec()).unwrap();
        assert!(json.contains(r#""content":"say \"usage\"""#) && json.contains("prompt_tokens"), "{json}");
    }

    #[test]
    fn a_stream_that_was_not_counted_or_is_cut_is_not_given_again() {
        let (cut, _) = STREAM.split_once("data: [DONE]").unwrap();
        assert_eq!(answer(true, cut).events(Endpoint::Chat, false), None);
        let uncounted = STREAM.replace("prompt_tokens", "x").replace("\"usage\":{", "\"x\":{");
        let uncounted = answer(true, uncounted);
        assert_eq!(uncounted.events(Endpoint::Chat, true), None);
        assert!(uncounted.events(Endpoint::Chat, false).is_some());
    }

    #[test]
    fn usage_beside_choices_stays() {
        let stream =
            "data: {\"choices\":[{\"index\":0,\"text\":\"a\"}],\"usage\":{\"prompt_tokens\":1}}\n\ndata: [DONE]\n\n";
        let stored = answer(true, stream);
        assert_eq!(stored.events(Endpoint::Completion, false).unwrap().concat(), stream.as_bytes());
        assert_eq!(stored.events(Endpoint::Completion, true).unwrap().concat(), stream.as_bytes());
    }

    #[test]
    fn a_document_is_given_again_as_it_is_or_as_a_stream() {
        let json = r#"{"choices":[{"index":0,"text":"a b","finish_reason":"stop"}]}"#;
        let stored = answer(false, json);
        assert_eq!(stored.json(Endpoint::Completion).unwrap(), json);
        assert_eq!(stored.events(Endpoint::Completion, false).unwrap().len(), 4);
        assert_eq!(stored.events(Endpoint::Embedding, false), None);
        assert_eq!(answer(true, STREAM).json(Endpoint::Embedding), None);
    }

    #[test]
    fn large_bodies_are_compressed_and_damage_is_noticed() {
        let stored = answer(true, STREAM.repeat(50));
        let bytes = stored.to_bytes().unwrap();
        assert!(bytes.len() < stored.body.len() / 5);
        assert!(StoredAnswer::from_bytes(&bytes).is_ok_and(|read| read == stored));
        assert!((HEAD..bytes.len()).all(|cut| StoredAnswer::from_bytes(&bytes[..cut]).is_err()));
        for at in HEAD..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 0x10;
            assert!(StoredAnswer::from_bytes(&damaged).is_err(), "{at}");
        }
    }

    #[test]
    fn a_bomb_is_not_unpacked() {
        let bomb = answer(false, vec![b' '; MAX_BODY]).to_bytes().unwrap();
        assert!(bomb.len() < 300_000);
        let declare = |length: u32| {
            let mut bytes = bomb.clone();
            bytes[HEAD - 4..HEAD].copy_from_slice(&length.to_le_bytes());
            StoredAnswer::from_bytes(&bytes)
        };
        assert_eq!(declare(1_000), Err(BadAnswer::Compression));
        assert_eq!(declare(u32::MAX), Err(BadAnswer::TooLarge));
        assert_eq!(declare(u32::try_from(MAX_BODY).unwrap() + 1), Err(BadAnswer::TooLarge));
        assert_eq!(answer(false, vec![b' '; MAX_BODY + 1]).to_bytes(), None);
    }

    #[test]
    fn other_formats_are_refused() {
        let bytes = answer(false, "{}").to_bytes().unwrap();
        assert_eq!(bytes.len(), HEAD + 2);
        for (at, value) in [(0, 0), (0, 1), (1, 4), (1, 0x80)] {
            let mut other = bytes.clone();
            other[at] = value;
            assert_eq!(StoredAnswer::from_bytes(&other), Err(BadAnswer::Format));
        }
        let longer = [&bytes[..], b" "].concat();
        assert_eq!(StoredAnswer::from_bytes(&longer), Err(BadAnswer::Length));
        for cut in 0..bytes.len() {
            assert_eq!(StoredAnswer::from_bytes(&bytes[..cut]), Err(BadAnswer::Length));
        }
    }

    proptest! {
        #[test]
        fn answers_survive_their_bytes(
            stored_at_ms: u64,
            streamed: bool,
            counts: (u32, u32),
            body in prop_oneof![
                proptest::collection::vec(any::<u8>(), 0..3_000),
                "[ab ]{0,5000}".prop_map(String::into_bytes),
            ],
        ) {
            let (prompt_tokens, completion_tokens) = counts;
            let stored = StoredAnswer { stored_at_ms, streamed, prompt_tokens, completion_tokens, body: body.into() };
            prop_assert_eq!(StoredAnswer::from_bytes(&stored.to_bytes().unwrap()), Ok(stored));
        }

        #[test]
        fn garbage_is_refused(garbage in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut garbage = garbage;
            if let [format, flags, ..] = garbage.as_mut_slice() {
                (*format, *flags) = (FORMAT, *flags & (STREAMED | COMPRESSED));
            }
            prop_assert!(StoredAnswer::from_bytes(&garbage).is_err());
        }
    }
}
