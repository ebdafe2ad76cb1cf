//! Taking in an edge's usage.

use super::{REFUSED, Stream};
use crate::context::Context;
use crate::store::{StoreError, edge_days, edges};
use chrono::{DateTime, Utc};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::warn;
use turnpike_config::crash_point;
use turnpike_config::link::{Link, LinkError, read_frame, write_frame};
use turnpike_config::wire::{MAX_BATCH_EVENTS, UsageAck, UsageBatch};

/// Most days that a batch has counts of.
const MAX_DAYS: usize = 1000;
/// Between attempts to store a batch: at first, and at most.
const INGEST_RETRY: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));

/// Takes in an edge's usage until its link ends. A batch is acknowledged once it is durable, and the next one is read
/// only then: an outage of the database backs up into the edge's journal, which is made for it.
pub(super) async fn usage(
    name: &str,
    mut stream: Stream,
    link: &Link,
    context: &Arc<Context>,
    stop: &CancellationToken,
) -> Result<(), LinkError> {
    let since = Utc::now();
    let talk = async {
        let mut is_met = false;
        while let Some(batch) = read_frame::<UsageBatch>(&mut stream.recv).await? {
            if let Some(fault) = fault(&batch) {
                link.close(REFUSED, fault);
                return Err(LinkError::Lost(fault.to_owned()));
            }
            let UsageBatch { epoch, first_seq, end_seq, complete, .. } = batch;
            if !std::mem::replace(&mut is_met, true) {
                meet(name, since, context).await;
            }
            if !batch.counts.is_empty() {
                store_counts(name, &batch, context).await;
            }
            if first_seq < end_seq {
                store_batch(name, batch, context).await;
            }
            crash_point("control.before_ack");
            context.watermarks.stored(name, complete);
            let now_ms = u64::try_from(Utc::now().timestamp_millis()).unwrap_or_default();
            write_frame(&mut stream.send, &UsageAck { epoch, end_seq, now_ms }).await?;
        }
        Ok(())
    };
    tokio::select! {
        () = stop.cancelled() => Ok(()),
        reason = link.closed() => Err(LinkError::Lost(reason)),
        result = talk => result,
    }
}

/// What is wrong with a batch, if something is.
fn fault(batch: &UsageBatch) -> Option<&'static str> {
    let records = batch.end_seq.checked_sub(batch.first_seq);
    match records {
        _ if batch.counts.len() > MAX_DAYS => Some("a batch has counts of at most 1000 days"),
        _ if batch.events.len() > MAX_BATCH_EVENTS => Some("a batch holds at most 4096 events"),
        None => Some("a batch ends before it begins"),
        Some(records) if records < batch.events.len() as u64 => Some("a batch has more events than records"),
        Some(_) => None,
    }
}

/// Makes an edge known that first came while the database was away. Tries until the database takes it, as below.
async fn meet(name: &str, since: DateTime<Utc>, context: &Context) {
    let (mut pause, longest) = INGEST_RETRY;
    let region = context.edges.get(name).map(|live| live.region).unwrap_or_default();
    let put = async || edges::meet(&mut *context.store.read().await?, name, &region, since).await;
    while let Err::<(), StoreError>(error) = put().await {
        context.metrics.ingest_failures.inc();
        warn!(edge = name, %error, "an edge could not be noted yet, and its usage waits for that; trying again");
        sleep(pause).await;
        pause = (pause * 2).min(longest);
    }
}

/// Stores what the edge counted itself, which is only to compare. Tries until the database takes it, as below.
async fn store_counts(name: &str, batch: &UsageBatch, context: &Context) {
    let (mut pause, longest) = INGEST_RETRY;
    let put = async || {
        let mut connection = context.store.read().await?;
        edge_days::put(&mut connection, name, (batch.epoch, batch.end_seq), &batch.counts).await
    };
    while let Err::<(), StoreError>(error) = put().await {
        context.metrics.ingest_failures.inc();
        if error.is_about_values() {
            return warn!(edge = name, %error, "an edge's own counts do not fit the schema; left out");
        }
        warn!(edge = name, %error, "an edge's own counts could not be stored yet; trying again");
        sleep(pause).await;
        pause = (pause * 2).min(longest);
    }
}

/// Tries until it succeeds; the caller gives up when the link ends.
async fn store_batch(name: &str, batch: UsageBatch, context: &Context) {
    let (mut pause, longest) = INGEST_RETRY;
    while context.ingest.take(name, batch.clone(), Utc::now()).await.is_err() {
        sleep(pause).await;
        pause = (pause * 2).min(longest);
    }
}
