//! The closing reconciler: months that are over become invoices, once the books are complete.

use crate::closing::{self, By, CloseError, Closed, Until};
use crate::context::Context;
use crate::store::charges;
use crate::store::partitions::Month;
use crate::store::{StoreError, leader};
use chrono::{DateTime, TimeDelta, Utc};
use std::collections::BTreeSet;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};
use uuid::Uuid;

/// Months that are looked back at: a deployment that was away makes up for them, one that is updated is not billed for
/// years.
const LOOK_BACK: i32 = 3;
/// Months before those, of which it is said if they are not closed.
const WATCHED: i32 = 12;

/// What was said already, so that it is said once and not at every run.
#[derive(Debug, Default)]
struct Said {
    waiting: Option<Month>,
    refused: BTreeSet<(Uuid, u32)>,
    forgotten: BTreeSet<Month>,
    away: bool,
}

/// Runs until stopped.
pub(crate) async fn run(context: Arc<Context>, stop: CancellationToken) {
    let mut said = Said::default();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(context.invoicing.close_every) => {}
        }
        match reconcile(&context, Utc::now(), &mut said).await {
            Ok(()) => said.away = false,
            Err(error) => {
                context.metrics.closing_failures.inc();
                if !said.away {
                    warn!(%error, "months could not be closed; trying again");
                }
                said.away = true;
            }
        }
    }
}

/// One run at the moment `now`. Running it again, or twice at once, changes nothing more.
async fn reconcile(context: &Context, now: DateTime<Utc>, said: &mut Said) -> Result<(), StoreError> {
    // Only to spare the database: two closers make one invoice all the same.
    let Some(leading) = leader::try_lead(&context.store, leader::CLOSING).await? else { return Ok(()) };
    context.rollup.settle().await;
    tell_forgotten(context, now, said).await?;
    let wait = TimeDelta::from_std(context.invoicing.close_after).unwrap_or(TimeDelta::MAX);
    let by = By { actor: "invoicing".to_owned(), role: "system" };
    for month in (1..=LOOK_BACK).rev().map(|back| Month::of(now).plus(-back)) {
        if now.signed_duration_since(month.plus(1).start()) < wait {
            break;
        }
        let mut connection = context.store.read().await?;
        let due = charges::due(&mut connection, month, false).await?;
        let behind = if due.is_empty() { None } else { closing::ready(&mut connection, month).await.err() };
        drop(connection);
        if let Some(behind) = behind {
            let (CloseError::Behind { .. } | CloseError::Unsummed(_)) = &behind else {
                return Err(store_error(behind));
            };
            context.metrics.closing_waiting.set(1);
            if said.waiting != Some(month) {
                warn!(%month, reason = %behind, "the month waits to be closed");
            }
            said.waiting = Some(month);
            return leading.end().await;
        }
        for organization in due {
            match closing::close(context, organization, month, Until::Open, &by, now).await {
                Ok(Closed::Made(invoice)) => info!(%month, number = invoice.invoice_number, "invoice opened"),
                Ok(Closed::Nothing | Closed::Already(_)) => {}
                Err(CloseError::Store(error @ StoreError::Unavailable(_))) => return Err(error),
                // Something came just now; the next run has it.
                Err(CloseError::Unsummed(_)) => {}
                // One organization's books must not keep the others from their invoices.
                Err(refused) => {
                    context.metrics.closing_failures.inc();
                    if said.refused.insert((organization, month.number())) {
                        error!(%organization, %month, error = %refused, "a month could not be closed");
                    }
                }
            }
        }
    }
    said.waiting = None;
    context.metrics.closing_waiting.set(0);
    leading.end().await
}

/// Says which months are not looked at any more though they have usage that is on no invoice.
async fn tell_forgotten(context: &Context, now: DateTime<Utc>, said: &mut Said) -> Result<(), StoreError> {
    let oldest = Month::of(now).plus(-LOOK_BACK);
    let forgotten = charges::unbilled(&mut *context.store.read().await?, oldest.plus(-WATCHED), oldest).await?;
    context.metrics.closing_forgotten.set(i64::try_from(forgotten.len()).unwrap_or(i64::MAX));
    for (month, organizations) in forgotten {
        if said.forgotten.insert(month) {
            error!(
                %month, organizations,
                "a month has usage on no invoice and is too old to be closed by itself: `turnpike invoices close {month}` \
                 closes it"
            );
        }
    }
    Ok(())
}

fn store_error(error: CloseError) -> StoreError {
    match error {
        CloseError::Store(error) => error,
        other => StoreError::corrupt("closing", other),
    }
}
