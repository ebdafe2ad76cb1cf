//! The rollup: usage is added up from the ledger, hour by hour, and set, never incremented.
//!
//! Ingest marks the hours that events came for. A run sums those hours anew, absolutely, brings the days in line, and
//! removes the marks it has seen, all in one transaction under a lock: what it wrote is right or is not there, a second
//! run changes nothing, and of two control planes the slower one cannot overwrite what the faster one knows. Requests that
//! were counted stay counted: a ledger that knows fewer of them has lost something, or is not yet what it will be.

use crate::ledger::{Ledger, LedgerError, Retention};
use crate::metrics::Metrics;
use crate::spending::Spending;
use crate::store::rollup::{self, Days, HourKey, HourSum};
use crate::store::{PgConnection, Store, StoreError, Tx};
use chrono::{DateTime, NaiveDate, Utc};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::Duration;
use tokio::sync::{Mutex, Notify};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};
use turnpike_config::crash_point;
use uuid::Uuid;

/// Between two runs without a nudge: another control plane may have marked hours.
const EVERY: Duration = Duration::from_secs(1);
/// After a run, at least.
const SHORTEST_REST: Duration = Duration::from_millis(200);
/// After a run, at most.
const LONGEST_REST: Duration = Duration::from_secs(60);
/// A run is followed by a rest of this many times its own length.
const SHARE: u32 = 4;
/// Hours summed in one transaction, at most: two days' worth, so that memory is bounded. Half of them after a run that
/// failed, which may have been too much at once, and twice as many after one that did not.
const HOURS_AT_ONCE: i64 = 48;
/// How long a reader waits for the sums to be up to date; after that it is given what there is.
const READER_PATIENCE: Duration = Duration::from_secs(5);

/// Why a run failed; it changed nothing.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RollupError {
    /// The ledger cannot be read.
    #[error("reading the ledger: {0}")]
    Ledger(#[from] LedgerError),
    /// The sums cannot be written.
    #[error("writing the sums: {0}")]
    Store(#[from] StoreError),
}

/// What one transaction came to.
enum Summed {
    /// There is nothing more to do.
    All,
    /// There may be, after this hour.
    UpTo(DateTime<Utc>),
}

/// Who may wait for the lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Patience {
    /// If another control plane is at it, that is as good.
    None,
    /// The caller wants to read what comes of it.
    Wait,
}

/// Adds up usage.
#[derive(Debug)]
pub(crate) struct Rollup {
    store: Store,
    ledger: Arc<Ledger>,
    retention: Retention,
    metrics: Arc<Metrics>,
    spending: Arc<Spending>,
    /// See [`HOURS_AT_ONCE`].
    hours_at_once: AtomicI64,
    /// It was said that hours are left as they are.
    refusing: AtomicBool,
    /// Hours were marked in this process.
    nudge: Notify,
    /// One run at a time in this process, so that waiting for one takes no connection.
    turn: Mutex<()>,
}

impl Rollup {
    pub(crate) fn new(
        store: Store,
        ledger: Arc<Ledger>,
        retention: Retention,
        metrics: Arc<Metrics>,
        spending: Arc<Spending>,
    ) -> Self {
        Self {
            store,
            ledger,
            retention,
            metrics,
            spending,
            hours_at_once: AtomicI64::new(HOURS_AT_ONCE),
            refusing: AtomicBool::new(false),
            nudge: Notify::new(),
            turn: Mutex::new(()),
        }
    }

    /// Says that hours are to be summed anew.
    pub(crate) fn nudge(&self) {
        self.nudge.notify_one();
    }

