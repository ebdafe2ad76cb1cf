//! Accepts HTTP connections, with or without mutual TLS, and stops gracefully.

use crate::engine::Body;
use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use turnpike_config::link::Peer;

/// For a TLS handshake.
const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(10);
/// For the head of a request, which is also how long a connection may lie idle.
const HEAD_DEADLINE: Duration = Duration::from_secs(60);
/// An HTTP/2 peer must answer a ping this often and this fast.
const PING: (Duration, Duration) = (Duration::from_secs(20), Duration::from_secs(10));
/// Requests that one HTTP/2 connection may have open.
const MAX_STREAMS: u32 = 1024;
/// Largest request head, bytes.
const MAX_HEAD: usize = 64 << 10;
/// After `stop`, what is still on its way out gets this long.
const CLOSE_GRACE: Duration = Duration::from_secs(1);
/// Pause after the system refused a connection, most likely for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Answers requests. `peer` is who the TLS certificate says it is; `None` without TLS.
pub(crate) trait Handler: Send + Sync + 'static {
    fn handle(
        self: Arc<Self>,
        request: Request<Incoming>,
        peer: Option<&Peer>,
    ) -> impl Future<Output = Response<Body>> + Send;
}

/// A response of plain text.
pub(crate) fn text(status: StatusCode, text: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(Full::new(text.into()).map_err(|never| match never {}).boxed_unsync());
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

/// A bound socket.
pub(crate) struct Listener {
    socket: TcpListener,
    tls: Option<TlsAcceptor>,
    connections: Arc<Semaphore>,
    max_connections: usize,
}

impl Listener {
    /// Binds `address`; port 0 takes any. More than `max_connections` at once wait in the system's backlog.
    pub(crate) async fn bind(
        address: SocketAddr,
        tls: Option<rustls::ServerConfig>,
        max_connections: usize,
    ) -> std::io::Result<Self> {
        let max_connections = max_connections.min(Semaphore::MAX_PERMITS);
        Ok(Self {
            socket: TcpListener::bind(address).await?,
            tls: tls.map(|config| TlsAcceptor::from(Arc::new(config))),
            connections: Arc::new(Semaphore::new(max_connections)),
            max_connections,
        })
    }

    /// Where it is bound.
    pub(crate) fn address(&self) -> std::io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// Serves until `stop`, then lets every connection finish the request it is at, within a second.
    pub(crate) async fn serve<H: Handler>(self, handler: Arc<H>, stop: CancellationToken) {
        let tasks = TaskTracker::new();
        loop {
            let accepted = tokio::select! {
                () = stop.cancelled() => break,
                accepted = self.accept() => accepted,
            };
            let Some((stream, place)) = accepted else { continue };
            let (tls, handler, stop) = (self.tls.clone(), Arc::clone(&handler), stop.clone());
            tasks.spawn(async move {
                connection(stream, tls, handler, stop).await;
                drop(place);
            });
        }
        tasks.close();
        tasks.wait().await;
    }

    async fn accept(&self) -> Option<(TcpStream, tokio::sync::OwnedSemaphorePermit)> {
        if self.connections.available_permits() == 0 {
            tracing::warn!(max_connections = self.max_connections, "as many connections as allowed; more must wait");
        }
        // Fails only if the semaphore was closed, which nobody does.
        let place = Arc::clone(&self.connections).acquire_owned().await.ok()?;
        match self.socket.accept().await {
            Ok((stream, _)) => Some((stream, place)),
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                None
            }
        }
    }
}

async fn connection<H: Handler>(stream: TcpStream, tls: Option<TlsAcceptor>, handler: Arc<H>, stop: CancellationToken) {
    // Small chunks of a stream must not wait for each other.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "TCP_NODELAY");
    }
    let Some(tls) = tls else {
        // Without ALPN to agree on HTTP/2, and without waiting for a first byte to tell.
        return exchange(builder().http1_only(), stream, handler, None, stop).await;
    };
    let secured = match tokio::time::timeout(HANDSHAKE_DEADLINE, tls.accept(stream)).await {
        Ok(Ok(secured)) => secured,
        Ok(Err(error)) => return tracing::warn!(%error, "a TLS handshake failed"),
        Err(_elapsed) => return tracing::warn!("a TLS handshake took longer than {HANDSHAKE_DEADLINE:?}"),
    };
    let session = secured.get_ref().1;
    let certificate = session.peer_certificates().and_then(|chain| chain.first());
    let peer = match certificate.map(Peer::from_certificate) {
        Some(Ok(peer)) => Arc::new(peer),
        _ => return tracing::warn!("a peer's certificate names no Turnpike role; connection closed"),
    };
    let builder = if session.alpn_protocol() == Some(b"h2") { builder().http2_only() } else { builder().http1_only() };
    exchange(builder, secured, handler, Some(peer), stop).await;
}

fn builder() -> Builder<TokioExecutor> {
    let mut builder = Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEAD_DEADLINE).max_buf_size(MAX_HEAD);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(PING.0)
        .keep_alive_timeout(PING.1)
        .max_concurrent_streams(MAX_STREAMS);
    builder
}

async fn exchange<H: Handler>(
    builder: Builder<TokioExecutor>,
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    handler: Arc<H>,
    peer: Option<Arc<Peer>>,
    stop: CancellationToken,
) {
    let service = service_fn(move |request| {
        let (handler, peer) = (Arc::clone(&handler), peer.clone());
        async move { Ok::<_, Infallible>(handler.handle(request, peer.as_deref()).await) }
    });
    let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
    let ended = tokio::select! {
        ended = connection.as_mut() => Some(ended),
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            tokio::time::timeout(CLOSE_GRACE, connection).await.ok()
        }
    };
    match ended {
        Some(Ok(())) => {}
        Some(Err(error)) => tracing::debug!(%error, "a connection broke off"),
        None => tracing::warn!("a connection was cut: its answer was not finished in time"),
    }
}
