//! Taking in usage: every event of a batch is stored once, whatever is wrong with its neighbours.

use crate::ledger::{Ledger, LedgerError, Retention};
use crate::metrics::{EventFate, Metrics};
use crate::partitions::{self, MONTHS_AHEAD};
use crate::rollup::Rollup;
use crate::store::partitions::{Month, Partitioned};
use crate::store::rollup::Came;
use crate::store::usage::{self, Known, Stretch, UsageRow};
use crate::store::{self, Store, StoreError, rollup, usage_ledger};
use chrono::{DateTime, Utc};
use rust_decimal::Decimal;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;
use tracing::{info, warn};
use turnpike_config::wire::UsageBatch;
use turnpike_config::{UsageEvent, crash_point};

/// Decimal places of `cost_usd` and of [`turnpike_config::Usd`].
const COST_SCALE: u32 = 12;
/// First amount that `numeric(24, 12)` cannot hold, pico-dollars.
const COST_LIMIT: u128 = 10_u128.pow(24);

/// Why a batch is not acknowledged: the edge ships it again, nothing is lost and nothing is counted twice.
#[derive(Debug, thiserror::Error)]
pub(crate) enum IngestError {
    /// PostgreSQL.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The ledger, where it is not PostgreSQL.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
}

/// Stores usage events.
#[derive(Debug)]
pub(crate) struct Ingest {
    store: Store,
    ledger: Arc<Ledger>,
    rollup: Arc<Rollup>,
    metrics: Arc<Metrics>,
    retention: Retention,
    away: AtomicBool,
}

impl Ingest {
    pub(crate) const fn new(
        store: Store,
        ledger: Arc<Ledger>,
        rollup: Arc<Rollup>,
        metrics: Arc<Metrics>,
        retention: Retention,
    ) -> Self {
        Self { store, ledger, rollup, metrics, retention, away: AtomicBool::new(false) }
    }

    /// Stores a batch from `edge`. Once this returns without an error, every event is durable or was counted as
    /// dropped, and the batch may be acknowledged. A second delivery changes nothing.
    ///
    /// # Errors
    /// A database does not answer, or refuses for another reason than what the events say: try again. What of the batch was
    /// stored by then counts once all the same.
    pub(crate) async fn take(&self, edge: &str, batch: UsageBatch, now: DateTime<Utc>) -> Result<(), IngestError> {
        let started = Instant::now();
        let count = i64::try_from(batch.events.len()).unwrap_or_default();
        self.metrics.events_waiting.inc_by(count);
        let taken = self.take_in(edge, batch, now).await;
        self.metrics.events_waiting.dec_by(count);
        let failed = taken.is_err();
        // Once per outage, not once per attempt.
        let was_away = self.away.swap(failed, Ordering::Relaxed);
        match &taken {
            Err(error) => {
                self.metrics.ingest_failures.inc();
                if !was_away {
                    warn!(edge, %error, "usage cannot be stored now; edges keep it and ship it again");
                }
            }
            Ok(()) => {
                self.metrics.ingest_duration.observe(started.elapsed().as_secs_f64());
                if was_away {
                    info!("usage is stored again");
                }
            }
        }
        taken
    }

    async fn take_in(&self, edge: &str, batch: UsageBatch, now: DateTime<Utc>) -> Result<(), IngestError> {
        let UsageBatch { epoch, first_seq: first, end_seq: end, .. } = batch;
        let stretch = Stretch { edge, epoch, first, end };
        let rows = self.rows(edge, batch.events, now);
        self.make_partitions(&rows).await?;
        let rows = self.without_orphans(edge, rows).await?;
        crash_point("control.before_insert");
        self.ledger.write(&rows.rows, &rows.known).await?;
        crash_point("control.after_insert");
        let logged: Vec<&UsageRow> = rows.rows.iter().filter(|row| self.is_logged(row, now)).collect();
        match self.book(stretch, &rows.rows, &logged).await {
            Err(error) if !error.is_about_values() => return Err(error.into()),
            Err(error) => {
                warn!(edge, %error, "a batch does not fit the schema; storing its events one by one");
                self.book_each(stretch, &rows.rows, now).await?;
            }
            Ok(()) => {}
        }
        let now = Utc::now();
        for row in &rows.rows {
            self.metrics.event_delay.observe((now - row.ended_at()).as_seconds_f64().max(0.0));
        }
        Ok(())
    }

    /// Events in the shape of rows, without those that no row can hold.
    fn rows(&self, edge: &str, events: Vec<UsageEvent>, now: DateTime<Utc>) -> Vec<UsageRow> {
        let oldest = self.retention.takes_from(now);
        let newest = Month::of(now).plus(MONTHS_AHEAD);
        let keep = |event: UsageEvent| {
            let in_time = |at: &DateTime<Utc>| *at >= oldest && Month::of(*at) <= newest;
            let created_at = time_of(&event).filter(in_time);
            let Some(created_at) = created_at else {
                self.drop_event(edge, &event, EventFate::BadTime);
                return None;
            };
            let Some(cost) = cost_of(&event) else {
                self.drop_event(edge, &event, EventFate::BadValue);
                return None;
            };
            let ip = event.client_ip.as_deref().and_then(|ip| ip.parse().ok());
            Some(UsageRow { event, created_at, cost, ip })
        };
        events.into_iter().filter_map(keep).collect()
    }

    fn drop_event(&self, edge: &str, event: &UsageEvent, fate: EventFate) {
        warn!(edge, event = %event.id, organization = %event.organization, ?fate, "usage event dropped");
        self.metrics.count_events(fate, 1);
    }

