//! The ledger's one writer: a thread that appends what requests hand it, many at once.

use super::files::{Position, hour_of};
use super::index::Best;
use super::log::Log;
use super::record::{Entry, Outcome, Record, SIZE};
use super::shared::Shared;
use super::sync::Sync;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;
use tokio::sync::oneshot;
use turnpike_config::EventId;

/// Most records in one write.
const GROUP: usize = 2048;
/// Between tries when the disk refuses.
const RETRY: Duration = Duration::from_millis(500);

/// Tells the time, Unix milliseconds.
pub(crate) type Clock = Box<dyn Fn() -> u64 + Send>;

/// An attempt that ended.
#[derive(Debug)]
pub(super) struct End {
    pub(super) event: EventId,
    pub(super) attempt: u64,
    pub(super) outcome: Outcome,
    /// Told when it is written; dropped when the disk refuses, though it will be tried again.
    pub(super) done: Option<oneshot::Sender<()>>,
}

/// What the writer is asked.
#[derive(Debug)]
pub(super) enum Command {
    /// An attempt goes to the engine once this is answered.
    Begin {
        event: EventId,
        attempt: u64,
        /// Told that it is written, or why not.
        done: oneshot::Sender<Result<(), String>>,
    },
    /// An attempt ended.
    End(End),
    /// Write what was handed over before, and end.
    Stop,
}

/// What becomes of a command once its record is written.
enum Step {
    Begin { event: EventId, attempt: u64, done: oneshot::Sender<Result<(), String>> },
    End(End, Best),
}

/// The thread's state.
pub(super) struct Writer {
    pub(super) log: Log,
    pub(super) shared: Arc<Shared>,
    pub(super) sync: Arc<Sync>,
    pub(super) commands: Receiver<Command>,
    /// Could not be written yet. As many as requests were running when the disk began to refuse.
    pub(super) pending: Vec<End>,
    /// `ledger.max_bytes`
    pub(super) max_bytes: u64,
    /// Tells Unix milliseconds.
    pub(super) clock: Clock,
}

impl Writer {
    /// The thread.
    pub(super) fn run(mut self) {
        let mut stopping = false;
        while !stopping {
            let mut batch = Vec::new();
            match self.next() {
                Ok(Command::Stop) => stopping = true,
                Ok(command) => batch.push(command),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => stopping = true,
            }
            while batch.len() < GROUP && !stopping {
                match self.commands.try_recv() {
                    Ok(Command::Stop) => stopping = true,
                    Ok(command) => batch.push(command),
                    Err(_) => break,
                }
            }
            self.shared.queued.fetch_sub(batch.len(), Ordering::Relaxed);
            self.write(batch);
        }
        self.sync.stop();
    }

    fn next(&self) -> Result<Command, RecvTimeoutError> {
        if self.pending.is_empty() && self.shared.trouble().is_none() {
            return self.commands.recv().map_err(|_| RecvTimeoutError::Disconnected);
        }
        self.commands.recv_timeout(RETRY)
    }

