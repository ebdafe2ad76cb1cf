//! A simulated GPU: a batch that takes the time it says.

use super::batch::{Batch, Load, Profile, Sequence};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};
use tokio::time::{Instant, sleep_until};

/// Who hands it work.
#[derive(Clone)]
pub(super) struct Gpu {
    submit: UnboundedSender<Job>,
    load: Arc<Mutex<Load>>,
}

struct Job {
    sequence: Sequence,
    /// A token was made.
    made: UnboundedSender<()>,
}

impl Gpu {
    pub(super) fn start(profile: Profile) -> Self {
        let (submit, jobs) = mpsc::unbounded_channel();
        let load = Arc::new(Mutex::default());
        tokio::spawn(run(Batch::new(profile), jobs, Arc::clone(&load)));
        Self { submit, load }
    }

    /// Yields once for each token, and ends; at once if it can never fit. Dropped, the work on it ends too.
    pub(super) fn work_on(&self, sequence: Sequence) -> UnboundedReceiver<()> {
        let (made, tokens) = mpsc::unbounded_channel();
        // The task ends with the process.
        let _ = self.submit.send(Job { sequence, made });
        tokens
    }

    pub(super) fn load(&self) -> Load {
        *self.load.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

type Listeners = HashMap<u64, UnboundedSender<()>>;

fn take(batch: &mut Batch, listeners: &mut Listeners, Job { sequence, made }: Job) {
    let id = sequence.id;
    if batch.submit(sequence) {
        listeners.insert(id, made);
    }
}

async fn run(mut batch: Batch, mut jobs: UnboundedReceiver<Job>, load: Arc<Mutex<Load>>) {
    let mut listeners: Listeners = HashMap::new();
    let mut over = Instant::now();
    loop {
        while let Ok(job) = jobs.try_recv() {
            take(&mut batch, &mut listeners, job);
        }
        let step = batch.step();
        *load.lock().unwrap_or_else(PoisonError::into_inner) = batch.load();
        let Some(step) = step else {
            let Some(job) = jobs.recv().await else { return };
            take(&mut batch, &mut listeners, job);
            continue;
        };
        // A timer that is late does not make the GPU slower.
        let now = Instant::now();
        over = if over + step.takes < now { now } else { over } + step.takes;
        sleep_until(over).await;
        for (id, is_last) in step.made {
            let is_heard = listeners.get(&id).is_some_and(|made| made.send(()).is_ok());
            if is_last || !is_heard {
                listeners.remove(&id);
            }
            if !is_last && !is_heard {
                batch.cancel(id);
            }
        }
    }
}
