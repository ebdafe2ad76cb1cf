//! `stripe_invoices`, `stripe_credit_notes`, `stripe_events`, and the customer of an account.

use super::amounts::usd;
use super::{PgConnection, StoreError};
use chrono::{DateTime, Utc};
use rust_decimal::Decimal;
use turnpike_config::Usd;
use uuid::Uuid;

/// Organizations whose customer is looked up or made.
#[derive(Clone, Debug, sqlx::FromRow)]
pub(crate) struct Account {
    /// `billing_accounts.id`
    pub(crate) id: Uuid,
    /// Whose.
    pub(crate) organization_id: Uuid,
    /// Their name.
    pub(crate) name: String,
    /// Where mail goes.
    pub(crate) email: Option<String>,
    /// At Stripe.
    pub(crate) customer: Option<String>,
    /// What is to be charged.
    pub(crate) payment_method: Option<String>,
}

/// The account of an organization.
pub(crate) async fn account(connection: &mut PgConnection, organization: Uuid) -> Result<Option<Account>, StoreError> {
    Ok(sqlx::query_as(
        "SELECT a.id, a.organization_id, o.name, coalesce(a.billing_email, o.billing_email) AS email,
             a.stripe_customer_id AS customer, a.payment_method_id AS payment_method
         FROM billing_accounts a JOIN organizations o ON o.id = a.organization_id WHERE a.organization_id = $1",
    )
    .bind(organization)
    .fetch_optional(connection)
    .await?)
}

/// Notes an account's customer; the first one stays.
pub(crate) async fn set_customer(
    connection: &mut PgConnection,
    account: Uuid,
    customer: &str,
) -> Result<(), StoreError> {
    sqlx::query("UPDATE billing_accounts SET stripe_customer_id = $2 WHERE id = $1 AND stripe_customer_id IS NULL")
        .bind(account)
        .bind(customer)
        .execute(connection)
        .await?;
    Ok(())
}

/// An invoice that Stripe does not know, or not as it is.
#[derive(Clone, Debug, sqlx::FromRow)]
pub(crate) struct Due {
    /// Which.
    pub(crate) invoice_id: Uuid,
    /// It was finalized there.
    pub(crate) finalized: bool,
}

/// Invoices to be told of, the oldest first, at most `limit`: those with something due that are open, and those that
/// Stripe knows with another status. One that failed waits.
pub(crate) async fn due(connection: &mut PgConnection, limit: i64) -> Result<Vec<Due>, StoreError> {
    Ok(sqlx::query_as(
        "SELECT i.id AS invoice_id, s.finalized_at IS NOT NULL AS finalized
         FROM invoices i LEFT JOIN stripe_invoices s ON s.invoice_id = i.id
         WHERE (s.retry_at IS NULL OR s.retry_at <= now()) AND i.status <> 'draft' AND i.amount_due > 0
             AND (s.finalized_at IS NULL AND i.status = 'open' OR s.finalized_at IS NOT NULL AND s.told <> i.status)
         ORDER BY i.id LIMIT $1",
    )
    .bind(limit)
    .fetch_all(connection)
    .await?)
}

/// Notes Stripe's name of an invoice.
pub(crate) async fn name(connection: &mut PgConnection, invoice: Uuid, stripe_id: &str) -> Result<(), StoreError> {
    sqlx::query("UPDATE invoices SET stripe_invoice_id = $2 WHERE id = $1 AND stripe_invoice_id IS NULL")
        .bind(invoice)
        .bind(stripe_id)
        .execute(connection)
        .await?;
    Ok(())
}

/// Notes what Stripe knows of an invoice.
pub(crate) async fn told(
    connection: &mut PgConnection,
    invoice: Uuid,
    status: &str,
    at: DateTime<Utc>,
) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO stripe_invoices (invoice_id, finalized_at, told) VALUES ($1, $3, $2)
         ON CONFLICT (invoice_id) DO UPDATE SET told = excluded.told, failures = 0, retry_at = NULL, error = NULL,
             finalized_at = coalesce(stripe_invoices.finalized_at, excluded.finalized_at)",
    )
    .bind(invoice)
    .bind(status)
    .bind(at)
    .execute(connection)
    .await?;
    Ok(())
}

