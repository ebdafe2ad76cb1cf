//! Monthly partitions of `inference_requests`, `usage_records` and `node_ledger`, named `TABLE_yYYYYmMM`, in UTC.

use super::{PgConnection, StoreError};
use chrono::{DateTime, Datelike as _, NaiveDate, NaiveTime, Utc};
use sqlx::AssertSqlSafe;

/// Key of the advisory lock under which partitions are made and retired («partitio» in ASCII).
const PARTITION_LOCK: i64 = 0x7061_7274_6974_696f;

/// A table that is partitioned by month.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Partitioned {
    /// One row per request; old months are retired.
    InferenceRequests,
    /// One row per organization, model and day; kept for ever.
    UsageRecords,
    /// One row per event and node that worked on it; old months are retired.
    NodeLedger,
}

impl Partitioned {
    /// All of them.
    pub(crate) const ALL: [Self; 3] = [Self::InferenceRequests, Self::UsageRecords, Self::NodeLedger];
    /// Those of which old months are retired.
    pub(crate) const RETIRED: [Self; 2] = [Self::InferenceRequests, Self::NodeLedger];

    const fn table(self) -> &'static str {
        match self {
            Self::InferenceRequests => "inference_requests",
            Self::UsageRecords => "usage_records",
            Self::NodeLedger => "node_ledger",
        }
    }

    /// Where a month begins, as the table's partition column is written.
    fn bound(self, month: Month) -> String {
        match self {
            Self::InferenceRequests => format!("{:04}-{:02}-01 00:00:00+00", month.year(), month.month()),
            Self::UsageRecords | Self::NodeLedger => format!("{:04}-{:02}-01", month.year(), month.month()),
        }
    }

    fn partition(self, month: Month) -> String {
        format!("{}_y{:04}m{:02}", self.table(), month.year(), month.month())
    }
}

/// A calendar month in UTC, counted from January of year 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Month(i32);

impl Month {
    /// The month that a moment falls in.
    pub(crate) fn of(moment: DateTime<Utc>) -> Self {
        Self::of_day(moment.date_naive())
    }

    /// The month of a day.
    pub(crate) fn of_day(day: NaiveDate) -> Self {
        let month = i32::try_from(day.month0()).unwrap_or_default();
        Self(day.year() * 12 + month)
    }

    /// The moment it begins.
    pub(crate) fn start(self) -> DateTime<Utc> {
        self.first_day().and_time(NaiveTime::MIN).and_utc()
    }

    /// `months` later, or earlier if negative.
    pub(crate) const fn plus(self, months: i32) -> Self {
        Self(self.0.saturating_add(months))
    }

    /// The day it begins with.
    pub(crate) fn first_day(self) -> NaiveDate {
        NaiveDate::from_ymd_opt(self.year(), self.month().unsigned_abs(), 1).unwrap_or_default()
    }

    /// `year × 100 + month`, such as 202601.
    pub(crate) const fn number(self) -> u32 {
        self.year().unsigned_abs() * 100 + self.month().unsigned_abs()
    }

    const fn year(self) -> i32 {
        self.0.div_euclid(12)
    }

    const fn month(self) -> i32 {
        self.0.rem_euclid(12) + 1
    }

    fn from_partition_name(name: &str, table: &str) -> Option<Self> {
        let (year, month) = name.strip_prefix(table)?.strip_prefix("_y")?.split_once('m')?;
        let (year, month): (i32, i32) = (year.parse().ok()?, month.parse().ok()?);
        (1..=12).contains(&month).then_some(Self(year * 12 + month - 1))
    }
}

impl std::fmt::Display for Month {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:04}-{:02}", self.year(), self.month())
    }
}

/// Waits for the right to make and retire partitions; held until the transaction ends.
pub(crate) async fn lock(connection: &mut PgConnection) -> Result<(), StoreError> {
    sqlx::query("SELECT pg_advisory_xact_lock($1)").bind(PARTITION_LOCK).execute(connection).await?;
    Ok(())
}

/// The months that a table has a partition for, in order.
pub(crate) async fn months(connection: &mut PgConnection, table: Partitioned) -> Result<Vec<Month>, StoreError> {
    let names: Vec<String> = sqlx::query_scalar(
        "SELECT child.relname::text FROM pg_inherits
             JOIN pg_class child ON child.oid = pg_inherits.inhrelid
         WHERE pg_inherits.inhparent = $1::text::regclass ORDER BY 1",
    )
    .bind(table.table())
    .fetch_all(connection)
    .await?;
    Ok(names.iter().filter_map(|name| Month::from_partition_name(name, table.table())).collect())
}

/// Makes a month's partition. The caller holds [`lock`] and saw that it is missing.
pub(crate) async fn create(connection: &mut PgConnection, table: Partitioned, month: Month) -> Result<(), StoreError> {
    // Safe: nothing but two constants of this file and numbers goes into the text.
    let sql = format!(
        "CREATE TABLE {} PARTITION OF {} FOR VALUES FROM ('{}') TO ('{}')",
        table.partition(month),
        table.table(),
        table.bound(month),
        table.bound(month.plus(1)),
    );
    sqlx::query(AssertSqlSafe(sql)).execute(connection).await?;
    Ok(())
}

/// Takes a month's partition out of the table and drops it. The caller holds [`lock`].
pub(crate) async fn retire(connection: &mut PgConnection, table: Partitioned, month: Month) -> Result<(), StoreError> {
    // Safe: see `create`.
    let detach = format!("ALTER TABLE {} DETACH PARTITION {}", table.table(), table.partition(month));
    sqlx::query(AssertSqlSafe(detach)).execute(&mut *connection).await?;
    let drop = format!("DROP TABLE {}", table.partition(month));
    sqlx::query(AssertSqlSafe(drop)).execute(connection).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use chrono::TimeZone as _;

    #[test]
    fn months_go_over_the_year_and_back_from_names() {
        let december = Month::of(Utc.with_ymd_and_hms(2026, 12, 31, 23, 59, 59).single().expect("a date"));
        assert_eq!(december.to_string(), "2026-12");
        assert_eq!(december.plus(1).to_string(), "2027-01");
        assert_eq!(december.plus(-13).to_string(), "2025-11");
        assert_eq!(Partitioned::UsageRecords.partition(december.plus(1)), "usage_records_y2027m01");
        assert_eq!(Month::from_partition_name("usage_records_y2026m12", "usage_records"), Some(december));
        assert_eq!(Month::from_partition_name("usage_records_old", "usage_records"), None);
    }
}
