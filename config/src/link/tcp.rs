//! Links by TCP and TLS, where UDP is blocked: a connection for each stream.

use super::LinkError;
use crate::wire::ALPN;
use rustix::net::sockopt;
use rustls::ClientConfig;
use rustls_pki_types::{CertificateDer, ServerName};
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream};
use tokio_util::sync::CancellationToken;

/// A connection is there within this time, handshake included.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// A connection that was made to see whether it can be is used for a stream only while the peer still waits for that.
const FRESH: Duration = Duration::from_secs(3);
/// A peer that is silent is asked for a sign of life, and again, before it is given up.
const SILENCE: Duration = Duration::from_secs(2);
const PROBES: u32 = 2;
/// What was sent is acknowledged within this time, milliseconds.
const UNACKNOWLEDGED_MS: u32 = 6_000;

/// One link.
pub(super) struct Tcp {
    remote: SocketAddr,
    /// Makes a connection for each stream; the accepting side has the one that it was accepted with.
    dialer: Option<(TlsConnector, ServerName<'static>)>,
    /// A connection that is there and not used yet.
    ready: Mutex<Option<(Instant, TlsStream<TcpStream>)>>,
    closed: CancellationToken,
    reason: OnceLock<&'static str>,
}

impl std::fmt::Debug for Tcp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tcp").field("remote", &self.remote).finish_non_exhaustive()
    }
}

impl Tcp {
    /// Connects, to see whether it can be done.
    pub(super) async fn connect(remote: SocketAddr, config: Arc<ClientConfig>, name: &str) -> io::Result<Self> {
        let name = ServerName::try_from(name.to_owned()).map_err(io::Error::other)?;
        let dialer = (TlsConnector::from(config), name);
        let stream = dial(remote, &dialer).await?;
        Ok(Self::new(remote, Some(dialer), stream))
    }

    /// Finishes the handshake of who connects, and reads the certificate.
    pub(super) async fn accept(
        stream: TcpStream,
        remote: SocketAddr,
        acceptor: TlsAcceptor,
    ) -> Result<(Self, CertificateDer<'static>), LinkError> {
        let lost = |error: io::Error| LinkError::Lost(error.to_string());
        watch_over(&stream).map_err(lost)?;
        let stream = acceptor.accept(stream).await.map_err(lost)?;
        let (_, session) = stream.get_ref();
        if session.alpn_protocol() != Some(ALPN) {
            return Err(LinkError::Lost("the peer speaks another protocol".to_owned()));
        }
        let certificate = session.peer_certificates().and_then(|chain| chain.first().cloned());
        Ok((Self::new(remote, None, stream.into()), certificate.ok_or(LinkError::Stranger)?))
    }

    fn new(
        remote: SocketAddr,
        dialer: Option<(TlsConnector, ServerName<'static>)>,
        stream: TlsStream<TcpStream>,
    ) -> Self {
        let ready = Mutex::new(Some((Instant::now(), stream)));
        Self { remote, dialer, ready, closed: CancellationToken::new(), reason: OnceLock::new() }
    }

    pub(super) const fn remote(&self) -> SocketAddr {
        self.remote
    }

    /// A connection for one more stream.
    pub(super) async fn open(&self) -> Result<TlsStream<TcpStream>, LinkError> {
        let lost = |reason: String| LinkError::Lost(reason);
        if self.is_closed() {
            return Err(lost(self.why().to_owned()));
        }
        let dialer = self.dialer.as_ref().ok_or_else(|| lost("only a client opens streams".to_owned()))?;
        let ready = self.ready().take().filter(|(since, _)| since.elapsed() < FRESH);
        match ready {
            Some((_, stream)) => Ok(stream),
            None => dial(self.remote, dialer).await.map_err(|error| lost(error.to_string())),
        }
    }

    /// The one stream of an accepted connection, once.
    pub(super) fn take(&self) -> Option<TlsStream<TcpStream>> {
        self.ready().take().map(|(_, stream)| stream)
    }

    fn ready(&self) -> MutexGuard<'_, Option<(Instant, TlsStream<TcpStream>)>> {
        self.ready.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn close(&self, reason: &'static str) {
        // The first reason counts.
        let _ = self.reason.set(reason);
        self.closed.cancel();
    }

    fn why(&self) -> &'static str {
        self.reason.get().copied().unwrap_or("closed")
    }

    pub(super) async fn closed(&self) -> &'static str {
        self.closed.cancelled().await;
        self.why()
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed.is_cancelled()
    }
}

async fn dial(
    remote: SocketAddr,
    (connector, name): &(TlsConnector, ServerName<'static>),
) -> io::Result<TlsStream<TcpStream>> {
    let connecting = async {
        let stream = TcpStream::connect(remote).await?;
        watch_over(&stream)?;
        connector.connect(name.clone(), stream).await
    };
    let late = |_| io::Error::new(io::ErrorKind::TimedOut, "the handshake took too long");
    Ok(timeout(HANDSHAKE, connecting).await.map_err(late)??.into())
}

/// Has the kernel find out when the peer is gone: streams may be silent for hours.
fn watch_over(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, SILENCE)?;
    sockopt::set_tcp_keepintvl(stream, SILENCE)?;
    sockopt::set_tcp_keepcnt(stream, PROBES)?;
    Ok(sockopt::set_tcp_user_timeout(stream, UNACKNOWLEDGED_MS)?)
}

/// Whether a stream was ended without a goodbye.
pub(super) fn is_end(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::UnexpectedEof
}
