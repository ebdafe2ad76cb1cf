//! The posting reconciler: usage of days that are over becomes entries in the ledgers of money paid ahead.

use crate::context::Context;
use crate::store::{StoreError, billing, prepaid};
use chrono::{DateTime, NaiveDate, Utc};
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use tracing::warn;
use uuid::Uuid;

/// Between two runs. Balances do not wait for them: what is not posted yet is counted all the same.
const INTERVAL: Duration = Duration::from_secs(60);

/// Runs until stopped.
pub(crate) async fn run(context: Arc<Context>, stop: CancellationToken) {
    let mut away = false;
    loop {
        let failed = reconcile(&context, Utc::now()).await.err();
        if let Some(error) = &failed {
            context.metrics.posting_failures.inc();
            // Once per outage, not once per run.
            if !away {
                warn!(%error, "usage could not be posted to ledgers; balances are right all the same; trying again");
            }
        }
        away = failed.is_some();
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(INTERVAL) => {}
        }
    }
}

/// One run at the moment `now`. Running it again changes nothing.
async fn reconcile(context: &Context, now: DateTime<Utc>) -> Result<(), StoreError> {
    let today = now.date_naive();
    let due = prepaid::unposted(&mut *context.store.read().await?, today).await?;
    let mut failed = None;
    for organization in due {
        match post(context, organization, today).await {
            Ok(()) => {}
            Err(error @ StoreError::Unavailable(_)) => return Err(error),
            // One organization's rows must not keep the others' from being posted.
            Err(error) => {
                warn!(%organization, %error, "an organization's usage could not be posted");
                failed = Some(error);
            }
        }
    }
    failed.map_or(Ok(()), Err)
}

async fn post(context: &Context, organization: Uuid, today: NaiveDate) -> Result<(), StoreError> {
    let mut tx = context.store.begin().await?;
    billing::lock(&mut tx, organization).await?;
    prepaid::post_usage(&mut tx, organization, today).await?;
    Ok(tx.commit().await?)
}
