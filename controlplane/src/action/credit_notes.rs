//! Credit notes: how an invoice that is frozen is corrected.

use super::invoices::{by, locked, shown};
use super::{ActionError, Checks, Operator, Reader};
use crate::closing;
use crate::context::Context;
use crate::invoicing::{CENT, Note, note_html, share};
use crate::store::StoreError;
use crate::store::credit_notes::{self, CreditNote, INVOICE, NewCreditNote, TOTAL};
use crate::store::invoices::{self, OPEN, PAID, UNCOLLECTIBLE};
use crate::store::prepaid::{self, Kind, NewEntry};
use chrono::{DateTime, NaiveDate, Utc};
use serde::{Deserialize, Serialize};
use serde_json::json;
use turnpike_config::Usd;
use utoipa::ToSchema;
use uuid::Uuid;

/// What follows the prefix of invoice numbers.
const SERIES: &str = "CN";

/// A credit note. Amounts are decimal dollars.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct CreditNoteView {
    /// Identity.
    id: Uuid,
    /// Whose.
    organization_id: Uuid,
    /// Of which invoice.
    invoice_id: Uuid,
    /// As shown.
    #[schema(example = "TP-CN-2026-000001")]
    credit_note_number: String,
    /// When it was given.
    issued_on: NaiveDate,
    /// What is taken back, tax included.
    #[schema(value_type = String, example = "12.5")]
    amount: Usd,
    /// The tax in it.
    #[schema(value_type = String, example = "2")]
    tax_amount: Usd,
    /// Why.
    reason: String,
    /// It went into the organization's ledger of money paid ahead.
    to_prepaid: bool,
    /// When it was made.
    created_at: DateTime<Utc>,
}

impl From<CreditNote> for CreditNoteView {
    fn from(note: CreditNote) -> Self {
        Self {
            amount: note.amount(),
            tax_amount: note.tax(),
            id: note.id,
            organization_id: note.organization_id,
            invoice_id: note.invoice_id,
            credit_note_number: note.credit_note_number,
            issued_on: note.issued_on,
            reason: note.reason,
            to_prepaid: note.to_prepaid,
            created_at: note.created_at,
        }
    }
}

/// What to take back of an invoice.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct CreateCreditNote {
    /// Decimal dollars above 0, tax included, at most 2 places; all notes of an invoice are not more than its total.
    #[schema(example = "12.50")]
    amount: String,
    /// Why, for the customer.
    reason: String,
    /// Chosen by the caller, 1 to 150 characters: a second call with the same key makes nothing.
    idempotency_key: String,
    /// Put it into the organization's ledger of money paid ahead. Default: it is paid back or set off elsewhere.
    #[serde(default)]
    to_prepaid: bool,
}

fn check(input: &CreateCreditNote) -> Result<Usd, ActionError> {
    let mut checks = Checks::default();
    let amount = input.amount.parse::<Usd>().ok().filter(|usd| usd.pico > 0 && usd.pico % CENT == 0);
    checks.require(amount.is_some(), "amount", "expected dollars such as \"12.50\": above 0, at most 2 decimal places");
    checks.text("reason", &input.reason, 1000);
    checks.text("idempotency_key", &input.idempotency_key, 150);
    checks.finish()?;
    Ok(amount.unwrap_or_default())
}

/// Makes a credit note. The flag says whether it is new.
pub(crate) async fn create(
    context: &Context,
    operator: Operator,
    invoice: Uuid,
    input: CreateCreditNote,
    now: DateTime<Utc>,
) -> Result<(CreditNoteView, bool), ActionError> {
    let amount = check(&input)?;
    let mut tx = context.store.begin().await?;
    let invoice = locked(&mut tx, invoice).await?;
    let before = credit_notes::of_invoice(&mut tx, invoice.id).await?;
    if let Some(same) = before.into_iter().find(|note| note.idempotency_key == input.idempotency_key) {
        if same.amount() != amount || same.to_prepaid != input.to_prepaid {
            let reason = format!("idempotency_key «{}» was used for another credit note", input.idempotency_key);
            return Err(ActionError::Conflict(reason));
        }
        return Ok((same.into(), false));
    }
    let (today, by) = (now.date_naive(), by(operator));
    let series = format!("{}-{SERIES}", context.invoicing.number_prefix);
    let number = invoices::next_number(&mut tx, &series, today).await?;
    let cents = |usd: Usd| u64::try_from(usd.pico / CENT).unwrap_or_default();
    let note = NewCreditNote {
        organization: invoice.organization_id,
        invoice: invoice.id,
        number: &number,
        issued_on: today,
        amount,
        // Rounded once; never more than the note itself.
        tax: share(amount, cents(invoice.tax()), cents(invoice.total())),
        reason: &input.reason,
        to_prepaid: input.to_prepaid,
        key: &input.idempotency_key,
    };
    let note = credit_notes::insert(&mut tx, &note).await.map_err(worded)?;
    if input.to_prepaid {
        prepaid::open(&mut tx, invoice.organization_id, today, &by.actor).await?;
        let (key, actor, note) = (format!("credit_note:{}", note.id), by.actor.as_str(), Some(number.as_str()));
        let entry = NewEntry { kind: Kind::Credit, amount, key: &key, actor, note };
        prepaid::append(&mut tx, invoice.organization_id, &entry).await?;
    }
    // Nothing is left to be paid.
    let open = [OPEN, UNCOLLECTIBLE].contains(&invoice.status.as_str());
    let after = invoices::get(&mut tx, invoice.id).await?;
    if open && after.is_some_and(|invoice| invoice.remaining() == Usd::ZERO) {
        invoices::set_status(&mut tx, invoice.id, PAID, now).await?;
    }
    let details = json!({"number": number, "amount": amount, "to_prepaid": input.to_prepaid});
    closing::note(&mut tx, &by, "invoice.credit", invoice.id, details).await?;
    tx.commit().await.map_err(StoreError::from)?;
    context.spending.tell([invoice.organization_id]);
    Ok((note.into(), true))
}

fn worded(error: StoreError) -> ActionError {
    match error {
        StoreError::Constraint { constraint, .. } if constraint == TOTAL => {
            ActionError::Conflict("credit notes of this invoice would be more than its total".to_owned())
        }
        StoreError::Constraint { constraint, .. } if constraint == INVOICE => {
            ActionError::Conflict("only an open, paid or uncollectible invoice can be credited".to_owned())
        }
        error => error.into(),
    }
}

/// The page of one of an invoice's.
pub(crate) async fn page(context: &Context, reader: Reader, invoice: Uuid, id: Uuid) -> Result<String, ActionError> {
    let mut connection = context.store.read().await?;
    let document = shown(&mut connection, reader, invoice).await?.document();
    let notes = credit_notes::of_invoice(&mut connection, invoice).await?;
    let note = notes.iter().find(|note| note.id == id).ok_or_else(|| ActionError::not_found("credit note", id))?;
    let note = Note {
        number: &note.credit_note_number,
        issued_on: note.issued_on,
        amount: note.amount(),
        tax: note.tax(),
        reason: &note.reason,
        to_prepaid: note.to_prepaid,
    };
    Ok(note_html(&document, note))
}

/// Those of an invoice, the oldest first.
pub(crate) async fn list(context: &Context, reader: Reader, invoice: Uuid) -> Result<Vec<CreditNoteView>, ActionError> {
    let mut connection = context.store.read().await?;
    shown(&mut connection, reader, invoice).await?;
    let notes = credit_notes::of_invoice(&mut connection, invoice).await?;
    Ok(notes.into_iter().map(CreditNoteView::from).collect())
}
