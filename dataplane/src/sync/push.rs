//! The push stream of one link. It is read all the time: also while a whole state is being fetched.

use super::Sync;
use super::fetch::{Failed, Fetched, fetch};
use crate::metrics::Metrics;
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;
use turnpike_config::link::{Link, LinkError, Receiver, Sender, read_sized_frame, write_frame};
use turnpike_config::log::Position;
use turnpike_config::push::{Manifest, PushFrame, PushReply, Step};
use turnpike_config::wire::Open;

/// Frames that are read ahead.
const AHEAD: usize = 8;

/// A fetch that goes on beside the stream.
struct Fetching {
    at: Position,
    began: Instant,
    work: AbortOnDropHandle<Result<Fetched, Failed>>,
}

/// Takes pushes until the link breaks.
pub(super) async fn run(sync: &mut Sync, link: &Link) -> Result<(), LinkError> {
    let (mut send, receive) = link.open().await?;
    write_frame(&mut send, &Open::Push(sync.follower.hello(env!("CARGO_PKG_VERSION")))).await?;
    let (frames, mut queue) = mpsc::channel(AHEAD);
    let _reading = AbortOnDropHandle::new(tokio::spawn(read(receive, frames, Arc::clone(&sync.edge.metrics))));
    let mut fetching: Option<Fetching> = None;
    loop {
        tokio::select! {
            // What is pushed goes first: it may be a revocation.
            biased;
            frame = queue.recv() => match frame {
                Some(frame) => take(sync, frame?, &mut fetching, link, &mut send).await?,
                None => return Err(LinkError::Lost("the control plane ended the push stream".to_owned())),
            },
            (fetched, at, began) = done(&mut fetching), if fetching.is_some() => {
                fetching = None;
                let reply = finish(sync, fetched, at, began)?;
                write_frame(&mut send, &reply).await?;
            }
        }
        tokio::task::block_in_place(|| sync.adopter.tidy());
    }
}

/// Reads frames on a task of its own: a read must not be broken off halfway.
async fn read(mut receive: Receiver, frames: mpsc::Sender<Result<PushFrame, LinkError>>, metrics: Arc<Metrics>) {
    loop {
        let frame = match read_sized_frame(&mut receive).await {
            Ok(Some((frame, size))) => {
                metrics.push_bytes.inc_by(size as u64);
                Ok(frame)
            }
            Ok(None) => return,
            Err(error) => Err(error),
        };
        let is_last = frame.is_err();
        if frames.send(frame).await.is_err() || is_last {
            return;
        }
    }
}

/// Waits for a fetch.
async fn done(fetching: &mut Option<Fetching>) -> (Result<Fetched, Failed>, Position, Instant) {
    match fetching {
        Some(Fetching { at, began, work }) => {
            let fetched =
                work.await.unwrap_or_else(|panic| Err(Failed::Refused(format!("this edge panics over it: {panic}"))));
            (fetched, *at, *began)
        }
        None => std::future::pending().await,
    }
}

async fn take(
    sync: &mut Sync,
    frame: PushFrame,
    fetching: &mut Option<Fetching>,
    link: &Link,
    send: &mut Sender,
) -> Result<(), LinkError> {
    let is_answered = !matches!(frame, PushFrame::Urgent(_));
    let reply = match sync.follower.take(frame) {
        Ok(Step::Apply { changes, to }) => {
            if fetching.is_some() {
                return Err(LinkError::Lost("changes to a state that is being replaced".to_owned()));
            }
            let early = sync.follower.pending(to.version).map(|(_, change)| change).collect();
            match tokio::task::block_in_place(|| sync.adopter.apply(changes, to, early)) {
                Ok(()) => {
                    sync.edge.metrics.pushes_applied.inc();
                    Some(sync.follower.adopt(to))
                }
                Err(reason) => Some(refused(sync, to.version, reason)),
            }
        }
        Ok(Step::Fetch(manifest)) => match sync.adopter.trusted(manifest.at) {
            Ok(()) => {
                *fetching = Some(begin(sync, manifest, link));
                None
            }
            Err(reason) => Some(refused(sync, manifest.at.version, reason)),
        },
        Ok(Step::ApplyNow { version, change }) => {
            tokio::task::block_in_place(|| sync.adopter.apply_early(version, change));
            None
        }
        Ok(Step::Held(at)) => Some(PushReply::Ack(at)),
        Ok(Step::Nothing) => None,
        Err(refusal) => Some(refused(sync, refusal.version, refusal.reason)).filter(|_| is_answered),
    };
    match reply {
        Some(reply) => write_frame(send, &reply).await,
        None => Ok(()),
    }
}

fn begin(sync: &Sync, manifest: Manifest, link: &Link) -> Fetching {
    let (at, began) = (manifest.at, Instant::now());
    tracing::info!(version = at.version, chunks = manifest.chunks.len(), "fetching a whole routing");
    tokio::task::block_in_place(|| sync.chunks.retain(&manifest.chunks));
    let edge = Arc::clone(&sync.edge);
    let work = fetch(link.clone(), manifest, sync.chunks.clone(), move || edge.snapshot.load_full());
    Fetching { at, began, work: AbortOnDropHandle::new(tokio::spawn(work)) }
}

fn finish(
    sync: &mut Sync,
    fetched: Result<Fetched, Failed>,
    at: Position,
    began: Instant,
) -> Result<PushReply, LinkError> {
    let reply = match fetched {
        Ok(Fetched { base, next }) => {
            let early = sync.follower.pending(at.version).collect();
            tokio::task::block_in_place(|| sync.adopter.replace(base, next, early, began));
            sync.edge.metrics.pushes_applied.inc();
            sync.follower.adopt(at)
        }
        Err(Failed::Link(error)) => return Err(error),
        Err(Failed::Refused(reason)) => refused(sync, at.version, reason),
    };
    tokio::task::block_in_place(|| sync.chunks.retain(&[]));
    Ok(reply)
}

fn refused(sync: &Sync, version: u64, reason: String) -> PushReply {
    sync.edge.metrics.pushes_refused.inc();
    tracing::error!(version, reason, kept = sync.follower.held().version, "routing refused");
    PushReply::Nack { version, reason }
}
