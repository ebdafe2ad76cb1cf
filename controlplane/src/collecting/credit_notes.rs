//! Credit notes on invoices that Stripe has.

use super::invoices::cents;
use super::{CollectError, failed};
use crate::context::Context;
use crate::store::stripe::{self as store, DueNote};
use crate::store::{StoreError, invoices::PAID};
use crate::stripe::{Client, CreditNote, Form, Invoice, Stripe};

/// Notes told in one run.
const MOST: i64 = 50;

/// Tells Stripe of what is not to be paid there any more. What went into the ledger of money paid ahead is: the invoice
/// is paid in full, and the money is there.
pub(super) async fn reconcile(context: &Context, stripe: &Stripe) -> Result<(), StoreError> {
    let due = store::due_notes(&mut *context.store.read().await?, MOST).await?;
    for note in due {
        match send(&stripe.client, &note).await {
            Ok(id) => store::note_told(&mut *context.store.read().await?, note.id, &id).await?,
            Err(error) => {
                failed(context, "credit note", note.id, &error);
                store::note_failed(&mut *context.store.read().await?, note.id, &error.to_string()).await?;
            }
        }
    }
    Ok(())
}

async fn send(client: &Client, note: &DueNote) -> Result<String, CollectError> {
    let theirs: Invoice = client.get(&format!("/v1/invoices/{}", note.stripe_invoice_id), &Form::new()).await?;
    let amount = cents(note.amount());
    let form = Form::new()
        .with("invoice", &note.stripe_invoice_id)
        .with("amount", amount)
        .with("memo", &note.reason)
        .with("metadata[credit_note_id]", note.id)
        .with("metadata[credit_note_number]", &note.number);
    // What was paid already goes back by other ways than Stripe's.
    let paid = theirs.status.as_deref() == Some(PAID);
    let form = form.maybe("out_of_band_amount", paid.then_some(amount));
    let kind = if paid { "paid" } else { "open" };
    let made: CreditNote = client.post("/v1/credit_notes", &form, &format!("credit-note-{}-{kind}", note.id)).await?;
    Ok(made.id)
}
