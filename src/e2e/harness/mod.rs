//! Starts what is tested, and asks it questions.

mod admin;
mod fleet;
mod http;
mod process;
mod up;

pub(crate) use admin::Admin;
pub(crate) use fleet::{Fleet, MODEL, free_port};
pub(crate) use http::{Reply, chat_body, get, post, send, send_with};
pub(crate) use process::{Process, descendants, python, python_path, turnpike};
pub(crate) use up::Up;

use std::time::{Duration, Instant};

/// Long enough for anything here on a busy machine; a test that waits this long has failed.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
const BETWEEN_PROBES: Duration = Duration::from_millis(25);

/// Asks again and again until the answer is good, or fails with the last bad one.
pub(crate) async fn eventually<T>(what: &str, mut probe: impl AsyncFnMut() -> Result<T, String>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match probe().await {
            Ok(found) => return found,
            Err(reason) if Instant::now() > deadline => panic!("{what}: not within {PATIENCE:?}: {reason}"),
            Err(_) => tokio::time::sleep(BETWEEN_PROBES).await,
        }
    }
}
