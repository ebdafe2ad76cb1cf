//! The link server: who connects, and which conversation each stream is.

mod edge;
mod ledger;
mod node;
mod notes;
mod push;
mod watch;

pub(crate) use notes::run as write_notes;
pub(crate) use watch::watch_silence;

use crate::context::Context;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, info, warn};
use turnpike_config::link::{Link, LinkError, LinkServer, Peer, Receiver, Role, Sender, Transport, read_frame};
use turnpike_config::wire::Open;

/// A handshake, and the first frame of a stream, are done within this time.
const OPENING: Duration = Duration::from_secs(10);
/// Most streams that one peer has open at once; the transport allows a few more.
const MAX_STREAMS: usize = 8;
/// Most handshakes at the same time.
const MAX_HANDSHAKES: usize = 4096;
/// Close code for a peer that broke the protocol or a rule.
const REFUSED: u32 = 1;
/// The same for one that has said what it had to.
const ENDED: u32 = 0;

/// Both directions of a stream.
pub(crate) struct Stream {
    send: Sender,
    recv: Receiver,
}

/// Accepts peers until stopped.
pub(crate) async fn serve(server: Arc<LinkServer>, context: Arc<Context>, stop: CancellationToken) {
    let tasks = TaskTracker::new();
    let (handshakes, by_tcp) = (Arc::new(Semaphore::new(MAX_HANDSHAKES)), Arc::<ByTcp>::default());
    loop {
        let incoming = tokio::select! {
            () = stop.cancelled() => break,
            incoming = server.accept() => incoming,
        };
        let Some(incoming) = incoming else { break };
        // Too many that do not come to an end: who is turned away comes again.
        let Ok(handshake) = Arc::clone(&handshakes).try_acquire_owned() else { continue };
        let serve = {
            let (context, stop, by_tcp) = (Arc::clone(&context), stop.clone(), Arc::clone(&by_tcp));
            move |(peer, link)| serve_peer(peer, link, context, stop, by_tcp)
        };
        let links = tasks.clone();
        tasks.spawn(async move {
            let authenticated = timeout(OPENING, LinkServer::authenticate(incoming)).await;
            drop(handshake);
            match authenticated {
                // On a task of its own: what the handshake needed is given back, of thousands of links.
                Ok(Ok(authenticated)) => drop(links.spawn(serve(authenticated))),
                Ok(Err(error)) => warn!(%error, "a peer was turned away"),
                Err(_) => debug!("a handshake took too long"),
            }
        });
    }
    tasks.close();
    tasks.wait().await;
    server.close().await;
}

/// Links by TCP, which have a stream each, by peer.
type ByTcp = Mutex<HashMap<Peer, usize>>;

/// Counts a link by TCP until dropped.
struct Counted {
    peer: Peer,
    by_tcp: Arc<ByTcp>,
}

impl Counted {
    /// `None` if the peer has too many.
    fn enter(peer: &Peer, by_tcp: Arc<ByTcp>) -> Option<Self> {
        let counted = Self { peer: peer.clone(), by_tcp };
        let count = {
            let mut counts = counted.counts();
            let count = counts.entry(peer.clone()).or_default();
            *count += 1;
            *count
        };
        (count <= MAX_STREAMS).then_some(counted)
    }

    fn counts(&self) -> MutexGuard<'_, HashMap<Peer, usize>> {
        self.by_tcp.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let mut counts = self.counts();
        if let Some(count) = counts.get_mut(&self.peer) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.peer);
            }
        }
    }
}

/// Serves a peer unless it has too many links by TCP.
async fn serve_peer(peer: Peer, link: Link, context: Arc<Context>, stop: CancellationToken, by_tcp: Arc<ByTcp>) {
    let (from, transport) = (link.remote_address(), link.transport());
    let _counted = match transport {
        Transport::Quic => None,
        Transport::Tcp => {
            let Some(counted) = Counted::enter(&peer, by_tcp) else {
                warn!(role = ?peer.role, name = peer.name, "too many links by TCP");
                return;
            };
            Some(counted)
        }
    };
    info!(role = ?peer.role, name = peer.name, %from, transport = transport.name(), "link up");
    let peer = Arc::new(peer);
    let tasks = TaskTracker::new();
    let reason = loop {
        let opened = tokio::select! {
            () = stop.cancelled() => break "this control plane is shutting down".to_owned(),
            opened = link.accept() => opened,
        };
        let (send, recv) = match opened {
            Ok(opened) => opened,
            Err(error) => break error.to_string(),
        };
        if tasks.len() >= MAX_STREAMS {
            link.close(REFUSED, "too many streams");
            continue;
        }
        let stream = Stream { send, recv };
        let (peer, context, stop, link) = (Arc::clone(&peer), Arc::clone(&context), stop.clone(), link.clone());
        tasks.spawn(async move {
            if let Err(error) = converse(&peer, stream, &link, &context, &stop).await {
                debug!(name = peer.name, %error, "a stream ended");
            }
            if link.transport() == Transport::Tcp {
                link.close(ENDED, "its stream ended");
            }
        });
    };
    tasks.close();
    tasks.wait().await;
    info!(role = ?peer.role, name = peer.name, reason, "link down");
}

/// Reads what a stream is for and whether this peer may open it.
async fn converse(
    peer: &Peer,
    mut stream: Stream,
    link: &Link,
    context: &Arc<Context>,
    stop: &CancellationToken,
) -> Result<(), LinkError> {
    let open = timeout(OPENING, read_frame::<Open>(&mut stream.recv))
        .await
        .map_err(|_| LinkError::Lost("the first frame took too long".to_owned()))??;
    let refuse = |what: &str| {
        warn!(role = ?peer.role, name = peer.name, what, "refused: not for this role");
        link.close(REFUSED, "this certificate's role may not open such a stream");
        Ok(())
    };
    match (open, peer.role) {
        (Some(Open::Push(hello)), Role::Edge) => {
            Box::pin(push::push(&peer.name, &hello, stream, link, context, stop)).await
        }
        (Some(Open::Usage), Role::Edge) => Box::pin(edge::usage(&peer.name, stream, link, context, stop)).await,
        (Some(Open::Chunks), Role::Edge) => Box::pin(push::chunks(stream, link, context, stop)).await,
        (Some(Open::Node(hello)), Role::Node) => {
            Box::pin(node::serve(&peer.name, hello, stream, link, context, stop)).await
        }
        (Some(Open::Ledger), Role::Node) => Box::pin(ledger::serve(&peer.name, stream, link, context, stop)).await,
        (Some(Open::Ledger), _) => refuse("ledger"),
        (Some(Open::Push(_) | Open::Chunks), _) => refuse("push"),
        (Some(Open::Usage), _) => refuse("usage"),
        (Some(Open::Node(_)), _) => refuse("node"),
        (None, _) => Ok(()),
    }
}
