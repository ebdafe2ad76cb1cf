//! Taking in usage: every event of a batch is stored once, whatever is wrong with its neighbours.

use crate::metrics::{EventFate, Metrics};
use crate::partitions::{self, MONTHS_AHEAD};
use crate::spending::Spending;
use crate::store::partitions::{Month, Partitioned};
use crate::store::usage::{self, UsageRow};
use crate::store::{self, Store, StoreError};
use chrono::{DateTime, Utc};
use rust_decimal::Decimal;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;
use tracing::warn;
use turnpike_config::UsageEvent;
use turnpike_config::wire::UsageBatch;
use uuid::Uuid;

/// Decimal places of `cost_usd` and of [`turnpike_config::Usd`].
const COST_SCALE: u32 = 12;
/// First amount that `numeric(24, 12)` cannot hold, pico-dollars.
const COST_LIMIT: u128 = 10_u128.pow(24);

/// Stores usage events.
#[derive(Debug)]
pub(crate) struct Ingest {
    store: Store,
    metrics: Arc<Metrics>,
    spending: Arc<Spending>,
    keep_months: u32,
}

impl Ingest {
    pub(crate) const fn new(store: Store, metrics: Arc<Metrics>, spending: Arc<Spending>, keep_months: u32) -> Self {
        Self { store, metrics, spending, keep_months }
    }

    /// Stores a batch from `edge`. Once this returns without an error, every event is durable or was counted as
    /// dropped, and the batch may be acknowledged. A second delivery changes nothing.
    ///
    /// # Errors
    /// The database does not answer: try again, nothing was stored.
    pub(crate) async fn take(&self, edge: &str, batch: UsageBatch, now: DateTime<Utc>) -> Result<(), StoreError> {
        let started = Instant::now();
        let through = batch.end_seq.saturating_sub(1);
        let rows = self.rows(edge, batch.events, now);
        self.make_partitions(&rows).await?;
        match self.store_batch(edge, batch.epoch, through, &rows).await {
            Ok(()) => {}
            Err(StoreError::Unavailable(reason)) => return Err(StoreError::Unavailable(reason)),
            Err(error) => {
                warn!(edge, %error, "a batch does not fit the schema; storing its events one by one");
                self.store_each(edge, batch.epoch, through, &rows).await?;
            }
        }
        self.metrics.ingest_duration.observe(started.elapsed().as_secs_f64());
        Ok(())
    }

    /// Events in the shape of rows, without those that no row can hold.
    fn rows(&self, edge: &str, events: Vec<UsageEvent>, now: DateTime<Utc>) -> Vec<UsageRow> {
        let oldest = partitions::oldest_kept(now, self.keep_months);
        let newest = Month::of(now).plus(MONTHS_AHEAD);
        let keep = |event: UsageEvent| {
            let created_at = time_of(&event).filter(|at| (oldest..=newest).contains(&Month::of(*at)));
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

    async fn store_batch(&self, edge: &str, epoch: u64, through: u64, rows: &[UsageRow]) -> Result<(), StoreError> {
        let mut tx = self.store.begin().await?;
        let organizations: BTreeSet<Uuid> = rows.iter().map(|row| row.event.organization.0).collect();
        let organizations: Vec<Uuid> = organizations.into_iter().collect();
        let unknown = usage::unknown_organizations(&mut tx, &organizations).await?;
        let stored = usage::insert(&mut tx, rows).await?;
        usage::advance(&mut tx, edge, epoch, through, rows.last().map(UsageRow::ended_at)).await?;
        tx.commit().await?;
        self.spending.tell(organizations);
        let orphans = rows.iter().filter(|row| unknown.contains(&row.event.organization.0));
        let dropped =
            orphans.map(|row| self.drop_event(edge, &row.event, EventFate::UnknownOrganization)).count() as u64;
        self.metrics.count_events(EventFate::Stored, stored);
        self.metrics.count_events(EventFate::Duplicate, (rows.len() as u64).saturating_sub(stored + dropped));
        Ok(())
    }

    /// The slow way around an event that the checks above let through and the schema refuses.
    async fn store_each(&self, edge: &str, epoch: u64, through: u64, rows: &[UsageRow]) -> Result<(), StoreError> {
        for row in rows {
            match self.store_batch(edge, epoch, 0, std::slice::from_ref(row)).await {
                Ok(()) => {}
                Err(StoreError::Unavailable(reason)) => return Err(StoreError::Unavailable(reason)),
                Err(error) => {
                    warn!(edge, event = %row.event.id, %error, "usage event refused by the schema");
                    self.drop_event(edge, &row.event, EventFate::BadValue);
                }
            }
        }
        let events_to = rows.last().map(UsageRow::ended_at);
        usage::advance(&mut *self.store.read().await?, edge, epoch, through, events_to).await
    }
}

fn time_of(event: &UsageEvent) -> Option<DateTime<Utc>> {
    let ms = i64::try_from(event.id.unix_ms()).ok().filter(|ms| *ms > 0)?;
    DateTime::from_timestamp_millis(ms)
}

fn cost_of(event: &UsageEvent) -> Option<Decimal> {
    let pico = Some(event.cost.pico).filter(|pico| pico.unsigned_abs() < COST_LIMIT)?;
    Decimal::try_from_i128_with_scale(pico, COST_SCALE).ok()
}
