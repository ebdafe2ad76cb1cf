//! Looks at the engine and the GPUs, again and again, one look at a time.

use crate::engine::{Engine, EngineError};
use crate::gpu::Gpus;
use crate::metrics::Metrics;
use crate::status::Status;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use turnpike_config::NodeState;

/// Looks until `stop`: every `every`, each look given up after `deadline`. A slow look delays the next one.
pub(crate) async fn run(
    engine: Arc<dyn Engine>,
    gpus: Arc<Gpus>,
    status: Arc<Status>,
    metrics: Arc<Metrics>,
    (every, deadline): (Duration, Duration),
    stop: CancellationToken,
) {
    let mut ticks = tokio::time::interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = ticks.tick() => {}
        }
        let look = async {
            let load =
                tokio::time::timeout(deadline, engine.observe()).await.unwrap_or(Err(EngineError::Timeout(deadline)));
            // The driver may block; never on a thread that serves requests.
            let gpus = Arc::clone(&gpus);
            (load, tokio::task::spawn_blocking(move || gpus.sample()).await.unwrap_or(None))
        };
        let (load, gpu) = tokio::select! {
            () = stop.cancelled() => return,
            seen = look => seen,
        };
        let before = status.state();
        match load {
            Ok(load) => {
                status.observed(load, gpu);
                if before == NodeState::Unhealthy {
                    tracing::info!(engine = engine.kind(), "the engine is ready");
                }
            }
            Err(error) => {
                metrics.probe_failed();
                status.probe_failed();
                tracing::debug!(engine = engine.kind(), %error, "a look at the engine failed");
                if before != status.state() {
                    tracing::error!(engine = engine.kind(), %error, "the engine is unhealthy");
                }
            }
        }
    }
}
