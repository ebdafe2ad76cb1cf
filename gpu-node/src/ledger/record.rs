//! One record on disk: 36 bytes, the last four their CRC-32C. Numbers are little-endian.

use turnpike_config::wire::LedgerState;
use turnpike_config::{EventId, Tokens};
use uuid::Uuid;

/// Length of a record, bytes.
pub(super) const SIZE: usize = 36;

/// What is known of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Outcome {
    /// How it ended, or that it runs.
    pub(crate) state: LedgerState,
    /// What it took; none while it runs.
    pub(crate) tokens: Tokens,
}

impl Outcome {
    /// The node worked on it and died: nothing is known of its tokens.
    pub(super) const LOST: Self = Self { state: LedgerState::Lost, tokens: NONE };
    /// It runs.
    pub(super) const RUNNING: Self = Self { state: LedgerState::Begun, tokens: NONE };

    /// Whether it took any tokens.
    pub(super) const fn has_tokens(self) -> bool {
        self.tokens.prompt > 0 || self.tokens.completion > 0
    }
}

const NONE: Tokens = Tokens { prompt: 0, cached: 0, completion: 0 };

/// What a record says of its event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Entry {
    /// Handed to the engine, once more if it was before.
    Begun,
    /// So many attempts were running when this file was begun; repeated from the file before.
    Carried(u32),
    /// An attempt ended, and this is now what counts for the event.
    Ended(Outcome),
    /// Nothing: a try whether the disk takes anything.
    Blank,
}

/// A record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) event: EventId,
    pub(super) entry: Entry,
}

impl Record {
    pub(super) const BLANK: Self = Self { event: EventId(Uuid::nil()), entry: Entry::Blank };

    pub(super) fn encode(self, out: &mut Vec<u8>) {
        let (kind, tokens) = match self.entry {
            Entry::Begun => (1, NONE),
            Entry::Carried(attempts) => (2, Tokens { completion: attempts, ..NONE }),
            Entry::Ended(Outcome { state, tokens }) => (kind_of(state), tokens),
            Entry::Blank => (7, NONE),
        };
        let start = out.len();
        out.extend_from_slice(&[kind, 0, 0, 0]);
        out.extend_from_slice(self.event.0.as_bytes());
        for number in [tokens.prompt, tokens.cached, tokens.completion] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        out.extend_from_slice(&crc32c::crc32c(&out[start..]).to_le_bytes());
    }

    /// `None` if these bytes were never written whole, or are no longer what was written.
    pub(super) fn decode(bytes: &[u8; SIZE]) -> Option<Self> {
        let (body, crc) = bytes.split_at(SIZE - 4);
        if crc32c::crc32c(body).to_le_bytes() != crc {
            return None;
        }
        let tokens = Tokens { prompt: number(body, 20), cached: number(body, 24), completion: number(body, 28) };
        let ended = |state| Entry::Ended(Outcome { state, tokens });
        let entry = match body[0] {
            1 => Entry::Begun,
            2 => Entry::Carried(tokens.completion),
            3 => ended(LedgerState::Counted),
            4 => ended(LedgerState::Seen),
            5 => ended(LedgerState::Refused),
            6 => ended(LedgerState::Lost),
            7 => Entry::Blank,
            _ => return None,
        };
        Some(Self { event: event_in(bytes), entry })
    }
}

/// The event that a record is of, unchecked.
pub(super) fn event_in(bytes: &[u8; SIZE]) -> EventId {
    let mut id = [0; 16];
    id.copy_from_slice(&bytes[4..20]);
    EventId(Uuid::from_bytes(id))
}

const fn kind_of(state: LedgerState) -> u8 {
    match state {
        LedgerState::Begun => 1,
        LedgerState::Counted => 3,
        LedgerState::Seen => 4,
        LedgerState::Refused => 5,
        LedgerState::Lost => 6,
    }
}

fn number(body: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([body[at], body[at + 1], body[at + 2], body[at + 3]])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn records() -> Vec<Record> {
        let event = EventId(Uuid::now_v7());
        let tokens = Tokens { prompt: u32::MAX, cached: 7, completion: 1 << 31 };
        let states = [LedgerState::Counted, LedgerState::Seen, LedgerState::Refused, LedgerState::Lost];
        let ended = states.map(|state| Entry::Ended(Outcome { state, tokens }));
        [Entry::Begun, Entry::Carried(3), Entry::Blank]
            .into_iter()
            .chain(ended)
            .map(|entry| Record { event, entry })
            .collect()
    }

    fn encoded(record: Record) -> [u8; SIZE] {
        let mut out = Vec::new();
        record.encode(&mut out);
        out.try_into().unwrap()
    }

    #[test]
    fn a_record_comes_back_as_it_was() {
        for record in records() {
            assert_eq!(Record::decode(&encoded(record)), Some(record));
            assert_eq!(event_in(&encoded(record)), record.event);
        }
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        for record in records() {
            let bytes = encoded(record);
            for bit in 0..SIZE * 8 {
                let mut flipped = bytes;
                flipped[bit / 8] ^= 1 << (bit % 8);
                assert_eq!(Record::decode(&flipped), None, "bit {bit}");
            }
        }
        assert_eq!(Record::decode(&[0; SIZE]), None);
    }
}
