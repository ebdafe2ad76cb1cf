//! The usage ledger against the nodes' own, event by event.

use super::SHOWN;
use crate::store::reconcile::{Entry, Event, Sums};
use serde::Serialize;
use std::collections::{HashMap, HashSet};
use turnpike_config::Usd;
use utoipa::ToSchema;
use uuid::Uuid;

/// Findings of one kind.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, ToSchema)]
pub(crate) struct Found {
    /// How many.
    pub(crate) count: i64,
    /// The first ten of them.
    pub(crate) first: Vec<Finding>,
}

impl Found {
    fn note(&mut self, finding: impl FnOnce() -> Finding) {
        self.count += 1;
        if self.first.len() < SHOWN {
            self.first.push(finding());
        }
    }
}

/// An event of which a node says something else than the usage ledger.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub(crate) struct Finding {
    /// The event.
    pub(crate) event_id: Uuid,
    /// The node.
    pub(crate) node: String,
    /// Prompt and generated tokens by the usage ledger; null if it has no such event.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) ledger: Option<[i64; 2]>,
    /// The same by the node; null if it has no such entry.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) at_node: Option<[i64; 2]>,
}

/// What the nodes' ledgers say. Nodes know of no prices.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, ToSchema)]
pub(crate) struct Nodes {
    /// By the nodes: events whose tokens an engine counted.
    pub(crate) sums: Sums,
    /// By the usage ledger: the same events.
    pub(crate) ledger: Sums,
    /// By how much the nodes say more.
    pub(crate) difference: Sums,
    /// Events with other tokens at the node.
    pub(crate) unlike: Found,
    /// Entries of nodes whose event is not in the usage ledger.
    pub(crate) entries_without_event: Found,
    /// Events with tokens of which their node has no entry.
    pub(crate) events_without_entry: Found,
    /// Events whose node died meanwhile: there is nothing to compare.
    pub(crate) lost: i64,
    /// Tokens of all findings, without signs.
    #[serde(skip)]
    pub(super) tokens_apart: i64,
}

impl Nodes {
    /// Compares all events and all entries of some stretch of time.
    pub(crate) fn compare(&mut self, events: &[Event], entries: &[Entry]) {
        let by_event: HashMap<(Uuid, &str), &Entry> =
            entries.iter().map(|entry| ((entry.event_id, entry.node.as_str()), entry)).collect();
        for event in events.iter().filter(|event| event.exact) {
            let Some(node) = event.node.as_deref() else { continue };
            self.compare_one(event, node, by_event.get(&(event.id, node)).copied());
        }
        let known: HashSet<Uuid> = events.iter().map(|event| event.id).collect();
        for entry in entries.iter().filter(|entry| !known.contains(&entry.event_id)) {
            self.tokens_apart += entry.prompt_tokens + entry.completion_tokens;
            self.entries_without_event.note(|| Finding {
                event_id: entry.event_id,
                node: entry.node.clone(),
                ledger: None,
                at_node: Some([entry.prompt_tokens, entry.completion_tokens]),
            });
        }
        self.difference = self.sums.minus(self.ledger);
    }

