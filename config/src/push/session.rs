//! The control plane's end: what an edge is to be told next. One thing that wants an answer is on its way at a time: an
//! edge that is slow skips versions and holds up nobody.

use super::PushReply;
use crate::log::Position;

/// What to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Want {
    /// Nothing until the head moves or the edge answers.
    Nothing,
    /// The entries from here to the head; or, if they are too many or not kept, [`Want::Snapshot`].
    Delta(Position),
    /// The whole state.
    Snapshot,
    /// Urgent entries after this version, and nothing else: the edge is busy.
    Urgent(u64),
}

/// What is known of an edge.
#[derive(Clone, Copy, Debug)]
pub struct Session {
    /// What it holds, if that is in this log.
    held: Option<Position>,
    sent: Sent,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sent {
    /// It has answered everything.
    Nothing,
    Delta(Position),
    /// It fetches a state; urgent entries were sent up to a version.
    Snapshot(Position, u64),
    /// It refused the state at this version: a later one may be better.
    Refused(u64),
}

/// An answer that fits nothing that was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an answer to nothing that was sent")]
pub struct BadReply;

impl Session {
    /// An edge that holds a position in this log, or something else, or nothing.
    pub const fn new(held: Option<Position>) -> Self {
        Self { held, sent: Sent::Nothing }
    }

    /// What to send, given where the log is.
    pub fn want(&self, head: Position) -> Want {
        match (self.sent, self.held) {
            (Sent::Nothing, Some(held)) if held == head => Want::Nothing,
            (Sent::Nothing, Some(held)) if held.version < head.version => Want::Delta(held),
            (Sent::Nothing, _) => Want::Snapshot,
            (Sent::Refused(version), _) if version == head.version => Want::Nothing,
            (Sent::Refused(_), _) => Want::Snapshot,
            (Sent::Snapshot(_, urgent), _) if urgent < head.version => Want::Urgent(urgent),
            (Sent::Snapshot(..) | Sent::Delta(_), _) => Want::Nothing,
        }
    }

    /// A delta was sent that leads to this position.
    pub const fn sent_delta(&mut self, to: Position) {
        self.sent = Sent::Delta(to);
    }

    /// A manifest was sent of the state at this position, to an edge that serves by something up to `serves`, as far as
    /// that is known. Urgent entries since then do not wait until the state is fetched, those that are in it neither.
    pub const fn sent_snapshot(&mut self, at: Position, serves: u64) {
        self.sent = Sent::Snapshot(at, if serves < at.version { serves } else { at.version });
    }

    /// Urgent entries were sent up to this version.
    pub const fn sent_urgent(&mut self, to: u64) {
        if let Sent::Snapshot(at, _) = self.sent {
            self.sent = Sent::Snapshot(at, to);
        }
    }

    /// Takes an answer. A refused delta is followed by the whole state, a refused state by the next version.
    pub fn take(&mut self, reply: &PushReply) -> Result<(), BadReply> {
        match (reply, self.sent) {
            (PushReply::Ack(at), Sent::Delta(sent) | Sent::Snapshot(sent, _)) if *at == sent => {
                self.held = Some(sent);
                self.sent = Sent::Nothing;
            }
            (PushReply::Nack { .. }, Sent::Delta(_)) => {
                self.held = None;
                self.sent = Sent::Nothing;
            }
            (PushReply::Nack { version, .. }, Sent::Snapshot(at, _)) if *version == at.version => {
                self.sent = Sent::Refused(at.version);
            }
            // To something that was sent before, and came again.
            (PushReply::Nack { .. }, Sent::Snapshot(..)) => {}
            _ => return Err(BadReply),
        }
        Ok(())
    }

    /// A state that was refused may be accepted now.
    pub const fn try_again(&mut self) {
        if let Sent::Refused(_) = self.sent {
            self.sent = Sent::Nothing;
        }
    }

    /// Whether an answer is due.
    pub const fn is_waiting(&self) -> bool {
        matches!(self.sent, Sent::Delta(_) | Sent::Snapshot(..))
    }

    /// Whether the edge was sent a manifest and has not answered it.
    pub const fn is_fetching(&self) -> bool {
        matches!(self.sent, Sent::Snapshot(..))
    }

    /// What the edge holds, if that is in this log.
    pub const fn held(&self) -> Option<Position> {
        self.held
    }
}
