//! The client port: one task takes connections and gives each to the thread that has the fewest; that thread does all of it,
//! sockets to nodes included, so that no event of one thread has to wake up another.

use crate::Error;
use crate::client_stream::ClientStream;
use crate::edge::Edge;
use crate::proxy::Proxy;
use crate::settings::Settings;
use pingora::apps::ServerApp;
use pingora::listeners::tls::{Acceptor, TlsSettings};
use pingora::protocols::tls::server::handshake;
use pingora::protocols::{ALPN, Ssl as _, Stream};
use rustls::sign::SingleCertAndKey;
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio_util::sync::CancellationToken;
use turnpike_config::link::load_certified_key;

/// How long a client may take to shake hands, or to send its first bytes.
const OPENING_PATIENCE: Duration = Duration::from_secs(30);
/// Connections that may wait to be taken; the system may allow fewer.
const BACKLOG: u32 = 4_096;
/// Until connections are taken again after the system refused to.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// TLS towards clients, HTTP/2 preferred; `None` is plaintext.
fn client_tls(settings: &Settings) -> Result<Option<Acceptor>, Error> {
    let Some((cert, key)) = &settings.client_tls else { return Ok(None) };
    // Loaded here, with an error: given paths, Pingora would panic on a bad file.
    let certified = load_certified_key(cert, key)?;
    let mut tls = TlsSettings::intermediate("", "").map_err(|e| Error::ClientTls(e.to_string()))?;
    tls.set_cert_resolver(Arc::new(SingleCertAndKey::from(certified)));
    tls.enable_h2();
    Ok(Some(tls.build()))
}

/// A port that is ours, though nobody can connect yet.
pub(crate) struct Port {
    socket: TcpSocket,
    address: SocketAddr,
    tls: Option<Acceptor>,
}

impl Port {
    pub(crate) fn bind(settings: &Settings) -> Result<Self, Error> {
        let address = settings.listen;
        let tls = client_tls(settings)?;
        let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() };
        let bound = socket.and_then(|socket| {
            socket.set_reuseaddr(true)?;
            socket.bind(address)?;
            Ok(socket)
        });
        let socket = bound.map_err(listen_error(address))?;
        Ok(Self { socket, address, tls })
    }

    fn listen(self) -> Result<(TcpListener, Option<Acceptor>), Error> {
        Ok((self.socket.listen(BACKLOG).map_err(listen_error(self.address))?, self.tls))
    }
}

fn listen_error(address: SocketAddr) -> impl FnOnce(std::io::Error) -> Error {
    crate::listen_error(address, "http.listen")
}

/// Serves a port until this is dropped; connections that are open then are cut off.
pub(crate) struct Server {
    stopping: watch::Sender<bool>,
    accepting: CancellationToken,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.accepting.cancel();
    }
}

impl Server {
    /// Starts serving, in threads of its own.
    pub(crate) fn start(edge: &Arc<Edge>, port: Port) -> Result<Self, Error> {
        let (listener, tls) = port.listen()?;
        let (stopping, stops) = watch::channel(false);
        let service = Arc::new(Service { proxy: Arc::new(Proxy::new(Arc::clone(edge))), tls, stops });
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let workers = (0..threads).map(|_| Worker::start(&service)).collect::<Result<Vec<_>, _>>()?;
        let accepting = CancellationToken::new();
        let accept = accept(listener, workers, Arc::clone(edge));
        drop(tokio::spawn(accepting.clone().run_until_cancelled_owned(accept)));
        Ok(Self { stopping, accepting })
    }

    /// Takes no more connections. Those that are open end with the request that runs on them.
    pub(crate) fn stop_accepting(&self) {
        self.accepting.cancel();
        self.stopping.send_replace(true);
    }
}

/// A connection that counts against the cap until it is closed.
struct Accepted {
    tcp: TcpStream,
    held: OwnedSemaphorePermit,
    /// It counts among its thread's.
    open: Arc<()>,
}

