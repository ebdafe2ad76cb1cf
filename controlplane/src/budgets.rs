//! The budget reconciler: edges are told what organizations have spent, often enough to matter and no oftener.

use crate::allotment::{self, Share};
use crate::context::Context;
use crate::feed::{Edit, FeedError};
use crate::spending::Demand;
use crate::store::billing::{self, Standing};
use crate::store::partitions::Month;
use crate::store::shares::{self, Regions};
use crate::store::{PgConnection, StoreError, config_log};
use chrono::{DateTime, Utc};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use turnpike_config::{Budget, Change, Prepaid, RegionShare, Usd};
use uuid::Uuid;

/// What edges hold may say "complete up to" a time this far back, milliseconds, before it is said anew.
const STALE_MS: u64 = 60_000;
/// And this far, where requests may be refused for want of what a lease took with it: the books bring it back.
const STALE_IN_VAIN_MS: u64 = 10_000;
/// Spending is told in steps of this part of the allowance.
const STEPS: u128 = 1_000;
/// And of what is left to a region, though a tenth of a cent is not worth telling.
const LEAST_STEPS_OF: Usd = Usd { pico: 1_000_000_000_000 };
/// An edge that has just come may begin to count a little later than it linked, and by another clock.
const LATER_MS: u64 = 6_000;
/// Money that is moved from region to region is looked after so often.
const MOVING: Duration = Duration::from_millis(500);
/// After each run; what is spent is told within a second, and a busy deployment's database is left alone in between.
const REST: Duration = Duration::from_millis(200);
/// Organizations told in one transaction: other changes wait for it.
const CHUNK: usize = 256;

