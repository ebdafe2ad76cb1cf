//! `prepaid_entries`: money paid ahead, as a ledger that is only ever appended to.
//!
//! Whoever appends holds the account's lock ([`super::billing::lock`]), so that what they read of it still holds.

use super::amounts::{decimal, usd};
use super::partitions::Month;
use super::{PgConnection, StoreError};
use chrono::{DateTime, NaiveDate, Utc};
use rust_decimal::Decimal;
use turnpike_config::Usd;
use uuid::Uuid;

/// What an entry is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Money came in.
    TopUp,
    /// Money came in because little was left.
    Recharge,
    /// An operator's correction.
    Adjustment,
    /// An invoice was settled: what usage was debited for it, less what the invoice says is paid from it.
    Invoice,
    /// An invoice's settlement was undone, or a credit note.
    Credit,
    /// Money went back to the customer.
    Refund,
    /// What an invoice's lines were rounded up by, waived; or that undone.
    Rounding,
}

impl Kind {
    /// As the table writes it.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::TopUp => "top_up",
            Self::Recharge => "recharge",
            Self::Adjustment => "adjustment",
            Self::Invoice => "invoice",
            Self::Credit => "credit",
            Self::Refund => "refund",
            Self::Rounding => "rounding",
        }
    }
}

/// An entry to append.
#[derive(Clone, Debug)]
pub(crate) struct NewEntry<'a> {
    /// What for.
    pub(crate) kind: Kind,
    /// What it adds to the balance; negative takes away.
    pub(crate) amount: Usd,
    /// The same key again is the same entry.
    pub(crate) key: &'a str,
    /// Who.
    pub(crate) actor: &'a str,
    /// In words.
    pub(crate) note: Option<&'a str>,
}

/// An entry as it was written.
#[derive(Clone, Debug, sqlx::FromRow)]
pub(crate) struct Entry {
    /// Its place in the ledger.
    pub(crate) id: i64,
    /// What for.
    pub(crate) kind: String,
    amount: Decimal,
    /// The same key again is the same entry.
    pub(crate) idempotency_key: String,
    /// The UTC day of the usage that it covers.
    pub(crate) day: Option<NaiveDate>,
    /// Who wrote it.
    pub(crate) actor: String,
    /// In words.
    pub(crate) note: Option<String>,
    /// When.
    pub(crate) created_at: DateTime<Utc>,
}

impl Entry {
    /// What it added to the balance.
    pub(crate) fn amount(&self) -> Usd {
        usd(self.amount)
    }
}

/// What was used on a day (UTC), as far as the books know: `usage_records`, and what came after its invoice.
const USED_BY_DAY: &str = "
SELECT date, sum(cost_usd) AS used FROM (
    SELECT date, cost_usd FROM usage_records WHERE organization_id = $1
    UNION ALL SELECT date, cost_usd FROM usage_adjustments WHERE organization_id = $1
) AS every GROUP BY date";

/// Days before today that are looked at for usage that came late, so that not all that was ever used is summed.
const LATE_DAYS: i32 = 7;

/// Appends an entry. Gives `None` if its key is there already.
pub(crate) async fn append(
    connection: &mut PgConnection,
    organization: Uuid,
    entry: &NewEntry<'_>,
) -> Result<Option<Entry>, StoreError> {
    Ok(sqlx::query_as(
        "INSERT INTO prepaid_entries (organization_id, kind, amount, idempotency_key, actor, note)
         VALUES ($1, $2, $3, $4, $5, $6)
         ON CONFLICT (organization_id, idempotency_key) DO NOTHING RETURNING *",
    )
    .bind(organization)
    .bind(entry.kind.name())
    .bind(decimal(entry.amount)?)
    .bind(entry.key)
    .bind(entry.actor)
    .bind(entry.note)
    .fetch_optional(connection)
    .await?)
}

/// The entry with a key.
pub(crate) async fn by_key(
    connection: &mut PgConnection,
    organization: Uuid,
    key: &str,
) -> Result<Option<Entry>, StoreError> {
    Ok(sqlx::query_as("SELECT * FROM prepaid_entries WHERE organization_id = $1 AND idempotency_key = $2")
        .bind(organization)
        .bind(key)
        .fetch_optional(connection)
        .await?)
}

/// Entries before `before`, the newest first, at most `limit`.
pub(crate) async fn list(
    connection: &mut PgConnection,
    organization: Uuid,
    before: Option<i64>,
    limit: i64,
) -> Result<Vec<Entry>, StoreError> {
    Ok(sqlx::query_as(
        "SELECT * FROM prepaid_entries WHERE organization_id = $1 AND ($2::bigint IS NULL OR id < $2)
         ORDER BY id DESC LIMIT $3",
    )
    .bind(organization)
    .bind(before)
    .bind(limit)
    .fetch_all(connection)
    .await?)
}

/// An account begins to pay ahead on `day`: usage from now on is debited, what the books know of the day is not.
/// Nothing changes if it did so already.
pub(crate) async fn open(
    connection: &mut PgConnection,
    organization: Uuid,
    day: NaiveDate,
    actor: &str,
) -> Result<(), StoreError> {
    let opened = sqlx::query(
        "UPDATE billing_accounts SET prepaid_since = $2, updated_at = now()
         WHERE organization_id = $1 AND prepaid_since IS NULL",
    )
    .bind(organization)
    .bind(day)
    .execute(&mut *connection)
    .await?;
    if opened.rows_affected() == 0 {
        return Ok(());
    }
    let sql = format!(
        "INSERT INTO prepaid_entries (organization_id, kind, amount, idempotency_key, day, used, actor)
         SELECT $1, 'opening', 0, 'opening:' || (SELECT count(*) FROM prepaid_entries
                 WHERE organization_id = $1 AND kind = 'opening'),
             $2, coalesce((SELECT used FROM ({USED_BY_DAY}) AS days WHERE date = $2), 0)
                 - coalesce((SELECT sum(used) FROM prepaid_entries WHERE organization_id = $1 AND day = $2), 0), $3"
    );
    sqlx::query(sqlx::AssertSqlSafe(sql)).bind(organization).bind(day).bind(actor).execute(connection).await?;
    Ok(())
}

