//! What Stripe says by webhook. Events may come twice, late, and in any order.

use super::{ACTOR, ROLE, outcome, recharges};
use crate::closing::{self, By};
use crate::context::Context;
use crate::store::invoices::{self, Invoice as Ours, PAID, UNCOLLECTIBLE, VOID};
use crate::store::{PgConnection, StoreError, billing, stripe as store};
use crate::stripe::{Event, EventObject, Invoice};
use chrono::{DateTime, Utc};
use serde_json::json;
use tracing::warn;
use uuid::Uuid;

/// What became of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Handled {
    /// It was taken in.
    New,
    /// It had been before.
    Again,
    /// Its object is not understood.
    Garbled,
}

/// Takes an event in: with all that follows from it, or not at all.
pub(crate) async fn handle(context: &Context, event: &Event, now: DateTime<Utc>) -> Result<Handled, StoreError> {
    let object = match event.object() {
        Ok(object) => object,
        Err(reason) => {
            warn!(event = event.id, kind = event.kind, %reason, "an event of Stripe is not understood");
            return Ok(Handled::Garbled);
        }
    };
    let mut tx = context.store.begin().await?;
    if !store::is_new_event(&mut tx, &event.id, &event.kind).await? {
        return Ok(Handled::Again);
    }
    let moved = match (event.kind.as_str(), object) {
        (
            "payment_intent.succeeded" | "payment_intent.payment_failed" | "payment_intent.canceled",
            EventObject::PaymentIntent(intent),
        ) => recharges::settle(&mut tx, &intent, now).await?,
        (kind, EventObject::Invoice(theirs)) => {
            let at = theirs.status_transitions.paid_at.filter(|_| kind == "invoice.paid").unwrap_or(event.created);
            let at = DateTime::from_timestamp(at, 0).filter(|at| *at <= now && at.timestamp() > 0).unwrap_or(now);
            invoice(context, &mut tx, kind, &theirs, at).await?
        }
        _ => None,
    };
    tx.commit().await.map_err(StoreError::from)?;
    context.spending.tell(moved);
    Ok(Handled::New)
}

/// Takes in what became of an invoice there. Gives the organization if its money has moved.
async fn invoice(
    context: &Context,
    connection: &mut PgConnection,
    kind: &str,
    theirs: &Invoice,
    at: DateTime<Utc>,
) -> Result<Option<Uuid>, StoreError> {
    let Some(ours) = ours(connection, theirs).await? else { return Ok(None) };
    let step = match kind {
        "invoice.paid" => PAID,
        "invoice.voided" => VOID,
        "invoice.marked_uncollectible" => UNCOLLECTIBLE,
        "invoice.payment_failed" => {
            let by = By { actor: ACTOR.to_owned(), role: ROLE };
            closing::note(connection, &by, "invoice.payment_failed", ours.id, json!({"stripe": theirs.id})).await?;
            return Ok(None);
        }
        _ => return Ok(None),
    };
    let moved = outcome::take_in(context, connection, &ours, theirs, step, at).await?;
    Ok(moved.then_some(ours.organization_id))
}

/// Our invoice that one of theirs was made from, its account locked.
async fn ours(connection: &mut PgConnection, theirs: &Invoice) -> Result<Option<Ours>, StoreError> {
    let said = theirs.metadata.get("invoice_id").and_then(|id| id.parse::<Uuid>().ok());
    let id = match said {
        Some(id) => Some(id),
        None => store::invoice_by_name(connection, &theirs.id).await?,
    };
    let Some(id) = id else { return Ok(None) };
    let Some(found) = invoices::get(connection, id).await? else { return Ok(None) };
    if found.stripe_invoice_id.as_deref().is_some_and(|name| name != theirs.id) {
        warn!(invoice = %id, theirs = theirs.id, "another invoice at Stripe says that it is this one; ignored");
        return Ok(None);
    }
    billing::lock(connection, found.organization_id).await?;
    invoices::get(connection, id).await
}
