//! The edge's side of the link: takes what it is to serve by, ships usage, reconnects for ever.

mod adopt;
mod chunk_files;
mod fetch;
mod names;
mod push;

use crate::edge::Edge;
use crate::ship;
use crate::store;
use adopt::Adopter;
use chunk_files::ChunkFiles;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use turnpike_config::link::{Identity, LinkError, Links, Transport};
use turnpike_config::push::Follower;
use turnpike_config::signing::Trust;

/// Who has served for so long was not killed by what it serves by.
const PROVEN: Duration = Duration::from_secs(30);
/// How long a stopping edge waits for the disk.
const LAST_WORDS: Duration = Duration::from_secs(5);
/// Keys that nobody uses are forgotten a few of these later.
const SWEEP_EVERY: Duration = Duration::from_secs(60);

/// Holds what is served by and keeps it current.
pub(crate) struct Sync {
    edge: Arc<Edge>,
    follower: Follower,
    adopter: Arc<Adopter>,
    chunks: ChunkFiles,
}

impl Sync {
    /// Starts from the last good state on disk, if there is one.
    pub(crate) fn start(edge: Arc<Edge>, trust: Trust) -> std::io::Result<Self> {
        let opened = store::open(&edge.settings.data_dir.join("routing"), edge.settings.give_up_after)?;
        let chunks = ChunkFiles::open(edge.settings.data_dir.join("chunks"))?;
        let adopter = Adopter::new(Arc::clone(&edge), opened.keeper, opened.distrusted);
        edge.metrics.gave_up_version.set(i64::from(opened.given_up.is_some()));
        match opened.state {
            Some(base) => {
                let version = base.at.version;
                match adopter.first(&base, opened.early.values().flatten().cloned().collect()) {
                    Ok(()) => tracing::info!(version, "serving by the last good routing on disk"),
                    Err(reason) => tracing::error!(version, reason, "the routing on disk cannot be used"),
                }
            }
            None => tracing::info!("no routing on disk yet: waiting for the control plane"),
        }
        let held = edge.snapshot.load().at;
        let mut follower = Follower::new(edge.name.clone(), edge.settings.region.clone(), trust, held);
        for (version, changes) in opened.early {
            changes.into_iter().for_each(|change| follower.recall(version, change));
        }
        Ok(Self { edge, follower, adopter: Arc::new(adopter), chunks })
    }

    /// Runs until stopped.
    pub(crate) async fn run(mut self, identity: Identity, stop: CancellationToken) {
        let beside = tokio::spawn(keep_house(Arc::clone(&self.adopter), stop.clone()));
        self.stay_linked(identity, &stop).await;
        // It ends with the same token, and fails only by panicking, which has been reported.
        let _ = beside.await;
        self.adopter.keeper.succeeded();
        tokio::task::block_in_place(|| self.adopter.keeper.flush(LAST_WORDS));
    }

    async fn stay_linked(&mut self, identity: Identity, stop: &CancellationToken) {
        let edge = Arc::clone(&self.edge);
        let mut links = Links::keep(&edge.settings.control_addresses, identity);
        loop {
            let link = tokio::select! {
                link = links.first() => link,
                () = stop.cancelled() => return,
            };
            edge.metrics.linked.set(1);
            edge.metrics.linked_by_tcp.set((link.transport() == Transport::Tcp).into());
            let ended = tokio::select! {
                ended = push::run(self, &link) => ended,
                ended = ship::run(&edge, &link) => ended,
                () = links.silent(&link) => Err(LinkError::Lost("it is silent; turning to another".to_owned())),
                () = stop.cancelled() => Ok(()),
            };
            edge.metrics.linked.set(0);
            edge.metrics.linked_by_tcp.set(0);
            link.close(0, "edge is done");
            if let Err(error) = ended {
                tracing::warn!(%error, from = %link.remote_address(), "not linked to this control plane; serving goes on");
            }
            if stop.is_cancelled() {
                return;
            }
        }
    }
}

/// What is done beside the link, whether or not it stands.
async fn keep_house(adopter: Arc<Adopter>, stop: CancellationToken) {
    let mut sweep = tokio::time::interval(SWEEP_EVERY);
    let proven = tokio::time::sleep(PROVEN);
    let mut is_proven = false;
    tokio::pin!(proven);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = &mut proven, if !is_proven => {
                is_proven = true;
                adopter.keeper.succeeded();
            }
            _ = sweep.tick() => adopter.sweep(),
            () = names::due(&adopter) => names::resolve_again(&adopter).await,
        }
    }
}

#[cfg(test)]
mod tests;
