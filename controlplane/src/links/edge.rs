//! Conversations with an edge: pushing routing, taking in usage.

use super::{REFUSED, Stream};
use crate::context::Context;
use crate::metrics::PushKind;
use crate::roster::EdgeLive;
use crate::store::{StoreError, edge_days, edges};
use chrono::{DateTime, Utc};
use quinn::{Connection, VarInt};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};
use turnpike_config::link::{LinkError, read_frame, write_frame};
use turnpike_config::wire::{self, EdgeHello, MAX_BATCH_EVENTS, PushFrame, PushReply, UsageAck, UsageBatch};
use turnpike_config::{Routing, crash_point};

/// An edge takes a frame and answers it within this time, or its link is closed; it will reconnect and start over.
const PUSH_DEADLINE: Duration = Duration::from_secs(60);
/// Longest refusal that is kept, characters.
const MAX_REASON: usize = 1000;
/// Most days that a batch has counts of.
const MAX_DAYS: usize = 1000;
/// Between attempts to store a batch: at first, and at most.
const INGEST_RETRY: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));

/// Pushes routing to an edge until its link ends. One frame is on its way at a time: an edge that is slow skips
/// versions and holds up nobody.
pub(super) async fn push(
    name: &str,
    hello: &EdgeHello,
    mut stream: Stream,
    connection: &Connection,
    context: &Arc<Context>,
    stop: &CancellationToken,
) -> Result<(), LinkError> {
    // One edge's NUL, which PostgreSQL's text cannot hold, must not keep all others from being noted.
    let live = EdgeLive {
        region: hello.region.replace('\0', ""),
        build: hello.build.replace('\0', ""),
        holds: hello.holds,
        since: Utc::now(),
    };
    let session = context.edges.enter(name, connection.clone(), live.clone());
    context.metrics.edges_connected.set(context.edges.len());
    note(context, name, Note::Connected(hello)).await;
    let result = tokio::select! {
        () = stop.cancelled() => Ok(()),
        result = push_versions(name, hello, (session, live), &mut stream, context) => result,
    };
    if context.edges.leave(name, session) {
        context.metrics.edges_connected.set(context.edges.len());
        note(context, name, Note::Disconnected).await;
    }
    result
}

async fn push_versions(
    name: &str,
    hello: &EdgeHello,
    (session, live): (u64, EdgeLive),
    stream: &mut Stream,
    context: &Context,
) -> Result<(), LinkError> {
    let mut published = context.feed.subscribe();
    let mut held = Held { version: hello.holds, snapshot_due: hello.holds == 0 };
    loop {
        let routing = Arc::clone(&published.borrow_and_update());
        while held.snapshot_due || held.version != routing.version {
            let kind = send(&held, &routing, stream, context).await?;
            context.metrics.count_push(kind);
            match reply(stream).await? {
                PushReply::Ack(version) if version == routing.version => {
                    debug!(edge = name, version, "acked");
                    held = Held { version, snapshot_due: false };
                    context.edges.set(name, session, EdgeLive { holds: version, ..live.clone() });
                    note(context, name, Note::Acked(version)).await;
                }
                PushReply::Ack(version) => {
                    return Err(LinkError::Lost(format!("acked {version} when given {}", routing.version)));
                }
                PushReply::Nack { version, reason } => {
                    let reason: String = reason.chars().take(MAX_REASON).collect();
                    warn!(edge = name, version, reason, "an edge refused a version");
                    context.metrics.push_refusals.inc();
                    note(context, name, Note::Refused(&reason)).await;
                    if kind == PushKind::Snapshot {
                        // It refuses the state itself: the next version may be better.
                        break;
                    }
                    held.snapshot_due = true;
                }
            }
        }
        tokio::select! {
            changed = published.changed() => {
                if changed.is_err() {
                    return Ok(());
                }
            }
            // Nothing is due from the edge now, so this ends only with the stream.
            closed = read_frame::<PushReply>(&mut stream.recv) => {
                return closed.and_then(|frame| match frame {
                    None => Ok(()),
                    Some(_) => Err(LinkError::Lost("a reply to nothing".to_owned())),
                });
            }
        }
    }
}

/// What the edge is known to hold.
struct Held {
    version: u64,
    snapshot_due: bool,
}

async fn send(
    held: &Held,
    routing: &Arc<Routing>,
    stream: &mut Stream,
    context: &Context,
) -> Result<PushKind, LinkError> {
    let delta = if held.snapshot_due || held.version > routing.version {
        None
    } else {
        context.feed.delta(held.version, routing.version).await.unwrap_or_else(|error| {
            info!(%error, "no delta; sending a snapshot instead");
            None
        })
    };
    let kind = if delta.is_some() { PushKind::Delta } else { PushKind::Snapshot };
    let routing = Arc::clone(routing);
    // Off the runtime's workers: a snapshot may hold a million keys.
    let encoded = tokio::task::spawn_blocking(move || {
        let frame = delta.map_or_else(|| PushFrame::Snapshot(Routing::clone(&routing)), PushFrame::Delta);
        wire::frame(&frame)
    });
    let bytes = encoded.await.map_err(|e| LinkError::Lost(e.to_string()))??;
    timeout(PUSH_DEADLINE, stream.send.write_all(&bytes))
        .await
        .map_err(|_| LinkError::Lost("the edge does not take what it is sent".to_owned()))?
        .map_err(|e| LinkError::Lost(e.to_string()))?;
    Ok(kind)
}

async fn reply(stream: &mut Stream) -> Result<PushReply, LinkError> {
    timeout(PUSH_DEADLINE, read_frame::<PushReply>(&mut stream.recv))
        .await
        .map_err(|_| LinkError::Lost("the edge does not answer".to_owned()))??
        .ok_or_else(|| LinkError::Lost("the edge finished the stream".to_owned()))
}

/// What the operator is shown of an edge.
enum Note<'a> {
    Connected(&'a EdgeHello),
    Acked(u64),
    Refused(&'a str),
    Disconnected,
}

/// Writes a note. An edge is served also while the database is away; the note is then lost, but for a refusal the watch
/// over silence makes up for it.
async fn note(context: &Context, name: &str, note: Note<'_>) {
    let write = async {
        let mut connection = context.store.read().await?;
        match note {
            Note::Connected(hello) => {
                edges::connected(&mut connection, name, &hello.region, &hello.build, hello.holds).await
            }
            Note::Acked(version) => edges::acked(&mut connection, name, version).await,
            Note::Refused(reason) => edges::nacked(&mut connection, name, reason).await,
            Note::Disconnected => edges::disconnected(&mut connection, name).await,
        }
    };
    let written: Result<(), StoreError> = write.await;
    if let Err(error) = written {
        warn!(edge = name, %error, "the edge's state could not be noted");
    }
}

/// Takes in an edge's usage until its link ends. A batch is acknowledged once it is durable, and the next one is read
/// only then: an outage of the database backs up into the edge's journal, which is made for it.
pub(super) async fn usage(
    name: &str,
    mut stream: Stream,
    connection: &Connection,
    context: &Arc<Context>,
    stop: &CancellationToken,
) -> Result<(), LinkError> {
    let since = Utc::now();
    let talk = async {
        let mut is_met = false;
        while let Some(batch) = read_frame::<UsageBatch>(&mut stream.recv).await? {
            if let Some(fault) = fault(&batch) {
                connection.close(VarInt::from_u32(REFUSED), fault.as_bytes());
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
        error = connection.closed() => Err(LinkError::Lost(error.to_string())),
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
