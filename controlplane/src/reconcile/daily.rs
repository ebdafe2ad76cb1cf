//! The books of yesterday, and of days that were missed, compared once they are complete.

use super::{HOURS, compare, day_before, is_complete, midnight};
use crate::context::Context;
use crate::ledger::LedgerError;
use crate::store::leader;
use crate::store::reconcile::{self as store, Compared};
use chrono::{DateTime, Days, NaiveDate, TimeDelta, Utc};
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

/// Between two looks whether there is something to compare.
const EVERY: Duration = Duration::from_secs(300);
/// Books that are not complete this long after their day are compared as they are: an edge that is gone for good must not
/// keep differences from being seen.
const PATIENCE_HOURS: i64 = 12;

/// Days before yesterday that are made up for: a control plane that was away, books that were not complete for long.
const LOOK_BACK: u64 = 31;

/// Runs until stopped.
pub(crate) async fn run(context: Arc<Context>, stop: CancellationToken) {
    loop {
        if let Err(error) = look(&context, Utc::now()).await {
            context.metrics.reconcile_failures.inc();
            warn!(%error, "the books could not be compared; trying again");
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(EVERY) => {}
        }
    }
}

/// One look at the moment `now`: compares the books of the last days that are complete and that has not been done for, and
/// shows what the comparison of the latest day came to, whoever made it.
async fn look(context: &Context, now: DateTime<Utc>) -> Result<(), LedgerError> {
    let database = &context.store;
    if let Some(leading) = leader::try_lead(database, leader::RECONCILE).await? {
        let yesterday = day_before(now);
        let oldest = yesterday.checked_sub_days(Days::new(LOOK_BACK)).unwrap_or(yesterday);
        for (day, was_compared) in store::to_compare(&mut *database.read().await?, oldest, yesterday).await? {
            compare_day(context, day, now, was_compared).await?;
        }
        leading.end().await?;
    }
    if let Some(last) = store::last_noted(&mut *database.read().await?).await? {
        context.metrics.show_reconciliation(&last);
    }
    Ok(())
}

async fn compare_day(
    context: &Context,
    day: NaiveDate,
    now: DateTime<Utc>,
    was_compared: bool,
) -> Result<(), LedgerError> {
    let since = now - midnight(day) - TimeDelta::hours(HOURS);
    let is_complete = is_complete(&mut *context.store.read().await?, day, now).await?;
    let is_late = since >= TimeDelta::hours(PATIENCE_HOURS);
    if !is_complete && (was_compared || !is_late) {
        return Ok(());
    }
    let report = compare(context, day).await?;
    let apart = report.apart();
    if report.equal {
        info!(%day, requests = report.ledger.requests, cost_usd = %report.ledger.cost_usd, "the books are equal");
    } else {
        error!(
            %day, complete = report.complete, events = apart.events, tokens = apart.tokens, cost_usd = %apart.cost,
            "the books differ: see `turnpike reconcile --day {day}`"
        );
    }
    let compared = Compared { day, ran_at: now, complete: report.complete, apart };
    Ok(store::note(&mut *context.store.read().await?, compared).await?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn yesterday_is_the_utc_day_before() {
        let at = |text: &str| text.parse::<DateTime<Utc>>().expect("a moment");
        assert_eq!(day_before(at("2026-03-01T00:00:00Z")).to_string(), "2026-02-28");
        assert_eq!(day_before(at("2026-02-28T23:59:59Z")).to_string(), "2026-02-27");
    }
}
