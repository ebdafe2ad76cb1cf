//! What the agent knows about itself and its engine; everything reported is read from here.

use crate::engine::EngineLoad;
use crate::gpu::GpuLoad;
use crate::queue::Queue;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::watch;
use turnpike_config::NodeState;
use turnpike_config::wire::NodeReport;

/// Looks at the engine that must fail in a row before it counts as unhealthy: one lost probe is no outage.
const FAILURES_UNTIL_UNHEALTHY: u32 = 3;

/// Whether the node takes requests, and why not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Condition {
    healthy: bool,
    draining: bool,
    /// The ledger takes records.
    recording: bool,
    failures: u32,
}

impl Condition {
    /// Nothing is known of the engine yet, so it is not ready.
    const START: Self = Self { healthy: false, draining: false, recording: true, failures: 0 };

    const fn state(self) -> NodeState {
        match self {
            Self { draining: true, .. } => NodeState::Draining,
            Self { healthy: true, recording: true, .. } => NodeState::Ready,
            _ => NodeState::Unhealthy,
        }
    }

    const fn after_probe(self, succeeded: bool) -> Self {
        if succeeded {
            return Self { healthy: true, failures: 0, ..self };
        }
        let failures = self.failures.saturating_add(1);
        Self { healthy: self.healthy && failures < FAILURES_UNTIL_UNHEALTHY, failures, ..self }
    }
}

/// The last look at engine and GPUs.
#[derive(Clone, Copy, Debug, Default)]
struct Sample {
    engine: EngineLoad,
    gpu: Option<GpuLoad>,
    /// Tokens generated since the agent started, over restarts of the engine.
    generated: u64,
    /// The engine's own counter at the last look.
    counter: Option<u64>,
}

/// Shared by all parts of the agent.
#[derive(Debug)]
pub(crate) struct Status {
    queue: Arc<Queue>,
    condition: Mutex<Condition>,
    state: watch::Sender<NodeState>,
    sample: Mutex<Sample>,
    completed: AtomicU64,
    linked: AtomicBool,
    ever_linked: AtomicBool,
}

impl Status {
    pub(crate) fn new(queue: Arc<Queue>) -> Self {
        Self {
            queue,
            condition: Mutex::new(Condition::START),
            state: watch::Sender::new(Condition::START.state()),
            sample: Mutex::default(),
            completed: AtomicU64::new(0),
            linked: AtomicBool::new(false),
            ever_linked: AtomicBool::new(false),
        }
    }

    /// The state now.
    pub(crate) fn state(&self) -> NodeState {
        *self.state.borrow()
    }

    /// Wakes at every change of state.
    pub(crate) fn watch(&self) -> watch::Receiver<NodeState> {
        self.state.subscribe()
    }

    /// Whether the last looks at the engine succeeded.
    pub(crate) fn engine_healthy(&self) -> bool {
        self.condition.lock().unwrap_or_else(PoisonError::into_inner).healthy
    }

    /// Whether requests can be recorded in the ledger.
    pub(crate) fn can_record(&self) -> bool {
        self.condition.lock().unwrap_or_else(PoisonError::into_inner).recording
    }

    /// The ledger takes records, or no longer does.
    pub(crate) fn set_recording(&self, recording: bool) {
        self.change(|condition| Condition { recording, ..condition });
    }

    /// From now on nothing new is taken.
    pub(crate) fn drain(&self) {
        self.change(|condition| Condition { draining: true, ..condition });
    }

    /// The engine answered.
    pub(crate) fn observed(&self, engine: EngineLoad, gpu: Option<GpuLoad>) {
        {
            let mut sample = self.sample.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(counter) = engine.generated_tokens {
                // A counter that fell has begun anew; before the first look it counted for others.
                let before = sample.counter.map_or(counter, |last| if counter < last { 0 } else { last });
                sample.generated += counter - before;
                sample.counter = Some(counter);
            }
            sample.engine = engine;
            sample.gpu = gpu;
        }
        self.change(|condition| condition.after_probe(true));
    }

    /// The engine did not answer.
    pub(crate) fn probe_failed(&self) {
        self.change(|condition| condition.after_probe(false));
    }

    fn change(&self, step: impl FnOnce(Condition) -> Condition) {
        let mut condition = self.condition.lock().unwrap_or_else(PoisonError::into_inner);
        *condition = step(*condition);
        let state = condition.state();
        // Under the lock, so that states are published in the order in which they came about.
        self.state.send_if_modified(|published| std::mem::replace(published, state) != state);
    }

