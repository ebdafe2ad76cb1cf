//! Collecting money through Stripe: invoices are sent there, little money paid ahead is recharged, and what it says of
//! both is taken in. Nothing of it runs unless it is configured.

mod credit_notes;
mod events;
mod invoices;
mod outcome;
mod recharges;

pub(crate) use events::{Handled, handle};

use crate::context::Context;
use crate::store::{StoreError, leader, stripe as store};
use crate::stripe::{ClientError, Stripe};
use chrono::Utc;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use tracing::warn;

/// Who acts, for the books.
const ACTOR: &str = "stripe";
/// With which role.
const ROLE: &str = "system";

/// Why something was not collected.
#[derive(Debug, thiserror::Error)]
enum CollectError {
    /// Stripe said no, or nothing.
    #[error(transparent)]
    Stripe(#[from] ClientError),
    /// The database refused or does not answer.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// What is here and there does not fit together.
    #[error("{0}")]
    Mismatch(String),
}

/// Runs until stopped; ends at once if Stripe is not configured.
pub(crate) async fn run(context: Arc<Context>, every: Duration, stop: CancellationToken) {
    let Some(stripe) = context.stripe.clone() else { return };
    let mut away = false;
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(every) => {}
        }
        let ran = tokio::select! {
            // What was begun goes on at the next start, with the same idempotency keys.
            () = stop.cancelled() => return,
            ran = reconcile(&context, &stripe) => ran,
        };
        if let Err(error) = &ran {
            context.metrics.stripe_failures.inc();
            // Once per outage, not once per run.
            if !away {
                warn!(%error, "collecting stands still; trying again");
            }
        }
        away = ran.is_err();
    }
}

/// One run. Running it again asks Stripe for nothing twice.
async fn reconcile(context: &Context, stripe: &Stripe) -> Result<(), StoreError> {
    let Some(leading) = leader::try_lead(&context.store, leader::COLLECTING).await? else { return Ok(()) };
    recharges::reconcile(context, stripe, Utc::now()).await?;
    // Before the invoices: one of which nothing is left is paid there by its note.
    credit_notes::reconcile(context, stripe).await?;
    invoices::reconcile(context, stripe).await?;
    store::forget_events(&mut *context.store.read().await?).await?;
    leading.end().await
}

/// Notes a failure that concerns one organization and must not keep the others from being served, and gives its reason.
/// That the database does not answer concerns all: it ends the run.
fn failure(
    context: &Context,
    what: &str,
    id: uuid::Uuid,
    told: Result<(), CollectError>,
) -> Result<Option<String>, StoreError> {
    match told {
        Ok(()) => Ok(None),
        Err(CollectError::Store(error @ StoreError::Unavailable(_))) => Err(error),
        Err(error) => {
            context.metrics.stripe_failures.inc();
            warn!(what, %id, %error, "not collected; trying again later");
            Ok(Some(error.to_string()))
        }
    }
}
