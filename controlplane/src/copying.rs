//! Copying the request log into ClickHouse, where that has become the ledger of a deployment that kept usage in PostgreSQL.
//!
//! The newest first, since that is what requests and late events are of: hours that are not whole there yet are not summed
//! anew, and edges are served all the while. An event is copied under its own id, so that it counts once however often that
//! is; how far it is stands in the database, and whoever starts next goes on from there.

use crate::context::Context;
use crate::ledger::{ClickHouse, Ledger, LedgerError, Retention};
use crate::store::usage_ledger::{self, Reached};
use crate::store::{Store, StoreError, leader, requests};
use chrono::Utc;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use turnpike_config::crash_point;

/// Requests of one insert, which bounds the memory.
const BATCH: i64 = 10_000;
/// Between two words in the log.
const SAY_EVERY: Duration = Duration::from_secs(10);
/// After a failure, and while another control plane copies.
const RETRY: Duration = Duration::from_secs(1);

/// Copies what is to be copied, if anything is, until that is done or it is stopped.
pub(crate) async fn run(context: Arc<Context>, retention: Retention, stop: CancellationToken) {
    let Ledger::ClickHouse(clickhouse) = &*context.ledger else { return };
    let mut progress = Progress::default();
    let copying = async {
        while let Err(error) = copy_all(&context, clickhouse, retention, &mut progress).await {
            warn!(%error, "usage could not be copied from PostgreSQL into ClickHouse; trying again");
            sleep(RETRY).await;
        }
    };
    tokio::select! {
        () = stop.cancelled() => {}
        () = copying => {}
    }
}

/// What was done, for the log.
struct Progress {
    copied: usize,
    began: Instant,
    said: Instant,
}

impl Default for Progress {
    fn default() -> Self {
        let now = Instant::now();
        Self { copied: 0, began: now, said: now }
    }
}

async fn copy_all(
    context: &Context,
    clickhouse: &ClickHouse,
    retention: Retention,
    progress: &mut Progress,
) -> Result<(), LedgerError> {
    let identity = clickhouse.identity();
    loop {
        let reached = usage_ledger::reached(&mut *context.store.read().await?).await?;
        let Some(reached) = reached.filter(|reached| reached.clickhouse == identity) else { return Ok(()) };
        let Some(leading) = leader::try_lead(&context.store, leader::COPYING).await? else {
            sleep(RETRY).await;
            continue;
        };
        let mut next = Some(reached);
        while let Some(reached) = next {
            next = copy_some(context, clickhouse, retention, reached, progress).await?;
            context.rollup.nudge();
        }
        info!(requests = progress.copied, took = ?progress.began.elapsed(), "usage is all in ClickHouse");
        leading.end().await?;
    }
}

/// One insert. Gives how far it has come; `None` if that was all.
async fn copy_some(
    context: &Context,
    clickhouse: &ClickHouse,
    retention: Retention,
    reached: Reached,
    progress: &mut Progress,
) -> Result<Option<Reached>, LedgerError> {
    // Older ones would be forgotten at once.
    let from = retention.holds_from(Utc::now());
    let mut connection = context.store.read().await?;
    let requests = requests::before(&mut connection, from, (reached.at, reached.id), BATCH).await?;
    drop(connection);
    let to = requests.last().map(|last| Reached { at: last.created_at, id: last.id, ..reached });
    if !requests.is_empty() {
        clickhouse.copy(&requests).await?;
        crash_point("control.copy");
    }
    let note = to.map(|to| (to.at, to.id));
    usage_ledger::note(&mut *context.store.read().await?, reached.clickhouse, note).await?;
    progress.copied += requests.len();
    if let Some(to) = to.filter(|_| progress.said.elapsed() >= SAY_EVERY) {
        progress.said = Instant::now();
        info!(requests = progress.copied, down_to = %to.at, from = %from, "copying usage from PostgreSQL into ClickHouse");
    }
    Ok(to)
}

/// Notes which ledger is the one, before anything is written to it.
///
/// # Errors
/// The database refuses or does not answer.
pub(crate) async fn switch(ledger: &Ledger, store: &Store) -> Result<(), StoreError> {
    let identity = match ledger {
        Ledger::Postgres => None,
        Ledger::ClickHouse(clickhouse) => Some(clickhouse.identity()),
    };
    usage_ledger::switch(store, identity).await
}
