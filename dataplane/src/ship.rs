//! Ships usage from the journal to the control plane, in order, and lets go of it once it is stored there.

use crate::clock;
use crate::edge::Edge;
use crate::journal::{Batch, Journal, JournalError, Position, Reader};
use std::time::{Duration, Instant};
use turnpike_config::crash_point;
use turnpike_config::link::{Link, LinkError, read_frame, write_frame};
use turnpike_config::wire::{DayCount, Open, UsageAck, UsageBatch, Watermark};

/// Records in one batch; larger ones gain nothing and keep the control plane's transaction open longer.
const BATCH: usize = 2_048;
/// The control plane has not stored a batch in this time: reconnect and send it again.
const ACK_TIMEOUT: Duration = Duration::from_secs(60);
/// Between tries at a disk that refuses.
const DISK_RETRY: Duration = Duration::from_secs(5);
/// Between two batches that are not full: each costs the disk and both ends something, however small.
const PACE: Duration = Duration::from_millis(100);
/// An edge with nothing to ship says so this often.
const HEARTBEAT: Duration = Duration::from_secs(1);

/// Ships until the link breaks.
pub(crate) async fn run(edge: &Edge, link: &Link) -> Result<(), LinkError> {
    let lost = |error: &dyn std::fmt::Display| LinkError::Lost(error.to_string());
    let (mut send, mut receive) = link.open().await?;
    write_frame(&mut send, &Open::Usage).await?;
    let mut reader = patiently(|| Reader::open(&edge.journal)).await;
    edge.metrics.journal_shipped.set(i64::try_from(reader.position()).unwrap_or(i64::MAX));
    let mut news = edge.journal.position();
    let mut progress = Progress::default();
    let mut counted = Vec::new();
    let epoch = edge.journal.epoch();
    loop {
        let position = news.borrow_and_update().clone();
        // Reading from the page cache; a few megabytes at most.
        let batch = patiently(|| tokio::task::block_in_place(|| reader.next(position.durable, BATCH))).await;
        let at = reader.position();
        let Batch { first_seq, end_seq, events } =
            batch.unwrap_or(Batch { first_seq: at, end_seq: at, events: vec![] });
        let complete = progress.after(end_seq, &position, &edge.journal);
        let counts = changed(&mut counted, &edge.journal);
        let sent_at = Instant::now();
        write_frame(&mut send, &UsageBatch { epoch, first_seq, events, end_seq, complete, counts }).await?;
        let answer = tokio::time::timeout(ACK_TIMEOUT, read_frame::<UsageAck>(&mut receive));
        let ack = answer.await.map_err(|_| lost(&"usage was not acknowledged in time"))??;
        match ack {
            Some(ack) if ack.epoch == epoch && ack.end_seq == end_seq => progress.told(ack.now_ms),
            Some(_) => return Err(lost(&"the control plane acknowledged something else")),
            None => return Err(lost(&"the control plane ended the usage stream")),
        }
        if first_seq < end_seq {
            crash_point("edge.before_advance");
            patiently(|| reader.advance(end_seq)).await;
            edge.metrics.journal_shipped.set(i64::try_from(end_seq).unwrap_or(i64::MAX));
            let is_full = |now: &Position| now.durable.saturating_sub(end_seq) >= BATCH as u64;
            let _ = tokio::time::timeout_at((sent_at + PACE).into(), news.wait_for(is_full)).await;
        } else {
            let _ = tokio::time::timeout_at((sent_at + HEARTBEAT).into(), news.changed()).await;
        }
    }
}

/// Tries until the disk obeys. The link stays: routing comes over it as well.
async fn patiently<T>(mut what: impl FnMut() -> Result<T, JournalError>) -> T {
    loop {
        match what() {
            Ok(done) => return done,
            Err(error) => tracing::error!(%error, retry_in = ?DISK_RETRY, "usage cannot be shipped"),
        }
        tokio::time::sleep(DISK_RETRY).await;
    }
}

/// The days whose sums are others than when last asked.
fn changed(told: &mut Vec<DayCount>, journal: &Journal) -> Vec<DayCount> {
    let now: Vec<DayCount> = journal.counts().days().copied().collect();
    let news = now.iter().filter(|count| !told.contains(count)).copied().collect();
    *told = now;
    news
}

/// How far usage is complete, and how far it will be once more is shipped.
#[derive(Debug, Default)]
struct Progress {
    /// The control plane's clock when it last told it, and when that reached us.
    clock: Option<(u64, Instant)>,
    complete: Watermark,
    goal: Option<Goal>,
}

/// What will be true once all records of a moment are shipped.
#[derive(Clone, Copy, Debug)]
struct Goal {
    then: Watermark,
    handed_over: u64,
    /// Sequence number after the last of them, once they are durable.
    end_seq: Option<u64>,
}

impl Progress {
    fn told(&mut self, now_ms: u64) {
        self.clock = Some((now_ms, Instant::now()));
    }

    /// What is true once everything below `end_seq` is shipped.
    fn after(&mut self, end_seq: u64, position: &Position, journal: &Journal) -> Watermark {
        let goal = self.goal.get_or_insert_with(|| Goal::of(journal, self.clock));
        if goal.end_seq.is_none() && position.taken >= goal.handed_over {
            goal.end_seq = Some(position.durable);
        }
        if goal.end_seq.is_some_and(|goal| goal <= end_seq) {
            self.complete = goal.then;
            self.goal = None;
        }
        self.complete
    }
}

impl Goal {
    fn of(journal: &Journal, clock: Option<(u64, Instant)>) -> Self {
        // In this order: what begins or ends meanwhile is behind the mark or among the records that are waited for.
        let now_ms = clock.map(|(told_ms, at)| told_ms + clock::millis(at.elapsed()));
        let ended_to_ms = now_ms.zip(journal.ended_before());
        let ended_to_ms = ended_to_ms.map_or(0, |(now_ms, before)| now_ms.saturating_sub(clock::millis(before)));
        let own_ms = clock::millis(clock::since_epoch());
        let began_to_ms = journal.began_to(own_ms);
        let settled_to_ms = now_ms.map_or(0, |now_ms| now_ms.saturating_sub(own_ms.saturating_sub(began_to_ms)));
        let then = Watermark { ended_to_ms, began_to_ms, settled_to_ms };
        Self { then, handed_over: journal.handed_over(), end_seq: None }
    }
}