    /// An answer went out to its end.
    pub(crate) fn completed(&self) {
        self.completed.fetch_add(1, Ordering::Relaxed);
    }

    /// The control plane hears us, or no longer does.
    pub(crate) fn set_linked(&self, linked: bool) {
        self.linked.store(linked, Ordering::Relaxed);
        self.ever_linked.fetch_or(linked, Ordering::Relaxed);
    }

    /// Whether the control plane hears us.
    pub(crate) fn linked(&self) -> bool {
        self.linked.load(Ordering::Relaxed)
    }

    /// Whether this node can do its work: the engine answers, the deployment has heard of it (a control plane that is
    /// gone later does not matter), and it is not about to stop. `Err` says what is missing.
    pub(crate) fn ready(&self) -> Result<(), &'static str> {
        match self.state() {
            NodeState::Draining => Err("draining"),
            NodeState::Ready if !self.ever_linked.load(Ordering::Relaxed) => Err("not registered with a control plane"),
            NodeState::Ready => Ok(()),
            _ if !self.can_record() => Err("the ledger cannot be written; its log says why"),
            _ => Err("the engine does not answer"),
        }
    }

    /// The report for the control plane.
    pub(crate) fn report(&self) -> NodeReport {
        let sample = *self.sample.lock().unwrap_or_else(PoisonError::into_inner);
        NodeReport {
            state: self.state(),
            // The engine may work for others too; our own count is never older than now.
            running: sample.engine.running.unwrap_or(0).max(self.queue.running()),
            waiting: sample.engine.waiting.unwrap_or(0).saturating_add(self.queue.waiting()),
            kv_cache_permille: sample.engine.kv_cache_permille,
            gpu_permille: sample.gpu.map(|gpu| gpu.utilization_permille),
            gpu_memory_permille: sample.gpu.map(|gpu| gpu.memory_permille),
            completed: self.completed.load(Ordering::Relaxed),
            generated_tokens: sample.generated,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn status() -> Status {
        Status::new(Arc::new(Queue::new(1, 1, Duration::from_secs(1))))
    }

    fn generated(tokens: u64) -> EngineLoad {
        EngineLoad { generated_tokens: Some(tokens), ..EngineLoad::default() }
    }

    #[test]
    fn health_is_lost_slowly_and_found_at_once() {
        let status = status();
        assert_eq!(status.state(), NodeState::Unhealthy);
        status.observed(EngineLoad::default(), None);
        for expected in [NodeState::Ready, NodeState::Ready, NodeState::Unhealthy] {
            status.probe_failed();
            assert_eq!(status.state(), expected);
        }
        status.observed(EngineLoad::default(), None);
        assert_eq!(status.state(), NodeState::Ready);
    }

    #[test]
    fn draining_is_for_good() {
        let status = status();
        status.drain();
        status.observed(EngineLoad::default(), None);
        assert_eq!(status.state(), NodeState::Draining);
        assert_eq!(status.ready(), Err("draining"));
    }

    #[test]
    fn a_node_that_cannot_record_takes_no_requests_and_says_why() {
        let status = status();
        status.observed(EngineLoad::default(), None);
        status.set_linked(true);
        status.set_recording(false);
        assert_eq!(status.state(), NodeState::Unhealthy);
        assert!(status.ready().is_err_and(|reason| reason.contains("ledger")));
        status.set_recording(true);
        assert_eq!((status.state(), status.ready()), (NodeState::Ready, Ok(())));
    }

    #[test]
    fn only_changes_of_state_wake_watchers() {
        let status = status();
        let mut watch = status.watch();
        status.probe_failed();
        assert!(!watch.has_changed().unwrap());
        status.observed(EngineLoad::default(), None);
        assert!(watch.has_changed().unwrap());
        assert_eq!(*watch.borrow_and_update(), NodeState::Ready);
    }

    #[test]
    fn readiness_needs_the_engine_and_to_have_registered_once() {
        let status = status();
        assert!(status.ready().is_err());
        status.observed(EngineLoad::default(), None);
        assert_eq!(status.ready(), Err("not registered with a control plane"));
        status.set_linked(true);
        status.set_linked(false);
        assert_eq!(status.ready(), Ok(()));
    }

    #[test]
    fn generated_tokens_count_from_the_first_look_over_restarts() {
        let status = status();
        for (counter, expected) in [(100, 0), (150, 50), (150, 50), (30, 80), (40, 90)] {
            status.observed(generated(counter), None);
            assert_eq!(status.report().generated_tokens, expected);
        }
    }
}