    async fn make_partitions(&self, rows: &[UsageRow]) -> Result<(), StoreError> {
        let months: BTreeSet<Month> = rows.iter().map(|row| Month::of(row.created_at)).collect();
        let mut missing = false;
        {
            let mut connection = self.store.read().await?;
            for table in Partitioned::ALL {
                let existing = store::partitions::months(&mut connection, table).await?;
                missing |= months.iter().any(|month| !existing.contains(month));
            }
        }
        if missing { partitions::ensure(&self.store, months).await } else { Ok(()) }
    }

    /// Leaves out events of organizations that do not exist, and says what else exists.
    async fn without_orphans(&self, edge: &str, mut rows: Vec<UsageRow>) -> Result<Rows, StoreError> {
        if rows.is_empty() {
            return Ok(Rows { rows, known: Known::default() });
        }
        let known = usage::known(&mut *self.store.read().await?, &rows).await?;
        rows.retain(|row| {
            let is_known = known.organizations.contains(&row.event.organization.0);
            if !is_known {
                self.drop_event(edge, &row.event, EventFate::UnknownOrganization);
            }
            is_known
        });
        Ok(Rows { rows, known })
    }

    /// The transaction that acknowledges: the request log, which hours are to be summed anew, when keys were used, and how
    /// far the edge's journal has been taken in.
    async fn book(&self, stretch: Stretch<'_>, rows: &[UsageRow], logged: &[&UsageRow]) -> Result<(), StoreError> {
        let mut tx = self.store.begin().await?;
        // Where the log is the ledger, what was there already has been summed already.
        let is_ledger = matches!(*self.ledger, Ledger::Postgres);
        if is_ledger && !usage_ledger::hold_log(&mut tx).await? {
            let elsewhere = "another control plane keeps usage in ClickHouse now: set clickhouse.url for this one too";
            return Err(StoreError::Unavailable(elsewhere.to_owned()));
        }
        let stored = usage::insert(&mut tx, logged).await?;
        if stored > 0 || !is_ledger && !rows.is_empty() {
            rollup::mark(&mut tx, stretch.edge, &hours_of(rows)).await?;
            usage::note_keys(&mut tx, rows).await?;
        }
        let taken = usage::advance(&mut tx, stretch).await?;
        tx.commit().await?;
        self.rollup.nudge();
        let Stretch { edge, epoch, first, .. } = stretch;
        if taken.skipped > 0 {
            warn!(edge, epoch, first, skipped = taken.skipped, "an edge's journal has a gap: its usage is lost");
            self.metrics.journal_gaps.inc_by(taken.skipped);
        }
        let all = rows.len() as u64;
        // Elsewhere, only a stretch that was taken in before is known to hold nothing new.
        let stored = match is_ledger {
            true => stored,
            false if taken.is_known => 0,
            false => all,
        };
        self.metrics.count_events(EventFate::Stored, stored);
        self.metrics.count_events(EventFate::Duplicate, all.saturating_sub(stored));
        Ok(())
    }

    /// The slow way around an event that the checks above let through and the schema refuses.
    async fn book_each(&self, stretch: Stretch<'_>, rows: &[UsageRow], now: DateTime<Utc>) -> Result<(), StoreError> {
        for row in rows {
            let logged: &[&UsageRow] = if self.is_logged(row, now) { &[row] } else { &[] };
            // A stretch of nothing: the journal's position is noted once all is done.
            let nothing = Stretch { end: 0, first: 0, ..stretch };
            match self.book(nothing, std::slice::from_ref(row), logged).await {
                Ok(()) => continue,
                Err(error) if !error.is_about_values() => return Err(error),
                Err(error) => {
                    warn!(edge = stretch.edge, event = %row.event.id, %error, "usage event refused by the schema");
                }
            }
            match *self.ledger {
                Ledger::Postgres => self.drop_event(stretch.edge, &row.event, EventFate::BadValue),
                // It counts, though customers do not see it in the log.
                Ledger::ClickHouse(_) => self.book(nothing, std::slice::from_ref(row), &[]).await?,
            }
        }
        self.book(stretch, &[], &[]).await
    }

    /// Whether a request is in the request log: decided by its id, so that every delivery comes to the same.
    fn is_logged(&self, row: &UsageRow, now: DateTime<Utc>) -> bool {
        // The low bits of a UUIDv7 are random.
        let random = (row.event.id.0.as_u128() & u128::from(u32::MAX)) as f64 / f64::from(u32::MAX);
        let is_picked = random < self.retention.log_sample || self.retention.log_sample >= 1.0;
        is_picked && row.created_at >= self.retention.logs_from(now)
    }
}

/// Events that can be stored.
struct Rows {
    rows: Vec<UsageRow>,
    known: Known,
}

/// The hours that events are of.
fn hours_of(rows: &[UsageRow]) -> BTreeMap<DateTime<Utc>, Came> {
    let mut hours = BTreeMap::new();
    for row in rows {
        let (ended_from, began_from) = (row.ended_at(), row.created_at);
        let came = hours.entry(rollup::hour_of(began_from)).or_insert(Came { ended_from, began_from });
        came.ended_from = came.ended_from.min(ended_from);
        came.began_from = came.began_from.min(began_from);
    }
    hours
}

fn time_of(event: &UsageEvent) -> Option<DateTime<Utc>> {
    let ms = i64::try_from(event.id.unix_ms()).ok().filter(|ms| *ms > 0)?;
    DateTime::from_timestamp_millis(ms)
}

fn cost_of(event: &UsageEvent) -> Option<Decimal> {
    let pico = Some(event.cost.pico).filter(|pico| pico.unsigned_abs() < COST_LIMIT)?;
    Decimal::try_from_i128_with_scale(pico, COST_SCALE).ok()
}
