//! What is new of edges and not written yet: thousands of edges acknowledge one change at once.

use crate::store::edges::News;
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, watch};
use tokio::time::timeout;

/// By edge, and the number of the batch that they will be written with.
#[derive(Debug, Default)]
struct Waiting {
    news: BTreeMap<String, News>,
    batch: u64,
}

/// What was not written yet. An edge is served also while the database is away; the notes wait.
#[derive(Debug, Default)]
pub(crate) struct Notes {
    waiting: Mutex<Waiting>,
    came: Notify,
    written: watch::Sender<u64>,
}

impl Notes {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes something of an edge; returns the batch that it will be written with.
    pub(crate) fn put(&self, edge: &str, news: News) -> u64 {
        let mut waiting = self.waiting();
        waiting.news.entry(edge.to_owned()).or_default().update(news);
        let batch = waiting.batch;
        drop(waiting);
        self.came.notify_one();
        batch
    }

    /// Notes something of an edge, and waits for a moment until it is written.
    pub(crate) async fn put_and_wait(&self, edge: &str, news: News, patience: Duration) {
        let mut written = self.written.subscribe();
        let batch = self.put(edge, news);
        // If the database is away, the edge is not kept waiting for it.
        let _ = timeout(patience, written.wait_for(|written| *written > batch)).await;
    }

    /// Takes what is there, as one batch.
    pub(crate) fn take(&self) -> (u64, BTreeMap<String, News>) {
        let mut waiting = self.waiting();
        waiting.batch += 1;
        (waiting.batch, std::mem::take(&mut waiting.news))
    }

    /// A batch is written, and so are those before it.
    pub(crate) fn wrote(&self, batch: u64) {
        self.written.send_replace(batch);
    }

    /// Puts back what could not be written; what came since is newer.
    pub(crate) fn put_back(&self, unwritten: BTreeMap<String, News>) {
        let mut waiting = self.waiting();
        for (edge, mut old) in unwritten {
            if let Some(newer) = waiting.news.remove(&edge) {
                old.update(newer);
            }
            waiting.news.insert(edge, old);
        }
        drop(waiting);
        self.came.notify_one();
    }

    /// Waits for something to come.
    pub(crate) async fn came(&self) {
        self.came.notified().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holds(version: u64) -> News {
        News { holds: Some(version), ..News::default() }
    }

    #[tokio::test]
    async fn what_could_not_be_written_is_written_with_what_came_since() {
        let notes = Notes::default();
        let first = notes.put("e1", holds(1));
        let (batch, news) = notes.take();
        assert!(batch > first);
        notes.put("e1", holds(2));
        notes.put("e2", holds(1));
        notes.put_back(news);
        let (batch, news) = notes.take();
        assert_eq!(news.values().map(|news| news.holds).collect::<Vec<_>>(), [Some(2), Some(1)]);
        notes.wrote(batch);
        assert!(*notes.written.borrow() > first, "whoever waits for the first batch has it");
    }
}
