//! Counts what an answer takes while it passes, and has it in the ledger before the answer is over.

use crate::engine::Body;
use crate::ledger::Recording;
use bytes::Bytes;
use http::{HeaderMap, Response, header};
use http_body::{Body as HttpBody, Frame, SizeHint};
use http_body_util::BodyExt as _;
use std::pin::Pin;
use std::str::FromStr;
use std::task::{Context, Poll, ready};
use tokio::sync::oneshot;
use turnpike_config::wire::LedgerState;
use turnpike_config::{Tap, Tokens, headers};

type Piece = Option<Result<Frame<Bytes>, std::io::Error>>;

/// An answer on its way out, listened to. Every byte passes as it came.
struct Account {
    body: Body,
    tap: Tap,
    recording: Recording,
    /// The prompt's size, for an answer that breaks off.
    prompt: u32,
    settled: bool,
    /// Bytes that are still to come, where the head says how many: with the last of them the answer is over for the edge.
    left: Option<u64>,
    /// The last piece, until the end of the request is written; an edge may ask for it right after this piece.
    held: Option<(Piece, oneshot::Receiver<()>)>,
}

/// Has an engine's answer recorded. `estimate`: the prompt's size as the edge judges it, tokens.
pub(crate) async fn record(response: Response<Body>, mut recording: Recording, estimate: u32) -> Response<Body> {
    if !response.status().is_success() {
        refuse(recording).await;
        return response;
    }
    let content_type = response.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let streams = content_type.is_some_and(|kind| kind.starts_with("text/event-stream"));
    let tap = if streams { Tap::stream(false) } else { Tap::json() };
    let prompt = number(response.headers(), headers::PROMPT_TOKENS).unwrap_or(estimate);
    if response.body().is_end_stream() {
        let (state, tokens) = counted(&tap, prompt);
        let _ = recording.end(state, tokens).await;
        return response;
    }
    let left = number(response.headers(), header::CONTENT_LENGTH.as_str());
    response.map(|body| Account { body, tap, recording, prompt, settled: false, left, held: None }.boxed_unsync())
}

/// The engine did nothing that is to be paid.
pub(crate) async fn refuse(mut recording: Recording) {
    // An error says that the disk refuses, which holds nothing up.
    let _ = recording.end(LedgerState::Refused, Tokens::default()).await;
}

/// A header that holds a number.
pub(crate) fn number<N: FromStr>(headers: &HeaderMap, name: &str) -> Option<N> {
    headers.get(name)?.to_str().ok()?.parse().ok()
}

/// The engine's own count, or else what was seen to pass.
fn counted(tap: &Tap, prompt: u32) -> (LedgerState, Tokens) {
    tap.usage().map_or_else(
        || (LedgerState::Seen, Tokens { prompt, cached: 0, completion: tap.tokens_seen() }),
        |tokens| (LedgerState::Counted, tokens),
    )
}

impl Account {
    /// Listens to a piece. What comes back resolves once the end is written, if this was it.
    fn listen(&mut self, piece: &Piece) -> Option<oneshot::Receiver<()>> {
        let is_over = match piece {
            Some(Ok(frame)) => {
                if let Some(data) = frame.data_ref() {
                    self.left = self.left.map(|left| left.saturating_sub(data.len() as u64));
                    // What it gives out again in whole events is of no use here.
                    let _ = self.tap.pass(Some(data.clone()), false);
                }
                self.body.is_end_stream()
                    || self.left == Some(0)
                    || matches!(self.tap, Tap::Stream(_)) && self.tap.is_complete()
            }
            Some(Err(_)) => true,
            None => {
                let _ = self.tap.pass(None, true);
                true
            }
        };
        (is_over && !self.settled).then(|| self.settle())
    }

    fn settle(&mut self) -> oneshot::Receiver<()> {
        self.settled = true;
        let (state, tokens) = counted(&self.tap, self.prompt);
        self.recording.end(state, tokens)
    }
}

impl HttpBody for Account {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Piece> {
        loop {
            if let Some((_, written)) = &mut self.held {
                // An error says that the disk refuses, which holds nothing up.
                let _ = ready!(Pin::new(written).poll(context));
            }
            if let Some((piece, _)) = self.held.take() {
                return Poll::Ready(piece);
            }
            let piece = ready!(Pin::new(&mut self.body).poll_frame(context));
            match self.listen(&piece) {
                Some(written) => self.held = Some((piece, written)),
                None => return Poll::Ready(piece),
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.held.is_none() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        if !self.settled {
            // The edge has left.
            drop(self.settle());
        }
    }
}
