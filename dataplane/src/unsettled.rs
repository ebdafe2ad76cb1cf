//! Answers that ended without the engine's count: on their way to whoever asks for it.

use crate::journal::{Permit, Written};
use crate::limit::{Charges, micros};
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
            // Only while this process ends: by the edge's own count, in the limits too.
            let (tokens, cost) = (job.event.total_tokens(), micros(job.event.cost.pico));
            drop(job.permit.record(job.event));
            job.charges.settle(tokens, cost);
        }
        receiver
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;
    use crate::journal::{Journal, Opened, fixtures::event};
    use crate::limit::{Limiter, Limits, Need, Owner, Within};
    use crate::metrics::Metrics;
    use std::sync::Arc;
    use turnpike_config::{KeyId, ModelLimits, RateLimits};
    use uuid::Uuid;

    #[tokio::test]
    async fn what_nobody_asks_for_any_more_counts_by_the_edges_own_count() {
        let directory = tempfile::tempdir().unwrap();
        let Opened { journal, .. } = Journal::open(directory.path(), 1 << 30, |_, _| ()).unwrap();
        let limiter = Arc::new(Limiter::alone(Clock, Arc::new(Metrics::new())));
        let rates = RateLimits { tokens_per_minute: Some(60_000), ..RateLimits::default() };
        let key = Limits::compile(Owner::Key(KeyId(Uuid::from_u128(1))), rates, &ModelLimits::new(), None);
        let organization = Limits::default();
        let within = Within { model: "m", key: &key, organization: &organization };
        let mut charges = Charges::admit(&limiter, &key, &organization).await.unwrap();
        charges.reserve(&within, Need { least_tokens: 1, tokens: 50_000, spend: 0 }).await.unwrap();
        let (unsettled, jobs) = Unsettled::new();
        drop(jobs);
        let permit = journal.permit(1).unwrap();
        unsettled.settle(event(40_000), Price::default(), charges, permit).wait().await;
        journal.flush().await;
        let left = within.tokens_left(limiter.now_ns()).unwrap();
        assert!(left < 25_000, "{left} tokens are left of 60000, of which 40001 were used");
    }
}
