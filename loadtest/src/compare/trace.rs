//! Requests as others have had them: when they came, how long they were, and what they began with.

use anyhow::{Context as _, ensure};
use serde::Deserialize;
use std::path::Path;
use std::time::Duration;

/// Bytes that the simulator counts as a token.
const TOKEN_BYTES: usize = 4;
/// Tokens that a block stands for in traces that name them.
const BLOCK_TOKENS: usize = 512;

/// One request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Arrival {
    /// After the first.
    pub(super) at: Duration,
    pub(super) prompt_tokens: usize,
    pub(super) answer_tokens: u32,
    /// What the prompt begins with, block after block; who has the same has the same text. Empty: it is like no other.
    blocks: Vec<u64>,
}

impl Arrival {
    /// Text of about the prompt's length. `number` tells it from all others where it is not said to be the same, `turn` from
    /// all of another turn, whose engines would know it already.
    pub(super) fn text(&self, turn: usize, number: usize) -> String {
        let length = self.prompt_tokens * TOKEN_BYTES;
        let mut text = String::with_capacity(length + BLOCK_TOKENS * TOKEN_BYTES);
        for block in &self.blocks {
            fill(&mut text, &format!("turn {turn:04} block {block:012}"), BLOCK_TOKENS * TOKEN_BYTES);
        }
        text.truncate(length);
        let left = length - text.len();
        fill(&mut text, &format!("turn {turn:04} request {number:012}"), left.max(32));
        text
    }
}

fn fill(text: &mut String, name: &str, length: usize) {
    text.push_str(name);
    let left = length.saturating_sub(name.len());
    text.push_str(&" word".repeat(left.div_ceil(5))[..left]);
}

/// Reads a trace: lines of JSON with `timestamp` (milliseconds), `input_length`, `output_length` and `hash_ids`, as Mooncake's
/// are; or CSV of `TIMESTAMP,ContextTokens,GeneratedTokens`, as Azure's are.
pub(super) fn read(file: &Path) -> anyhow::Result<Vec<Arrival>> {
    let text = std::fs::read_to_string(file)
        .with_context(|| format!("reading {} (compressed traces have to be unpacked: xz -dk FILE)", file.display()))?;
    let mut arrivals = Vec::new();
    for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.is_empty()) {
        let arrival = if line.starts_with('{') { json(line, number) } else { csv(line, number == 0) };
        let arrival = arrival.with_context(|| format!("{}: line {}", file.display(), number + 1))?;
        arrivals.extend(arrival);
    }
    ensure!(!arrivals.is_empty(), "{} has no requests", file.display());
    arrivals.sort_by_key(|arrival| arrival.at);
    let first = arrivals[0].at;
    arrivals.iter_mut().for_each(|arrival| arrival.at -= first);
    Ok(arrivals)
}

/// Mooncake's times are multiples of three seconds: spread over them.
const STEP_MS: u64 = 3_000;

fn json(line: &str, number: usize) -> anyhow::Result<Option<Arrival>> {
    #[derive(Deserialize)]
    struct Line {
        timestamp: u64,
        input_length: usize,
        output_length: u32,
        #[serde(default)]
        hash_ids: Vec<u64>,
    }
    let Line { timestamp, input_length, output_length, hash_ids } = serde_json::from_str(line)?;
    let within = if timestamp.is_multiple_of(STEP_MS) { number as u64 * 1_049 % STEP_MS } else { 0 };
    Ok(Some(Arrival {
        at: Duration::from_millis(timestamp + within),
        prompt_tokens: input_length,
        answer_tokens: output_length.max(1),
        blocks: hash_ids,
    }))
}

fn csv(line: &str, is_first: bool) -> anyhow::Result<Option<Arrival>> {
    let fields: Vec<_> = line.trim_end().split(',').collect();
    let [time, prompt, answer] = fields[..] else { anyhow::bail!("expected three columns, but got {}", fields.len()) };
    if is_first && prompt.parse::<usize>().is_err() {
        return Ok(None);
    }
    let at = chrono::NaiveDateTime::parse_from_str(time, "%Y-%m-%d %H:%M:%S%.f").context("the time")?;
    let since = at.and_utc().timestamp_micros();
    Ok(Some(Arrival {
        at: Duration::from_micros(u64::try_from(since).context("the time")?),
        prompt_tokens: prompt.parse().context("ContextTokens")?,
        answer_tokens: answer.parse::<u32>().context("GeneratedTokens")?.max(1),
        blocks: Vec::new(),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> anyhow::Result<Vec<Arrival>> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        read(file.path())
    }

    #[test]
    fn both_kinds_are_read() {
        let azure = "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:17:03.9799600,4808,10\n\
                     2023-11-16 18:17:04.4799600,10,0\n";
        let found = of(azure).unwrap();
        assert_eq!(found[1].at, Duration::from_millis(500));
        assert_eq!((found[0].prompt_tokens, found[0].answer_tokens, found[1].answer_tokens), (4808, 10, 1));
        let mooncake = "{\"timestamp\": 7, \"input_length\": 700, \"output_length\": 5, \"hash_ids\": [3, 4]}\n";
        assert_eq!(of(mooncake).unwrap()[0].blocks, [3, 4]);
        for (bad, named) in [("", "no requests"), ("a,b\n", "line 1"), ("{}\n", "line 1"), ("x,1,2\n", "the time")] {
            let error = format!("{:#}", of(bad).unwrap_err());
            assert!(error.contains(named), "{error}");
        }
    }

    #[test]
    fn what_begins_alike_has_the_same_text() {
        let of = |blocks: &[u64], prompt_tokens| Arrival {
            at: Duration::ZERO,
            prompt_tokens,
            answer_tokens: 1,
            blocks: blocks.to_vec(),
        };
        let (one, other) = (of(&[1, 2], 1_300).text(1, 1), of(&[1, 3], 1_300).text(1, 2));
        assert_eq!((one.len(), one[..2_048] == other[..2_048]), (5_200, true));
        assert_ne!(one[2_048..4_096], other[2_048..4_096]);
        assert_ne!(of(&[], 100).text(1, 1), of(&[], 100).text(1, 2));
        assert_ne!(of(&[1], 100).text(1, 1)[..50], of(&[1], 100).text(2, 1)[..50]);
        assert!(of(&[1], 3).text(1, 1).len() >= 12);
    }
}
