//! How far the usage of connected edges is stored, as they say themselves with what they ship.

use chrono::{DateTime, Utc};
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use turnpike_config::wire::Watermark;

/// The newest word of each edge; of this process's life only, what was said before stands in the database.
#[derive(Debug, Default)]
pub(crate) struct Watermarks(Mutex<BTreeMap<String, Mark>>);

/// How far an edge's usage is stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Mark {
    /// That of requests that had ended by then, by our clock.
    pub(crate) ended_to: Option<DateTime<Utc>>,
    /// That of requests that had begun by then, by the edge's clock.
    pub(crate) began_to: Option<DateTime<Utc>>,
    /// The same by our clock.
    pub(crate) settled_to: Option<DateTime<Utc>>,
}

impl Watermarks {
    fn marks(&self) -> MutexGuard<'_, BTreeMap<String, Mark>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A batch is stored that makes this true.
    pub(crate) fn stored(&self, edge: &str, mark: Watermark) {
        let time = |ms: u64| i64::try_from(ms).ok().filter(|ms| *ms > 0).and_then(DateTime::from_timestamp_millis);
        let Watermark { ended_to_ms, began_to_ms, settled_to_ms } = mark;
        let mark = Mark { ended_to: time(ended_to_ms), began_to: time(began_to_ms), settled_to: time(settled_to_ms) };
        self.marks().insert(edge.to_owned(), mark);
    }

    pub(crate) fn get(&self, edge: &str) -> Mark {
        self.marks().get(edge).copied().unwrap_or_default()
    }
}
