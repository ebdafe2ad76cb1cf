//! Whose money moved just now: whoever changes `usage_records` or what was paid says so here, and budgets are looked at
//! at once.

use crate::allotment::Asked;
use chrono::{DateTime, Utc};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};
use tokio::sync::Notify;
use uuid::Uuid;

/// Organizations whose usage changed since they were last asked for.
#[derive(Debug, Default)]
pub(crate) struct Spending {
    changed: Mutex<BTreeSet<Uuid>>,
    nudge: Notify,
    /// Where money paid ahead is wanted.
    pub(crate) demand: Demand,
}

/// What clients of organizations ask for in each region, as it was seen in this process's life: a control plane that has
/// just started moves no money until somebody asks for it again.
#[derive(Debug, Default)]
pub(crate) struct Demand(Mutex<BTreeMap<(Uuid, String), Asked>>);

impl Demand {
    /// The books have so many requests of an organization's region now, which cost so much; see [`Asked::note`].
    pub(crate) fn note(
        &self,
        (organization, region): (Uuid, &str),
        (requests, spent): (i64, i128),
        has_all: bool,
        now: DateTime<Utc>,
    ) -> Asked {
        let mut regions = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let asked = regions.entry((organization, region.to_owned())).or_default();
        asked.note(requests, spent, has_all, now);
        *asked
    }
}

impl Spending {
    /// These organizations' usage, or what they paid, has changed in the database.
    pub(crate) fn tell(&self, organizations: impl IntoIterator<Item = Uuid>) {
        self.changed.lock().unwrap_or_else(PoisonError::into_inner).extend(organizations);
        self.nudge.notify_one();
    }

    /// Waits until something was told, and takes it.
    pub(crate) async fn next(&self) -> Vec<Uuid> {
        loop {
            let changed = std::mem::take(&mut *self.changed.lock().unwrap_or_else(PoisonError::into_inner));
            if !changed.is_empty() {
                return changed.into_iter().collect();
            }
            self.nudge.notified().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_was_told_is_taken_once() {
        let spending = Spending::default();
        let (a, b) = (Uuid::from_u128(1), Uuid::from_u128(2));
        spending.tell([b, a]);
        spending.tell([a]);
        assert_eq!(spending.next().await, [a, b]);
        let (next, ()) = tokio::join!(spending.next(), async { spending.tell([b]) });
        assert_eq!(next, [b]);
    }
}
