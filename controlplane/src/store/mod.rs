//! The only place that knows SQL. Functions take a connection, so that callers decide what belongs to one transaction.

mod amounts;
pub(crate) mod audit;
pub(crate) mod billing;
pub(crate) mod charges;
pub(crate) mod config_log;
mod connect;
pub(crate) mod credit_notes;
pub(crate) mod edge_days;
pub(crate) mod edges;
pub(crate) mod invoices;
pub(crate) mod keys;
pub(crate) mod leader;
pub(crate) mod models;
pub(crate) mod node_ledger;
pub(crate) mod nodes;
pub(crate) mod organizations;
pub(crate) mod partitions;
pub(crate) mod performance;
pub(crate) mod prepaid;
pub(crate) mod prices;
pub(crate) mod purges;
pub(crate) mod recharges;
pub(crate) mod reconcile;
pub(crate) mod requests;
pub(crate) mod rollouts;
pub(crate) mod rollup;
pub(crate) mod routes;
pub(crate) mod routing;
pub(crate) mod shares;
pub(crate) mod stripe;
pub(crate) mod usage;
pub(crate) mod usage_ledger;
pub(crate) mod users;
pub(crate) mod versions;

pub(crate) use connect::{ConnectError, Store};
pub(crate) use sqlx::PgConnection;

/// An open transaction; rolled back unless committed.
pub(crate) type Tx = sqlx::Transaction<'static, sqlx::Postgres>;

/// What a query can end in, as far as callers treat it differently.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreError {
    /// The database does not answer, or asks to try again; nothing was changed.
    #[error("PostgreSQL does not answer: {0}")]
    Unavailable(String),
    /// A uniqueness, reference or check constraint refused the change.
    #[error("refused by constraint {constraint}")]
    Constraint {
        /// What kind of constraint.
        kind: ConstraintKind,
        /// Its name in the schema.
        constraint: String,
    },
    /// A value that the schema cannot hold.
    #[error("a value does not fit the schema: {0}")]
    BadValue(String),
    /// A stored row that this build does not understand.
    #[error("stored {what} is not understood: {reason}")]
    Corrupt {
        /// Table and key.
        what: String,
        /// What is wrong.
        reason: String,
    },
    /// Anything else is a defect.
    #[error("query failed: {0}")]
    Query(sqlx::Error),
}

/// Stands for the name of a constraint that has none.
const UNNAMED: &str = "unnamed";

/// Kinds of constraint that an operator's input can run into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ConstraintKind {
    /// The value is taken.
    Unique,
    /// Something that is referred to does not exist, or is still in use.
    Reference,
    /// The value is outside of what the column allows.
    Check,
}

impl StoreError {
    /// A stored row that cannot be understood.
    pub(crate) fn corrupt(what: impl Into<String>, reason: impl std::fmt::Display) -> Self {
        Self::Corrupt { what: what.into(), reason: reason.to_string() }
    }

    /// Whether it is for what the change says, so that trying again cannot help. Anything else may pass: a database that
    /// fell over to a replica, a full disk, a right or a column that is missing.
    pub(crate) fn is_about_values(&self) -> bool {
        match self {
            Self::BadValue(_) => true,
            // What has no partition is refused by a check without a name; a partition can be made.
            Self::Constraint { kind, constraint } => *kind != ConstraintKind::Unique && constraint != UNNAMED,
            Self::Unavailable(_) | Self::Corrupt { .. } | Self::Query(_) => false,
        }
    }
}

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        let sqlx::Error::Database(database) = &error else {
            return match error {
                sqlx::Error::Io(_)
                | sqlx::Error::Tls(_)
                | sqlx::Error::Protocol(_)
                | sqlx::Error::PoolTimedOut
                | sqlx::Error::PoolClosed
                | sqlx::Error::WorkerCrashed => Self::Unavailable(error.to_string()),
                other => Self::Query(other),
            };
        };
        let code = database.code().unwrap_or_default();
        let constraint =
            |kind| Self::Constraint { kind, constraint: database.constraint().unwrap_or(UNNAMED).to_owned() };
        match &*code {
            "23505" => constraint(ConstraintKind::Unique),
            "23503" => constraint(ConstraintKind::Reference),
            "23514" => constraint(ConstraintKind::Check),
            // 08 connection, 25006 read-only as after a failover, 40 serialization or deadlock, 53 resources, 55P03 lock
            // timeout, 57 shutting down or cancelled by a timeout, 58 disk: all pass with time.
            c if ["08", "25006", "40", "53", "55P03", "57", "58"].iter().any(|class| c.starts_with(class)) => {
                Self::Unavailable(database.message().to_owned())
            }
            c if c.starts_with("22") => Self::BadValue(database.message().to_owned()),
            _ => Self::Query(error),
        }
    }
}
