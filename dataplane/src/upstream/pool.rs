//! Connects to nodes, and keeps connections that can be used again. Each thread keeps its own: on one that another thread
//! watches, every byte that comes would have to be told from thread to thread.

use super::{Connection, Head};
use crate::live::Node;
use bytes::Bytes;
use foldhash::HashMap;
use pingora::{Error, ErrorType};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use std::cell::RefCell;
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
/// A connection that is closed later was not closed before it had the request.
const ON_ITS_WAY: Duration = Duration::from_secs(1);
/// How often connections that nobody asks for are looked through.
const SWEEP: Duration = Duration::from_secs(10);

/// A connection to a node.
type ToNode = Connection<Either<TcpStream, Box<TlsStream<TcpStream>>>>;

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

    /// Asks a node, and waits for the head of its answer: on a connection that is idle, or else on a new one, which it has
    /// `patience` to accept, and as long again for TLS.
    pub(crate) async fn ask(
        &self,
        node: &Node,
        patience: Duration,
        head: Bytes,
        body: Bytes,
    ) -> Result<(ToNode, Head), Box<Error>> {
        let idle = POOL.with_borrow_mut(|pool| pool.take(node, Instant::now()));
        if let Some(mut kept) = idle {
            let sent_at = Instant::now();
            match kept.ask(head.clone(), body.clone()).await {
                // Closed while the request was on its way, as nodes may at any time: that says nothing of the node.
                Err(error) if kept.said_nothing(&error) && sent_at.elapsed() < ON_ITS_WAY => {}
                answered => return answered.map(|head| (kept, head)),
            }
        }
        let connecting = tokio::time::timeout(patience * 2, self.new_connection(node, patience));
        let mut new = connecting.await.map_err(|_| late())??;
        let head = new.ask(head, body).await?;
        Ok((new, head))
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
        Ok(Connection::new(Either::Right(Box::new(self.tls.connect(name, stream).await.map_err(refused)?))))
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::live::{Snapshot, fixtures};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;
    use turnpike_config::{Change, NodeRecord};

    const PATIENCE: Duration = Duration::from_secs(5);

    /// A port, and the node that is there.
    async fn node() -> (TcpListener, Arc<Node>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut routing = fixtures::routing();
        let record = routing.nodes.get("a").unwrap().clone();
        let url = format!("http://{}", listener.local_addr().unwrap());
        routing.apply(Change::PutNode(NodeRecord { url, ..record }));
        let snapshot = fixtures::after(&Snapshot::default(), &routing).unwrap().snapshot;
        (listener, Arc::clone(snapshot.node("a").unwrap()))
    }

    fn connector() -> Connector {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        Connector::new(config.with_root_certificates(rustls::RootCertStore::empty()).with_no_client_auth())
    }

    const ASKED: &[u8] = b"ask";
    const EMPTY: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";

    async fn ask(node: &Node) -> Result<ToNode, Box<Error>> {
        let (mut connection, _) = connector().ask(node, PATIENCE, Bytes::from_static(ASKED), Bytes::new()).await?;
        while !connection.is_over() {
            connection.body().await?;
        }
        Ok(connection)
    }

    /// The other end, at which a question is read.
    async fn hear(far: &mut TcpStream) {
        let mut heard = [0; ASKED.len()];
        far.read_exact(&mut heard).await.unwrap();
        assert_eq!(heard, ASKED);
    }

    async fn answer(far: &mut TcpStream, answer: &[u8]) {
        hear(far).await;
        far.write_all(answer).await.unwrap();
    }

    /// Asks on a new connection.
    async fn ask_anew(listener: &TcpListener, node: &Node, words: &[u8]) -> (ToNode, TcpStream) {
        let answering = async {
            let (mut far, _) = listener.accept().await.unwrap();
            answer(&mut far, words).await;
            far
        };
        let (asked, far) = tokio::join!(ask(node), answering);
        (asked.unwrap(), far)
    }

    #[tokio::test]
    async fn a_connection_is_used_again_as_long_as_its_node_keeps_it() {
        let (listener, node) = node().await;
        let (connection, mut far) = ask_anew(&listener, &node, EMPTY).await;
        connector().release(&node, connection);
        for last in [
            &b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi"[..],
            b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 0\r\n\r\n",
        ] {
            // The same one: nobody else connects.
            let (asked, ()) = tokio::join!(ask(&node), answer(&mut far, last));
            connector().release(&node, asked.unwrap());
        }
        let (mut connection, far) = ask_anew(&listener, &node, EMPTY).await;
        drop(far);
        let is_seen = async {
            while connection.is_alive() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, is_seen).await.unwrap();
        connector().release(&node, connection);
        ask_anew(&listener, &node, EMPTY).await;
    }

    #[tokio::test]
    async fn a_kept_connection_that_closes_when_it_is_used_is_replaced_and_no_other() {
        let (listener, node) = node().await;
        let keep = async || {
            let (connection, far) = ask_anew(&listener, &node, EMPTY).await;
            connector().release(&node, connection);
            far
        };
        let mut far = keep().await;
        let closing = async {
            hear(&mut far).await;
            drop(far);
            let (mut far, _) = listener.accept().await.unwrap();
            answer(&mut far, EMPTY).await;
        };
        let (asked, ()) = tokio::join!(ask(&node), closing);
        asked.unwrap();

        let mut far = keep().await;
        let breaking_off = async {
            answer(&mut far, b"HTTP/1.1 2").await;
            drop(far);
        };
        let (asked, ()) = tokio::join!(ask(&node), breaking_off);
        assert_eq!(asked.err().unwrap().etype(), &ErrorType::ConnectionClosed, "it had begun to answer");

        let closing = async {
            let (mut far, _) = listener.accept().await.unwrap();
            hear(&mut far).await;
        };
        let (asked, ()) = tokio::join!(ask(&node), closing);
        assert_eq!(asked.err().unwrap().etype(), &ErrorType::ConnectionClosed, "it was new");
    }

    #[tokio::test]
    async fn what_is_old_or_of_another_name_is_not_used_and_goes() {
        let (_listener, node) = node().await;
        let mut pool = Pool::default();
        let now = Instant::now();
        let fresh = async || connector().new_connection(&node, PATIENCE).await.unwrap();
        pool.put(&node, fresh().await, now);
        assert!(pool.take(&node, now + IDLE).is_none(), "too old");
        pool.put(&node, fresh().await, now);
        pool.nodes.get_mut(&node.address).unwrap()[0].tls_name = Some("another".to_owned());
        assert!(pool.take(&node, now).is_none(), "another's");
        pool.put(&node, fresh().await, now);
        pool.put(&node, fresh().await, now + IDLE);
        assert_eq!(pool.nodes[&node.address].len(), 1, "the old one went");
        assert!(pool.take(&node, now + IDLE).is_some());
    }

    #[tokio::test]
    async fn a_node_that_is_not_there_is_an_error_of_the_node() {
        let (listener, node) = node().await;
        drop(listener);
        let error = ask(&node).await.err().unwrap();
        assert_eq!(error.esource(), &pingora::ErrorSource::Upstream);
    }
}