    fn write(&mut self, batch: Vec<Command>) {
        let hour = hour_of((self.clock)());
        let room = self.make_room(hour);
        if let Err(reason) = &room {
            self.shared.set_trouble(Some(reason.clone()));
        }
        let mut steps = Vec::new();
        let mut best_of = HashMap::new();
        let mut records = Vec::new();
        let mut begins = HashSet::new();
        for command in self.pending.drain(..).map(Command::End).chain(batch) {
            match command {
                Command::Begin { event, attempt, done } => match &room {
                    Ok(()) => {
                        begins.insert((event, attempt));
                        records.push(Record { event, entry: Entry::Begun });
                        steps.push(Step::Begin { event, attempt, done });
                    }
                    Err(reason) => {
                        let _ = done.send(Err(reason.clone()));
                    }
                },
                Command::End(end) => {
                    let index = self.shared.index();
                    if !begins.contains(&(end.event, end.attempt)) && !index.runs(end.event, end.attempt) {
                        // Its begin was refused.
                        continue;
                    }
                    let own = Best { attempt: end.attempt, outcome: end.outcome };
                    let before = best_of.get(&end.event).copied().or_else(|| index.best(end.event));
                    let best = before.map_or(own, |before: Best| before.after(own));
                    best_of.insert(end.event, best);
                    records.push(Record { event: end.event, entry: Entry::Ended(best.outcome) });
                    steps.push(Step::End(end, best));
                }
                Command::Stop => {}
            }
        }
        if records.is_empty() && room.is_ok() && self.shared.trouble().is_some() {
            records.push(Record::BLANK);
        }
        if records.is_empty() {
            return;
        }
        match self.append(hour, &records) {
            Ok(()) => {
                self.remember(&steps);
                // Only now: whoever reads the files up to there finds in memory what runs.
                self.shared.written.store(self.log.end().as_u64(), Ordering::Release);
                // Before anybody is told, as in every case.
                self.shared.set_trouble(room.err());
                tell(steps);
            }
            Err(error) => self.refuse(steps, &error.to_string()),
        }
    }

    /// Whether more requests may begin. What has begun may always end: that is a few records.
    fn make_room(&mut self, hour: u32) -> Result<(), String> {
        if let Some(reason) = self.shared.sync_trouble() {
            return Err(reason);
        }
        if self.log.bytes() < self.max_bytes {
            return Ok(());
        }
        self.retire(hour, true);
        if self.log.bytes() < self.max_bytes {
            return Ok(());
        }
        Err(format!(
            "ledger.max_bytes ({}) is reached, and what is in it is younger than 48 h or has not reached the control plane",
            self.max_bytes
        ))
    }

    fn retire(&mut self, hour: u32, pressed: bool) {
        let shipped = self.shared.shipped.load(Ordering::Relaxed);
        let (removed, outcome) = self.log.retire(hour, Position::from_u64(shipped), pressed);
        removed.into_iter().for_each(|file| self.shared.archive.forget(file));
        if let Err(error) = outcome {
            tracing::warn!(%error, "an old file of the ledger could not be removed; it is tried again");
        }
    }

    fn append(&mut self, hour: u32, records: &[Record]) -> std::io::Result<()> {
        if self.log.is_due(hour) {
            let before = self.log.end();
            self.log.begin(hour)?;
            self.shared.publish_synced(before);
            self.retire(hour, false);
        }
        let mut bytes = Vec::with_capacity(records.len() * SIZE);
        if self.log.is_at_start() {
            for (event, attempts) in self.shared.index().running() {
                Record { event, entry: Entry::Carried(attempts) }.encode(&mut bytes);
            }
        }
        records.iter().for_each(|record| record.encode(&mut bytes));
        self.log.append(&bytes)?;
        if let Some((file, to)) = self.log.written() {
            self.sync.wrote(file, to);
        }
        Ok(())
    }

    fn remember(&self, steps: &[Step]) {
        let mut index = self.shared.index();
        for step in steps {
            match step {
                Step::Begin { event, attempt, .. } => index.begin(*event, *attempt),
                Step::End(end, best) => index.end(end.event, end.attempt, *best),
            }
        }
    }

    fn refuse(&mut self, steps: Vec<Step>, reason: &str) {
        self.shared.set_trouble(Some(reason.to_owned()));
        for step in steps {
            match step {
                Step::Begin { done, .. } => drop(done.send(Err(reason.to_owned()))),
                // The answer is not held up by the disk; what it took is written as soon as that goes.
                Step::End(end, _) => self.pending.push(End { done: None, ..end }),
            }
        }
    }
}

fn tell(steps: Vec<Step>) {
    for step in steps {
        match step {
            Step::Begin { done, .. } => drop(done.send(Ok(()))),
            Step::End(End { done: Some(done), .. }, _) => drop(done.send(())),
            Step::End(..) => {}
        }
    }
}
