//! Writes down what is served by, on a thread of its own: whoever pushes does not wait for the disk.

use super::base::Base;
use super::generations::Generations;
use super::log::Record;
use super::recover::{records, reread};
use super::starts::Starts;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::time::Duration;

/// Steps that wait for the disk. What is beyond is not kept: the next start begins before it.
const WAITING: usize = 1_024;
/// Between tries at a disk that refuses.
const RETRY: Duration = Duration::from_secs(1);
/// A log that is longer than this, and than a quarter of the whole state, is made into a new generation.
const LONG: u64 = 1 << 20;

/// What is to be done.
enum Job {
    Step(Record),
    Whole(Base),
    Succeeded,
    /// Everything before it is done: said by dropping what is inside.
    Flush(SyncSender<()>),
}

/// Takes what is to be kept.
pub(crate) struct Keeper {
    jobs: SyncSender<Job>,
}

impl Keeper {
    pub(super) fn start(generations: Generations, starts: Starts) -> std::io::Result<Self> {
        let (jobs, queue) = sync_channel(WAITING);
        let work = Work { generations, starts, queue, unwritten: Vec::new(), trouble: false };
        std::thread::Builder::new().name("routing-disk".to_owned()).spawn(move || work.run())?;
        Ok(Self { jobs })
    }

    /// Keeps a step.
    pub(crate) fn step(&self, record: Record) {
        self.give(Job::Step(record));
    }

    /// Keeps a whole state.
    pub(crate) fn whole(&self, base: Base) {
        self.give(Job::Whole(base));
    }

    /// The edge has served for a while, or stops in order.
    pub(crate) fn succeeded(&self) {
        self.give(Job::Succeeded);
    }

    /// Waits until everything given so far is on the disk, or for `patience`.
    pub(crate) fn flush(&self, patience: Duration) {
        let (done, wait) = sync_channel(0);
        self.give(Job::Flush(done));
        let _ = wait.recv_timeout(patience);
    }

    fn give(&self, job: Job) {
        match self.jobs.try_send(job) {
            Ok(()) => {}
            Err(TrySendError::Full(_)) => tracing::error!("the disk is too slow: a version of the routing is not kept"),
            Err(TrySendError::Disconnected(_)) => tracing::error!("routing is not kept any more"),
        }
    }
}

struct Work {
    generations: Generations,
    starts: Starts,
    queue: Receiver<Job>,
    /// Steps that the disk refused so far.
    unwritten: Vec<Record>,
    trouble: bool,
}

impl Work {
    fn run(mut self) {
        loop {
            let job = if self.unwritten.is_empty() {
                self.queue.recv().map_err(|_| RecvTimeoutError::Disconnected)
            } else {
                self.queue.recv_timeout(RETRY)
            };
            match job {
                Ok(job) => self.take(job),
                Err(RecvTimeoutError::Timeout) => self.write(),
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    /// Takes a job, and what waits behind it, so that several steps are one wait for the disk.
    fn take(&mut self, first: Job) {
        let mut job = Some(first);
        while let Some(next) = job {
            match next {
                Job::Step(record) => self.unwritten.push(record),
                Job::Whole(base) => self.begin(&base),
                Job::Succeeded => self.starts.succeeded(),
                Job::Flush(done) => {
                    self.write();
                    drop(done);
                }
            }
            job = if self.unwritten.len() < WAITING { self.queue.try_recv().ok() } else { None };
        }
        self.write();
        if self.generations.log.size() > LONG.max(self.generations.whole / 4) {
            self.renew();
        }
    }

    fn write(&mut self) {
        // A step that does not follow on what is there, since one before it was not kept, would be cut off at the start.
        let mut at = self.generations.at;
        self.unwritten.retain(|record| {
            let follows = record.from == at;
            at = if follows { record.to } else { at };
            follows
        });
        if self.unwritten.is_empty() {
            return;
        }
        let written = self.generations.log.append(&self.unwritten);
        self.said("cannot be kept for the next start", &written);
        if written.is_ok() {
            self.generations.at = at;
            self.unwritten.clear();
        }
    }

    /// A whole state replaces everything that is kept.
    fn begin(&mut self, base: &Base) {
        // The generation before stays whole: it may be needed.
        self.write();
        self.unwritten.clear();
        let begun = self.generations.begin(base);
        self.said("cannot be kept for the next start", &begun);
    }

    /// Makes a new generation of the newest one.
    fn renew(&mut self) {
        match reread(&self.generations.directory) {
            Ok((base, early)) if base.at == self.generations.at => {
                let begun = self.generations.begin(&base);
                let begun = begun.and_then(|()| self.generations.log.append(&records(base.at, &early)));
                self.said("cannot be written anew", &begun);
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
