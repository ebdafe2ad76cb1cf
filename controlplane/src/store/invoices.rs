//! `invoices`, `credit_notes`, and the numbers that both are given.

use super::amounts::{TAX_PLACES, decimal, millipercent, usd};
use super::partitions::Month;
use super::{PgConnection, StoreError};
use crate::invoicing::{Document, Line, Party, Terms};
use chrono::{DateTime, Datelike as _, NaiveDate, Utc};
use rust_decimal::Decimal;
use serde::de::DeserializeOwned;
use serde_json::Value;
use sqlx::AssertSqlSafe;
use sqlx::types::Json;
use turnpike_config::Usd;
use uuid::Uuid;

/// `invoices.status` before it is opened.
pub(crate) const DRAFT: &str = "draft";
/// `invoices.status` once it is to be paid.
pub(crate) const OPEN: &str = "open";
/// `invoices.status` at the end, as it should be.
pub(crate) const PAID: &str = "paid";
/// `invoices.status` of one that was a mistake.
pub(crate) const VOID: &str = "void";
/// `invoices.status` of one that will not be paid.
pub(crate) const UNCOLLECTIBLE: &str = "uncollectible";
/// Every status.
pub(crate) const STATUSES: [&str; 5] = [DRAFT, OPEN, PAID, VOID, UNCOLLECTIBLE];

/// An invoice as it is stored.
#[derive(Clone, Debug, sqlx::FromRow)]
pub(crate) struct Invoice {
    /// Identity.
    pub(crate) id: Uuid,
    /// Who pays.
    pub(crate) organization_id: Uuid,
    billing_account_id: Uuid,
    /// As shown.
    pub(crate) invoice_number: String,
    /// At Stripe.
    pub(crate) stripe_invoice_id: Option<String>,
    /// First day.
    pub(crate) period_start: NaiveDate,
    period_end: NaiveDate,
    subtotal: Decimal,
    tax_amount: Decimal,
    total_amount: Decimal,
    currency: String,
    /// One of [`STATUSES`].
    pub(crate) status: String,
    due_date: Option<NaiveDate>,
    /// When it was paid.
    pub(crate) paid_at: Option<DateTime<Utc>>,
    /// When it was voided.
    pub(crate) voided_at: Option<DateTime<Utc>>,
    /// When it was given up.
    pub(crate) uncollectible_at: Option<DateTime<Utc>>,
    /// When the draft was made.
    pub(crate) created_at: DateTime<Utc>,
    line_items: Value,
    issued_on: Option<NaiveDate>,
    seller: Value,
    buyer: Value,
    exact_total: Decimal,
    lines_total: Decimal,
    discount_permille: i32,
    discount_amount: Decimal,
    tax_rate: Decimal,
    credit_applied: Decimal,
    amount_due: Decimal,
    credited: Decimal,
    credited_due: Decimal,
    /// Of the document, once it is not a draft any more.
    pub(crate) checksum: Option<String>,
}

impl Invoice {
    /// What it says. Of a row that somebody else has written, as much as is understood.
    pub(crate) fn document(&self) -> Document {
        Document {
            invoice_number: self.invoice_number.clone(),
            organization_id: self.organization_id,
            billing_account_id: self.billing_account_id,
            period_start: self.period_start,
            period_end: self.period_end,
            issued_on: self.issued_on,
            due_date: self.due_date,
            currency: self.currency.clone(),
            seller: read(&self.seller).unwrap_or_default(),
            buyer: read(&self.buyer).unwrap_or_default(),
            line_items: read(&self.line_items).unwrap_or_default(),
            exact_total: usd(self.exact_total),
            lines_total: usd(self.lines_total),
            discount_permille: self.discount_permille.unsigned_abs(),
            discount_amount: usd(self.discount_amount),
            subtotal: usd(self.subtotal),
            tax_rate: millipercent(self.tax_rate),
            tax_amount: usd(self.tax_amount),
            total_amount: usd(self.total_amount),
            credit_applied: usd(self.credit_applied),
            amount_due: usd(self.amount_due),
        }
    }

    /// Whether it still says what it said when it was opened. A draft has nothing to hold to.
    pub(crate) fn verified(&self) -> bool {
        let understood = read::<Party>(&self.seller).is_some()
            && read::<Party>(&self.buyer).is_some()
            && read::<Vec<Line>>(&self.line_items).is_some();
        let holds = self.checksum.is_some() && self.document().checksum().ok() == self.checksum;
        self.status == DRAFT || understood && holds
    }

    /// What is to be paid in all.
    pub(crate) fn total(&self) -> Usd {
        usd(self.total_amount)
    }

    /// The tax in it.
    pub(crate) fn tax(&self) -> Usd {
        usd(self.tax_amount)
    }

    /// What credit notes take back of it in all.
    pub(crate) fn credited(&self) -> Usd {
        usd(self.credited)
    }

