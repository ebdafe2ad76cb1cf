//! States in chunks, for edges that are too far behind. Made when one asks, and kept while some may still fetch.

use super::Published;
use super::recent::{Frame, encode};
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};
use tracing::{error, info};
use turnpike_config::Routing;
use turnpike_config::log::{Hash, Position};
use turnpike_config::push::chunks::{Chunk, cut};
use turnpike_config::push::{ChunkReply, MAX_DELTA, Manifest, PushFrame};
use turnpike_config::signing::Signer;

/// A snapshot this many versions old is given out still: what is missing comes as a delta afterwards.
const STALE: u64 = MAX_DELTA as u64 / 2;
/// Kept this long after it was last given out.
const KEPT: Duration = Duration::from_secs(300);

/// A state in chunks.
#[derive(Debug)]
struct Snapshot {
    at: Position,
    chunks: Vec<Hash>,
    used: Instant,
}

/// The newest snapshot, and the chunks that edges may be fetching.
#[derive(Debug, Default)]
pub(crate) struct Snapshots {
    /// Held while one is made: all who ask meanwhile get the same.
    newest: tokio::sync::Mutex<Option<Snapshot>>,
    /// By hash, with when they were last given out in a manifest.
    chunks: Mutex<HashMap<Hash, (Frame, Instant)>>,
}

impl Snapshots {
    /// The manifest for an edge, and where it leads. `after`: what the edge holds, if it is in this log.
    pub(crate) async fn manifest(
        &self,
        published: &Published,
        (edge, region): (&str, &str),
        after: u64,
        signer: &Signer,
    ) -> Option<(Frame, Position)> {
        let now = Instant::now();
        let staged = published.compiled.staged.changes_for(edge, region);
        let (at, hashes) = if staged.is_empty() {
            self.newest(published, after, now).await?
        } else {
            // Only some see this state; most of its chunks are those of the others.
            let mut routing = published.routing().clone();
            staged.into_iter().for_each(|change| routing.apply(change));
            let Snapshot { at, chunks, .. } = self.cut(routing, published.at(), now).await?;
            (at, chunks)
        };
        self.touch(&hashes, now);
        let manifest = Manifest::new(at, hashes, published.rewinds_from, signer);
        Some((encode(&PushFrame::Manifest(manifest))?, at))
    }

    /// The newest snapshot, if it is not too old and not from before `after`, or else a new one.
    async fn newest(&self, published: &Published, after: u64, now: Instant) -> Option<(Position, Vec<Hash>)> {
        let mut newest = self.newest.lock().await;
        let head = published.at().version;
        let is_usable = |kept: &Snapshot| {
            kept.at.version >= after && head.checked_sub(kept.at.version).is_some_and(|behind| behind <= STALE)
        };
        if !newest.as_ref().is_some_and(is_usable) {
            *newest = Some(self.cut(published.routing().clone(), published.at(), now).await?);
        }
        let kept = newest.as_mut()?;
        kept.used = now;
        Some((kept.at, kept.chunks.clone()))
    }

    async fn cut(&self, routing: Routing, at: Position, now: Instant) -> Option<Snapshot> {
        let started = Instant::now();
        // Off the runtime's workers: the state may hold a million keys.
        let cut = tokio::task::spawn_blocking(move || cut(&routing)).await;
        let chunks = match cut {
            Ok(Ok(chunks)) => chunks,
            Ok(Err(error)) => {
                error!(%error, "the state cannot be cut into chunks; edges that need it wait");
                return None;
            }
            Err(error) => {
                error!(%error, "cutting the state into chunks broke off; edges that need it wait");
                return None;
            }
        };
        let bytes: usize = chunks.iter().map(|chunk| chunk.bytes.len()).sum();
        info!(version = at.version, chunks = chunks.len(), bytes, took = ?started.elapsed(), "snapshot made");
        let hashes = chunks.iter().map(|chunk| chunk.hash).collect();
        // As they are sent: each is asked for by many.
        let frame = |chunk: Chunk| Some((chunk.hash, (encode(&ChunkReply { bytes: Some(chunk.bytes) })?, now)));
        self.chunks().extend(chunks.into_iter().map(frame).collect::<Option<Vec<_>>>()?);
        Some(Snapshot { at, chunks: hashes, used: now })
    }

    /// A chunk as it is sent, if it is kept.
    pub(crate) fn chunk(&self, hash: Hash) -> Option<Frame> {
        let mut chunks = self.chunks();
        let (frame, used) = chunks.get_mut(&hash)?;
        *used = Instant::now();
        Some(frame.clone())
    }

    /// Lets go of what nobody has asked for lately.
    pub(crate) fn forget_old(&self, now: Instant) {
        let is_old = |used: Instant| now.duration_since(used) > KEPT;
        // One that is being made is not old, and whoever follows the log does not wait for it.
        if let Ok(mut newest) = self.newest.try_lock()
            && newest.as_ref().is_some_and(|kept| is_old(kept.used))
        {
            *newest = None;
        }
        self.chunks().retain(|_, (_, used)| !is_old(*used));
    }

    fn touch(&self, hashes: &[Hash], now: Instant) {
        let mut chunks = self.chunks();
        for hash in hashes {
            if let Some((_, used)) = chunks.get_mut(hash) {
                *used = now;
            }
        }
    }

    fn chunks(&self) -> std::sync::MutexGuard<'_, HashMap<Hash, (Frame, Instant)>> {
        self.chunks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