    /// Runs until stopped: soon after it was nudged, at least every second, less often when a run takes long.
    pub(crate) async fn run(&self, stop: CancellationToken) {
        let mut away = false;
        let mut rest = SHORTEST_REST;
        loop {
            let due = async {
                sleep(rest).await;
                let _ = timeout(EVERY, self.nudge.notified()).await;
            };
            tokio::select! {
                () = stop.cancelled() => return,
                () = due => {}
            }
            let began = Instant::now();
            match self.catch_up(Patience::None).await {
                Ok(()) => {
                    if away {
                        info!("usage is added up again");
                    }
                    away = false;
                }
                Err(error) => {
                    self.metrics.rollup_failures.inc();
                    // Once per outage, not once per run.
                    if !away {
                        warn!(%error, "usage could not be added up; sums stay as they are; trying again");
                    }
                    away = true;
                }
            }
            rest = (began.elapsed() * SHARE).clamp(SHORTEST_REST, LONGEST_REST);
        }
    }

    /// Brings the sums up to date for somebody who is about to read them: all that was acknowledged before is in them
    /// afterwards. If that takes longer than a reader should wait, it goes on, and the reader is given what there is.
    pub(crate) async fn settle(self: &Arc<Self>) {
        let rollup = Arc::clone(self);
        let settling = tokio::spawn(async move {
            if let Err(error) = rollup.catch_up(Patience::Wait).await {
                rollup.metrics.rollup_failures.inc();
                debug!(%error, "usage could not be added up for a reader");
            }
        });
        let _ = timeout(READER_PATIENCE, settling).await;
    }

    async fn catch_up(&self, patience: Patience) -> Result<(), RollupError> {
        let _turn = self.turn.lock().await;
        let mut refused = Vec::new();
        if rollup::is_due(&mut *self.store.read().await?).await? {
            let mut after = None;
            loop {
                let most = self.hours_at_once.load(Ordering::Relaxed);
                let summed = self.sum_some(patience, after, most, &mut refused).await;
                let next = if summed.is_ok() { most * 2 } else { most / 2 };
                self.hours_at_once.store(next.clamp(1, HOURS_AT_ONCE), Ordering::Relaxed);
                match summed? {
                    Some(Summed::UpTo(hour)) => after = Some(hour),
                    Some(Summed::All) => break,
                    // Another control plane says what it refuses.
                    None => return Ok(()),
                }
            }
        }
        self.say_refused(&refused);
        Ok(())
    }

    /// Once, and not at every run.
    fn say_refused(&self, hours: &[DateTime<Utc>]) {
        self.metrics.rollup_hours_refused.set(i64::try_from(hours.len()).unwrap_or(i64::MAX));
        let was_refusing = self.refusing.swap(!hours.is_empty(), Ordering::Relaxed);
        match hours.first() {
            Some(first) if !was_refusing => error!(
                hours = hours.len(), %first,
                "the ledger has fewer requests than were summed before; these hours stay as they were summed, and what came \
                 since waits. A replica that lags catches up by itself. A ledger that was emptied is to be restored. To \
                 believe the ledger all the same, delete the hours from usage_hours"
            ),
            None if was_refusing => info!("the ledger has all hours again"),
            _ => {}
        }
    }