/// Runs until stopped.
pub(crate) async fn run(context: Arc<Context>, every: Duration, stop: CancellationToken) {
    let mut away = false;
    let mut moving = BTreeSet::new();
    let mut regular = tokio::time::interval(every);
    regular.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let spent = tokio::select! {
            () = stop.cancelled() => return,
            _ = regular.tick() => None,
            organizations = context.spending.next() => Some(organizations),
            () = tokio::time::sleep(MOVING), if !moving.is_empty() => Some(moving.iter().copied().collect()),
        };
        match reconcile(&context, spent.as_deref(), Utc::now()).await {
            Ok(found) => {
                moving.retain(|id| spent.as_ref().is_some_and(|spent| !spent.contains(id)));
                moving.extend(found);
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
/// nothing. Gives those whose money is on its way from one region to another.
async fn reconcile(context: &Context, spent: Option<&[Uuid]>, now: DateTime<Utc>) -> Result<BTreeSet<Uuid>, FeedError> {
    let mut moving = BTreeSet::new();
    let due: Vec<Uuid> = {
        let mut connection = context.store.read().await?;
        let demand = &context.spending.demand;
        // The version does not matter yet.
        let plan = |(standing, regions)| Plan::new(standing, &regions, demand, 0, now);
        let plans: Vec<Plan> = read(&mut connection, spent, now).await?.into_iter().map(plan).collect();
        moving.extend(plans.iter().filter(|plan| plan.is_moving).map(|plan| plan.standing.organization_id));
        plans.iter().filter(|plan| plan.is_due(now)).map(|plan| plan.standing.organization_id).collect()
    };
    for chunk in due.chunks(CHUNK) {
        let mut edit = context.feed.edit(config_log::BILLING).await?;
        tell_if_due(&mut edit, &context.spending.demand, chunk, now).await?;
        config_log::trim_passing(edit.connection()).await?;
        edit.commit().await?;
    }
    Ok(moving)
}

/// Tells edges of organizations' money if what they were told is not good enough any more. All is read under the lock of
/// `edit`: an operator, or another control plane, may have been faster.
pub(crate) async fn tell_if_due(
    edit: &mut Edit<'_>,
    demand: &Demand,
    organizations: &[Uuid],
    now: DateTime<Utc>,
) -> Result<(), FeedError> {
    for (standing, regions) in read(edit.connection(), Some(organizations), now).await? {
        let id = standing.organization_id;
        let plan = Plan::new(standing, &regions, demand, edit.next_version(), now);
        let is_told_anew = plan.is_told_anew(now);
        let shares: Vec<(&str, Share)> = plan.shares.iter().map(|(region, share)| (region.as_str(), *share)).collect();
        if !shares.is_empty() {
            shares::put(edit.connection(), id, &shares).await?;
        }
        if is_told_anew && let Some(told) = billing::tell(edit.connection(), id, plan.budget, plan.prepaid).await? {
            edit.push(Change::PutOrg(told.record()));
        }
    }
    Ok(())
}

/// What edges are to be told of an organization.
struct Plan {
    standing: Standing,
    budget: Option<Budget>,
    prepaid: Option<Prepaid>,
    /// What regions are given, of those where that changes.
    shares: Vec<(String, Share)>,
    /// Something is to change soon.
    is_moving: bool,
    /// Requests may be refused for want of money.
    is_in_vain: bool,
}

/// How organizations stand, and their regions: all of those that have money to tell of, or some.
async fn read(
    connection: &mut PgConnection,
    organizations: Option<&[Uuid]>,
    now: DateTime<Utc>,
) -> Result<Vec<(Standing, Regions)>, StoreError> {
    // In this order, see there.
    let mut regions = shares::of(connection, organizations).await?;
    let standings = billing::standings(connection, Month::of(now), organizations).await?;
    let with_regions = |standing: Standing| {
        let regions = regions.remove(&standing.organization_id).unwrap_or_default();
        (standing, regions)
    };
    Ok(standings.into_iter().map(with_regions).collect())
}

impl Plan {
    /// To be told with the routing `version`.
    fn new(standing: Standing, known: &Regions, demand: &Demand, version: u64, now: DateTime<Utc>) -> Self {
        let budget = standing.budget(Month::of(now));
        let Some(left) = standing.prepaid_balance() else {
            return Self { standing, budget, prepaid: None, shares: Vec::new(), is_moving: false, is_in_vain: false };
        };
        let mut regions = BTreeMap::new();
        for (name, place) in known {
            let mut region = place.region.clone();
            let has_all = region.has_all(left.pico);
            region.asked = demand.note((standing.organization_id, name), (place.requests, region.spent), has_all, now);
            regions.insert(name.clone(), region);
        }
        allotment::allot(&mut regions, left.pico, version, now);
        let mut prepaid = Prepaid { left: left.max(Usd::ZERO), regions: BTreeMap::new() };
        let mut shares = Vec::new();
        for ((name, region), place) in regions.iter().zip(known.values()) {
            let told = RegionShare {
                cap: Usd { pico: region.share.cap },
                spent: Usd { pico: region.spent },
                as_of_ms: u64::try_from(place.as_of.timestamp_millis()).unwrap_or_default(),
            };
            if told.cap > Usd::ZERO {
                prepaid.regions.insert(name.clone(), told);
            }
            if region.share != place.region.share {
                shares.push((name.clone(), region.share));
            }
        }
        let is_moving = regions.values().any(|region| region.share.lowered.is_some() && region.is_heard);
        let is_in_vain = regions.values().any(|region| region.is_live && region.asked.is_in_vain(now));
        Self { standing, budget, prepaid: Some(prepaid), shares, is_moving, is_in_vain }
    }

    fn is_due(&self, now: DateTime<Utc>) -> bool {
        !self.shares.is_empty() || self.is_told_anew(now)
    }

    fn is_told_anew(&self, now: DateTime<Utc>) -> bool {
        let now_ms = u64::try_from(now.timestamp_millis()).unwrap_or_default();
        let linked_at_ms = self.standing.linked_at_ms();
        let budget = match (self.standing.told.as_deref(), &self.budget) {
            (None, None) => false,
            (Some(told), Some(is)) => {
                has_moved(told, is, now_ms) || is_awaited(told.as_of_ms, is.as_of_ms, linked_at_ms)
            }
            (Some(_), None) | (None, Some(_)) => true,
        };
        let prepaid = match (self.standing.told_prepaid.as_deref(), &self.prepaid) {
            (None, None) => false,
            (Some(told), Some(is)) => {
                let stale_ms = if self.is_in_vain { STALE_IN_VAIN_MS } else { STALE_MS };
                has_been_given(told, is, now_ms, stale_ms) || is_awaited_of(told, is, linked_at_ms)
            }
            (Some(_), None) | (None, Some(_)) => true,
        };
        budget || prepaid
    }
}

/// Whether edges would decide otherwise, or soon could, if they knew how money paid ahead `is` given out.
fn has_been_given(told: &Prepaid, is: &Prepaid, now_ms: u64, stale_ms: u64) -> bool {
    let caps = |prepaid: &Prepaid| -> Vec<_> {
        prepaid.regions.iter().map(|(name, share)| (name.clone(), share.cap)).collect()
    };
    let used_up = |share: &RegionShare| share.spent >= share.cap;
    let has_moved = |(told, is): (&RegionShare, &RegionShare)| {
        let moved = is.spent.pico.abs_diff(told.spent.pico);
        // The sums go on for ever: what counts is how much of the rest was spent.
        let rest = told.cap.pico.saturating_sub(told.spent.pico).max(LEAST_STEPS_OF.pico);
        let step = moved.saturating_mul(STEPS) >= rest.unsigned_abs();
        let stale = is.as_of_ms > told.as_of_ms && now_ms.saturating_sub(told.as_of_ms) > stale_ms;
        used_up(told) != used_up(is) || step || stale
    };
    caps(told) != caps(is)
        || (told.left == Usd::ZERO) != (is.left == Usd::ZERO)
        || told.regions.values().zip(is.regions.values()).any(has_moved)
}

/// The same as [`is_awaited`], of any region.
fn is_awaited_of(told: &Prepaid, is: &Prepaid, linked_at_ms: u64) -> bool {
    let mut regions = told.regions.values().zip(is.regions.values());
    regions.any(|(told, is)| is_awaited(told.as_of_ms, is.as_of_ms, linked_at_ms))
}

/// Whether edges would decide otherwise, or soon could, if they knew what `is`.
fn has_moved(told: &Budget, is: &Budget, now_ms: u64) -> bool {
    let used_up = |budget: &Budget| budget.spent >= budget.monthly;
    let moved = is.spent.pico.abs_diff(told.spent.pico);
    let step = moved > 0 && moved.saturating_mul(STEPS) >= is.monthly.pico.unsigned_abs();
    let stale = is.as_of_ms > told.as_of_ms && now_ms.saturating_sub(told.as_of_ms) > STALE_MS;
    told.month != is.month || told.monthly != is.monthly || used_up(told) != used_up(is) || step || stale
}

/// Whether an edge that has come since waits for books that are complete up to then, or a little later.
const fn is_awaited(told_ms: u64, is_ms: u64, linked_at_ms: u64) -> bool {
    let later_ms = linked_at_ms.saturating_add(LATER_MS);
    told_ms < linked_at_ms && linked_at_ms <= is_ms || told_ms < later_ms && later_ms <= is_ms
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
        let awaited = |told, is| is_awaited(told, is, 10);
        assert!(!awaited(0, 9));
        assert!(awaited(0, 10));
        assert!(!awaited(10, 20), "it knows already");
        assert!(awaited(20, 10 + LATER_MS), "and when it has begun to count for sure");
        assert!(!awaited(10 + LATER_MS, 99 + LATER_MS));
    }

    #[test]
    fn what_a_region_is_given_is_told_at_once_and_its_spending_in_steps_of_the_rest() {
        const DOLLAR: i128 = 1_000_000_000_000;
        let prepaid = |cap, spent, as_of_ms| {
            let share = RegionShare { cap: Usd { pico: cap }, spent: Usd { pico: spent }, as_of_ms };
            Prepaid { regions: [("eu".to_owned(), share)].into(), left: Usd { pico: cap - spent } }
        };
        let told = prepaid(104 * DOLLAR, 100 * DOLLAR, NOW);
        let moved = |is: Prepaid, stale_ms| has_been_given(&told, &is, NOW + 20_000, stale_ms);
        let spent = |pico| prepaid(104 * DOLLAR, 100 * DOLLAR + pico, NOW + 1);
        assert!(!moved(told.clone(), 10_000));
        assert!(!moved(spent(DOLLAR / 250 - 1), 30_000));
        assert!(moved(spent(DOLLAR / 250), 30_000));
        assert!(moved(spent(0), 10_000), "the books go further");
        assert!(moved(prepaid(104 * DOLLAR + 1, 100 * DOLLAR, NOW), 30_000));
        assert!(moved(Prepaid { regions: [].into(), ..told.clone() }, 30_000));
        let little = prepaid(DOLLAR, DOLLAR - 10, NOW);
        assert!(!has_been_given(&little, &prepaid(DOLLAR, DOLLAR - 1, NOW), NOW, STALE_MS));
        assert!(has_been_given(&little, &prepaid(DOLLAR, DOLLAR, NOW), NOW, STALE_MS), "used up");
    }

    #[test]
    fn a_budget_of_nothing_is_told_of_every_spending() {
        let none = Budget { monthly: Usd::ZERO, spent: Usd::ZERO, ..TOLD };
        assert!(!has_moved(&none, &none, NOW));
        assert!(has_moved(&none, &Budget { spent: Usd { pico: 1 }, ..none }, NOW));
    }
}