/// Notes that Stripe could not be told. It is tried again a minute later, and twice as late after each failure in a row,
/// six hours at most.
pub(crate) async fn failed(connection: &mut PgConnection, invoice: Uuid, reason: &str) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO stripe_invoices AS s (invoice_id, failures, retry_at, error)
         VALUES ($1, 1, now() + interval '1 minute', left($2, 1000))
         ON CONFLICT (invoice_id) DO UPDATE SET failures = s.failures + 1, error = excluded.error,
             retry_at = now() + least(interval '1 minute' * power(2, least(s.failures, 10)), interval '6 hours')",
    )
    .bind(invoice)
    .bind(reason)
    .execute(connection)
    .await?;
    Ok(())
}

/// A credit note that Stripe does not know.
#[derive(Clone, Debug, sqlx::FromRow)]
pub(crate) struct DueNote {
    /// Which.
    pub(crate) id: Uuid,
    /// As shown.
    pub(crate) number: String,
    amount: Decimal,
    /// Why it was given.
    pub(crate) reason: String,
    /// Of which invoice there.
    pub(crate) stripe_invoice_id: String,
}

impl DueNote {
    /// What is taken back.
    pub(crate) fn amount(&self) -> Usd {
        usd(self.amount)
    }
}

/// Credit notes to be told of, the oldest first, at most `limit`: those of invoices that were finalized there, and that
/// did not go into the ledger of money paid ahead. One that failed waits.
pub(crate) async fn due_notes(connection: &mut PgConnection, limit: i64) -> Result<Vec<DueNote>, StoreError> {
    Ok(sqlx::query_as(
        "SELECT n.id, n.credit_note_number AS number, n.amount, n.reason, i.stripe_invoice_id
         FROM credit_notes n
         JOIN invoices i ON i.id = n.invoice_id AND i.stripe_invoice_id IS NOT NULL
         JOIN stripe_invoices s ON s.invoice_id = i.id AND s.finalized_at IS NOT NULL
         LEFT JOIN stripe_credit_notes t ON t.credit_note_id = n.id
         WHERE NOT n.to_prepaid AND t.stripe_id IS NULL AND (t.retry_at IS NULL OR t.retry_at <= now())
         ORDER BY n.id LIMIT $1",
    )
    .bind(limit)
    .fetch_all(connection)
    .await?)
}

/// Notes Stripe's name of a credit note.
pub(crate) async fn note_told(connection: &mut PgConnection, note: Uuid, stripe_id: &str) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO stripe_credit_notes (credit_note_id, stripe_id) VALUES ($1, $2)
         ON CONFLICT (credit_note_id) DO UPDATE SET stripe_id = excluded.stripe_id, retry_at = NULL, error = NULL",
    )
    .bind(note)
    .bind(stripe_id)
    .execute(connection)
    .await?;
    Ok(())
}

/// Notes that Stripe could not be told of a credit note; it waits as in [`failed`].
pub(crate) async fn note_failed(connection: &mut PgConnection, note: Uuid, reason: &str) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO stripe_credit_notes AS s (credit_note_id, failures, retry_at, error)
         VALUES ($1, 1, now() + interval '1 minute', left($2, 1000))
         ON CONFLICT (credit_note_id) DO UPDATE SET failures = s.failures + 1, error = excluded.error,
             retry_at = now() + least(interval '1 minute' * power(2, least(s.failures, 10)), interval '6 hours')",
    )
    .bind(note)
    .bind(reason)
    .execute(connection)
    .await?;
    Ok(())
}

/// The invoice by Stripe's name for it.
pub(crate) async fn invoice_by_name(
    connection: &mut PgConnection,
    stripe_id: &str,
) -> Result<Option<Uuid>, StoreError> {
    Ok(sqlx::query_scalar("SELECT id FROM invoices WHERE stripe_invoice_id = $1")
        .bind(stripe_id)
        .fetch_optional(connection)
        .await?)
}

/// Notes an event; says whether it is new.
pub(crate) async fn is_new_event(connection: &mut PgConnection, id: &str, kind: &str) -> Result<bool, StoreError> {
    let inserted =
        sqlx::query("INSERT INTO stripe_events (id, type) VALUES ($1, left($2, 100)) ON CONFLICT DO NOTHING")
            .bind(id)
            .bind(kind)
            .execute(connection)
            .await?;
    Ok(inserted.rows_affected() == 1)
}

/// Forgets events that were handled so long ago that nobody delivers them again.
pub(crate) async fn forget_events(connection: &mut PgConnection) -> Result<(), StoreError> {
    sqlx::query("DELETE FROM stripe_events WHERE received_at < now() - interval '60 days'").execute(connection).await?;
    Ok(())
}
