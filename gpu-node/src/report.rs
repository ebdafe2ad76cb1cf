//! Tells the control plane who this node is and how it does. The node serves whether or not anybody listens.

use crate::ledger::Shipper;
use crate::status::Status;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{MissedTickBehavior, sleep, timeout};
use tokio_util::sync::CancellationToken;
use turnpike_config::link::{Identity, Link, LinkError, Links, Sender, read_frame, write_frame};
use turnpike_config::wire::{NodeHello, NodeReply, Open};

/// To register, and to hand one report to the network.
const STEP_DEADLINE: Duration = Duration::from_secs(5);
/// Between two attempts to ship the ledger over one link.
const LEDGER_RETRY: Duration = Duration::from_secs(5);
/// After a refusal: an operator has to act, but need not restart the node afterwards.
const REFUSED_PAUSE: Duration = Duration::from_secs(30);
/// A control plane that asks for reports faster than this is not believed.
const FASTEST_REPORTS: Duration = Duration::from_millis(50);

/// Whom to tell what.
pub(crate) struct Reporter {
    /// `control.address`
    pub(crate) addresses: Vec<String>,
    pub(crate) identity: Identity,
    pub(crate) hello: NodeHello,
    pub(crate) status: Arc<Status>,
    pub(crate) shipper: Shipper,
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
    /// Reports until `stop`, to another control plane whenever the link is lost. The last report says how it stands at
    /// `stop`.
    pub(crate) async fn run(self, stop: CancellationToken) {
        let Self { addresses, identity, hello, status, shipper } = self;
        let mut links = Links::keep(&addresses, identity);
        let node = Node { hello, status, shipper };
        loop {
            let link = tokio::select! {
                () = stop.cancelled() => return,
                link = links.first() => link,
            };
            let from = link.remote_address();
            let ended = tokio::select! {
                ended = node.session(&link, &stop) => ended,
                () = links.silent(&link) => Err(LinkError::Lost("it is silent; turning to another".to_owned()).into()),
            };
            node.status.set_linked(false);
            link.close(0, "stopped");
            let Err(error) = ended else { return };
            if let SessionError::Refused(_) = error {
                tracing::error!(%error, %from, "this node gets no requests until that is mended");
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = sleep(REFUSED_PAUSE) => {}
                }
            } else {
                tracing::warn!(%error, %from, "not registered with this control plane; still serving");
            }
        }
    }
}

/// What is told.
struct Node {
    hello: NodeHello,
    status: Arc<Status>,
    shipper: Shipper,
}

impl Node {
    /// One link, until it is lost (`Err`) or `stop` (`Ok`).
    async fn session(&self, link: &Link, stop: &CancellationToken) -> Result<(), SessionError> {
        let (mut send, every) = tokio::select! {
            () = stop.cancelled() => return Ok(()),
            registered = self.register(link) => registered?,
        };
        self.status.set_linked(true);
        tracing::info!(to = %link.remote_address(), "registered with the control plane");

        let mut state = self.status.watch();
        let mut shipping = pin!(self.ship(link, stop));
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
                reason = link.closed() => return Err(LinkError::Lost(reason).into()),
            };
            step("take a report", write_frame(&mut send, &self.status.report())).await?;
            if stopping {
                break;
            }
        }
        if !shipped {
            // What is left goes with the next life.
            let _ = timeout(STEP_DEADLINE, shipping).await;
        }
        // The last report must have arrived before the link is closed.
        let _ = timeout(STEP_DEADLINE, send.finish()).await;
        Ok(())
    }

    /// Ships the ledger as long as the connection lasts.
    async fn ship(&self, link: &Link, stop: &CancellationToken) {
        while let Err(error) = self.shipper.run(link, stop).await {
            if link.is_closed() || stop.is_cancelled() {
                return;
            }
            tracing::warn!(%error, "the ledger was not taken; trying again");
            tokio::select! {
                () = stop.cancelled() => return,
                () = sleep(LEDGER_RETRY) => {}
            }
        }
    }

    /// Registers; a stream for reports, and the time between two.
    async fn register(&self, link: &Link) -> Result<(Sender, Duration), SessionError> {
        let (mut send, mut receive) = step("open a stream", link.open()).await?;
        step("take the registration", write_frame(&mut send, &Open::Node(self.hello.clone()))).await?;
        match step("answer the registration", read_frame(&mut receive)).await? {
            Some(NodeReply::Welcome { report_every_ms }) => Ok((send, Duration::from_millis(report_every_ms.into()))),
            Some(NodeReply::Refused(reason)) => Err(SessionError::Refused(reason)),
            None => Err(SessionError::Ended),
        }
    }
}

async fn step<T>(what: &'static str, doing: impl Future<Output = Result<T, LinkError>>) -> Result<T, SessionError> {
    Ok(timeout(STEP_DEADLINE, doing).await.map_err(|_| SessionError::Slow(what))??)
}
