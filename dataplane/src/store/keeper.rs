//! Writes down what is served by, on a thread of its own: whoever pushes does not wait for the disk.

use super::base::Base;
use super::generations::Generations;
use super::log::Record;
use super::queue::{CHANGES, Job, Queue, WAITING};
use super::recover::{folded, records, reread};
use super::starts::Starts;
use crate::image::Image;
use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use std::time::{Duration, Instant};
use turnpike_config::log::Position;

/// Between tries at a disk that refuses.
const RETRY: Duration = Duration::from_secs(1);
/// Between tries at making a new generation of a long log.
const RENEW: Duration = Duration::from_secs(60);
/// A log that is longer than this, and than a quarter of the whole state, is made into a new generation.
const LONG: u64 = 1 << 20;

/// Takes what is to be kept.
pub(crate) struct Keeper(Arc<Queue>);

impl Keeper {
    pub(super) fn start(generations: Generations, starts: Starts) -> std::io::Result<Self> {
        let queue = Arc::new(Queue::default());
        let work = Work::new(generations, starts);
        let jobs = Arc::clone(&queue);
        std::thread::Builder::new().name("routing-disk".to_owned()).spawn(move || work.run(&jobs))?;
        Ok(Self(queue))
    }

    /// Keeps a step.
    pub(crate) fn step(&self, record: Record) {
        self.0.give(Job::Step(record));
    }

    /// Keeps a whole state.
    pub(crate) fn whole(&self, base: Base) {
        self.0.give(Job::Whole(base));
    }

    /// The edge has served for a while, or stops in order.
    pub(crate) fn succeeded(&self) {
        self.0.give(Job::Succeeded);
    }

    /// Waits until everything given so far is on the disk, or for `patience`.
    pub(crate) fn flush(&self, patience: Duration) {
        let (done, wait) = sync_channel(0);
        self.0.give(Job::Flush(done));
        let _ = wait.recv_timeout(patience);
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.0.close();
    }
}

pub(super) struct Work {
    pub(super) generations: Generations,
    starts: Starts,
    /// A whole state that the disk refused so far: it goes before the steps.
    unbegun: Option<Base>,
    /// Steps that the disk refused so far. Too many are made into a whole state.
    pub(super) unwritten: Vec<Record>,
    /// The disk refused: not tried again before then.
    rests_until: Option<Instant>,
    renews_after: Option<Instant>,
    trouble: bool,
}

impl Work {
    pub(super) const fn new(generations: Generations, starts: Starts) -> Self {
        Self {
            generations,
            starts,
            unbegun: None,
            unwritten: Vec::new(),
            rests_until: None,
            renews_after: None,
            trouble: false,
        }
    }

    pub(super) fn run(mut self, queue: &Queue) {
        loop {
            let patience = self.is_behind().then(|| {
                let until = self.rests_until.map(|until| until.saturating_duration_since(Instant::now()));
                until.unwrap_or(RETRY)
            });
            // What waits is taken at once, so that several steps are one wait for the disk.
            let Some(jobs) = queue.take(patience) else { break };
            jobs.into_iter().for_each(|job| self.take(job));
            self.write_if_due();
            if !self.is_behind() && self.generations.log.size() > LONG.max(self.generations.whole / 4) {
                self.renew();
            }
        }
        self.write();
    }

    const fn is_behind(&self) -> bool {
        self.unbegun.is_some() || !self.unwritten.is_empty()
    }

    fn take(&mut self, job: Job) {
        match job {
            Job::Step(record) => self.step(record),
            Job::Whole(base) => {
                // The generation before stays whole: it may be needed.
                self.write_if_due();
                self.begin(base);
            }
            Job::Succeeded => self.starts.succeeded(),
            Job::Flush(done) => {
                self.write();
                drop(done);
            }
        }
    }

    /// Where what is kept, or is still to be, ends.
    fn end(&self) -> Position {
        let begun = || self.unbegun.as_ref().map_or(self.generations.at, |base| base.at);
        self.unwritten.last().map_or_else(begun, |record| record.to)
    }

