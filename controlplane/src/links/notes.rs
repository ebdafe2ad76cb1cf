//! What the operator is shown of edges, written together: thousands of edges acknowledge one change at once.

use crate::context::Context;
use crate::store::edges::{self, News};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// Between two writes: budgets wait for acknowledgements, people hardly notice.
const REST: Duration = Duration::from_millis(50);
/// After a failure.
const RETRY: Duration = Duration::from_secs(1);

/// What was not written yet, by edge. An edge is served also while the database is away; the notes wait.
#[derive(Debug, Default)]
pub(crate) struct Notes {
    news: Mutex<BTreeMap<String, News>>,
    came: Notify,
}

impl Notes {
    fn news(&self) -> MutexGuard<'_, BTreeMap<String, News>> {
        self.news.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes something of an edge.
    pub(crate) fn put(&self, edge: &str, news: News) {
        self.news().entry(edge.to_owned()).or_default().update(news);
        self.came.notify_one();
    }

    /// Puts back what could not be written; what came since is newer.
    fn put_back(&self, unwritten: BTreeMap<String, News>) {
        let mut news = self.news();
        for (edge, mut old) in unwritten {
            if let Some(newer) = news.remove(&edge) {
                old.update(newer);
            }
            news.insert(edge, old);
        }
        drop(news);
        self.came.notify_one();
    }
}

/// Writes notes until stopped, and once more then.
pub(crate) async fn run(context: Arc<Context>, stop: CancellationToken) {
    let mut away = false;
    loop {
        let stopping = tokio::select! {
            () = stop.cancelled() => true,
            () = context.notes.came.notified() => false,
        };
        let written = write(&context).await;
        match &written {
            Ok(()) if away => info!("the state of edges can be noted again"),
            Ok(()) => {}
            Err(error) if !away => warn!(%error, "the state of edges could not be noted; trying again"),
            Err(_) => {}
        }
        away = written.is_err();
        if stopping {
            return;
        }
        sleep(if away { RETRY } else { REST }).await;
    }
}

async fn write(context: &Context) -> Result<(), crate::store::StoreError> {
    let news = std::mem::take(&mut *context.notes.news());
    if news.is_empty() {
        return Ok(());
    }
    let written = async {
        let mut connection = context.store.read().await?;
        edges::note(&mut connection, context.id, &news).await
    };
    let written = written.await;
    if written.is_err() {
        context.notes.put_back(news);
    }
    written
}
