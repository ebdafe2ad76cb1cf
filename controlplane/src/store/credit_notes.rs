//! `credit_notes`: what is taken back of invoices.

use super::amounts::{decimal, usd};
use super::{PgConnection, StoreError};
use chrono::{DateTime, NaiveDate, Utc};
use rust_decimal::Decimal;
use turnpike_config::Usd;
use uuid::Uuid;

/// What keeps credit notes from being more than their invoice.
pub(crate) const TOTAL: &str = "credit_notes_total";
/// What keeps them to invoices that were opened and are not void.
pub(crate) const INVOICE: &str = "credit_notes_invoice";

/// A credit note as it is stored.
#[derive(Clone, Debug, sqlx::FromRow)]
pub(crate) struct CreditNote {
    /// Identity.
    pub(crate) id: Uuid,
    /// Whose.
    pub(crate) organization_id: Uuid,
    /// Of which invoice.
    pub(crate) invoice_id: Uuid,
    /// As shown.
    pub(crate) credit_note_number: String,
    /// When it was given.
    pub(crate) issued_on: NaiveDate,
    amount: Decimal,
    tax_amount: Decimal,
    /// Why.
    pub(crate) reason: String,
    /// It went into the ledger of money paid ahead.
    pub(crate) to_prepaid: bool,
    /// The same key again is the same note.
    pub(crate) idempotency_key: String,
    /// When it was made.
    pub(crate) created_at: DateTime<Utc>,
}

impl CreditNote {
    /// What is taken back, tax included.
    pub(crate) fn amount(&self) -> Usd {
        usd(self.amount)
    }

    /// The tax in it.
    pub(crate) fn tax(&self) -> Usd {
        usd(self.tax_amount)
    }
}

/// A credit note to be made.
#[derive(Clone, Debug)]
pub(crate) struct NewCreditNote<'a> {
    /// Whose.
    pub(crate) organization: Uuid,
    /// Of which invoice.
    pub(crate) invoice: Uuid,
    /// As shown.
    pub(crate) number: &'a str,
    /// When.
    pub(crate) issued_on: NaiveDate,
    /// What is taken back, tax included.
    pub(crate) amount: Usd,
    /// The tax in it.
    pub(crate) tax: Usd,
    /// Why.
    pub(crate) reason: &'a str,
    /// It goes into the ledger of money paid ahead.
    pub(crate) to_prepaid: bool,
    /// The same key again is the same note.
    pub(crate) key: &'a str,
}

/// Makes one; the schema refuses more than the invoice.
pub(crate) async fn insert(connection: &mut PgConnection, note: &NewCreditNote<'_>) -> Result<CreditNote, StoreError> {
    Ok(sqlx::query_as(
        "INSERT INTO credit_notes (id, organization_id, invoice_id, credit_note_number, issued_on, amount, tax_amount,
             reason, to_prepaid, idempotency_key)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10) RETURNING *",
    )
    .bind(Uuid::now_v7())
    .bind(note.organization)
    .bind(note.invoice)
    .bind(note.number)
    .bind(note.issued_on)
    .bind(decimal(note.amount)?)
    .bind(decimal(note.tax)?)
    .bind(note.reason)
    .bind(note.to_prepaid)
    .bind(note.key)
    .fetch_one(connection)
    .await?)
}

/// Those of an invoice, the oldest first.
pub(crate) async fn of_invoice(connection: &mut PgConnection, invoice: Uuid) -> Result<Vec<CreditNote>, StoreError> {
    Ok(sqlx::query_as("SELECT * FROM credit_notes WHERE invoice_id = $1 ORDER BY id")
        .bind(invoice)
        .fetch_all(connection)
        .await?)
}
