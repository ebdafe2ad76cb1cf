//! The chat model's tokenizer and prompt format, both as its file describes them.

use candle_core::quantized::gguf_file::Content;
use candle_core::quantized::tokenizer::TokenizerFromGguf as _;
use candle_core::{Error, Result};
use tokenizers::Tokenizer;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;

use crate::openai::{Message, Role};

/// What the model's own chat template says first when the client gives no system message.
const DEFAULT_SYSTEM: &str = "You are a helpful AI assistant named SmolLM, trained by Hugging Face";

/// Text to tokens and back.
pub(super) struct ChatTokenizer {
    tokenizer: Tokenizer,
    /// Each token's bytes by id; empty for special tokens, which are not text.
    bytes: Vec<Box<[u8]>>,
    longest_token_bytes: usize,
    turn_start: u32,
    turn_end: u32,
    text_end: u32,
}

impl ChatTokenizer {
    /// Reads it from the model file's metadata.
    pub(super) fn from_gguf(content: &Content) -> Result<Self> {
        let mut tokenizer = Tokenizer::from_gguf(content)?;
        // The file names its pre-tokenizer `smollm`, which candle does not know and takes for GPT-2's: without the
        // digits apart, every number in a prompt gets tokens that the model was never trained on.
        let pre_tokenizers = vec![Digits::new(true).into(), ByteLevel::new(false, false, true).into()];
        tokenizer.with_pre_tokenizer(Some(Sequence::new(pre_tokenizers)));
        // Text is only ever text: a client who writes <|im_end|> gets these ten characters, not the end of his turn.
        tokenizer.set_encode_special_tokens(true);

        let special = |token: &str| {
            tokenizer.token_to_id(token).ok_or_else(|| Error::msg(format!("the vocabulary lacks the token {token}")))
        };
        let (turn_start, turn_end, text_end) =
            (special("<|im_start|>")?, special("<|im_end|>")?, special("<|endoftext|>")?);
        let bytes = token_bytes(&tokenizer)?;
        let longest_token_bytes = bytes.iter().map(|token| token.len()).max().unwrap_or(1);
        Ok(Self { tokenizer, bytes, longest_token_bytes, turn_start, turn_end, text_end })
    }

    /// Tokens of plain text; special tokens never come out of it.
    pub(super) fn encode(&self, text: &str) -> Result<Vec<u32>> {
        Ok(self.tokenizer.encode_fast(text, false).map_err(Error::wrap)?.get_ids().to_vec())
    }

    /// Tokens of a chat in the model's own format (ChatML), up to where the assistant's answer begins.
    pub(super) fn encode_chat(&self, messages: &[Message]) -> Result<Vec<u32>> {
        let mut ids = Vec::new();
        let newline = self.encode("\n")?;
        let mut turn = |role: Role, content: &str| -> Result<()> {
            ids.push(self.turn_start);
            ids.extend(self.encode(&format!("{}\n{content}", role.name()))?);
            ids.push(self.turn_end);
            ids.extend_from_slice(&newline);
            Ok(())
        };
        if messages.first().is_none_or(|message| message.role != Role::System) {
            turn(Role::System, DEFAULT_SYSTEM)?;
        }
        for message in messages {
            turn(message.role, &message.content)?;
        }
        ids.push(self.turn_start);
        ids.extend(self.encode(&format!("{}\n", Role::Assistant.name()))?);
        Ok(ids)
    }

    /// Fewest tokens that text of this length can have, without tokenising it.
    pub(super) fn fewest_tokens(&self, text_bytes: usize) -> usize {
        text_bytes / self.longest_token_bytes
    }

    /// Whether the model says that it is done.
    pub(super) fn ends_generation(&self, token: u32) -> bool {
        token == self.turn_end || token == self.text_end
    }

    /// The token's share of the text, perhaps part of a character; empty for special tokens.
    pub(super) fn bytes(&self, token: u32) -> &[u8] {
        usize::try_from(token).ok().and_then(|id| self.bytes.get(id)).map_or(&[], AsRef::as_ref)
    }
}

