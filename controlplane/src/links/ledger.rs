//! Taking in a node's own ledger.

use super::{REFUSED, Stream};
use crate::context::Context;
use crate::partitions::{self, MONTHS_AHEAD};
use crate::store::StoreError;
use crate::store::node_ledger::{self, LedgerRow};
use crate::store::partitions::{Month, Partitioned, months};
use chrono::{DateTime, Utc};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::warn;
use turnpike_config::EventId;
use turnpike_config::link::{Link, LinkError, read_frame, write_frame};
use turnpike_config::wire::{LedgerAck, LedgerBatch, LedgerEntry, MAX_LEDGER_ENTRIES};

/// Between attempts to store a batch: at first, and at most.
const RETRY: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));
/// Months before this one that are still taken: far longer than any node waits for its control plane.
const MONTHS_BACK: i32 = 12;

/// Takes in a node's ledger until its link ends. A batch is acknowledged once it is durable; one that comes again changes
/// nothing.
pub(super) async fn serve(
    name: &str,
    mut stream: Stream,
    link: &Link,
    context: &Context,
    stop: &CancellationToken,
) -> Result<(), LinkError> {
    let talk = async {
        while let Some(LedgerBatch { position, entries }) = read_frame(&mut stream.recv).await? {
            if entries.len() > MAX_LEDGER_ENTRIES {
                let fault = "a ledger's batch holds at most 8192 entries";
                link.close(REFUSED, fault);
                return Err(LinkError::Lost(fault.to_owned()));
            }
            keep(name, &entries, context).await;
            write_frame(&mut stream.send, &LedgerAck { position }).await?;
        }
        Ok(())
    };
    tokio::select! {
        () = stop.cancelled() => Ok(()),
        reason = link.closed() => Err(LinkError::Lost(reason)),
        result = talk => result,
    }
}

/// Tries until it succeeds; the caller gives up when the link ends.
async fn keep(name: &str, entries: &[LedgerEntry], context: &Context) {
    let rows = rows(name, entries, context);
    context.metrics.ledger_entries.inc_by(entries.len() as u64);
    let (mut pause, longest) = RETRY;
    while let Err(error) = store(name, &rows, context).await {
        context.metrics.ingest_failures.inc();
        warn!(node = name, %error, "a node's ledger could not be stored yet; trying again");
        sleep(pause).await;
        pause = (pause * 2).min(longest);
    }
}

/// The last entry of each event, without those whose ids carry no time that could be right.
fn rows(name: &str, entries: &[LedgerEntry], context: &Context) -> Vec<LedgerRow> {
    let mut last: BTreeMap<EventId, LedgerRow> = BTreeMap::new();
    for entry in entries {
        match time_of(entry, Utc::now()) {
            Some(at) => {
                last.insert(entry.event, LedgerRow { entry: *entry, day: at.date_naive() });
            }
            None => {
                context.metrics.ledger_entries_dropped.inc();
                warn!(node = name, event = %entry.event, "an entry of a node's ledger has no likely time; dropped");
            }
        }
    }
    last.into_values().collect()
}

fn time_of(entry: &LedgerEntry, now: DateTime<Utc>) -> Option<DateTime<Utc>> {
    let ms = i64::try_from(entry.event.unix_ms()).ok()?;
    let taken = Month::of(now).plus(-MONTHS_BACK)..=Month::of(now).plus(MONTHS_AHEAD);
    DateTime::from_timestamp_millis(ms).filter(|at| taken.contains(&Month::of(*at)))
}

async fn store(name: &str, rows: &[LedgerRow], context: &Context) -> Result<(), StoreError> {
    let wanted: BTreeSet<Month> = rows.iter().map(|row| Month::of_day(row.day)).collect();
    let existing = months(&mut *context.store.read().await?, Partitioned::NodeLedger).await?;
    if wanted.iter().any(|month| !existing.contains(month)) {
        partitions::ensure(&context.store, wanted).await?;
    }
    node_ledger::put(&mut *context.store.read().await?, name, rows).await
}
