//! Gives a client the answer that another one is getting.

use super::Seeker;
use crate::cache::{FlightEvent, Follower, StoredAnswer};
use crate::reject::Reject;
use crate::request::Served;
use crate::respond;
use bytes::Bytes;
use std::sync::Arc;
use std::time::{Duration, Instant};
use turnpike_config::{CacheStatus, Tap, Tokens};

/// After a failure that took longer, the request waits for nobody else any more.
const PATIENCE: Duration = Duration::from_secs(2);
/// What the leader's own client may hold up the answer for, beside its node.
const GRACE: Duration = Duration::from_secs(10);

/// What came of listening.
pub(super) enum Heard {
    /// The request is over.
    Everything,
    /// The client has had nothing yet; `rejoin` if another flight is worth waiting for.
    Nothing { rejoin: bool },
}

/// What happens next.
enum Next {
    Flight(FlightEvent),
    ClientLeft,
    NothingComes,
}

impl Seeker<'_> {
    /// Listens to its end.
    pub(super) async fn listen(&mut self, mut follower: Follower) -> Result<Heard, Reject> {
        let ask = self.metered()?.ask.as_ref().ok_or(Reject::Internal)?;
        let (streams, mut tap, joined) = (ask.stream, Tap::stream(!ask.include_usage), Instant::now());
        let mut begun = false;
        loop {
            match self.next(&mut follower).await {
                Next::Flight(FlightEvent::Streamed(_)) if !streams => {}
                Next::Flight(FlightEvent::Streamed(piece)) => {
                    if !begun {
                        self.charge(self.most).await?;
                        self.note(CacheStatus::Coalesced, 0, Tokens::default())?;
                    }
                    let sent = self.pass_on(tap.pass(Some(piece), false), !begun).await;
                    begun = true;
                    if sent.is_err() {
                        return self.leave(&tap).await;
                    }
                }
                Next::Flight(FlightEvent::Done(answer)) if begun => {
                    return self.end_stream(&mut tap, Some(&answer)).await;
                }
                Next::Flight(FlightEvent::Done(answer)) => return self.give_whole(&answer).await,
                Next::Flight(FlightEvent::Over) if begun && tap.is_complete() => {
                    return self.end_stream(&mut tap, None).await;
                }
                Next::Flight(FlightEvent::Failed) if !begun => {
                    return Ok(Heard::Nothing { rejoin: joined.elapsed() < PATIENCE });
                }
                Next::Flight(FlightEvent::Over) | Next::NothingComes if !begun => {
                    return Ok(Heard::Nothing { rejoin: false });
                }
                Next::Flight(FlightEvent::Over | FlightEvent::Failed) => {
                    return self.break_off(&tap, Reject::NodeFailed).await;
                }
                Next::NothingComes => return self.break_off(&tap, Reject::NodeTimeout).await,
                Next::ClientLeft => return self.leave(&tap).await,
            }
        }
    }

    async fn next(&mut self, follower: &mut Follower) -> Next {
        let patience = self.edge.settings.limits.node_timeout + GRACE;
        tokio::select! {
            biased;
            event = follower.next() => Next::Flight(event),
            // Nothing is left to read: this ends when the client goes away.
            _ = self.session.read_body_or_idle(true) => Next::ClientLeft,
            () = tokio::time::sleep(patience) => Next::NothingComes,
        }
    }

    async fn pass_on(&mut self, piece: Option<Bytes>, first: bool) -> pingora::Result<()> {
        if first {
            self.write_head(true, None).await?;
        }
        match piece {
            Some(piece) => self.session.write_response_body(piece, false).await,
            None => Ok(()),
        }
    }

    /// Of a client that has had nothing yet.
    async fn give_whole(&mut self, answer: &Arc<StoredAnswer>) -> Result<Heard, Reject> {
        let will_do = self.wanted.accepts(answer, self.request.arrived_unix_ms);
        let given = will_do && self.give(answer, CacheStatus::Coalesced).await?;
        Ok(if given { Heard::Everything } else { Heard::Nothing { rejoin: false } })
    }

    async fn end_stream(&mut self, tap: &mut Tap, answer: Option<&StoredAnswer>) -> Result<Heard, Reject> {
        let rest = tap.pass(None, true);
        let mut served = self.heard(tap);
        if let Some(answer) = answer {
            served.usage = answer.tokens();
            served.estimated = false;
        }
        self.serve(served)?;
        let accounted = self.account(rest.as_ref().map_or(0, Bytes::len)).await;
        let sent = accounted.is_ok() && self.session.write_response_body(rest.unwrap_or_default(), true).await.is_ok();
        if !sent {
            // It must not look as if the answer had ended.
            self.session.shutdown().await;
        }
        self.served()?.complete = sent;
        Ok(Heard::Everything)
    }

    /// What has been sent cannot be taken back: the stream ends with the error.
    async fn break_off(&mut self, tap: &Tap, reject: Reject) -> Result<Heard, Reject> {
        let sent = respond::stream_error(self.session, &reject.answer()).await.is_ok();
        self.request.reject = sent.then_some(reject);
        let served = self.heard(tap);
        self.serve(Served { complete: sent, ..served })
    }

    /// The client left; what it has had is in the books.
    async fn leave(&mut self, tap: &Tap) -> Result<Heard, Reject> {
        if self.served().is_err() {
            self.note(CacheStatus::Coalesced, 0, Tokens::default())?;
        }
        // It must not look as if the answer had ended.
        self.session.shutdown().await;
        let served = if tap.tokens_seen() == 0 { Served::default() } else { self.heard(tap) };
        self.serve(Served { complete: false, ..served })
    }

    /// What a stream has told so far: the engine's count, or else the edge's own.
    fn heard(&self, tap: &Tap) -> Served {
        let seen = Tokens { prompt: self.most.prompt, cached: 0, completion: tap.tokens_seen() };
        Served { usage: tap.usage().unwrap_or(seen), estimated: tap.usage().is_none(), ..Served::default() }
    }

    fn serve(&mut self, outcome: Served) -> Result<Heard, Reject> {
        let served = self.served()?;
        *served = Served { first_byte_at: served.first_byte_at, ..outcome };
        Ok(Heard::Everything)
    }
}
