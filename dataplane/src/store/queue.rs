//! What waits for the thread that writes: whoever pushes puts it here and goes on.

use super::base::Base;
use super::log::Record;
use std::collections::VecDeque;
use std::sync::mpsc::SyncSender;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use turnpike_config::change::net;

/// Jobs that wait; steps beyond are joined to the last one.
pub(super) const WAITING: usize = 1_024;
/// Changes of steps that wait.
pub(super) const CHANGES: usize = 100_000;

/// What is to be done.
pub(super) enum Job {
    Step(Record),
    Whole(Base),
    Succeeded,
    /// Everything before it is done: said by dropping what is inside.
    Flush(SyncSender<()>),
}

/// Jobs in their order.
#[derive(Default)]
pub(super) struct Queue {
    waiting: Mutex<Waiting>,
    news: Condvar,
}

#[derive(Default)]
struct Waiting {
    jobs: VecDeque<Job>,
    closed: bool,
}

impl Queue {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn give(&self, job: Job) {
        self.waiting().give(job);
        self.news.notify_one();
    }

    /// Nothing more will come.
    pub(super) fn close(&self) {
        self.waiting().closed = true;
        self.news.notify_one();
    }

    /// All that waits, once there is something, or nothing after `patience`; `None` once nothing more will come.
    pub(super) fn take(&self, patience: Option<Duration>) -> Option<VecDeque<Job>> {
        let idle = |waiting: &mut Waiting| waiting.jobs.is_empty() && !waiting.closed;
        let mut waiting = match patience {
            Some(patience) => {
                let waited = self.news.wait_timeout_while(self.waiting(), patience, idle);
                waited.unwrap_or_else(PoisonError::into_inner).0
            }
            None => self.news.wait_while(self.waiting(), idle).unwrap_or_else(PoisonError::into_inner),
        };
        let is_over = waiting.jobs.is_empty() && waiting.closed;
        (!is_over).then(|| std::mem::take(&mut waiting.jobs))
    }
}

impl Waiting {
    fn give(&mut self, job: Job) {
        if self.jobs.len() < WAITING {
            return self.jobs.push_back(job);
        }
        match (self.jobs.back_mut(), job) {
            (Some(Job::Step(last)), Job::Step(record)) if last.early.is_none() => join(last, record),
            // A whole state, the end of the process, or what comes next after these: there are few of them.
            (_, job) => self.jobs.push_back(job),
        }
    }
}

/// Makes one step of two.
fn join(last: &mut Record, record: Record) {
    let is_much = |last: &Record| last.changes.len() + record.changes.len() > CHANGES;
    if is_much(last) {
        last.changes = net(&last.changes).into_iter().cloned().collect();
    }
    if record.early.is_some() || record.from != last.to || is_much(last) {
        let version = record.early.unwrap_or(record.to.version);
        return tracing::error!(version, "the disk is too slow: a version of the routing is not kept");
    }
    last.to = record.to;
    last.changes.extend(record.changes);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::live::fixtures::at;
    use turnpike_config::Change;

    #[test]
    fn steps_that_nobody_takes_become_one_and_none_is_lost() {
        let queue = Queue::default();
        let most = WAITING as u64;
        for version in 1..=most + 500 {
            // Far too many changes, but few that are not of the same.
            let changes = (0..300).map(|n| Change::DropNode(format!("{}", n % 3))).collect();
            queue.give(Job::Step(Record { from: at(version - 1), to: at(version), changes, early: None }));
        }
        let jobs = queue.take(None).unwrap();
        assert_eq!(jobs.len(), WAITING);
        let mut end = at(0);
        for job in &jobs {
            let Job::Step(record) = job else { panic!("a step") };
            assert_eq!(record.from, end);
            assert!(record.changes.len() <= CHANGES, "what was changed again counts once");
            end = record.to;
        }
        assert_eq!(end, at(most + 500));
        assert!(queue.take(Some(Duration::ZERO)).is_some_and(|jobs| jobs.is_empty()));
        queue.close();
        assert!(queue.take(None).is_none());
    }
}
