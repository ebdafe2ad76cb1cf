//! The connection pool: made once, patient at start, impatient afterwards.

use super::{StoreError, Tx};
use sqlx::migrate::{MigrateError, Migrator};
use sqlx::postgres::{PgConnectOptions, PgListener, PgPoolOptions};
use sqlx::{ConnectOptions as _, Connection as _, PgPool};
use std::str::FromStr as _;
use std::time::Duration;
use tokio::time::{Instant, sleep};
use tracing::{info, warn};

static MIGRATIONS: Migrator = sqlx::migrate!("../migrations/postgres");

/// How long a start waits for PostgreSQL.
const START_PATIENCE: Duration = Duration::from_secs(30);
/// Between attempts at start.
const START_RETRY: Duration = Duration::from_millis(500);
/// How long a query waits for a connection: short, so that an outage shows as an error and not as a pile of waiters.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(3);
/// Longest statement, milliseconds; the database cancels what is over.
const STATEMENT_TIMEOUT_MS: &str = "30000";
/// Longest wait for a lock, milliseconds.
const LOCK_TIMEOUT_MS: &str = "10000";
/// For what may take as long as it takes: migrations of large tables, and waiting for another control plane's.
const NO_TIMEOUT: &str = "0";
/// A client that lost its power is noticed after a minute, and its locks are given back: seconds until it is first asked,
/// between questions, and how many it may leave without an answer.
const KEEPALIVE: [(&str, &str); 3] =
    [("tcp_keepalives_idle", "30"), ("tcp_keepalives_interval", "10"), ("tcp_keepalives_count", "3")];
/// Key of the advisory lock under which ClickHouse is migrated («ch_schem» in ASCII).
const MIGRATION_LOCK: i64 = 0x6368_5f73_6368_656d;
/// The channel on which a committed config change is announced.
pub(super) const CONFIG_CHANNEL: &str = "turnpike_config";

/// Why the database cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectError {
    /// The URL is no PostgreSQL URL.
    #[error("postgres.url is not usable: {0}")]
    Url(String),
    /// Nobody answered.
    #[error("postgres.url: no PostgreSQL answers at {target} within {} s: {reason}", START_PATIENCE.as_secs())]
    Unreachable {
        /// Host, port and database, without user and password.
        target: String,
        /// The last attempt's error.
        reason: String,
    },
    /// The schema could not be brought up to date.
    #[error("migrating the database at {target}: {reason}")]
    Migrate {
        /// Host, port and database.
        target: String,
        /// Which migration and why.
        reason: String,
    },
}

/// A handle to the database; clones share the pool.
#[derive(Clone, Debug)]
pub(crate) struct Store {
    pool: PgPool,
}

impl Store {
    /// Connects, waiting up to 30 s for the server, and brings the schema up to date.
    pub(crate) async fn open(url: &str, max_connections: u32) -> Result<Self, ConnectError> {
        let options = PgConnectOptions::from_str(url)
            .map_err(|e| ConnectError::Url(e.to_string()))?
            .application_name("turnpike-controlplane")
            .options([("timezone", "UTC")])
            .options(KEEPALIVE);
        let timeouts = |statement, lock| [("statement_timeout", statement), ("lock_timeout", lock)];
        let migrating = options.clone().options(timeouts(NO_TIMEOUT, NO_TIMEOUT));
        let options = options.options(timeouts(STATEMENT_TIMEOUT_MS, LOCK_TIMEOUT_MS));
        let host = options.get_socket().map_or(options.get_host().to_owned(), |socket| socket.display().to_string());
        let database = options.get_database().unwrap_or(options.get_username());
        let target = format!("{host}:{}/{database}", options.get_port());
        let pool = PgPoolOptions::new()
            .max_connections(max_connections)
            .acquire_timeout(ACQUIRE_TIMEOUT)
            .connect_lazy_with(options);
        let store = Self { pool };
        store.wait_until_reachable(&target).await?;
        migrate(&migrating).await.map_err(|e| ConnectError::Migrate { target, reason: e.to_string() })?;
        Ok(store)
    }

