//! Tells the control plane who this node is and how it does. The node serves whether or not anybody listens.

use crate::ledger::Shipper;
use crate::status::Status;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{MissedTickBehavior, timeout};
use tokio_util::sync::CancellationToken;
use turnpike_config::link::{self, Identity, LinkError};
use turnpike_config::wire::{NodeHello, NodeReply, Open};

/// To connect, to register, and to hand one report to the network.
const STEP_DEADLINE: Duration = Duration::from_secs(5);
/// Between two attempts, at first and at most.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));
/// After a refusal: an operator has to act, but need not restart the node afterwards.
const REFUSED_PAUSE: Duration = Duration::from_secs(30);
/// A control plane that asks for reports faster than this is not believed.
const FASTEST_REPORTS: Duration = Duration::from_millis(50);

/// Whom to tell what.
pub(crate) struct Reporter {
    /// `control.address`
    pub(crate) address: String,
    pub(crate) identity: Identity,
    pub(crate) hello: NodeHello,
    pub(crate) status: Arc<Status>,
    pub(crate) shipper: Shipper,
}

/// A connection on which this node is registered.
struct Link {
    connection: quinn::Connection,
    send: quinn::SendStream,
    /// Between two reports.
    every: Duration,
}

/// How a session with the control plane ended.
#[derive(Debug, thiserror::Error)]
enum SessionError {
    #[error(transparent)]
    Link(#[from] LinkError),
    #[error("the control plane took longer than {STEP_DEADLINE:?} to {0}")]
    Slow(&'static str),
    #[error("the control plane refuses this node: {0}")]
    Refused(String),
    #[error("the control plane ended the session")]
    Ended,
}

impl Reporter {
    /// Reports until `stop`, connecting again whenever the link is lost. The last report says how it stands at `stop`.
    pub(crate) async fn run(self, stop: CancellationToken) {
        let mut backoff = BACKOFF.0;
        loop {
            let mut registered = false;
            let ended = self.session(&stop, &mut registered).await;
            self.status.set_linked(false);
            let Err(error) = ended else { return };
            if registered {
                backoff = BACKOFF.0;
            }
            let pause = if let SessionError::Refused(_) = error {
                tracing::error!(%error, address = %self.address, "this node gets no requests until that is mended");
                REFUSED_PAUSE
            } else {
                tracing::warn!(%error, address = %self.address, "no link to the control plane; still serving");
                backoff
            };
            backoff = (backoff * 2).min(BACKOFF.1);
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(jittered(pause, uuid::Uuid::new_v4().as_u128())) => {}
            }
        }
    }

    /// One connection, from the handshake until it is lost (`Err`) or `stop` (`Ok`).
    async fn session(&self, stop: &CancellationToken, registered: &mut bool) -> Result<(), SessionError> {
        let Link { connection, mut send, every } = tokio::select! {
            () = stop.cancelled() => return Ok(()),
            link = self.register() => link?,
        };
        *registered = true;
        self.status.set_linked(true);
        tracing::info!(address = %self.address, "registered with the control plane");

        let mut state = self.status.watch();
        let mut shipping = pin!(self.ship(&connection, stop));
        let mut shipped = false;
        let mut ticks = tokio::time::interval(every.max(FASTEST_REPORTS));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let stopping = tokio::select! {
                () = stop.cancelled() => true,
                _ = ticks.tick() => false,
                _ = state.changed() => false,
                () = &mut shipping, if !shipped => {
                    shipped = true;
                    continue;
                }
                reason = connection.closed() => return Err(LinkError::Lost(reason.to_string()).into()),
            };
            step("take a report", link::write_frame(&mut send, &self.status.report())).await?;
            if stopping {
                break;
            }
        }
        if !shipped {
            // What is left goes with the next life.
            let _ = timeout(STEP_DEADLINE, shipping).await;
        }
        // The last report must have arrived before the connection is closed.
        if send.finish().is_ok() {
            let _ = timeout(STEP_DEADLINE, send.stopped()).await;
        }
        connection.close(quinn::VarInt::from_u32(0), b"stopped");
        Ok(())
    }

    /// Ships the ledger as long as the connection lasts.
    async fn ship(&self, connection: &quinn::Connection, stop: &CancellationToken) {
        while let Err(error) = self.shipper.run(connection, stop).await {
            if connection.close_reason().is_some() || stop.is_cancelled() {
                return;
            }
            tracing::warn!(%error, "the ledger was not taken; trying again");
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(BACKOFF.1) => {}
            }
        }
    }

    async fn register(&self) -> Result<Link, SessionError> {
        let connection = step("accept the connection", link::connect(&self.address, &self.identity)).await?;
        let streams = async { connection.open_bi().await.map_err(|e| LinkError::Lost(e.to_string())) };
        let (mut send, mut receive) = step("open a stream", streams).await?;
        step("take the registration", link::write_frame(&mut send, &Open::Node(self.hello.clone()))).await?;
        match step("answer the registration", link::read_frame(&mut receive)).await? {
            Some(NodeReply::Welcome { report_every_ms }) => {
                Ok(Link { connection, send, every: Duration::from_millis(report_every_ms.into()) })
            }
            Some(NodeReply::Refused(reason)) => Err(SessionError::Refused(reason)),
            None => Err(SessionError::Ended),
        }
    }
}

async fn step<T>(what: &'static str, doing: impl Future<Output = Result<T, LinkError>>) -> Result<T, SessionError> {
    Ok(timeout(STEP_DEADLINE, doing).await.map_err(|_| SessionError::Slow(what))??)
}

/// Between half of `pause` and all of it, so that nodes that lost the same control plane do not come back as one.
fn jittered(pause: Duration, random: u128) -> Duration {
    let half = pause / 2;
    let spread = half.as_nanos().max(1);
    half + Duration::from_nanos(u64::try_from(random % spread).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jitter_stays_within_the_upper_half() {
        let pause = Duration::from_secs(4);
        for random in [0, 1, 1_999_999_999, 2_000_000_000, u128::MAX] {
            let jittered = jittered(pause, random);
            assert!(jittered >= pause / 2 && jittered <= pause, "{jittered:?}");
        }
        assert_eq!(jittered(Duration::ZERO, 7), Duration::ZERO);
    }
}
