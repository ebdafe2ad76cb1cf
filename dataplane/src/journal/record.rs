//! What the journal holds: intents before dispatch, events at the end, and counts that outlast both.

use minicbor::{Decode, Encode};
use std::collections::BTreeMap;
use turnpike_config::wire::DayCount;
use turnpike_config::{Endpoint, EventId, KeyId, OrgId, Price, UsageEvent};

/// Days of counts that are kept; later ones push out the earliest.
const DAYS_KEPT: usize = 62;

/// What a node is about to be asked. If no event follows, this is what is known of a request that a crash ended.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct Intent {
    #[n(0)]
    pub(crate) id: EventId,
    #[n(1)]
    pub(crate) organization: OrgId,
    #[n(2)]
    pub(crate) api_key: KeyId,
    #[n(3)]
    pub(crate) model: String,
    #[n(4)]
    pub(crate) model_version: String,
    #[n(5)]
    pub(crate) endpoint: Endpoint,
    #[n(6)]
    pub(crate) price_version: u32,
    #[n(7)]
    pub(crate) price: Price,
    /// Tokens that the prompt and the answer may come to.
    #[n(8)]
    pub(crate) reserved_tokens: u64,
    /// Whose ledger knows what came of it.
    #[n(9)]
    pub(crate) node: String,
    #[n(10)]
    pub(crate) streamed: bool,
    #[n(11)]
    pub(crate) request_bytes: u64,
}

/// One record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Record {
    /// Before dispatch, again for each further node, and carried into each new segment while the request runs.
    Intent(Box<Intent>),
    /// At the end.
    Final(Box<UsageEvent>),
    /// At the head of each segment: sums of all events before it.
    Counts(Counts),
    /// Written by a later version.
    Unknown,
}

const INTENT: u8 = 1;
pub(super) const FINAL: u8 = 2;
const COUNTS: u8 = 3;

impl Record {
    pub(super) fn encode(&self, out: &mut Vec<u8>) -> u8 {
        // Writing to a Vec cannot fail.
        match self {
            Self::Intent(intent) => drop(minicbor::encode(intent, out)),
            Self::Final(event) => drop(minicbor::encode(event, out)),
            Self::Counts(counts) => drop(minicbor::encode(&counts.0, out)),
            Self::Unknown => {}
        }
        match self {
            Self::Intent(_) => INTENT,
            Self::Final(_) => FINAL,
            Self::Counts(_) => COUNTS,
            Self::Unknown => u8::MAX,
        }
    }

    pub(super) fn decode(kind: u8, payload: &[u8]) -> Option<Self> {
        match kind {
            INTENT => minicbor::decode(payload).ok().map(|intent| Self::Intent(Box::new(intent))),
            FINAL => minicbor::decode(payload).ok().map(|event| Self::Final(Box::new(event))),
            COUNTS => minicbor::decode(payload).ok().map(|counts| Self::Counts(Counts(counts))),
            _ => Some(Self::Unknown),
        }
    }
}

/// Sums of events by the UTC day of their ids, in days since the epoch. They outlast the events: whoever compares the
/// books with what this edge has seen asks for them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts(BTreeMap<u32, DayCount>);

impl Counts {
    /// Adds an event. What was refused before a model was known is nobody's usage, and neither are shadows.
    pub(crate) fn add(&mut self, event: &UsageEvent) {
        if event.model.is_none() || event.shadow {
            return;
        }
        let day = u32::try_from(event.id.unix_ms() / 86_400_000).unwrap_or(u32::MAX);
        let count = self.0.entry(day).or_insert(DayCount { day, ..DayCount::default() });
        count.add(event);
        while self.0.len() > DAYS_KEPT {
            self.0.pop_first();
        }
    }

    pub(crate) fn days(&self) -> impl Iterator<Item = &DayCount> {
        self.0.values()
    }
}
