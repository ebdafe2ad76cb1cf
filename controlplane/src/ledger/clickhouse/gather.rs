//! Gathering what several edges ship into one insert: ClickHouse wants few large ones.
//!
//! An edge has one batch on its way and waits for its acknowledgement. So when nothing has come for a moment, everybody who
//! has something waits already, and waiting longer would only make it later.

use super::Options;
use super::rows::{EventRow, token};
use crate::ledger::LedgerError;
use crate::metrics::Metrics;
use ::clickhouse::Client;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep, timeout, timeout_at};

/// So many rows are worth an insert.
const ENOUGH_ROWS: usize = 10_000;
/// Longest that a batch waits for others.
const LONGEST: Duration = Duration::from_secs(1);
/// When nothing has come for this long, nothing more is expected.
const QUIET: Duration = Duration::from_millis(20);
/// Small inserts begin at least this far apart.
const PACE: Duration = Duration::from_millis(100);
/// So often the same insert is tried before its batches are given back; with the same token, should it have been stored.
const ATTEMPTS: u32 = 3;
/// Between two attempts.
const RETRY: Duration = Duration::from_millis(200);
/// Deliveries that wait to be gathered; more make their senders wait.
const INBOX: usize = 256;

struct Delivery {
    rows: Vec<EventRow>,
    done: oneshot::Sender<Result<(), String>>,
}

/// The way to the task that inserts.
#[derive(Debug)]
pub(super) struct Gatherer {
    inbox: mpsc::Sender<Delivery>,
    inserter: Arc<Inserter>,
    target: String,
}

impl Gatherer {
    /// Starts the task; it ends once this is dropped and everything has been answered.
    pub(super) fn start(client: Client, options: &Options, metrics: Arc<Metrics>) -> Self {
        let (inbox, deliveries) = mpsc::channel(INBOX);
        let target = options.target.clone();
        let inserter = Arc::new(Inserter { client, timeout: options.timeout, metrics });
        tokio::spawn(run(Arc::clone(&inserter), deliveries));
        Self { inbox, inserter, target }
    }

    /// Inserts rows together with others'. Once this returns without an error, they are durable.
    pub(super) async fn insert(&self, rows: Vec<EventRow>) -> Result<(), LedgerError> {
        let failed = |reason| LedgerError::ClickHouse { target: self.target.clone(), reason };
        let gone = || failed("shutting down".to_owned());
        let (done, answer) = oneshot::channel();
        self.inbox.send(Delivery { rows, done }).await.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?.map_err(failed)
    }

    /// Inserts rows by themselves, so that nobody else's wait for them.
    pub(super) async fn insert_apart(&self, rows: &[EventRow]) -> Result<(), LedgerError> {
        let failed = |reason| LedgerError::ClickHouse { target: self.target.clone(), reason };
        self.inserter.insert(rows).await.map_err(failed)
    }
}

async fn run(inserter: Arc<Inserter>, mut deliveries: mpsc::Receiver<Delivery>) {
    let mut last_began = Instant::now();
    while let Some(first) = deliveries.recv().await {
        let came = Instant::now();
        let mut count = first.rows.len();
        let mut gathered = vec![first];
        while count < ENOUGH_ROWS {
            let until = (came + LONGEST).min((Instant::now() + QUIET).max(last_began + PACE));
            let Ok(Some(next)) = timeout_at(until, deliveries.recv()).await else { break };
            count += next.rows.len();
            gathered.push(next);
        }
        last_began = Instant::now();
        let (rows, done): (Vec<_>, Vec<_>) =
            gathered.into_iter().map(|delivery| (delivery.rows, delivery.done)).unzip();
        let rows: Vec<EventRow> = rows.into_iter().flatten().collect();
        let result = inserter.insert(&rows).await;
        for done in done {
            // Who does not wait any more has lost its link, and will ship again.
            let _ = done.send(result.clone());
        }
    }
}

#[derive(Debug)]
struct Inserter {
    client: Client,
    timeout: Duration,
    metrics: Arc<Metrics>,
}

impl Inserter {
    async fn insert(&self, rows: &[EventRow]) -> Result<(), String> {
        let token = token(rows.iter());
        let mut attempt = 1;
        loop {
            let reason = match timeout(self.timeout, self.attempt(rows, &token)).await {
                Ok(Ok(())) => {
                    self.metrics.insert_rows.observe(rows.len() as f64);
                    return Ok(());
                }
                Ok(Err(error)) => error.to_string(),
                Err(_) => format!("no answer within {:?}", self.timeout),
            };
            if attempt == ATTEMPTS {
                return Err(reason);
            }
            attempt += 1;
            sleep(RETRY).await;
        }
    }

    async fn attempt(&self, rows: &[EventRow], token: &str) -> Result<(), ::clickhouse::error::Error> {
        let insert = self.client.insert::<EventRow>("request_analytics").await?;
        let mut insert = insert
            .with_setting("insert_deduplication_token", token)
            // Acknowledged when stored, not when buffered, whatever the server's own settings are.
            .with_setting("async_insert", "0")
            .with_setting("wait_end_of_query", "1");
        for row in rows {
            insert.write(row).await?;
        }
        insert.end().await
    }
}
