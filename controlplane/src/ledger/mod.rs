//! The ledger: where usage events are durable, each counted once by its id.
//!
//! Either the request log in PostgreSQL, or ClickHouse where one is set. What is acknowledged to an edge is in the ledger,
//! and what is billed is summed from it.

mod clickhouse;
mod retention;
#[cfg(test)]
mod tests;

pub(crate) use clickhouse::{ClickHouse, ConnectError, Options};
pub(crate) use retention::Retention;

use crate::store::performance::{self, Latencies, Minute};
use crate::store::reconcile::{self, By, Event, Sums};
use crate::store::rollup::{self, HourSum};
use crate::store::usage::{Grouping, Known, Span, UsageRow, UsageSum};
use crate::store::{PgConnection, StoreError, usage, usage_ledger};
use chrono::{DateTime, NaiveDate, NaiveTime, TimeDelta, Utc};
use std::ops::Range;

/// Why the ledger could not be written to or read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LedgerError {
    /// ClickHouse does not answer, or refuses. What was written may be there or not: writing it again is safe.
    #[error("ClickHouse at {target}: {reason}")]
    ClickHouse {
        /// Host and port, without user and password.
        target: String,
        /// What happened.
        reason: String,
    },
    /// It does not have all of what is asked for yet.
    #[error(
        "usage from before {0} is still being copied from PostgreSQL into ClickHouse, the newest first; how far that is \
         stands in the control plane's log"
    )]
    Copying(DateTime<Utc>),
    /// PostgreSQL.
    #[error(transparent)]
    Postgres(#[from] StoreError),
}

/// Which it is.
#[derive(Debug)]
pub(crate) enum Ledger {
    /// The request log, `inference_requests`: complete.
    Postgres,
    /// `request_analytics`. The request log is for customers to look at, and need not be complete.
    ClickHouse(Box<ClickHouse>),
}

impl Ledger {
    /// Makes events durable where that is not part of the transaction that acknowledges them. `known` says which of the
    /// keys and models exist; all organizations do.
    pub(crate) async fn write(&self, rows: &[UsageRow], known: &Known) -> Result<(), LedgerError> {
        match self {
            Self::Postgres => Ok(()),
            Self::ClickHouse(clickhouse) => clickhouse.write(rows, known).await,
        }
    }

    /// From when on it has all events; `None`: from its beginning on. What was in the request log when ClickHouse became
    /// the ledger is copied there.
    pub(crate) async fn is_whole_from(
        &self,
        connection: &mut PgConnection,
    ) -> Result<Option<DateTime<Utc>>, StoreError> {
        match self {
            Self::Postgres => Ok(None),
            Self::ClickHouse(_) => {
                let reached = usage_ledger::reached(connection).await?;
                Ok(reached.map(|reached| rollup::hour_of(reached.at) + TimeDelta::hours(1)))
            }
        }
    }

    /// Refuses to answer of a time that it does not have whole.
    async fn check_whole(&self, connection: &mut PgConnection, from: DateTime<Utc>) -> Result<(), LedgerError> {
        match self.is_whole_from(connection).await? {
            Some(whole_from) if from < whole_from => Err(LedgerError::Copying(whole_from)),
            _ => Ok(()),
        }
    }

    /// What the events of these hours (ascending) add up to. `connection` sees at least what was acknowledged before its
    /// latest statement.
    pub(crate) async fn hour_sums(
        &self,
        connection: &mut PgConnection,
        hours: &[DateTime<Utc>],
    ) -> Result<Vec<HourSum>, LedgerError> {
        match self {
            Self::Postgres => Ok(rollup::sum_log(connection, hours).await?),
            Self::ClickHouse(clickhouse) => clickhouse.hour_sums(hours).await,
        }
    }

    /// Usage by key, which is only in the events: at most `limit` groups, in the order of the groups.
    pub(crate) async fn key_sums(
        &self,
        connection: &mut PgConnection,
        grouping: Grouping,
        span: Span,
        limit: i64,
    ) -> Result<Vec<UsageSum>, LedgerError> {
        self.check_whole(connection, span.from.and_time(NaiveTime::MIN).and_utc()).await?;
        match self {
            Self::Postgres => Ok(usage::sums_by_key(connection, grouping, span, limit).await?),
            Self::ClickHouse(clickhouse) => clickhouse.key_sums(grouping, span, limit).await,
        }
    }

    /// What a day's events add up to, to be compared with other books; in no order.
    pub(crate) async fn sums_by(
        &self,
        connection: &mut PgConnection,
        by: By,
        day: NaiveDate,
    ) -> Result<Vec<(String, Sums)>, LedgerError> {
        self.check_whole(connection, day.and_time(NaiveTime::MIN).and_utc()).await?;
        match self {
            Self::Postgres => Ok(reconcile::sum_log(connection, by, day).await?),
            Self::ClickHouse(clickhouse) => clickhouse.sums_by(by, day).await,
        }
    }

    /// All events from a span of time, in whole seconds, as far as nodes know of them.
    pub(crate) async fn events(
        &self,
        connection: &mut PgConnection,
        span: &Range<DateTime<Utc>>,
    ) -> Result<Vec<Event>, LedgerError> {
        match self {
            Self::Postgres => Ok(reconcile::events(connection, span).await?),
            Self::ClickHouse(clickhouse) => clickhouse.events(span).await,
        }
    }

    /// What the events of the minute that begins at `minute` say of models on nodes.
    pub(crate) async fn latencies(
        &self,
        connection: &mut PgConnection,
        minute: DateTime<Utc>,
    ) -> Result<Vec<Latencies>, LedgerError> {
        match self {
            Self::Postgres => Ok(performance::latencies(connection, minute).await?),
            Self::ClickHouse(clickhouse) => clickhouse.latencies(minute).await,
        }
    }

    /// Writes how nodes did; what is there is replaced. What is older than `oldest` may be removed.
    pub(crate) async fn put_performance(
        &self,
        connection: &mut PgConnection,
        minutes: &[Minute],
        oldest: DateTime<Utc>,
    ) -> Result<(), LedgerError> {
        match self {
            Self::Postgres => Ok(performance::put(connection, minutes, oldest).await?),
            Self::ClickHouse(clickhouse) => clickhouse.put_performance(minutes).await,
        }
    }

    /// How a model did since `from`, at most `limit` minutes of nodes, the newest first.
    pub(crate) async fn performance(
        &self,
        connection: &mut PgConnection,
        model: &str,
        from: DateTime<Utc>,
        limit: i64,
    ) -> Result<Vec<Minute>, LedgerError> {
        match self {
            Self::Postgres => Ok(performance::list(connection, model, from, limit).await?),
            Self::ClickHouse(clickhouse) => clickhouse.performance(model, from, limit).await,
        }
    }
}
