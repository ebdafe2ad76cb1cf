//! Admission: so many requests at once, so many waiting, none for ever.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Why a request was not admitted. Nothing has been done with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    /// As many wait as may.
    #[error("the node's queue is full")]
    Full,
    /// It waited for its whole deadline.
    #[error("the request waited {0:?} for a free slot")]
    Deadline(Duration),
    /// The node takes nothing new.
    #[error("the node is draining")]
    Closed,
}

/// A bounded queue in front of the engine's slots; first come, first served.
///
/// A request first takes a ticket, of which there are as many as slots and waiting places together, so that the number
/// of request bodies in memory is bounded too; then it waits for a slot.
#[derive(Debug)]
pub(crate) struct Queue {
    tickets: Arc<Semaphore>,
    all_tickets: u32,
    slots: Arc<Semaphore>,
    all_slots: u32,
    deadline: Duration,
    closed: AtomicBool,
}

/// The right to wait for a slot.
#[derive(Debug)]
pub(crate) struct Ticket {
    _permit: OwnedSemaphorePermit,
}

/// The right to work; given back when dropped.
#[derive(Debug)]
pub(crate) struct Slot {
    _permit: OwnedSemaphorePermit,
    _ticket: Ticket,
}

impl Queue {
    /// `slots` at least 1; `deadline`: longest that a request waits for one of them.
    pub(crate) fn new(slots: u32, max_waiting: u32, deadline: Duration) -> Self {
        let all_tickets = slots.saturating_add(max_waiting);
        Self {
            tickets: Arc::new(Semaphore::new(all_tickets as usize)),
            all_tickets,
            slots: Arc::new(Semaphore::new(slots as usize)),
            all_slots: slots,
            deadline,
            closed: AtomicBool::new(false),
        }
    }

    /// Takes a ticket, or refuses at once.
    pub(crate) fn enter(&self) -> Result<Ticket, Refusal> {
        if self.closed.load(Ordering::Acquire) {
            return Err(Refusal::Closed);
        }
        Arc::clone(&self.tickets)
            .try_acquire_owned()
            .map(|permit| Ticket { _permit: permit })
            .map_err(|_| Refusal::Full)
    }

    /// Waits for a slot; a caller that goes away leaves the queue.
    pub(crate) async fn admit(&self, ticket: Ticket) -> Result<Slot, Refusal> {
        match tokio::time::timeout(self.deadline, Arc::clone(&self.slots).acquire_owned()).await {
            Ok(Ok(permit)) => Ok(Slot { _permit: permit, _ticket: ticket }),
            Ok(Err(_closed)) => Err(Refusal::Closed),
            Err(_elapsed) => Err(Refusal::Deadline(self.deadline)),
        }
    }

    /// Admits nobody any more; whoever waits is refused at once. Slots in hand stay good.
    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.slots.close();
    }

    /// Resolves when nobody works or waits.
    pub(crate) async fn idle(&self) {
        // Fails only if the tickets were closed, which nobody does.
        let _ = self.tickets.acquire_many(self.all_tickets).await;
    }

    /// Requests that hold a slot.
    pub(crate) fn running(&self) -> u32 {
        self.all_slots.saturating_sub(free(&self.slots))
    }

    /// Requests that wait for a slot.
    pub(crate) fn waiting(&self) -> u32 {
        self.all_tickets.saturating_sub(free(&self.tickets)).saturating_sub(self.running())
    }
}

fn free(permits: &Semaphore) -> u32 {
    u32::try_from(permits.available_permits()).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt as _;

    const LONG: Duration = Duration::from_secs(60);

    async fn admitted(queue: &Queue) -> Slot {
        queue.admit(queue.enter().unwrap()).await.unwrap()
    }

    #[tokio::test]
    async fn slots_then_places_then_refusal() {
        let queue = Queue::new(1, 1, LONG);
        let first = admitted(&queue).await;
        let mut second = Box::pin(queue.admit(queue.enter().unwrap()));
        assert!(second.as_mut().now_or_never().is_none());
        assert_eq!((queue.running(), queue.waiting()), (1, 1));
        assert_eq!(queue.enter().err(), Some(Refusal::Full));
        drop(first);
        let _second = second.await.unwrap();
        assert_eq!((queue.running(), queue.waiting()), (1, 0));
    }

    #[tokio::test]
    async fn one_that_goes_away_leaves_its_place() {
        let queue = Queue::new(1, 1, LONG);
        let _first = admitted(&queue).await;
        let mut second = Box::pin(queue.admit(queue.enter().unwrap()));
        assert!(second.as_mut().now_or_never().is_none());
        drop(second);
        assert_eq!(queue.waiting(), 0);
        assert!(queue.enter().is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_waits_longer_than_the_deadline() {
        let queue = Queue::new(1, 1, LONG);
        let _first = admitted(&queue).await;
        assert_eq!(queue.admit(queue.enter().unwrap()).await.err(), Some(Refusal::Deadline(LONG)));
        assert_eq!(queue.waiting(), 0);
    }

    #[tokio::test]
    async fn closing_refuses_those_who_wait_and_keeps_those_who_run() {
        let queue = Queue::new(1, 1, LONG);
        let first = admitted(&queue).await;
        let mut second = Box::pin(queue.admit(queue.enter().unwrap()));
        assert!(second.as_mut().now_or_never().is_none());
        queue.close();
        assert_eq!(second.await.err(), Some(Refusal::Closed));
        assert_eq!(queue.enter().err(), Some(Refusal::Closed));
        assert_eq!(queue.running(), 1);
        assert!(queue.idle().now_or_never().is_none());
        drop(first);
        queue.idle().await;
    }
}