/// Byte-level BPE writes each byte as one printable character; this undoes it for the whole vocabulary.
fn token_bytes(tokenizer: &Tokenizer) -> Result<Vec<Box<[u8]>>> {
    let byte_of = byte_alphabet();
    let special = tokenizer.get_added_tokens_decoder();
    let size = u32::try_from(tokenizer.get_vocab_size(true)).map_err(Error::wrap)?;
    (0..size)
        .map(|id| {
            if special.contains_key(&id) {
                return Ok(Box::default());
            }
            let token = tokenizer.id_to_token(id).unwrap_or_default();
            let bytes: Option<Box<[u8]>> = token.chars().map(&byte_of).collect();
            bytes.ok_or_else(|| Error::msg(format!("token {id} is not byte-level")))
        })
        .collect()
}

/// GPT-2's alphabet: printable Latin-1 stands for itself, the other 68 bytes for the characters from U+0100 on, in order.
fn byte_alphabet() -> impl Fn(char) -> Option<u8> {
    let itself = |byte: &u8| matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    let others: Vec<u8> = (0..=u8::MAX).filter(|byte| !itself(byte)).collect();
    move |c| match u8::try_from(c) {
        Ok(byte) => itself(&byte).then_some(byte),
        Err(_) => u32::from(c).checked_sub(0x100).and_then(|n| others.get(usize::try_from(n).ok()?)).copied(),
    }
}

/// Makes whole characters of bytes that arrive token by token.
#[derive(Debug, Default)]
pub(super) struct Utf8Assembler {
    pending: Vec<u8>,
}

impl Utf8Assembler {
    /// Takes a token's bytes; gives every character that is complete. Bytes that can never become one give U+FFFD.
    pub(super) fn push(&mut self, bytes: &[u8]) -> String {
        self.pending.extend_from_slice(bytes);
        let mut text = String::new();
        loop {
            let error = match std::str::from_utf8(&self.pending) {
                Ok(rest) => {
                    text.push_str(rest);
                    self.pending.clear();
                    return text;
                }
                Err(error) => error,
            };
            let whole: Vec<u8> = self.pending.drain(..error.valid_up_to()).collect();
            text.push_str(&String::from_utf8_lossy(&whole));
            let Some(broken) = error.error_len() else { return text };
            self.pending.drain(..broken);
            text.push(char::REPLACEMENT_CHARACTER);
        }
    }

    /// What an unfinished character comes to once nothing more arrives: U+FFFD or nothing.
    pub(super) fn finish(&mut self) -> String {
        let rest = String::from_utf8_lossy(&self.pending).into_owned();
        self.pending.clear();
        rest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_byte_alphabet_is_gpt2s() {
        let byte_of = byte_alphabet();
        assert_eq!(byte_of('A'), Some(b'A'));
        assert_eq!(byte_of('Ġ'), Some(b' '));
        assert_eq!(byte_of('Ċ'), Some(b'\n'));
        assert_eq!(byte_of('Ń'), Some(0xAD));
        assert_eq!(byte_of(' '), None);
        let all: std::collections::BTreeSet<u8> = ('\0'..'\u{200}').filter_map(byte_of).collect();
        assert_eq!(all.len(), 256);
    }

    #[test]
    fn characters_come_out_whole_however_their_bytes_are_cut() {
        let text = "aé日😀b";
        for cut in 1..5 {
            let mut assembler = Utf8Assembler::default();
            let out: String = text.as_bytes().chunks(cut).map(|piece| assembler.push(piece)).collect();
            assert_eq!(out + &assembler.finish(), text);
        }
    }

    #[test]
    fn broken_bytes_become_the_replacement_character() {
        let mut assembler = Utf8Assembler::default();
        assert_eq!(assembler.push(b"a\xFFb\xE6"), "a\u{FFFD}b");
        assert_eq!(assembler.push(b"c"), "\u{FFFD}c");
        assert_eq!(assembler.push(b"\xF0\x9F"), "");
        assert_eq!(assembler.finish(), "\u{FFFD}");
        assert_eq!(assembler.finish(), "");
    }
}
