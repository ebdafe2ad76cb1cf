//! What became of an invoice at Stripe, taken into our books; by whichever way it is heard of.

use super::{ACTOR, ROLE};
use crate::closing::{self, By};
use crate::context::Context;
use crate::store::invoices::{self, Invoice as Ours, OPEN, PAID, UNCOLLECTIBLE, VOID};
use crate::store::{PgConnection, StoreError, stripe as store};
use crate::stripe::Invoice;
use chrono::{DateTime, Utc};
use serde_json::json;
use tracing::error;
use turnpike_config::Usd;

/// Stripe's status in our words, which are the same ones.
pub(super) fn known(status: Option<&str>) -> &'static str {
    [PAID, VOID, UNCOLLECTIBLE].into_iter().find(|known| status == Some(known)).unwrap_or(OPEN)
}

/// Takes in that an invoice is `step` there; says whether that changed anything here. The caller holds the account's lock
/// and has read `ours` under it.
pub(super) async fn take_in(
    context: &Context,
    connection: &mut PgConnection,
    ours: &Ours,
    theirs: &Invoice,
    step: &'static str,
    at: DateTime<Utc>,
) -> Result<bool, StoreError> {
    match (ours.status.as_str(), step) {
        // Its credit notes would be lost: the next invoice of the month charges everything anew.
        (OPEN | UNCOLLECTIBLE, VOID) if ours.credited() != Usd::ZERO => {
            return differs(context, connection, ours, step, at).await;
        }
        (OPEN, _) | (UNCOLLECTIBLE, PAID | VOID) => {}
        // It is so already, or was paid or voided since: what is said of before changes nothing.
        (status, _) if status == step || step == UNCOLLECTIBLE => {
            store::told(connection, ours.id, step, at).await?;
            return Ok(false);
        }
        _ => return differs(context, connection, ours, step, at).await,
    }
    store::told(connection, ours.id, step, at).await?;
    if step == VOID {
        closing::void(connection, ours, ACTOR, at).await?;
    } else {
        invoices::set_status(connection, ours.id, step, at).await?;
    }
    let by = By { actor: ACTOR.to_owned(), role: ROLE };
    let mut details = json!({"from": ours.status, "stripe": theirs.id});
    // Less than Stripe charges at once, or covered by what it owes the customer.
    let carried = theirs.total.saturating_sub(theirs.amount_due);
    if step == PAID && theirs.amount_due == 0 && carried != 0 && ours.credited() == Usd::ZERO {
        details["cents_to_customer_balance"] = json!(carried);
    }
    closing::note(connection, &by, &format!("invoice.{step}"), ours.id, details).await?;
    Ok(true)
}

/// No step leads from one to the other, neither here nor there: people settle it, and nothing more is tried until the
/// invoice changes here.
pub(super) async fn differs(
    context: &Context,
    connection: &mut PgConnection,
    ours: &Ours,
    step: &str,
    at: DateTime<Utc>,
) -> Result<bool, StoreError> {
    context.metrics.stripe_conflicts.inc();
    let (number, status) = (ours.invoice_number.as_str(), ours.status.as_str());
    error!(number, status, step, "Stripe says otherwise of an invoice; settle it there or by a credit note");
    store::told(connection, ours.id, status, at).await?;
    Ok(false)
}
