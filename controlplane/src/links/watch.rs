//! The watch over silence: connected peers are stamped in the database, and those that nobody stamps are given up.

use super::node::set_state;
use crate::context::Context;
use crate::roster::EdgeLive;
use crate::store::edges::{self, Live};
use crate::store::{StoreError, nodes};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use turnpike_config::NodeState;

/// Between two stamps.
const STAMP_EVERY: Duration = Duration::from_secs(1);
/// A peer that no control plane has stamped this long is gone. Also how long peers get to come back after a start.
const SILENCE_S: f64 = 10.0;

/// Stamps connected peers, and gives up silent ones, until stopped.
pub(crate) async fn watch_silence(context: Arc<Context>, stop: CancellationToken) {
    let started = tokio::time::Instant::now();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = sleep(STAMP_EVERY) => {}
        }
        if let Err(error) = stamp(&context).await {
            warn!(%error, "connected peers could not be noted; trying again");
            continue;
        }
        if started.elapsed().as_secs_f64() >= SILENCE_S
            && let Err(error) = give_up_silent(&context).await
        {
            warn!(%error, "silent peers could not be looked for; trying again");
        }
    }
}

async fn stamp(context: &Context) -> Result<(), StoreError> {
    let mut connection = context.store.read().await?;
    let nodes: Vec<String> = context.nodes.names();
    nodes::touch(&mut connection, context.id, &nodes).await?;
    let live = |name: String| {
        let EdgeLive { region, build, holds, since, transport } = context.edges.get(&name)?;
        Some(Live { mark: context.watermarks.get(&name), name, region, build, holds, since, transport })
    };
    let edges: Vec<Live> = context.edges.names().into_iter().filter_map(live).collect();
    edges::touch(&mut connection, context.id, &edges).await
}

async fn give_up_silent(context: &Context) -> Result<(), StoreError> {
    let silent = {
        let mut connection = context.store.read().await?;
        edges::give_up_silent(&mut connection, SILENCE_S).await?;
        nodes::silent(&mut connection, SILENCE_S).await?
    };
    for name in silent.iter().filter(|name| context.nodes.get(name).is_none()) {
        info!(node = name, "a node did not come back");
        if let Err(error) = set_state(name, NodeState::Lost, context).await {
            warn!(node = name, %error, "a silent node could not be noted; trying again");
        }
    }
    Ok(())
}