    /// What is still to be paid, less credit notes that did not go elsewhere; not below nothing.
    pub(crate) fn remaining(&self) -> Usd {
        usd((self.amount_due - self.credited_due).max(Decimal::ZERO))
    }
}

/// A stored document of a shape that this build writes.
fn read<T: DeserializeOwned>(value: &Value) -> Option<T> {
    T::deserialize(value).ok()
}

/// Invoices with what credit notes take back of them.
const INVOICES: &str = "
SELECT i.*, coalesce(n.credited, 0) AS credited, coalesce(n.credited_due, 0) AS credited_due
FROM invoices i LEFT JOIN LATERAL (
    SELECT sum(amount) AS credited, sum(amount) FILTER (WHERE NOT to_prepaid) AS credited_due
    FROM credit_notes WHERE invoice_id = i.id
) AS n ON true";

/// Who pays, where to, and on which terms.
#[derive(Clone, Debug, sqlx::FromRow)]
pub(crate) struct Payer {
    /// `billing_accounts.id`
    pub(crate) account: Uuid,
    name: String,
    email: Option<String>,
    address: Option<Value>,
    tax_id: Option<String>,
    discount_permille: i32,
    tax_rate: Decimal,
}

impl Payer {
    /// As shown on the invoice.
    pub(crate) fn party(&self) -> Party {
        Party {
            name: self.name.clone(),
            address: self.address.as_ref().map(address_lines).unwrap_or_default(),
            tax_id: self.tax_id.clone(),
            email: self.email.clone(),
        }
    }

    /// Discount and tax.
    pub(crate) fn terms(&self) -> Terms {
        Terms {
            discount_permille: self.discount_permille.unsigned_abs(),
            tax_millipercent: millipercent(self.tax_rate),
        }
    }
}

/// A free address document as lines: what is known first and in the order of letters, then the rest.
fn address_lines(address: &Value) -> Vec<String> {
    const ORDER: [&str; 8] = ["line1", "line2", "street", "postal_code", "zip", "city", "state", "country"];
    let Some(fields) = address.as_object() else { return Vec::new() };
    let rest = fields.keys().map(String::as_str).filter(|key| !ORDER.contains(key));
    let texts = ORDER.into_iter().chain(rest).filter_map(|key| fields.get(key)?.as_str());
    texts.filter(|text| !text.trim().is_empty()).map(str::to_owned).collect()
}

/// Who pays for an organization; `None` if there is no such organization or it has no account.
pub(crate) async fn payer(connection: &mut PgConnection, organization: Uuid) -> Result<Option<Payer>, StoreError> {
    Ok(sqlx::query_as(
        "SELECT a.id AS account, o.name, coalesce(a.billing_email, o.billing_email) AS email,
             coalesce(a.billing_address, o.address) AS address, coalesce(a.tax_id, o.tax_id) AS tax_id,
             a.discount_permille, a.tax_rate
         FROM organizations o JOIN billing_accounts a ON a.organization_id = o.id WHERE o.id = $1",
    )
    .bind(organization)
    .fetch_optional(connection)
    .await?)
}

/// The next number of a series in a year, for good once the transaction commits.
pub(crate) async fn next_number(
    connection: &mut PgConnection,
    series: &str,
    day: NaiveDate,
) -> Result<String, StoreError> {
    let number: i64 = sqlx::query_scalar(
        "INSERT INTO document_numbers AS numbers (series, year, last) VALUES ($1, $2, 1)
         ON CONFLICT (series, year) DO UPDATE SET last = numbers.last + 1 RETURNING last",
    )
    .bind(series)
    .bind(day.year())
    .fetch_one(connection)
    .await?;
    Ok(format!("{series}-{}-{number:06}", day.year()))
}

/// Makes a draft, or writes one anew.
pub(crate) async fn put_draft(connection: &mut PgConnection, id: Uuid, document: &Document) -> Result<(), StoreError> {
    let rate = Decimal::new(i64::from(document.tax_rate), TAX_PLACES);
    sqlx::query(
        "INSERT INTO invoices (id, organization_id, billing_account_id, invoice_number, period_start, period_end,
             subtotal, tax_amount, total_amount, currency, status, line_items, seller, buyer, exact_total, lines_total,
             discount_permille, discount_amount, tax_rate, credit_applied, amount_due)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, 'draft', $11, $12, $13, $14, $15, $16, $17, $18, $19, $20)
         ON CONFLICT (id) DO UPDATE SET subtotal = excluded.subtotal, tax_amount = excluded.tax_amount,
             total_amount = excluded.total_amount, line_items = excluded.line_items, seller = excluded.seller,
             buyer = excluded.buyer, exact_total = excluded.exact_total, lines_total = excluded.lines_total,
             discount_permille = excluded.discount_permille, discount_amount = excluded.discount_amount,
             tax_rate = excluded.tax_rate, credit_applied = excluded.credit_applied, amount_due = excluded.amount_due",
    )
    .bind(id)
    .bind(document.organization_id)
    .bind(document.billing_account_id)
    .bind(&document.invoice_number)
    .bind(document.period_start)
    .bind(document.period_end)
    .bind(decimal(document.subtotal)?)
    .bind(decimal(document.tax_amount)?)
    .bind(decimal(document.total_amount)?)
    .bind(&document.currency)
    .bind(Json(&document.line_items))
    .bind(Json(&document.seller))
    .bind(Json(&document.buyer))
    .bind(decimal(document.exact_total)?)
    .bind(decimal(document.lines_total)?)
    .bind(i32::try_from(document.discount_permille).unwrap_or_default())
    .bind(decimal(document.discount_amount)?)
    .bind(rate)
    .bind(decimal(document.credit_applied)?)
    .bind(decimal(document.amount_due)?)
    .execute(connection)
    .await?;
    Ok(())
}