/// An account pays afterwards from now on. What it has used until then is to be posted before.
pub(crate) async fn close(connection: &mut PgConnection, organization: Uuid) -> Result<(), StoreError> {
    sqlx::query("UPDATE billing_accounts SET prepaid_since = NULL, updated_at = now() WHERE organization_id = $1")
        .bind(organization)
        .execute(connection)
        .await?;
    Ok(())
}

/// Posts usage of days before `end` that no entry covers yet: an entry for each day, and a further one for what came
/// late. Gives how many were appended.
pub(crate) async fn post_usage(
    connection: &mut PgConnection,
    organization: Uuid,
    end: NaiveDate,
) -> Result<u64, StoreError> {
    let sql = format!(
        "INSERT INTO prepaid_entries (organization_id, kind, amount, idempotency_key, day, used, actor)
         SELECT $1, 'usage', -rest, format('usage:%s:%s', date, entries), date, rest, 'usage'
         FROM (
             SELECT days.date, days.used - coalesce(posted.used, 0) AS rest, coalesce(posted.entries, 0) AS entries
             FROM ({USED_BY_DAY}) AS days
             JOIN billing_accounts a ON a.organization_id = $1 AND days.date >= a.prepaid_since
             LEFT JOIN (
                 SELECT day, sum(used) AS used, count(*) AS entries FROM prepaid_entries
                 WHERE organization_id = $1 AND day IS NOT NULL GROUP BY day
             ) AS posted ON posted.day = days.date
             WHERE days.date < $2
         ) AS rests WHERE rest <> 0 ORDER BY date"
    );
    let posted = sqlx::query(sqlx::AssertSqlSafe(sql)).bind(organization).bind(end).execute(connection).await?;
    Ok(posted.rows_affected())
}

/// Notes how much of what an invoice charges was debited day by day and comes back with its settlement, and gives the
/// sum. The invoice has taken up what came late, and usage until its month's end is posted.
pub(crate) async fn settle_days(
    connection: &mut PgConnection,
    organization: Uuid,
    month: Month,
    invoice: Uuid,
) -> Result<Usd, StoreError> {
    let sum: Decimal = sqlx::query_scalar(SETTLE)
        .bind(organization)
        .bind(month.first_day())
        .bind(month.plus(1).first_day())
        .bind(invoice)
        .fetch_one(connection)
        .await?;
    Ok(usd(sum))
}

// Of a day on which the account began or ended to pay ahead, a part was debited: no more than that comes back.
const SETTLE: &str = "
WITH charged AS (
    SELECT date AS day, sum(cost_usd) AS amount FROM (
        SELECT date, cost_usd FROM usage_records WHERE organization_id = $1 AND date >= $2 AND date < $3
        UNION ALL SELECT date, cost_usd FROM usage_adjustments WHERE organization_id = $1 AND invoice_id = $4
    ) AS every GROUP BY date
), open AS (
    SELECT day, sum(amount) AS amount FROM (
        SELECT day, used AS amount FROM prepaid_entries WHERE organization_id = $1 AND kind = 'usage'
        UNION ALL SELECT s.day, -s.amount FROM prepaid_settlements s
            JOIN invoices i ON i.id = s.invoice_id AND i.status <> 'void' WHERE s.organization_id = $1
    ) AS every GROUP BY day
), settled AS (
    INSERT INTO prepaid_settlements (invoice_id, organization_id, day, amount)
    SELECT $4, $1, day, amount FROM (
        SELECT day, CASE WHEN charged.amount >= 0 THEN greatest(least(charged.amount, open.amount), 0)
            ELSE least(greatest(charged.amount, open.amount), 0) END AS amount
        FROM charged JOIN open USING (day)
    ) AS days WHERE amount <> 0
    RETURNING amount
)
SELECT coalesce(sum(amount), 0) FROM settled";

/// Organizations with usage of days before `end` that [`post_usage`] would post: from the last day that was posted, and
/// at least [`LATE_DAYS`] back. What came later than that for a day is posted with the next day that has usage, or when
/// its month is closed.
pub(crate) async fn unposted(connection: &mut PgConnection, end: NaiveDate) -> Result<Vec<Uuid>, StoreError> {
    Ok(sqlx::query_scalar(
        "SELECT a.organization_id FROM billing_accounts a
         CROSS JOIN LATERAL (
             SELECT greatest(a.prepaid_since, least($1 - $2, coalesce(max(day), a.prepaid_since))) AS day
             FROM prepaid_entries WHERE organization_id = a.organization_id AND day IS NOT NULL
         ) AS first
         WHERE a.prepaid_since < $1 AND EXISTS (
             SELECT 1 FROM (
                 SELECT date AS day, cost_usd AS used FROM usage_records u
                     WHERE u.organization_id = a.organization_id AND date >= first.day AND date < $1
                 UNION ALL SELECT date, cost_usd FROM usage_adjustments u
                     WHERE u.organization_id = a.organization_id AND date >= first.day AND date < $1
                 UNION ALL SELECT day, -used FROM prepaid_entries e
                     WHERE e.organization_id = a.organization_id AND e.day >= first.day AND e.day < $1
             ) AS moved GROUP BY day HAVING sum(used) <> 0)
         ORDER BY 1",
    )
    .bind(end)
    .bind(LATE_DAYS)
    .fetch_all(connection)
    .await?)
}
