//! Usage that was received and is not stored yet: the books lack it, and nobody may be told otherwise.

use chrono::{DateTime, Duration, Utc};
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use turnpike_config::UsageEvent;

/// Batches that wait to be stored.
#[derive(Debug, Default)]
pub(crate) struct Backlog(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    entered: u64,
    waiting: BTreeMap<u64, (String, DateTime<Utc>)>,
}

impl Backlog {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes an edge's batch until what is returned is dropped.
    pub(crate) fn enter(&self, edge: &str, events: &[UsageEvent]) -> Waiting<'_> {
        let mut inner = self.inner();
        inner.entered += 1;
        let id = inner.entered;
        if let Some(oldest) = events.iter().filter_map(ended_at).min() {
            inner.waiting.insert(id, (edge.to_owned(), oldest));
        }
        Waiting { backlog: self, id }
    }

    /// When the oldest event of an edge that waits had ended; `None` if none waits.
    pub(crate) fn oldest(&self, edge: &str) -> Option<DateTime<Utc>> {
        self.inner().waiting.values().filter(|(of, _)| of == edge).map(|(_, oldest)| *oldest).min()
    }
}

fn ended_at(event: &UsageEvent) -> Option<DateTime<Utc>> {
    let started = i64::try_from(event.id.unix_ms()).ok().and_then(DateTime::from_timestamp_millis)?;
    started.checked_add_signed(Duration::milliseconds(event.total_ms.into()))
}

/// A batch that waits.
#[derive(Debug)]
pub(crate) struct Waiting<'b> {
    backlog: &'b Backlog,
    id: u64,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.backlog.inner().waiting.remove(&self.id);
    }
}