    pub(super) fn step(&mut self, record: Record) {
        if record.from == self.end() {
            self.unwritten.push(record);
        } else if record.from == Position::default() && record.early.is_none() {
            // What is on disk could not be served by: it begins again from nothing.
            let mut image = Image::default();
            record.changes.into_iter().for_each(|change| image.apply(change));
            self.begin(Base::new(record.to, image.finish()));
        } else {
            // It would be cut off at the start.
            let (version, kept) = (record.early.unwrap_or(record.to.version), self.end().version);
            return tracing::error!(version, kept, "a version of the routing is not kept: the one before it was not");
        }
        if self.is_full() {
            self.write_if_due();
        }
        if self.is_full() {
            self.fold();
        }
    }

    /// Too many steps wait.
    fn is_full(&self) -> bool {
        let changes = || self.unwritten.iter().map(|record| record.changes.len()).sum::<usize>();
        self.unwritten.len() >= WAITING || changes() > CHANGES
    }

    /// A whole state replaces everything that is kept.
    fn begin(&mut self, base: Base) {
        self.unwritten.clear();
        self.unbegun = Some(base);
    }

    /// Makes one whole state of what waits: no more than a state can be, for however long the disk refuses.
    fn fold(&mut self) {
        let base = match self.unbegun.take() {
            Some(base) => Ok((base, Default::default())),
            None => reread(&self.generations.directory),
        };
        let from = self.unwritten.first().map(|record| record.from);
        let steps = std::mem::take(&mut self.unwritten);
        match base {
            Ok((base, early)) if Some(base.at) == from => {
                let (base, early) = folded(base, early, steps);
                self.unwritten = records(base.at, &early);
                self.unbegun = Some(base);
            }
            Ok(_) => tracing::error!(versions = steps.len(), "not kept: the routing on disk is not what was written"),
            Err(error) => tracing::error!(versions = steps.len(), %error, "not kept: the disk neither takes nor gives"),
        }
    }

    fn write_if_due(&mut self) {
        if self.rests_until.is_none_or(|until| until <= Instant::now()) {
            self.write();
        }
    }

    fn write(&mut self) {
        if self.is_behind() {
            let written = self.try_to_write();
            self.said("cannot be kept for the next start", &written);
            self.rests_until = written.is_err().then(|| Instant::now() + RETRY);
        }
    }

    fn try_to_write(&mut self) -> std::io::Result<()> {
        if let Some(base) = &self.unbegun {
            self.generations.begin(base)?;
            self.unbegun = None;
        }
        if let Some(last) = self.unwritten.last() {
            self.generations.log.append(&self.unwritten)?;
            self.generations.at = last.to;
            self.unwritten.clear();
        }
        Ok(())
    }

    /// Makes a new generation of the newest one.
    fn renew(&mut self) {
        if self.renews_after.is_some_and(|after| after > Instant::now()) {
            return;
        }
        self.renews_after = Some(Instant::now() + RENEW);
        match reread(&self.generations.directory) {
            Ok((base, early)) if base.at == self.generations.at => {
                let begun = self.generations.begin(&base);
                self.said("cannot be written anew", &begun);
                if begun.is_ok() {
                    self.renews_after = None;
                    self.unwritten = records(base.at, &early);
                    self.write();
                }
            }
            Ok((base, _)) => tracing::error!(version = base.at.version, "the routing on disk is not what was written"),
            Err(error) => tracing::error!(%error, "the routing on disk cannot be read again: its log goes on growing"),
        }
    }

    /// Says when it begins to fail and when that is over.
    fn said(&mut self, what: &'static str, outcome: &std::io::Result<()>) {
        match outcome {
            Err(error) if !self.trouble => {
                tracing::error!(directory = %self.generations.directory.display(), %error, "the routing {what}");
                self.trouble = true;
            }
            Ok(()) if self.trouble => {
                tracing::info!("the routing is kept again");
                self.trouble = false;
            }
            _ => {}
        }
    }
}
