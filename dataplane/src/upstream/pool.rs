//! Connects to nodes, and keeps connections that can be used again. Each thread keeps its own: on one that another thread
//! watches, every byte that comes would have to be told from thread to thread.

use super::Connection;
use crate::live::Node;
use pingora::{Error, ErrorType};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use std::cell::RefCell;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_util::either::Either;

/// Shorter than engines keep a connection, so that we never send into one that is closing.
const IDLE: Duration = Duration::from_secs(50);
/// Most idle connections to one node, per thread.
const MOST: usize = 512;
/// How often connections that nobody asks for are looked through.
const SWEEP: Duration = Duration::from_secs(10);

/// A connection to a node.
type ToNode = Connection<Either<TcpStream, TlsStream<TcpStream>>>;

struct Idle {
    connection: ToNode,
    since: Instant,
    tls_name: Option<String>,
}

#[derive(Default)]
struct Pool {
    nodes: HashMap<SocketAddr, Vec<Idle>>,
    swept: Option<Instant>,
}

thread_local! {
    static POOL: RefCell<Pool> = RefCell::default();
}

/// Makes connections, and takes back those that can be used again.
pub(crate) struct Connector {
    tls: TlsConnector,
}

impl Connector {
    /// Shows and expects the certificates of `tls`.
    pub(crate) fn new(tls: ClientConfig) -> Self {
        Self { tls: TlsConnector::from(Arc::new(tls)) }
    }

    /// A connection to the node: one that is idle, or else a new one within `patience`, and as long again for TLS.
    pub(crate) async fn connect(&self, node: &Node, patience: Duration) -> Result<ToNode, Box<Error>> {
        let idle = POOL.with_borrow_mut(|pool| pool.take(node, Instant::now()));
        match idle {
            Some(connection) => Ok(connection),
            None => {
                tokio::time::timeout(patience * 2, self.new_connection(node, patience)).await.map_err(|_| late())?
            }
        }
    }

    async fn new_connection(&self, node: &Node, patience: Duration) -> Result<ToNode, Box<Error>> {
        let failed = |error| Error::because(ErrorType::ConnectError, "connecting to the node", error).into_up();
        let connecting = tokio::time::timeout(patience, TcpStream::connect(node.address));
        let stream = connecting.await.map_err(|_| late())?.map_err(failed)?;
        stream.set_nodelay(true).map_err(failed)?;
        let Some(name) = &node.tls_name else { return Ok(Connection::new(Either::Left(stream))) };
        let unnamed = |error| Error::because(ErrorType::InternalError, "the node's name", error);
        let name = ServerName::try_from(name.clone()).map_err(unnamed)?;
        let refused =
            |error| Error::because(ErrorType::TLSHandshakeFailure, "speaking TLS to the node", error).into_up();
        Ok(Connection::new(Either::Right(self.tls.connect(name, stream).await.map_err(refused)?)))
    }

    /// Keeps a connection whose answer is over, if it can be used again.
    pub(crate) fn release(&self, node: &Node, connection: ToNode) {
        if connection.is_free() {
            POOL.with_borrow_mut(|pool| pool.put(node, connection, Instant::now()));
        }
    }
}

fn late() -> Box<Error> {
    Error::explain(ErrorType::ConnectTimedout, "connecting to the node").into_up()
}

impl Pool {
    fn take(&mut self, node: &Node, now: Instant) -> Option<ToNode> {
        let idle = self.nodes.get_mut(&node.address)?;
        while let Some(mut last) = idle.pop() {
            let is_young = now.duration_since(last.since) < IDLE;
            if is_young && last.tls_name == node.tls_name && last.connection.is_alive() {
                return Some(last.connection);
            }
        }
        None
    }

    fn put(&mut self, node: &Node, connection: ToNode, now: Instant) {
        let idle = self.nodes.entry(node.address).or_default();
        if idle.len() < MOST {
            idle.push(Idle { connection, since: now, tls_name: node.tls_name.clone() });
        }
        if now.duration_since(*self.swept.get_or_insert(now)) >= SWEEP {
            self.swept = Some(now);
            self.nodes.retain(|_, idle| {
                idle.retain_mut(|idle| now.duration_since(idle.since) < IDLE && idle.connection.is_alive());
                !idle.is_empty()
            });
        }
    }
}