/// Takes connections and hands them on, for ever.
async fn accept(listener: TcpListener, workers: Vec<Worker>, edge: Arc<Edge>) {
    let free = Arc::new(Semaphore::new(edge.settings.limits.max_connections));
    // Begins elsewhere each time, so that threads with as many get one each.
    for turn in (0..workers.len()).cycle() {
        // Out of the hands of this runtime, whose events would wake up the thread that serves it.
        let tcp = match listener.accept().await.and_then(|(tcp, _)| tcp.into_std()) {
            Ok(tcp) => tcp,
            Err(error) => {
                tracing::error!(%error, "a connection could not be taken; is the limit on open files high enough?");
                tokio::time::sleep(ACCEPT_RETRY).await;
                continue;
            }
        };
        let Ok(held) = Arc::clone(&free).try_acquire_owned() else {
            edge.metrics.connections_refused.inc();
            continue;
        };
        let (before, after) = workers.split_at(turn);
        if let Some(worker) = after.iter().chain(before).min_by_key(|worker| worker.connections()) {
            worker.give(tcp, held);
        }
    }
}

/// A thread that serves connections.
struct Worker {
    connections: mpsc::UnboundedSender<Accepted>,
    /// Each of its connections has one of these.
    open: Arc<()>,
}

impl Worker {
    fn start(service: &Arc<Service>) -> Result<Self, Error> {
        // Not more can wait than may be open.
        let (connections, accepted) = mpsc::unbounded_channel();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Error::Runtime)?;
        let work = work(Arc::clone(service), accepted);
        let thread = std::thread::Builder::new().name("edge".to_owned());
        thread.spawn(move || runtime.block_on(work)).map_err(Error::Runtime)?;
        Ok(Self { connections, open: Arc::new(()) })
    }

    fn connections(&self) -> usize {
        Arc::strong_count(&self.open)
    }

    fn give(&self, tcp: TcpStream, held: OwnedSemaphorePermit) {
        if self.connections.send(Accepted { tcp, held, open: Arc::clone(&self.open) }).is_err() {
            tracing::error!("a thread that serves connections has ended");
        }
    }
}

/// Serves what is accepted. Ends, with all connections, when the server is dropped.
async fn work(service: Arc<Service>, mut accepted: mpsc::UnboundedReceiver<Accepted>) {
    while let Some(Accepted { tcp, held, open }) = accepted.recv().await {
        let service = Arc::clone(&service);
        drop(tokio::spawn(async move {
            service.serve(tcp).await;
            drop((open, held));
        }));
    }
    let mut stops = service.stops.clone();
    // Until nobody is left who could say so.
    while stops.changed().await.is_ok() {}
}

/// What is done with a connection.
struct Service {
    proxy: Arc<Proxy>,
    tls: Option<Acceptor>,
    stops: watch::Receiver<bool>,
}

impl Service {
    async fn serve(&self, tcp: TcpStream) {
        let opened = tokio::time::timeout(OPENING_PATIENCE, self.open(tcp)).await;
        match opened {
            Ok(Ok((stream, true))) => drop(self.proxy.process_new(stream, &self.stops).await),
            Ok(Ok((stream, false))) => self.proxy.serve_http1(stream, &self.stops).await,
            Ok(Err(error)) => tracing::debug!(%error, "a connection did not come about"),
            Err(_) => tracing::debug!("a connection was closed: nothing came within {OPENING_PATIENCE:?}"),
        }
    }

    /// The stream, and whether it is one of HTTP/2.
    async fn open(&self, tcp: TcpStream) -> pingora::Result<(Stream, bool)> {
        let broken = |error: std::io::Error| pingora::Error::because(pingora::ErrorType::ReadError, "opening", error);
        let mut stream = ClientStream::new(tcp).map_err(broken)?;
        match &self.tls {
            None => {
                stream.read_first().await.map_err(broken)?;
                let is_http2 = stream.begins_http2();
                Ok((Box::new(stream), is_http2))
            }
            Some(tls) => {
                let stream = handshake(tls, stream).await?;
                let is_http2 = matches!(stream.selected_alpn_proto(), Some(ALPN::H2));
                Ok((Box::new(stream), is_http2))
            }
        }
    }
}
