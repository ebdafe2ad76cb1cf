//! The edge's side of the link: takes routing, ships usage, reconnects for ever.

use crate::edge::Edge;
use crate::live::{Snapshot, resolve};
use crate::routing_file;
use crate::ship;
use quinn::Connection;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use turnpike_config::link::{self, Identity, LinkError, read_frame, write_frame};
use turnpike_config::wire::{Delta, EdgeHello, Open, PushFrame, PushReply};
use turnpike_config::{NodeState, Routing};

const FIRST_BACKOFF: Duration = Duration::from_millis(200);
const LONGEST_BACKOFF: Duration = Duration::from_secs(5);

/// Holds the routing and keeps it current.
pub(crate) struct Sync {
    edge: Arc<Edge>,
    routing: Routing,
    file: PathBuf,
}

impl Sync {
    /// Starts from the last good routing on disk, if there is one.
    pub(crate) fn start(edge: Arc<Edge>) -> Self {
        let file = edge.settings.data_dir.join("routing.cbor");
        let mut sync = Self { edge, routing: Routing::default(), file };
        match routing_file::load(&sync.file) {
            Ok(Some(routing)) => {
                tracing::info!(version = routing.version, "serving by the last good routing on disk");
                if let Some(directory) = &sync.edge.directory {
                    directory.writer.take(&Routing::default(), &routing);
                }
                sync.serve_by(routing);
            }
            Ok(None) => tracing::info!("no routing on disk yet: waiting for the control plane"),
            Err(error) => tracing::error!(file = %sync.file.display(), %error, "the routing on disk cannot be used"),
        }
        sync
    }

    /// Runs until stopped.
    pub(crate) async fn run(mut self, identity: Identity, stop: CancellationToken) {
        let edge = Arc::clone(&self.edge);
        let address = edge.settings.control_address.clone();
        let mut backoff = FIRST_BACKOFF;
        loop {
            let attempt = async {
                let connection = link::connect(&address, &identity).await?;
                edge.metrics.linked.set(1);
                backoff = FIRST_BACKOFF;
                tracing::info!(control = address, "linked to the control plane");
                let ended = tokio::select! {
                    ended = self.take_pushes(&connection) => ended,
                    ended = ship::run(&edge, &connection) => ended,
                };
                connection.close(quinn::VarInt::from_u32(0), b"edge is done");
                ended
            };
            let ended = tokio::select! {
                ended = attempt => ended,
                () = stop.cancelled() => return,
            };
            edge.metrics.linked.set(0);
            if let Err(error) = ended {
                tracing::warn!(%error, retry_in = ?backoff, "not linked to the control plane; serving goes on");
            }
            tokio::select! {
                () = tokio::time::sleep(backoff) => {}
                () = stop.cancelled() => return,
            }
            backoff = (backoff * 2).min(LONGEST_BACKOFF);
        }
    }

    async fn take_pushes(&mut self, connection: &Connection) -> Result<(), LinkError> {
        let (mut send, mut receive) = connection.open_bi().await.map_err(|e| LinkError::Lost(e.to_string()))?;
        let hello = EdgeHello {
            region: self.edge.settings.region.clone(),
            holds: self.routing.version,
            build: env!("CARGO_PKG_VERSION").to_owned(),
        };
        write_frame(&mut send, &Open::Push(hello)).await?;
        while let Some(frame) = read_frame::<PushFrame>(&mut receive).await? {
            let reply = self.take(frame).await;
            write_frame(&mut send, &reply).await?;
        }
        Err(LinkError::Lost("the control plane ended the push stream".to_owned()))
    }

    /// Checks a push in full before anything changes; what is wrong is refused with the reason.
    async fn take(&mut self, frame: PushFrame) -> PushReply {
        let (version, checked) = match frame {
            PushFrame::Snapshot(routing) => (routing.version, Ok(routing)),
            PushFrame::Delta(delta) => (delta.to, self.applied(delta)),
        };
        let checked = checked.and_then(|routing| match routing.faults().first() {
            Some(fault) => Err(fault.clone()),
            None => Ok(routing),
        });
        match checked {
            Ok(routing) => {
                self.adopt(routing).await;
                self.edge.metrics.pushes_applied.inc();
                PushReply::Ack(version)
            }
            Err(reason) => {
                self.edge.metrics.pushes_refused.inc();
                tracing::error!(version, reason, kept = self.routing.version, "routing refused");
                PushReply::Nack { version, reason }
            }
        }
    }

    fn applied(&self, delta: Delta) -> Result<Routing, String> {
        if delta.from != self.routing.version {
            return Err(format!("delta starts at version {}, this edge holds {}", delta.from, self.routing.version));
        }
        let mut routing = self.routing.clone();
        delta.changes.into_iter().for_each(|change| routing.apply(change));
        routing.version = delta.to;
        Ok(routing)
    }

    /// Serves by a checked routing at once, and keeps it for the next start.
    async fn adopt(&mut self, routing: Routing) {
        // Compiling resolves names and may index a million keys: other tasks of this thread must not wait for it.
        tokio::task::block_in_place(|| {
            if let Some(directory) = &self.edge.directory {
                directory.writer.take(&self.routing, &routing);
            }
            self.serve_by(routing);
        });
        let (file, routing) = (self.file.clone(), self.routing.clone());
        let saved = tokio::task::spawn_blocking(move || routing_file::save(&file, &routing)).await;
        if let Ok(Err(error)) = saved {
            tracing::error!(file = %self.file.display(), %error, "the routing cannot be kept for the next start");
        }
    }

    fn serve_by(&mut self, routing: Routing) {
        let previous = self.edge.snapshot.load();
        let (snapshot, unreachable) = Snapshot::compile(&routing, &previous, &resolve);
        if !unreachable.is_empty() {
            tracing::warn!(nodes = ?unreachable, "nodes left out: their addresses do not resolve");
        }
        tracing::info!(
            version = snapshot.version,
            keys = snapshot.key_count(),
            nodes = snapshot.nodes().count(),
            "routing in use"
        );
        self.edge.metrics.routing_version.set(i64::try_from(snapshot.version).unwrap_or(i64::MAX));
        let ready = snapshot.nodes().filter(|node| node.state == NodeState::Ready).count();
        self.edge.metrics.nodes_ready.set(i64::try_from(ready).unwrap_or(i64::MAX));
        self.edge.snapshot.store(Arc::new(snapshot));
        let before = std::mem::replace(&mut self.routing, routing);
        self.purge(&before);
    }

    /// Forgets answers that were purged since. At the start there are none to forget, and those in the region are known by
    /// their age.
    fn purge(&self, before: &Routing) {
        if before.version == 0 {
            return;
        }
        let purged = self.routing.purged.iter().filter(|(key, at)| before.purged.get(key) != Some(at));
        purged.for_each(|(key, _)| self.edge.cache.purge(*key));
    }
}
