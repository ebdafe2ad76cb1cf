//! The ledger in ClickHouse.

mod compare;
mod gather;
mod migrations;
mod performance;
mod read;
mod rows;

pub(crate) use migrations::MigrationError;

use super::LedgerError;
use crate::metrics::Metrics;
use crate::store::performance::{Latencies, Minute};
use crate::store::reconcile::{By, Event, Sums};
use crate::store::requests::LoggedRequest;
use crate::store::rollup::HourSum;
use crate::store::usage::{Grouping, Known, Span, UsageRow, UsageSum};
use ::clickhouse::Client;
use chrono::{DateTime, NaiveDate, Utc};
use gather::Gatherer;
use rows::EventRow;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout};
use tracing::{info, warn};
use uuid::Uuid;

/// How long a start waits for ClickHouse.
const START_PATIENCE: Duration = Duration::from_secs(30);
/// Between attempts at start.
const START_RETRY: Duration = Duration::from_millis(500);

/// Where ClickHouse is and how it is used.
#[derive(Clone)]
pub(crate) struct Options {
    /// `http(s)://host:port`, without user and password.
    pub(crate) url: String,
    /// Who to be.
    pub(crate) user: Option<String>,
    /// With which password.
    pub(crate) password: Option<String>,
    /// Host and port, to be shown.
    pub(crate) target: String,
    /// Our own database.
    pub(crate) database: String,
    /// The cluster whose servers replicate the tables; `None` for a lone server.
    pub(crate) cluster: Option<String>,
    /// For how many days events are kept.
    pub(crate) keep_days: u32,
    /// Longest that an insert or a query may take.
    pub(crate) timeout: Duration,
}

impl std::fmt::Debug for Options {
    /// Without the password.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Options")
            .field("target", &self.target)
            .field("database", &self.database)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
impl Options {
    pub(crate) fn for_tests() -> Self {
        Self {
            url: "http://127.0.0.1:8123".to_owned(),
            user: None,
            password: None,
            target: "127.0.0.1:8123".to_owned(),
            database: "turnpike".to_owned(),
            cluster: None,
            keep_days: 400,
            timeout: Duration::from_secs(10),
        }
    }
}

/// Why ClickHouse cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectError {
    /// Nobody answered.
    #[error("clickhouse.url: no ClickHouse answers at {target} within {} s: {reason}", START_PATIENCE.as_secs())]
    Unreachable {
        /// Host and port.
        target: String,
        /// The last attempt's error.
        reason: String,
    },
    /// The schema could not be brought up to date.
    #[error("migrating ClickHouse at {target}: {source}")]
    Migrate {
        /// Host and port.
        target: String,
        /// Why.
        source: MigrationError,
    },
}

/// A handle to the server.
#[derive(Debug)]
pub(crate) struct ClickHouse {
    identity: Uuid,
    reader: read::Reader,
    gatherer: Gatherer,
}

impl ClickHouse {
    /// Connects, waiting up to 30 s for the server, and brings the schema up to date. The caller sees to it that no other
    /// control plane does so at the same time.
    pub(crate) async fn open(options: &Options, metrics: Arc<Metrics>) -> Result<Self, ConnectError> {
        let client = client(options);
        wait_until_reachable(&client, options).await?;
        let migrated = migrations::migrate(&client, options).await;
        let identity = migrated.map_err(|source| ConnectError::Migrate { target: options.target.clone(), source })?;
        let client = client.with_database(&options.database);
        let reader = read::Reader::new(client.clone(), options);
        Ok(Self { identity, reader, gatherer: Gatherer::start(client, options, metrics) })
    }

    /// Inserts events, together with other edges'.
    pub(super) async fn write(&self, rows: &[UsageRow], known: &Known) -> Result<(), LedgerError> {
        if rows.is_empty() {
            return Ok(());
        }
        self.gatherer.insert(rows.iter().map(|row| EventRow::new(row, known)).collect()).await
    }

    /// Inserts what the request log has, beside what edges ship.
    pub(crate) async fn copy(&self, requests: &[LoggedRequest]) -> Result<(), LedgerError> {
        self.gatherer.insert_apart(&requests.iter().map(EventRow::from).collect::<Vec<_>>()).await
    }

    /// What tells this ledger from any other: one that was made anew is another one.
    pub(crate) const fn identity(&self) -> Uuid {
        self.identity
    }

    pub(super) async fn hour_sums(&self, hours: &[DateTime<Utc>]) -> Result<Vec<HourSum>, LedgerError> {
        self.reader.hour_sums(hours).await
    }

    pub(super) async fn key_sums(
        &self,
        grouping: Grouping,
        span: Span,
        limit: i64,
    ) -> Result<Vec<UsageSum>, LedgerError> {
        self.reader.key_sums(grouping, span, limit).await
    }
}

impl ClickHouse {
    pub(super) async fn sums_by(&self, by: By, day: NaiveDate) -> Result<Vec<(String, Sums)>, LedgerError> {
        self.reader.sums_by(by, day).await
    }

    pub(super) async fn events(&self, span: &Range<DateTime<Utc>>) -> Result<Vec<Event>, LedgerError> {
        self.reader.events(span).await
    }

    pub(super) async fn latencies(&self, minute: DateTime<Utc>) -> Result<Vec<Latencies>, LedgerError> {
        self.reader.latencies(minute).await
    }

    pub(super) async fn put_performance(&self, minutes: &[Minute]) -> Result<(), LedgerError> {
        self.reader.put_performance(minutes).await
    }

    pub(super) async fn performance(
        &self,
        model: &str,
        from: DateTime<Utc>,
        limit: i64,
    ) -> Result<Vec<Minute>, LedgerError> {
        self.reader.performance(model, from, limit).await
    }
}

fn client(options: &Options) -> Client {
    let mut client = Client::default().with_url(&options.url);
    if let Some(user) = &options.user {
        client = client.with_user(user);
    }
    if let Some(password) = &options.password {
        client = client.with_password(password);
    }
    if options.cluster.is_some() {
        // On a cluster, acknowledged means that most replicas have it, and whoever reads sees all that was acknowledged.
        // Sequential consistency holds only where quorum inserts follow each other.
        for (setting, value) in
            [("insert_quorum", "auto"), ("insert_quorum_parallel", "0"), ("select_sequential_consistency", "1")]
        {
            client = client.with_setting(setting, value);
        }
    }
    client
}

async fn wait_until_reachable(client: &Client, options: &Options) -> Result<(), ConnectError> {
    let target = &options.target;
    let deadline = Instant::now() + START_PATIENCE;
    loop {
        let asked = timeout(options.timeout, client.query("SELECT 1").fetch_one::<u8>()).await;
        let reason = match asked {
            Ok(Ok(_)) => {
                info!(target, "ClickHouse answers");
                return Ok(());
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => "no answer".to_owned(),
        };
        if Instant::now() >= deadline {
            return Err(ConnectError::Unreachable { target: target.clone(), reason });
        }
        warn!(target, reason, "ClickHouse (clickhouse.url) does not answer yet; trying again");
        sleep(START_RETRY).await;
    }
}
