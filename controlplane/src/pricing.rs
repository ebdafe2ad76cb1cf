//! The price reconciler: `models.pricing` shows the price in effect. Edges do not wait for it: they know when prices begin.

use crate::context::Context;
use crate::feed::FeedError;
use crate::store::{models, prices};
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use tracing::warn;
use turnpike_config::Change;

/// Between two looks at whether a price has begun.
const INTERVAL: Duration = Duration::from_secs(1);
/// Who changes the routing.
const AUTHOR: &str = "pricing";

/// Runs until stopped.
pub(crate) async fn run(context: Arc<Context>, stop: CancellationToken) {
    let mut away = false;
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(INTERVAL) => {}
        }
        let failed = reconcile(&context).await.err();
        if let Some(error) = failed.as_ref().filter(|_| !away) {
            // Once per outage, not once per run.
            warn!(%error, "the price in effect could not be shown; edges ask it all the same; trying again");
        }
        away = failed.is_some();
    }
}

/// One run. Running it again changes nothing.
async fn reconcile(context: &Context) -> Result<(), FeedError> {
    if prices::set_current(&mut *context.store.read().await?, false).await?.is_empty() {
        return Ok(());
    }
    let mut edit = context.feed.edit(AUTHOR).await?;
    for id in prices::set_current(edit.connection(), true).await? {
        if let Some(model) = models::get(edit.connection(), &id).await? {
            let record = models::record(edit.connection(), &model).await?;
            edit.push(Change::PutModel(record));
        }
    }
    edit.commit().await?;
    Ok(())
}
