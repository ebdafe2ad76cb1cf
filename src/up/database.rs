//! Keeps the private PostgreSQL running.

use anyhow::Context as _;
use std::path::Path;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::JoinHandle;
use std::time::Duration;
use tracing::{error, info, warn};
use turnpike_parts::postgres::Postgres;

/// Between two looks at whether it still runs; also the pause before a restart that failed is tried again.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// The database in it.
const DATABASE: &str = "turnpike";

/// The running server and the thread that watches it.
pub(super) struct Database {
    /// How to connect to it; stays the same over restarts.
    pub(super) url: String,
    // Dropping it tells the thread to stop the server.
    stop: mpsc::Sender<()>,
    watcher: JoinHandle<()>,
}

impl Database {
    /// Starts the server on the data in `directory`. Blocks: a first start takes seconds.
    pub(super) fn start(directory: &Path) -> anyhow::Result<Self> {
        let postgres = Postgres::start_persistent(directory).context("starting PostgreSQL")?;
        let url = postgres.ensure_database(DATABASE).context("creating the database")?;
        info!(data = %postgres.data_directory().display(), "PostgreSQL started");
        let (stop, stopped) = mpsc::channel();
        let watch = move || watch(postgres, &stopped);
        let watcher = std::thread::Builder::new().name("postgres".to_owned()).spawn(watch)?;
        Ok(Self { url, stop, watcher })
    }

    /// Stops the server after its last checkpoint. Blocks.
    pub(super) fn stop(self) {
        drop(self.stop);
        if self.watcher.join().is_err() {
            error!("PostgreSQL's watcher crashed");
        }
    }
}

fn watch(mut postgres: Postgres, stopped: &mpsc::Receiver<()>) {
    while stopped.recv_timeout(LOOK_EVERY) == Err(RecvTimeoutError::Timeout) {
        if postgres.is_running() {
            continue;
        }
        warn!("PostgreSQL died; restarting it");
        match postgres.restart() {
            Ok(()) => info!("PostgreSQL is back"),
            Err(e) => error!(error = %e, "PostgreSQL did not come back; trying again"),
        }
    }
    if postgres.stop() {
        info!("PostgreSQL stopped");
    } else {
        warn!("PostgreSQL did not stop in time and was killed; it recovers at the next start");
    }
}
