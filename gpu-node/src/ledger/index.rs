//! What memory holds of the ledger: all that runs, and the last that ended.

use super::record::Outcome;
use std::collections::{HashMap, VecDeque};
use turnpike_config::EventId;

/// Most ended events in memory: some 20 MiB.
const MAX_ENDED: usize = 1 << 18;

/// What an event's attempts have come to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Best {
    /// Number of the attempt that counts; higher ones began later.
    pub(super) attempt: u64,
    pub(super) outcome: Outcome,
}

impl Best {
    /// What counts after another attempt of the same event has ended.
    ///
    /// An edge sends a request again only when nothing of the answer has reached the client, so it is the attempt begun
    /// last that it bills; but one that took no tokens does not undo one that did.
    pub(super) fn after(self, other: Self) -> Self {
        let rank = |best: Self| (best.outcome.has_tokens(), best.attempt);
        if rank(other) >= rank(self) { other } else { self }
    }
}

/// Everything by event.
#[derive(Debug, Default)]
pub(super) struct Index {
    /// Numbers of the attempts that run.
    running: HashMap<EventId, Vec<u64>>,
    ended: HashMap<EventId, Best>,
    /// The order in which they ended.
    order: VecDeque<EventId>,
}

impl Index {
    /// `None` if memory does not hold it; the files may.
    pub(super) fn find(&self, event: EventId) -> Option<Outcome> {
        if self.running.contains_key(&event) {
            return Some(Outcome::RUNNING);
        }
        self.best(event).map(|best| best.outcome)
    }

    pub(super) fn best(&self, event: EventId) -> Option<Best> {
        self.ended.get(&event).copied()
    }

    pub(super) fn runs(&self, event: EventId, attempt: u64) -> bool {
        self.running.get(&event).is_some_and(|attempts| attempts.contains(&attempt))
    }

    /// Events that run, and in how many attempts each.
    pub(super) fn running(&self) -> impl Iterator<Item = (EventId, u32)> {
        self.running.iter().map(|(event, attempts)| (*event, u32::try_from(attempts.len()).unwrap_or(u32::MAX)))
    }

    pub(super) fn begin(&mut self, event: EventId, attempt: u64) {
        self.running.entry(event).or_default().push(attempt);
    }

    /// An attempt ended; `best` is what counts now.
    pub(super) fn end(&mut self, event: EventId, attempt: u64, best: Best) {
        if let Some(attempts) = self.running.get_mut(&event) {
            attempts.retain(|running| *running != attempt);
            if attempts.is_empty() {
                self.running.remove(&event);
            }
        }
        self.remember(event, best);
    }

    pub(super) fn remember(&mut self, event: EventId, best: Best) {
        if self.ended.insert(event, best).is_some() {
            return;
        }
        self.order.push_back(event);
        if self.order.len() > MAX_ENDED
            && let Some(oldest) = self.order.pop_front()
        {
            self.ended.remove(&oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use turnpike_config::Tokens;
    use turnpike_config::wire::LedgerState;
    use uuid::Uuid;

    fn best(attempt: u64, completion: u32) -> Best {
        let state = if completion == 0 { LedgerState::Refused } else { LedgerState::Counted };
        Best { attempt, outcome: Outcome { state, tokens: Tokens { completion, ..Tokens::default() } } }
    }

    #[test]
    fn the_attempt_begun_last_counts_unless_it_alone_took_nothing() {
        for (before, other, expected) in [
            (best(1, 5), best(2, 7), 7),
            // It began earlier and ended later.
            (best(2, 7), best(1, 5), 7),
            (best(1, 5), best(2, 0), 5),
            (best(1, 0), best(2, 7), 7),
            (best(2, 0), best(1, 7), 7),
        ] {
            assert_eq!(before.after(other).outcome.tokens.completion, expected, "{before:?} {other:?}");
        }
        assert_eq!(best(1, 0).after(best(2, 0)).attempt, 2);
    }

    #[test]
    fn an_event_runs_until_its_last_attempt_has_ended() {
        let (mut index, event) = (Index::default(), EventId(Uuid::now_v7()));
        index.begin(event, 1);
        index.begin(event, 2);
        index.end(event, 1, best(1, 3));
        assert_eq!(index.find(event), Some(Outcome::RUNNING));
        index.end(event, 2, best(2, 4));
        assert_eq!(index.find(event).map(|outcome| outcome.tokens.completion), Some(4));
        assert_eq!(index.running().count(), 0);
    }

    #[test]
    fn memory_is_bounded_and_the_oldest_goes_first() {
        let mut index = Index::default();
        let ids: Vec<EventId> = (0..=MAX_ENDED as u128).map(|n| EventId(Uuid::from_u128(n))).collect();
        for id in &ids {
            index.remember(*id, best(1, 1));
        }
        assert_eq!((index.ended.len(), index.order.len()), (MAX_ENDED, MAX_ENDED));
        assert_eq!(index.find(ids[0]), None);
        assert!(index.find(ids[1]).is_some() && index.find(ids[MAX_ENDED]).is_some());
    }
}
