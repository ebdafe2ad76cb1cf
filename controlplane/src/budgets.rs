//! The budget reconciler: edges are told what organizations have spent, often enough to matter and no oftener.

use crate::context::Context;
use crate::feed::{Edit, FeedError};
use crate::store::billing::{self, Standing};
use crate::store::config_log;
use crate::store::partitions::Month;
use chrono::{DateTime, Utc};
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use turnpike_config::push::MAX_DELTA;
use turnpike_config::{Budget, Change};
use uuid::Uuid;

/// What edges hold may say "complete up to" a time this far back, milliseconds, before it is said anew.
const STALE_MS: u64 = 60_000;
/// Spending is told in steps of this part of the allowance.
const STEPS: u128 = 1_000;
/// After each run; what is spent is told within a second, and a busy deployment's database is left alone in between.
const REST: Duration = Duration::from_millis(200);
/// Organizations told in one transaction: other changes wait for it.
const CHUNK: usize = 256;

/// Runs until stopped.
pub(crate) async fn run(context: Arc<Context>, every: Duration, stop: CancellationToken) {
    let mut away = false;
    let mut regular = tokio::time::interval(every);
    regular.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let spent = tokio::select! {
            () = stop.cancelled() => return,
            _ = regular.tick() => None,
            organizations = context.spending.next() => Some(organizations),
        };
        match reconcile(&context, spent.as_deref(), Utc::now()).await {
            Ok(()) => {
                if away {
                    info!("budgets are reconciled again");
                }
                away = false;
            }
            Err(error) => {
                context.metrics.budget_failures.inc();
                // Once per outage, not once per run.
                if !away {
                    warn!(%error, "budgets could not be reconciled; edges keep what they were told; trying again");
                }
                away = true;
            }
        }
        // What is spent meanwhile is looked at together.
        tokio::time::sleep(REST.min(every)).await;
    }
}

/// One run at the moment `now`, over all organizations or over those that spent something. Running it again changes
/// nothing.
async fn reconcile(context: &Context, spent: Option<&[Uuid]>, now: DateTime<Utc>) -> Result<(), FeedError> {
    let month = Month::of(now);
    let due: Vec<Uuid> = {
        let mut connection = context.store.read().await?;
        let standings = billing::standings(&mut connection, month, spent).await?;
        standings.iter().filter(|standing| is_due(standing, month, now)).map(|s| s.organization_id).collect()
    };
    for chunk in due.chunks(CHUNK) {
        let mut edit = context.feed.edit(config_log::BILLING).await?;
        // Read again under the lock: an operator, or another control plane, may have been faster.
        for standing in billing::standings(edit.connection(), month, Some(chunk)).await? {
            tell_if_due(&mut edit, &standing, now).await?;
        }
        config_log::trim_billing(edit.connection(), MAX_DELTA).await?;
        edit.commit().await?;
    }
    Ok(())
}

/// Tells edges of an organization's budget if what they were told is not good enough any more.
pub(crate) async fn tell_if_due(edit: &mut Edit<'_>, standing: &Standing, now: DateTime<Utc>) -> Result<(), FeedError> {
    let month = Month::of(now);
    if !is_due(standing, month, now) {
        return Ok(());
    }
    let told = billing::tell(edit.connection(), standing.organization_id, standing.budget(month)).await?;
    if let Some(organization) = told {
        edit.push(Change::PutOrg(organization.record()));
    }
    Ok(())
}

fn is_due(standing: &Standing, month: Month, now: DateTime<Utc>) -> bool {
    let now_ms = u64::try_from(now.timestamp_millis()).unwrap_or_default();
    match (standing.told.as_ref(), standing.budget(month)) {
        (None, None) => false,
        (Some(told), Some(is)) => has_moved(told, &is, now_ms) || is_awaited(told, &is, standing.linked_at_ms()),
        (Some(_), None) | (None, Some(_)) => true,
    }
}

/// Whether edges would decide otherwise, or soon could, if they knew what `is`.
fn has_moved(told: &Budget, is: &Budget, now_ms: u64) -> bool {
    let used_up = |budget: &Budget| budget.spent >= budget.monthly;
    let moved = is.spent.pico.abs_diff(told.spent.pico);
    let step = moved > 0 && moved.saturating_mul(STEPS) >= is.monthly.pico.unsigned_abs();
    let stale = is.as_of_ms > told.as_of_ms && now_ms.saturating_sub(told.as_of_ms) > STALE_MS;
    told.month != is.month || told.monthly != is.monthly || used_up(told) != used_up(is) || step || stale
}

/// Whether an edge that has come since waits for books that are complete up to then.
const fn is_awaited(told: &Budget, is: &Budget, linked_at_ms: u64) -> bool {
    told.as_of_ms < linked_at_ms && linked_at_ms <= is.as_of_ms
}

#[cfg(test)]
mod tests {
    use super::*;
    use turnpike_config::Usd;

    const NOW: u64 = 1_700_000_000_000;
    const TOLD: Budget =
        Budget { monthly: Usd { pico: 1_000_000 }, month: 202_601, spent: Usd { pico: 400_000 }, as_of_ms: NOW };

    #[test]
    fn edges_are_told_when_it_matters() {
        let moved = |is: Budget| has_moved(&TOLD, &is, NOW + 30_000);
        let spent = |pico| Budget { spent: Usd { pico }, ..TOLD };
        assert!(!moved(TOLD));
        assert!(!moved(spent(400_999)), "less than a thousandth of the allowance");
        assert!(moved(spent(401_000)));
        assert!(moved(spent(399_000)), "a credit");
        assert!(moved(Budget { month: 202_602, ..TOLD }));
        assert!(moved(Budget { monthly: Usd { pico: 1_000_001 }, ..TOLD }));
        let almost = Budget { spent: Usd { pico: 999_999 }, ..TOLD };
        assert!(has_moved(&almost, &spent(1_000_000), NOW), "used up");
    }

    #[test]
    fn age_counts_only_where_there_is_something_newer() {
        let newer = Budget { as_of_ms: NOW + 50_000, ..TOLD };
        assert!(!has_moved(&TOLD, &newer, NOW + STALE_MS));
        assert!(has_moved(&TOLD, &newer, NOW + STALE_MS + 1));
        assert!(!has_moved(&TOLD, &TOLD, NOW + 10 * STALE_MS), "an edge is away: there is nothing to tell");
    }

    #[test]
    fn an_edge_that_came_since_is_told_once_the_books_go_so_far() {
        let until = |as_of_ms| Budget { as_of_ms, ..TOLD };
        assert!(!is_awaited(&TOLD, &until(NOW + 9), NOW + 10));
        assert!(is_awaited(&TOLD, &until(NOW + 10), NOW + 10));
        assert!(!is_awaited(&until(NOW + 10), &until(NOW + 20), NOW + 10), "it knows already");
    }

    #[test]
    fn a_budget_of_nothing_is_told_of_every_spending() {
        let none = Budget { monthly: Usd::ZERO, spent: Usd::ZERO, ..TOLD };
        assert!(!has_moved(&none, &none, NOW));
        assert!(has_moved(&none, &Budget { spent: Usd { pico: 1 }, ..none }, NOW));
    }
}
