//! Answers that ended without the engine's count: on their way to whoever asks for it.

use crate::journal::{Permit, Written};
use crate::limit::Charges;
use tokio::sync::{mpsc, oneshot};
use turnpike_config::{Price, UsageEvent};

/// A request that has ended with the edge's own count.
pub(crate) struct BrokenOff {
    /// With that count.
    pub(crate) event: UsageEvent,
    /// What its tokens cost.
    pub(crate) price: Price,
    /// What it holds of limits until then.
    pub(crate) charges: Charges,
    pub(crate) permit: Permit,
    /// Told once the event is written.
    pub(crate) written: oneshot::Sender<()>,
}

/// Where requests hand them over.
#[derive(Clone, Debug)]
pub(crate) struct Unsettled(mpsc::UnboundedSender<BrokenOff>);

/// The other end, for [`crate::resolve`].
pub(crate) type Jobs = mpsc::UnboundedReceiver<BrokenOff>;

impl Unsettled {
    pub(crate) fn new() -> (Self, Jobs) {
        // Bounded by the journal's permits: each job holds one.
        let (sender, jobs) = mpsc::unbounded_channel();
        (Self(sender), jobs)
    }

    /// Records the event once its node has said what it counted, or could not.
    pub(crate) fn settle(&self, event: UsageEvent, price: Price, charges: Charges, mut permit: Permit) -> Written {
        permit.is_late();
        let (written, receiver) = Written::later();
        let sent = self.0.send(BrokenOff { event, price, charges, permit, written });
        if let Err(mpsc::error::SendError(job)) = sent {
            // Only while this process ends.
            drop(job.permit.record(job.event));
        }
        receiver
    }
}
