//! The newest entries, ready to be sent: most edges lack only those, and all lack the same.

use crate::store::config_log::Logged;
use std::collections::VecDeque;
use turnpike_config::Change;
use turnpike_config::log::{Hash, Position};
use turnpike_config::push::{Delta, Item, MAX_DELTA, PushFrame, Urgent};
use turnpike_config::signing::{Signature, Signer, Statement};

/// Urgent entries kept: an edge may be busy with a snapshot for minutes.
const MAX_URGENT: usize = 16_384;
/// Encoded deltas kept.
const MAX_FRAMES: usize = 16;

/// A frame with its length in front, shared by all whom it is sent to.
pub(crate) type Frame = bytes::Bytes;

/// Encodes what is to be sent.
pub(crate) fn encode(frame: &impl minicbor::Encode<()>) -> Option<Frame> {
    turnpike_config::wire::frame(frame).ok().map(Frame::from)
}

/// The end of the log, in memory.
#[derive(Debug, Default)]
pub(crate) struct Recent {
    entries: VecDeque<Logged>,
    urgent: VecDeque<(Logged, Frame)>,
    /// Deltas that are the same for every edge, with where they start and end.
    frames: VecDeque<(Position, Position, Frame)>,
}

impl Recent {
    /// Takes in what was published.
    pub(crate) fn extend(&mut self, logged: Vec<Logged>, signer: &Signer) {
        for entry in &logged {
            if entry.entry.change.is_urgent()
                && let Some(frame) = urgent(entry, signer)
            {
                self.urgent.push_back((entry.clone(), frame));
            }
        }
        self.entries.extend(logged);
        self.entries.drain(..self.entries.len().saturating_sub(MAX_DELTA));
        self.urgent.drain(..self.urgent.len().saturating_sub(MAX_URGENT));
    }

    /// Forgets everything.
    pub(crate) fn clear(&mut self) {
        *self = Self::default();
    }

    /// The entries from a position to a version, if all are here.
    pub(crate) fn between(&self, from: Position, to: u64) -> Option<Vec<Logged>> {
        let first = self.entries.front()?.at.version;
        if first > from.version + 1 {
            return None;
        }
        let skip = usize::try_from(from.version + 1 - first).ok()?;
        let count = usize::try_from(to.checked_sub(from.version)?).ok()?;
        let found: Vec<Logged> = self.entries.iter().skip(skip).take(count).cloned().collect();
        (found.len() == count).then_some(found)
    }

    /// Whether the log went through this position; `None` if that is too long ago.
    pub(crate) fn went_through(&self, at: Position) -> Option<bool> {
        let first = self.entries.front()?;
        let index = usize::try_from(at.version.checked_sub(first.at.version)?).ok()?;
        Some(self.entries.get(index).is_some_and(|entry| entry.at == at))
    }

    /// A delta that was encoded before.
    pub(crate) fn frame(&self, from: Position, to: Position) -> Option<Frame> {
        self.frames.iter().rev().find(|(f, t, _)| (*f, *t) == (from, to)).map(|(_, _, frame)| frame.clone())
    }

    /// Keeps an encoded delta.
    pub(crate) fn keep(&mut self, from: Position, to: Position, frame: Frame) {
        if self.frames.len() == MAX_FRAMES {
            self.frames.pop_front();
        }
        self.frames.push_back((from, to, frame));
    }

    /// Urgent entries for an edge after a version, as they are sent.
    pub(crate) fn urgent_after(&self, version: u64, edge: &str, region: &str) -> Vec<Frame> {
        let after = self.urgent.iter().rev().take_while(|(logged, _)| logged.at.version > version);
        let mut frames: Vec<Frame> =
            after.filter(|(logged, _)| is_for(logged, edge, region)).map(|(_, frame)| frame.clone()).collect();
        frames.reverse();
        frames
    }
}

fn urgent(logged: &Logged, signer: &Signer) -> Option<Frame> {
    let (version, entry) = (logged.at.version, logged.bytes.clone());
    let signature = signer.sign(Statement::Urgent { version, entry: Hash::of(&entry) });
    encode(&PushFrame::Urgent(Urgent { version, entry, signature }))
}

/// Whether an edge is told of an entry.
fn is_for(logged: &Logged, edge: &str, region: &str) -> bool {
    logged.entry.audience.as_ref().is_none_or(|audience| audience.includes(edge, region))
}

/// Whether every edge is told all of these.
pub(crate) fn is_for_all(entries: &[Logged]) -> bool {
    entries.iter().all(|logged| logged.entry.audience.is_none())
}

/// The delta of some entries as an edge is to see it. What is for others is hidden, so that they alone meet what may be
/// wrong with it.
pub(crate) fn delta(from: u64, entries: &[Logged], signature: Signature, edge: &str, region: &str) -> PushFrame {
    let item = |logged: &Logged| {
        if is_for(logged, edge, region) {
            Item::Entry(logged.bytes.clone())
        } else {
            Item::Hidden(Hash::of(&logged.bytes))
        }
    };
    PushFrame::Delta(Delta { from, entries: entries.iter().map(item).collect(), signature })
}

/// The changes of some entries.
pub(crate) fn changes(entries: Vec<Logged>) -> impl Iterator<Item = Change> {
    entries.into_iter().map(|logged| logged.entry.change)
}
