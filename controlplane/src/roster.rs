//! Who is connected to this control plane right now, and what they last reported.

use chrono::{DateTime, Utc};
use serde::Serialize;
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use turnpike_config::link::Link;
use turnpike_config::wire::NodeReport;
use utoipa::ToSchema;

/// Close code for a link that a newer one of the same name replaces.
const REPLACED: u32 = 2;

#[derive(Debug)]
struct Entry<T> {
    session: u64,
    link: Link,
    value: T,
}

#[derive(Debug)]
struct Inner<T> {
    sessions: u64,
    live: BTreeMap<String, Entry<T>>,
}

/// Peers of one role by name, each with a value. The newest link of a name counts; an older one is closed.
#[derive(Debug)]
pub(crate) struct Roster<T>(Mutex<Inner<T>>);

impl<T> Default for Roster<T> {
    fn default() -> Self {
        Self(Mutex::new(Inner { sessions: 0, live: BTreeMap::new() }))
    }
}

impl<T: Clone> Roster<T> {
    fn inner(&self) -> MutexGuard<'_, Inner<T>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A peer arrived; returns its session.
    pub(crate) fn enter(&self, name: &str, link: Link, value: T) -> u64 {
        let mut inner = self.inner();
        inner.sessions += 1;
        let session = inner.sessions;
        let same = link.id();
        if let Some(older) = inner.live.insert(name.to_owned(), Entry { session, link, value })
            && older.link.id() != same
        {
            older.link.close(REPLACED, "replaced by a newer link of the same name");
        }
        session
    }

    /// A peer's link ended; false if a newer one has replaced it.
    pub(crate) fn leave(&self, name: &str, session: u64) -> bool {
        let mut inner = self.inner();
        let mine = inner.live.get(name).is_some_and(|entry| entry.session == session);
        if mine {
            inner.live.remove(name);
        }
        mine
    }

    /// Sets the value of a session, unless a newer one has replaced it.
    pub(crate) fn set(&self, name: &str, session: u64, value: T) {
        if let Some(entry) = self.inner().live.get_mut(name).filter(|entry| entry.session == session) {
            entry.value = value;
        }
    }

    /// The value of a connected peer.
    pub(crate) fn get(&self, name: &str) -> Option<T> {
        self.inner().live.get(name).map(|entry| entry.value.clone())
    }

    /// Names of the connected peers.
    pub(crate) fn names(&self) -> Vec<String> {
        self.inner().live.keys().cloned().collect()
    }

    /// How many are connected.
    pub(crate) fn len(&self) -> i64 {
        i64::try_from(self.inner().live.len()).unwrap_or(i64::MAX)
    }
}

/// What a connected edge said of itself: enough to note it again if the database was away when it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct EdgeLive {
    /// Region it serves.
    pub(crate) region: String,
    /// Its build.
    pub(crate) build: String,
    /// Config version it serves by.
    pub(crate) holds: u64,
    /// When its link came up.
    pub(crate) since: DateTime<Utc>,
    /// What carries it.
    pub(crate) transport: &'static str,
}

/// A connected node's latest report.
#[derive(Clone, Debug, Default)]
pub(crate) struct NodeLive {
    /// The report, once one came.
    pub(crate) report: Option<LiveReport>,
}

/// A report as the admin API shows it.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct LiveReport {
    /// When it came.
    pub(crate) at: DateTime<Utc>,
    /// Requests the engine works on.
    pub(crate) running: u32,
    /// Requests that wait.
    pub(crate) waiting: u32,
    /// KV-cache use in thousandths.
    pub(crate) kv_cache_permille: Option<u16>,
    /// GPU utilisation in thousandths.
    pub(crate) gpu_permille: Option<u16>,
    /// GPU memory use in thousandths.
    pub(crate) gpu_memory_permille: Option<u16>,
    /// Requests completed since the node started.
    pub(crate) completed: u64,
    /// Tokens generated since the node started.
    pub(crate) generated_tokens: u64,
}

impl LiveReport {
    pub(crate) const fn new(at: DateTime<Utc>, report: &NodeReport) -> Self {
        Self {
            at,
            running: report.running,
            waiting: report.waiting,
            kv_cache_permille: report.kv_cache_permille,
            gpu_permille: report.gpu_permille,
            gpu_memory_permille: report.gpu_memory_permille,
            completed: report.completed,
            generated_tokens: report.generated_tokens,
        }
    }
}