    /// One transaction, of at most so many hours after `after`; `None` if somebody else is at it. Adds to `refused` the
    /// hours that are left as they are, with their marks.
    async fn sum_some(
        &self,
        patience: Patience,
        after: Option<DateTime<Utc>>,
        most: i64,
        refused: &mut Vec<DateTime<Utc>>,
    ) -> Result<Option<Summed>, RollupError> {
        let began = Instant::now();
        let mut tx = self.store.begin().await?;
        match patience {
            Patience::Wait => rollup::lock(&mut tx).await?,
            Patience::None if rollup::try_lock(&mut tx).await? => {}
            Patience::None => return Ok(None),
        }
        // The marks are read first: an event whose mark is among them is in the ledger.
        let mut dirty = rollup::dirty_hours(&mut tx, after, most).await?;
        let Some((last, _)) = dirty.last() else { return Ok(Some(Summed::All)) };
        let is_all = i64::try_from(dirty.len()).is_ok_and(|count| count < most);
        let summed = if is_all { Summed::All } else { Summed::UpTo(*last) };
        // An hour that is still being copied would seem to have lost what is not there yet: its marks wait.
        if let Some(whole_from) = self.ledger.is_whole_from(&mut tx).await? {
            dirty.retain(|(hour, _)| *hour >= whole_from);
        }
        let mut hours: Vec<DateTime<Utc>> = dirty.iter().map(|(hour, _)| *hour).collect();
        let kept_from = self.retention.holds_from(Utc::now());
        if hours.first().is_some_and(|first| *first < kept_from) {
            warn!(%kept_from, "hours from before the ledger begins are left as they were summed");
            hours.retain(|hour| *hour >= kept_from);
        }
        let sums = self.ledger.hour_sums(&mut tx, &hours).await?;
        let mut sums = billable(&mut tx, sums).await?;
        let mut before = rollup::hours(&mut tx, &hours).await?;
        let fewer = fewer(&before, &sums);
        before.retain(|sum| !fewer.contains(&sum.hour));
        sums.retain(|sum| !fewer.contains(&sum.hour));
        dirty.retain(|(hour, _)| !fewer.contains(hour));
        refused.extend(fewer);
        let changed = write(&mut tx, &before, &sums).await?;
        let marks: Vec<i64> = dirty.into_iter().flat_map(|(_, marks)| marks).collect();
        rollup::unmark(&mut tx, &marks).await?;
        crash_point("control.rollup");
        tx.commit().await.map_err(StoreError::from)?;
        self.spending.tell(changed);
        self.metrics.rollup_duration.observe(began.elapsed().as_secs_f64());
        Ok(Some(summed))
    }
}

/// Without what belongs to nobody: a ledger that was restored may know organizations and models that PostgreSQL does not.
async fn billable(connection: &mut PgConnection, mut sums: Vec<HourSum>) -> Result<Vec<HourSum>, StoreError> {
    let organizations: BTreeSet<Uuid> = sums.iter().map(|sum| sum.organization_id).collect();
    let models: BTreeSet<&str> = sums.iter().map(|sum| sum.model_id.as_str()).collect();
    let known = rollup::known(connection, &organizations, &models).await?;
    let before = sums.len();
    sums.retain(|sum| known.0.contains(&sum.organization_id) && known.1.contains(&sum.model_id));
    if sums.len() < before {
        warn!(
            sums = before - sums.len(),
            "the ledger has usage of organizations or models that do not exist; left out"
        );
    }
    Ok(sums)
}

/// The hours of which there are fewer requests than before.
fn fewer(before: &[HourSum], sums: &[HourSum]) -> BTreeSet<DateTime<Utc>> {
    let requests: BTreeMap<HourKey, i64> = sums.iter().map(|sum| (sum.key(), sum.requests)).collect();
    let is_fewer = |sum: &&HourSum| requests.get(&sum.key()).copied().unwrap_or(0) < sum.requests;
    before.iter().filter(is_fewer).map(|sum| sum.hour).collect()
}

/// Sets the sums of hours, and carries them over to the days. Gives the organizations for which something changed.
async fn write(tx: &mut Tx, before: &[HourSum], sums: &[HourSum]) -> Result<BTreeSet<Uuid>, StoreError> {
    let old: BTreeMap<HourKey, &HourSum> = before.iter().map(|sum| (sum.key(), sum)).collect();
    let new: BTreeMap<HourKey, &HourSum> = sums.iter().map(|sum| (sum.key(), sum)).collect();
    let put: Vec<&HourSum> = new.iter().filter(|(key, sum)| old.get(*key) != Some(*sum)).map(|(_, sum)| *sum).collect();
    let gone: Vec<&HourSum> = old.iter().filter(|(key, _)| !new.contains_key(*key)).map(|(_, sum)| *sum).collect();
    rollup::drop_hours(tx, &gone).await?;
    rollup::put_hours(tx, &put).await?;
    // Also of hours that stay as they are: their days are set to what they add up to, whatever is written there.
    let days: Days = old.keys().chain(new.keys()).map(day_of).collect();
    rollup::carry_over(tx, &days).await
}

fn day_of((organization, model, _, hour, _): &HourKey) -> (Uuid, String, NaiveDate) {
    (*organization, model.clone(), hour.date_naive())
}
