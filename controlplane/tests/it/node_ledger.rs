//! From a node's own ledger to its table.

use crate::peers::Link;
use crate::plane::{PATIENCE, Plane};
use tokio::time::timeout;
use turnpike_config::link::{Role, read_frame, write_frame};
use turnpike_config::wire::{LedgerAck, LedgerBatch, LedgerEntry, LedgerState, MAX_LEDGER_ENTRIES, Open};
use turnpike_config::{EventId, Tokens};
use uuid::Uuid;

/// A node that ships its ledger.
pub(crate) struct Shipper(Link);

impl Shipper {
    pub(crate) async fn connect(plane: &Plane, name: &str) -> Self {
        Self(Link::open(plane, Role::Node, name, Open::Ledger).await)
    }

    pub(crate) async fn ship(&mut self, position: u64, entries: &[LedgerEntry]) {
        let batch = LedgerBatch { position, entries: entries.to_vec() };
        write_frame(&mut self.0.send, &batch).await.unwrap();
        let ack = timeout(PATIENCE, read_frame::<LedgerAck>(&mut self.0.recv)).await.expect("an ack in time");
        assert_eq!(ack.unwrap().map(|ack| ack.position), Some(position));
    }
}

fn entry(state: LedgerState, completion: u32) -> LedgerEntry {
    let event = EventId(Uuid::now_v7());
    LedgerEntry { event, tokens: Tokens { prompt: 7, cached: 2, completion }, state }
}

async fn sums(plane: &Plane) -> (i64, i64, i64, i64) {
    sqlx::query_as(
        "SELECT count(*), sum(prompt_tokens)::bigint, sum(cached_tokens)::bigint, sum(completion_tokens)::bigint
         FROM node_ledger",
    )
    .fetch_one(&plane.pool)
    .await
    .unwrap()
}

#[tokio::test]
async fn entries_count_once_however_often_and_in_whatever_batches_they_come() {
    let plane = Plane::start().await;
    let entries: Vec<LedgerEntry> = (1..=4).map(|completion| entry(LedgerState::Counted, completion)).collect();
    let mut node = Shipper::connect(&plane, "n1").await;
    node.ship(0, &entries[..3]).await;
    node.ship(0, &entries[..3]).await;
    // Its position was lost: all of it again, cut elsewhere, over another link.
    let mut again = Shipper::connect(&plane, "n1").await;
    again.ship(0, &entries[..1]).await;
    again.ship(1, &entries[1..]).await;
    assert_eq!(sums(&plane).await, (4, 28, 8, 10));
    // Another node worked on one of them as well.
    Shipper::connect(&plane, "n2").await.ship(9, &entries[3..]).await;
    assert_eq!(sums(&plane).await, (5, 35, 10, 14));
    assert_eq!(plane.metric("turnpike_controlplane_node_ledger_entries_total").await, Some(11.0));
}

#[tokio::test]
async fn the_latest_entry_of_an_event_counts_within_a_batch_and_after_it() {
    let plane = Plane::start().await;
    let first = entry(LedgerState::Lost, 0);
    let mut node = Shipper::connect(&plane, "n1").await;
    let seen = LedgerEntry { state: LedgerState::Seen, ..first };
    let counted =
        LedgerEntry { state: LedgerState::Counted, tokens: Tokens { completion: 5, ..first.tokens }, ..first };
    node.ship(0, &[first, seen]).await;
    let state =
        || async { sqlx::query_scalar::<_, String>("SELECT state FROM node_ledger").fetch_all(&plane.pool).await };
    assert_eq!(state().await.unwrap(), ["seen"]);
    node.ship(2, &[counted]).await;
    assert_eq!(state().await.unwrap(), ["counted"]);
    assert_eq!(sums(&plane).await, (1, 7, 2, 5));
}

#[tokio::test]
async fn an_entry_without_a_likely_time_is_dropped_and_its_neighbours_are_kept() {
    let plane = Plane::start().await;
    let good = entry(LedgerState::Refused, 0);
    let timeless = LedgerEntry { event: EventId(Uuid::new_v4()), ..good };
    let early =
        LedgerEntry { event: EventId(Uuid::new_v7(uuid::Timestamp::from_unix(uuid::NoContext, 86_400, 0))), ..good };
    // A month that has no partition yet.
    let seconds = u64::try_from(chrono::Utc::now().timestamp()).unwrap() - 70 * 86_400;
    let old =
        LedgerEntry { event: EventId(Uuid::new_v7(uuid::Timestamp::from_unix(uuid::NoContext, seconds, 0))), ..good };
    Shipper::connect(&plane, "n1").await.ship(3, &[timeless, good, early, old]).await;
    assert_eq!(sums(&plane).await.0, 2);
    assert_eq!(plane.metric("turnpike_controlplane_node_ledger_dropped_total").await, Some(2.0));
}

#[tokio::test]
async fn only_nodes_have_ledgers_and_batches_are_bounded() {
    let plane = Plane::start().await;
    let edge = Link::open(&plane, Role::Edge, "e1", Open::Ledger).await;
    timeout(PATIENCE, edge.connection.closed()).await.expect("an edge is refused");
    let mut node = Shipper::connect(&plane, "n1").await.0;
    let batch = LedgerBatch { position: 0, entries: vec![entry(LedgerState::Counted, 1); MAX_LEDGER_ENTRIES + 1] };
    write_frame(&mut node.send, &batch).await.unwrap();
    timeout(PATIENCE, node.connection.closed()).await.expect("too many are refused");
}
