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
use quinn::{Connection, RecvStream, SendStream, VarInt};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, info, warn};
use turnpike_config::link::{LinkError, LinkServer, Peer, Role, read_frame};
use turnpike_config::wire::Open;

/// A handshake, and the first frame of a stream, are done within this time.
const OPENING: Duration = Duration::from_secs(10);
/// Most streams that one peer has open at once; the transport allows a few more.
const MAX_STREAMS: usize = 8;
/// QUIC close code for a peer that broke the protocol or a rule.
const REFUSED: u32 = 1;

/// Both directions of a stream.
pub(crate) struct Stream {
    send: SendStream,
    recv: RecvStream,
}

/// Accepts peers until stopped.
pub(crate) async fn serve(server: Arc<LinkServer>, context: Arc<Context>, stop: CancellationToken) {
    let tasks = TaskTracker::new();
    loop {
        let incoming = tokio::select! {
            () = stop.cancelled() => break,
            incoming = server.accept() => incoming,
        };
        let Some(incoming) = incoming else { break };
        let (context, stop) = (Arc::clone(&context), stop.clone());
        tasks.spawn(async move {
            match timeout(OPENING, LinkServer::authenticate(incoming)).await {
                Ok(Ok((peer, connection))) => serve_peer(peer, connection, context, stop).await,
                Ok(Err(error)) => warn!(%error, "a peer was turned away"),
                Err(_) => debug!("a handshake took too long"),
            }
        });
    }
    tasks.close();
    tasks.wait().await;
    server.close().await;
}

async fn serve_peer(peer: Peer, connection: Connection, context: Arc<Context>, stop: CancellationToken) {
    let from = connection.remote_address();
    info!(role = ?peer.role, name = peer.name, %from, "link up");
    let peer = Arc::new(peer);
    let tasks = TaskTracker::new();
    let reason = loop {
        let opened = tokio::select! {
            () = stop.cancelled() => break "this control plane is shutting down".to_owned(),
            opened = connection.accept_bi() => opened,
        };
        let (send, recv) = match opened {
            Ok(opened) => opened,
            Err(error) => break error.to_string(),
        };
        if tasks.len() >= MAX_STREAMS {
            connection.close(VarInt::from_u32(REFUSED), b"too many streams");
            continue;
        }
        let stream = Stream { send, recv };
        let (peer, context, stop, connection) =
            (Arc::clone(&peer), Arc::clone(&context), stop.clone(), connection.clone());
        tasks.spawn(async move {
            if let Err(error) = converse(&peer, stream, &connection, &context, &stop).await {
                debug!(name = peer.name, %error, "a stream ended");
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
    connection: &Connection,
    context: &Arc<Context>,
    stop: &CancellationToken,
) -> Result<(), LinkError> {
    let open = timeout(OPENING, read_frame::<Open>(&mut stream.recv))
        .await
        .map_err(|_| LinkError::Lost("the first frame took too long".to_owned()))??;
    let refuse = |what: &str| {
        warn!(role = ?peer.role, name = peer.name, what, "refused: not for this role");
        connection.close(VarInt::from_u32(REFUSED), b"this certificate's role may not open such a stream");
        Ok(())
    };
    match (open, peer.role) {
        (Some(Open::Push(hello)), Role::Edge) => {
            Box::pin(push::push(&peer.name, &hello, stream, connection, context, stop)).await
        }
        (Some(Open::Usage), Role::Edge) => Box::pin(edge::usage(&peer.name, stream, connection, context, stop)).await,
        (Some(Open::Chunks), Role::Edge) => Box::pin(push::chunks(stream, context, stop)).await,
        (Some(Open::Node(hello)), Role::Node) => {
            Box::pin(node::serve(&peer.name, hello, stream, connection, context, stop)).await
        }
        (Some(Open::Ledger), Role::Node) => {
            Box::pin(ledger::serve(&peer.name, stream, connection, context, stop)).await
        }
        (Some(Open::Ledger), _) => refuse("ledger"),
        (Some(Open::Push(_) | Open::Chunks), _) => refuse("push"),
        (Some(Open::Usage), _) => refuse("usage"),
        (Some(Open::Node(_)), _) => refuse("node"),
        (None, _) => Ok(()),
    }
}
