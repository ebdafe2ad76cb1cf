//! Credit notes on invoices that Stripe has.

use super::invoices::{all, cents};
use super::{CollectError, failure};
use crate::context::Context;
use crate::store::stripe::{self as store, DueNote};
use crate::store::{StoreError, invoices::PAID, invoices::VOID};
use crate::stripe::{Client, CreditNote, Form, Invoice, Stripe};
use tracing::warn;

/// Notes told in one run.
const MOST: i64 = 50;
/// In place of Stripe's name: nothing was left there to be taken off.
const NONE: &str = "none";

/// Tells Stripe of what is not to be paid there any more. What went into the ledger of money paid ahead is: the invoice
/// is paid in full, and the money is there.
pub(super) async fn reconcile(context: &Context, stripe: &Stripe) -> Result<(), StoreError> {
    let due = store::due_notes(&mut *context.store.read().await?, MOST).await?;
    for note in due {
        let told = tell(context, &stripe.client, &note).await;
        if let Some(reason) = failure(context, "credit note", note.id, told)? {
            let noted = store::note_failed(&mut *context.store.read().await?, note.id, &reason).await;
            failure(context, "credit note", note.id, noted.map_err(CollectError::from))?;
        }
    }
    Ok(())
}

async fn tell(context: &Context, client: &Client, note: &DueNote) -> Result<(), CollectError> {
    let name = send(client, note).await?;
    let name = name.as_deref().unwrap_or(NONE);
    Ok(store::note_told(&mut *context.store.read().await?, note.id, name).await?)
}

/// Makes a note, or finds it if an earlier run made it and did not live to note it. `None`: nothing is left there that
/// could be taken off.
async fn send(client: &Client, note: &DueNote) -> Result<Option<String>, CollectError> {
    let query = Form::new().with("invoice", &note.stripe_invoice_id);
    let made = all(client, "/v1/credit_notes", &query, |made: &CreditNote| made.id.clone()).await?;
    let id = note.id.to_string();
    if let Some(found) = made.into_iter().find(|made| made.metadata.get("credit_note_id") == Some(&id)) {
        return Ok(Some(found.id));
    }
    let theirs: Invoice = client.get(&format!("/v1/invoices/{}", note.stripe_invoice_id), &Form::new()).await?;
    // What was paid already goes back by other ways than Stripe's.
    let paid = theirs.status.as_deref() == Some(PAID);
    let wanted = cents(note.amount());
    let amount = wanted.min(left(&theirs));
    if amount < wanted {
        // Money that the customer had there, a payment of a part, or money paid ahead has paid the rest.
        warn!(
            note = note.number,
            wanted, amount, "less than a credit note is left at Stripe; give the rest back yourself"
        );
    }
    if amount <= 0 {
        return Ok(None);
    }
    let form = Form::new()
        .with("invoice", &note.stripe_invoice_id)
        .with("amount", amount)
        .with("memo", &note.reason)
        .with("metadata[credit_note_id]", note.id)
        .with("metadata[credit_note_number]", &note.number)
        .maybe("out_of_band_amount", paid.then_some(amount));
    let kind = if paid { "paid" } else { "open" };
    let key = format!("credit-note-{}-{kind}-{amount}", note.id);
    let made: CreditNote = client.post("/v1/credit_notes", &form, &key).await?;
    Ok(Some(made.id))
}

/// Cents of an invoice that can be taken off there, which refuses more.
fn left(theirs: &Invoice) -> i64 {
    match theirs.status.as_deref() {
        Some(PAID) => {
            let before = theirs.pre_payment_credit_notes_amount.saturating_add(theirs.post_payment_credit_notes_amount);
            theirs.total.saturating_sub(before)
        }
        Some(VOID) => 0,
        _ => theirs.amount_remaining,
    }
}
