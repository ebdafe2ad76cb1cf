//! The partition reconciler: coming months exist before they begin, old ones are retired.

use crate::metrics::Metrics;
use crate::store::partitions::{self, Month, Partitioned};
use crate::store::{Store, StoreError};
use chrono::{DateTime, Utc};
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

/// Months made ahead of the current one.
pub(crate) const MONTHS_AHEAD: i32 = 3;
/// Between runs: often enough to retry many times within a month.
const INTERVAL: Duration = Duration::from_secs(3600);
/// After a failed run.
const RETRY: Duration = Duration::from_secs(30);

/// Makes what is missing for these months, in every table.
pub(crate) async fn ensure(store: &Store, wanted: impl IntoIterator<Item = Month>) -> Result<(), StoreError> {
    let wanted: Vec<Month> = wanted.into_iter().collect();
    let mut tx = store.begin().await?;
    partitions::lock(&mut tx).await?;
    for table in Partitioned::ALL {
        let existing = partitions::months(&mut tx, table).await?;
        for month in wanted.iter().filter(|month| !existing.contains(month)) {
            partitions::create(&mut tx, table, *month).await?;
            info!(?table, %month, "partition made");
        }
    }
    tx.commit().await?;
    Ok(())
}

/// One run at the moment `now`: this month and the coming ones exist, and no request older than `keep_months` months
/// before this one is kept. Running it again changes nothing.
pub(crate) async fn reconcile(store: &Store, now: DateTime<Utc>, keep_months: u32) -> Result<(), StoreError> {
    let current = Month::of(now);
    ensure(store, (0..=MONTHS_AHEAD).map(|ahead| current.plus(ahead))).await?;
    let oldest = oldest_kept(now, keep_months);
    let mut tx = store.begin().await?;
    partitions::lock(&mut tx).await?;
    for table in Partitioned::RETIRED {
        for month in partitions::months(&mut tx, table).await?.into_iter().filter(|month| *month < oldest) {
            partitions::retire(&mut tx, table, month).await?;
            info!(?table, %month, "partition retired");
        }
    }
    tx.commit().await?;
    Ok(())
}

/// The oldest month whose requests are kept.
pub(crate) fn oldest_kept(now: DateTime<Utc>, keep_months: u32) -> Month {
    Month::of(now).plus(i32::try_from(keep_months).map_or(i32::MIN, |months| -months))
}

/// Runs hourly until stopped.
pub(crate) async fn run(store: Store, metrics: Arc<Metrics>, keep_months: u32, stop: CancellationToken) {
    let mut pause = INTERVAL;
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
        pause = match reconcile(&store, Utc::now(), keep_months).await {
            Ok(()) => INTERVAL,
            Err(error) => {
                metrics.partition_failures.inc();
                error!(%error, "partitions could not be reconciled; trying again in 30 s");
                RETRY
            }
        };
    }
}
