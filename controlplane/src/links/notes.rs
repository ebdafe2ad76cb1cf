//! Writes what the operator is shown of edges.

use crate::context::Context;
use crate::store::edges;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// Between two writes: budgets wait for acknowledgements, people hardly notice.
const REST: Duration = Duration::from_millis(50);
/// After a failure.
const RETRY: Duration = Duration::from_secs(1);

/// Writes notes until stopped, and once more then.
pub(crate) async fn run(context: Arc<Context>, stop: CancellationToken) {
    let mut away = false;
    loop {
        let stopping = tokio::select! {
            () = stop.cancelled() => true,
            () = context.notes.came() => false,
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
    let (batch, news) = context.notes.take();
    if news.is_empty() {
        return Ok(());
    }
    let written = async {
        let mut connection = context.store.read().await?;
        edges::note(&mut connection, context.id, &news).await
    };
    let written = written.await;
    match &written {
        Ok(()) => context.notes.wrote(batch),
        Err(_) => context.notes.put_back(news),
    }
    written
}
