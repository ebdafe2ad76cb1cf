//! Keeps a node's answer as it passes, for those who ask the same now and later.

use crate::cache::{Audience, Fence, LeaderGuard, MAX_BODY, ResponseCache, StoredAnswer, Wanted, is_complete_stream};
use crate::upstream::Head;
use bytes::Bytes;
use http::StatusCode;
use http::header::CONTENT_TYPE;
use std::sync::Arc;
use turnpike_config::{CacheKey, Endpoint, Tap, Tokens};

/// An answer on its way into the cache. Dropped before its end, it leaves nothing, and who waits for it goes on alone.
pub(crate) struct Fill {
    wanted: Wanted,
    endpoint: Endpoint,
    /// Unix milliseconds; a purge after it must not miss this answer.
    asked_at_ms: u64,
    leader: Option<LeaderGuard>,
    fence: Option<Fence>,
    body: Option<Body>,
}

/// What has come of the answer.
struct Body {
    streamed: bool,
    pieces: Vec<Bytes>,
    length: usize,
}

impl Fill {
    /// `leader` if others may wait for the answer, `fence` if other edges do.
    pub(crate) const fn new(
        wanted: Wanted,
        endpoint: Endpoint,
        asked_at_ms: u64,
        leader: Option<LeaderGuard>,
        fence: Option<Fence>,
    ) -> Self {
        Self { wanted, endpoint, asked_at_ms, leader, fence, body: None }
    }

    /// What the answer will be known by.
    pub(crate) const fn key(&self) -> &CacheKey {
        &self.wanted.key
    }

    /// Who waits.
    pub(crate) fn audience(&self) -> Option<Audience> {
        self.leader.as_ref().map(LeaderGuard::audience)
    }

    /// Takes in the head; false if nothing is to be kept.
    pub(crate) fn begin(&mut self, head: &Head) -> bool {
        if head.status != StatusCode::OK {
            return false;
        }
        let Some(content_type) = head.headers.get(CONTENT_TYPE) else { return false };
        let streamed = content_type.as_bytes().starts_with(b"text/event-stream");
        if let Some(leader) = self.leader.as_mut().filter(|_| streamed) {
            leader.stream();
        }
        self.body = Some(Body { streamed, pieces: Vec::new(), length: 0 });
        true
    }

    /// Takes in what the node sent; false if it has become too much to keep.
    pub(crate) fn take(&mut self, piece: &Bytes) -> bool {
        let Some(body) = &mut self.body else { return false };
        body.length += piece.len();
        body.pieces.push(piece.clone());
        if let Some(leader) = &mut self.leader {
            leader.push(piece.clone());
        }
        body.length <= MAX_BODY
    }

    /// The answer is over: keeps it if it is whole. `purged_at_ms`: when it was last purged, by the newest routing.
    pub(crate) fn finish(mut self, tap: &Tap, cache: &ResponseCache, purged_at_ms: u64, now_ms: u64) {
        let leader = self.leader.take();
        let Some(answer) = self.whole(tap) else {
            if let Some(leader) = leader {
                leader.over();
            }
            return;
        };
        // First kept, then told: whoever asks from now on finds it.
        if purged_at_ms == self.wanted.purged_at_ms {
            cache.put(&self.wanted, &answer, now_ms, self.fence);
        }
        if let Some(leader) = leader {
            leader.finish(answer);
        }
    }

    /// The answer, if it is one that can be given again.
    fn whole(&mut self, tap: &Tap) -> Option<Arc<StoredAnswer>> {
        let body = self.body.take()?;
        // Moderations have no usage.
        let usage = tap.usage().or_else(|| (self.endpoint == Endpoint::Moderation).then(Tokens::default))?;
        // Copied, so that what is kept is no slice of a larger buffer.
        let whole = body.pieces.concat();
        let complete = if body.streamed { is_complete_stream(&whole) } else { tap.is_whole_document(self.endpoint) };
        complete.then(|| {
            Arc::new(StoredAnswer {
                stored_at_ms: self.asked_at_ms,
                streamed: body.streamed,
                prompt_tokens: usage.prompt,
                completion_tokens: usage.completion,
                body: whole.into(),
            })
        })
    }
}