/// Opens a draft: from now on it is as it is.
pub(crate) async fn open(
    connection: &mut PgConnection,
    id: Uuid,
    document: &Document,
    checksum: &str,
) -> Result<(), StoreError> {
    sqlx::query(
        "UPDATE invoices SET status = 'open', invoice_number = $2, issued_on = $3, due_date = $4, credit_applied = $5,
             amount_due = $6, checksum = $7 WHERE id = $1",
    )
    .bind(id)
    .bind(&document.invoice_number)
    .bind(document.issued_on)
    .bind(document.due_date)
    .bind(decimal(document.credit_applied)?)
    .bind(decimal(document.amount_due)?)
    .bind(checksum)
    .execute(connection)
    .await?;
    Ok(())
}

/// Moves an opened invoice to another status, as of `at`. The schema refuses what is no legal step.
pub(crate) async fn set_status(
    connection: &mut PgConnection,
    id: Uuid,
    status: &str,
    at: DateTime<Utc>,
) -> Result<(), StoreError> {
    sqlx::query(
        "UPDATE invoices SET status = $2,
             paid_at = CASE WHEN $2 = 'paid' THEN $3 END,
             voided_at = CASE WHEN $2 = 'void' THEN $3 END,
             uncollectible_at = CASE WHEN $2 = 'uncollectible' THEN $3 ELSE uncollectible_at END
         WHERE id = $1",
    )
    .bind(id)
    .bind(status)
    .bind(at)
    .execute(connection)
    .await?;
    Ok(())
}

/// Removes a draft; an opened invoice is refused by the schema.
pub(crate) async fn delete_draft(connection: &mut PgConnection, id: Uuid) -> Result<(), StoreError> {
    sqlx::query("DELETE FROM invoices WHERE id = $1").bind(id).execute(connection).await?;
    Ok(())
}

/// One invoice.
pub(crate) async fn get(connection: &mut PgConnection, id: Uuid) -> Result<Option<Invoice>, StoreError> {
    let sql = format!("{INVOICES} WHERE i.id = $1");
    Ok(sqlx::query_as(AssertSqlSafe(sql)).bind(id).fetch_optional(connection).await?)
}

/// The invoice of an organization's month that is not void.
pub(crate) async fn of_month(
    connection: &mut PgConnection,
    organization: Uuid,
    month: Month,
) -> Result<Option<Invoice>, StoreError> {
    let sql = format!("{INVOICES} WHERE i.organization_id = $1 AND i.period_start = $2 AND i.status <> 'void'");
    Ok(sqlx::query_as(AssertSqlSafe(sql)).bind(organization).bind(month.first_day()).fetch_optional(connection).await?)
}

/// Which invoices.
#[derive(Clone, Debug, Default)]
pub(crate) struct Filter {
    /// Only of this organization.
    pub(crate) organization: Option<Uuid>,
    /// Only with this status.
    pub(crate) status: Option<String>,
    /// Only of this month, by its first day.
    pub(crate) month: Option<NaiveDate>,
    /// Drafts too.
    pub(crate) drafts: bool,
}

/// Invoices before `before`, the newest first, at most `limit`.
pub(crate) async fn list(
    connection: &mut PgConnection,
    filter: &Filter,
    before: Option<Uuid>,
    limit: i64,
) -> Result<Vec<Invoice>, StoreError> {
    let sql = format!(
        "{INVOICES} WHERE ($1::uuid IS NULL OR i.organization_id = $1) AND ($2::text IS NULL OR i.status = $2)
             AND ($3::date IS NULL OR i.period_start = $3) AND ($4::uuid IS NULL OR i.id < $4)
             AND ($6 OR i.status <> 'draft')
         ORDER BY i.id DESC LIMIT $5"
    );
    Ok(sqlx::query_as(AssertSqlSafe(sql))
        .bind(filter.organization)
        .bind(&filter.status)
        .bind(filter.month)
        .bind(before)
        .bind(limit)
        .bind(filter.drafts)
        .fetch_all(connection)
        .await?)
}