    async fn wait_until_reachable(&self, target: &str) -> Result<(), ConnectError> {
        let deadline = Instant::now() + START_PATIENCE;
        loop {
            let Err(error) = self.ping().await else {
                info!(target, "PostgreSQL answers");
                return Ok(());
            };
            if Instant::now() >= deadline {
                return Err(ConnectError::Unreachable { target: target.to_owned(), reason: error.to_string() });
            }
            warn!(target, %error, "PostgreSQL (postgres.url) does not answer yet; trying again");
            sleep(START_RETRY).await;
        }
    }

    /// Whether the database answers now.
    pub(crate) async fn ping(&self) -> Result<(), StoreError> {
        sqlx::query("SELECT 1").execute(&self.pool).await?;
        Ok(())
    }

    /// Starts a transaction at the default isolation level (READ COMMITTED).
    pub(crate) async fn begin(&self) -> Result<Tx, StoreError> {
        Ok(self.pool.begin().await?)
    }

    /// Starts a transaction that sees one moment of the database.
    pub(crate) async fn begin_snapshot(&self) -> Result<Tx, StoreError> {
        Ok(self.pool.begin_with("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await?)
    }

    /// Waits for the right to migrate what has no lock of its own; held until what is returned is dropped.
    pub(crate) async fn lock_migrations(&self) -> Result<Tx, StoreError> {
        let mut tx = self.begin().await?;
        // Another control plane's migrations may take longer than any other statement.
        sqlx::query("SET LOCAL lock_timeout = 0").execute(&mut *tx).await?;
        sqlx::query("SET LOCAL statement_timeout = 0").execute(&mut *tx).await?;
        sqlx::query("SELECT pg_advisory_xact_lock($1)").bind(MIGRATION_LOCK).execute(&mut *tx).await?;
        Ok(tx)
    }

    /// A connection for reads outside of any transaction.
    pub(crate) async fn read(&self) -> Result<sqlx::pool::PoolConnection<sqlx::Postgres>, StoreError> {
        Ok(self.pool.acquire().await?)
    }

    /// Subscribes to announcements of config changes, also those made by another control plane.
    pub(crate) async fn announcements(&self) -> Result<Announcements, StoreError> {
        let mut listener = PgListener::connect_with(&self.pool).await?;
        listener.listen(CONFIG_CHANNEL).await?;
        Ok(Announcements(listener))
    }

    /// Closes all connections.
    pub(crate) async fn close(&self) {
        self.pool.close().await;
    }
}

/// Brings the schema up to date over a connection of its own, which is never cut short.
async fn migrate(options: &PgConnectOptions) -> Result<(), MigrateError> {
    let mut connection = options.connect().await?;
    MIGRATIONS.run(&mut connection).await?;
    // What is done is done, whether or not the server hears the farewell.
    let _ = connection.close().await;
    Ok(())
}

/// Announcements of config changes.
pub(crate) struct Announcements(PgListener);

impl Announcements {
    /// Waits for the next one. An error means that some may have been missed.
    pub(crate) async fn next(&mut self) -> Result<(), StoreError> {
        self.0.recv().await?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use turnpike_parts::postgres::Postgres;

    #[tokio::test]
    async fn statements_are_bounded_and_a_peer_that_is_gone_is_noticed() {
        let url = tokio::task::spawn_blocking(|| Postgres::shared_temporary().unwrap().fresh_database().unwrap());
        let store = Store::open(&url.await.unwrap(), 1).await.unwrap();
        let expected = [("statement_timeout", STATEMENT_TIMEOUT_MS), ("lock_timeout", LOCK_TIMEOUT_MS)];
        for (setting, value) in expected.into_iter().chain(KEEPALIVE) {
            // As the session began: over a Unix socket, the keepalives in effect are shown as 0.
            let found: String = sqlx::query_scalar("SELECT reset_val FROM pg_settings WHERE name = $1")
                .bind(setting)
                .fetch_one(&mut *store.read().await.unwrap())
                .await
                .unwrap();
            assert_eq!(found, value, "{setting}");
        }
    }
}