    fn compare_one(&mut self, event: &Event, node: &str, entry: Option<&Entry>) {
        let finding = |at_node| Finding {
            event_id: event.id,
            node: node.to_owned(),
            ledger: Some([event.prompt_tokens, event.completion_tokens]),
            at_node,
        };
        let Some(entry) = entry else {
            // Without tokens, it may never have come to the node's engine.
            if event.prompt_tokens > 0 || event.completion_tokens > 0 {
                self.tokens_apart += event.prompt_tokens + event.completion_tokens;
                self.events_without_entry.note(|| finding(None));
            }
            return;
        };
        if entry.state == "lost" {
            self.lost += 1;
            return;
        }
        let is_free = event.prompt_tokens == 0 && event.completion_tokens == 0;
        if is_free && (entry.state == "seen" || event.failed) {
            // It broke off before the edge had anything, and nobody pays for an error: also where the node had counted its
            // answer and died before it was sent.
            return;
        }
        let one = |prompt_tokens, completion_tokens| Sums {
            requests: 1,
            prompt_tokens,
            completion_tokens,
            cost_usd: Usd::ZERO,
        };
        self.sums = self.sums.plus(one(entry.prompt_tokens, entry.completion_tokens));
        self.ledger = self.ledger.plus(one(event.prompt_tokens, event.completion_tokens));
        let at_node = [entry.prompt_tokens, entry.completion_tokens];
        if at_node != [event.prompt_tokens, event.completion_tokens] {
            self.tokens_apart += (at_node[0] - event.prompt_tokens).abs();
            self.tokens_apart += (at_node[1] - event.completion_tokens).abs();
            self.unlike.note(|| finding(Some(at_node)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(n: u128, node: Option<&str>, tokens: i64) -> Event {
        Event {
            id: Uuid::from_u128(n),
            node: node.map(str::to_owned),
            prompt_tokens: tokens,
            completion_tokens: 1,
            exact: true,
            failed: false,
        }
    }

    fn entry(n: u128, node: &str, tokens: i64) -> Entry {
        let state = "counted".to_owned();
        Entry {
            event_id: Uuid::from_u128(n),
            node: node.to_owned(),
            state,
            prompt_tokens: tokens,
            completion_tokens: 1,
        }
    }

    fn compared(events: &[Event], entries: &[Entry]) -> Nodes {
        let mut nodes = Nodes::default();
        nodes.compare(events, entries);
        nodes
    }

    fn counts(nodes: &Nodes) -> [i64; 3] {
        [&nodes.unlike, &nodes.entries_without_event, &nodes.events_without_entry].map(|found| found.count)
    }

    #[test]
    fn equal_ledgers_have_nothing_to_say() {
        let nodes = compared(
            &[event(1, Some("a"), 5), event(2, Some("b"), 6)],
            &[entry(1, "a", 5), entry(2, "b", 6), entry(2, "a", 0)],
        );
        assert_eq!((counts(&nodes), nodes.difference), ([0; 3], Sums::default()));
        assert_eq!((nodes.sums.requests, nodes.sums.prompt_tokens, nodes.sums.completion_tokens), (2, 11, 2));
    }

    #[test]
    fn each_kind_of_difference_is_found_and_named() {
        let nodes = compared(&[event(1, Some("a"), 5)], &[entry(1, "a", 4)]);
        assert_eq!((counts(&nodes), nodes.difference.prompt_tokens), ([1, 0, 0], -1));
        let Finding { event_id, ledger, at_node, .. } = &nodes.unlike.first[0];
        assert_eq!((*event_id, *ledger, *at_node), (Uuid::from_u128(1), Some([5, 1]), Some([4, 1])));

        // An answer without tokens that did not fail is one that nobody counted.
        let nothing = Event { completion_tokens: 0, ..event(1, Some("a"), 0) };
        assert_eq!(counts(&compared(std::slice::from_ref(&nothing), &[entry(1, "a", 4)])), [1, 0, 0]);
        let failed = Event { failed: true, ..nothing };
        assert_eq!(counts(&compared(&[failed], &[entry(1, "a", 4)])), [0; 3], "counted, and never sent");

        let nodes = compared(&[], &[entry(7, "a", 4)]);
        assert_eq!(counts(&nodes), [0, 1, 0]);
        assert_eq!(nodes.entries_without_event.first[0].node, "a");
        let nodes = compared(&[event(8, Some("a"), 5)], &[entry(8, "b", 5)]);
        assert_eq!(counts(&nodes), [0, 0, 1]);
        assert_eq!(nodes.events_without_entry.first[0].event_id, Uuid::from_u128(8));
    }

    #[test]
    fn what_no_engine_counted_is_not_compared() {
        let mut estimated = event(1, Some("a"), 5);
        estimated.exact = false;
        let mut refused = event(3, Some("a"), 0);
        refused.completion_tokens = 0;
        let mut lost = entry(4, "a", 0);
        lost.state = "lost".to_owned();
        let nodes =
            compared(&[estimated, event(2, None, 5), refused, event(4, Some("a"), 5)], &[entry(1, "a", 9), lost]);
        assert_eq!((counts(&nodes), nodes.lost, nodes.sums.requests), ([0; 3], 1, 0));
    }

    #[test]
    fn only_the_first_are_shown_and_all_are_counted() {
        let entries: Vec<Entry> = (0..25).map(|n| entry(n, "a", 1)).collect();
        let nodes = compared(&[], &entries);
        assert_eq!((nodes.entries_without_event.count, nodes.entries_without_event.first.len()), (25, SHOWN));
    }
}
