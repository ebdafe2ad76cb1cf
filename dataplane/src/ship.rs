//! Ships usage from the journal to the control plane, in order, and lets go of it once it is stored there.

use crate::edge::Edge;
use crate::journal::Reader;
use quinn::Connection;
use std::time::Duration;
use turnpike_config::link::{LinkError, read_frame, write_frame};
use turnpike_config::wire::{Open, UsageAck, UsageBatch, Watermark};

/// Events in one batch; larger ones gain nothing and keep the control plane's transaction open longer.
const BATCH: usize = 1_024;
/// The control plane has not stored a batch in this time: reconnect and send it again.
const ACK_TIMEOUT: Duration = Duration::from_secs(30);

/// Ships until the link breaks.
pub(crate) async fn run(edge: &Edge, connection: &Connection) -> Result<(), LinkError> {
    let lost = |error: &dyn std::fmt::Display| LinkError::Lost(error.to_string());
    let (mut send, mut receive) = connection.open_bi().await.map_err(|e| lost(&e))?;
    write_frame(&mut send, &Open::Usage).await?;
    let mut reader = Reader::open(&edge.journal).map_err(|e| lost(&e))?;
    let mut status = edge.journal.status();
    loop {
        let durable = status.borrow_and_update().durable;
        // Reading from the page cache; a few megabytes at most.
        let batch = tokio::task::block_in_place(|| reader.next(durable, BATCH)).map_err(|e| lost(&e))?;
        let Some(batch) = batch else {
            status.changed().await.map_err(|e| lost(&e))?;
            continue;
        };
        let through = batch.last_seq;
        let epoch = edge.journal.epoch;
        let (first_seq, end_seq, complete) = (batch.first_seq, through + 1, Watermark::default());
        write_frame(&mut send, &UsageBatch { epoch, first_seq, events: batch.events, end_seq, complete }).await?;
        let answer = tokio::time::timeout(ACK_TIMEOUT, read_frame::<UsageAck>(&mut receive));
        let ack = answer.await.map_err(|_| lost(&"usage was not acknowledged in time"))??;
        match ack {
            Some(ack) if ack.epoch == epoch && ack.end_seq == end_seq => {
                reader.advance(through).map_err(|e| lost(&e))?;
                edge.metrics.journal_shipped.set(i64::try_from(through + 1).unwrap_or(i64::MAX));
            }
            Some(_) => return Err(lost(&"the control plane acknowledged something else")),
            None => return Err(lost(&"the control plane ended the usage stream")),
        }
    }
}
