//! Endpoints: who accepts links, and who makes them.

use super::streams::Link;
use super::tcp::Tcp;
use super::{CONTROL_DOMAIN, Identity, LinkError, Peer};
use crate::wire::ALPN;
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{Connection, Endpoint, EndpointConfig, IdleTimeout, TokioRuntime, TransportConfig, VarInt};
use rustix::net::sockopt;
use rustls_pki_types::CertificateDer;
use std::io;
use std::net::{Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;

/// A peer that has been silent this long is gone.
const IDLE_TIMEOUT_MS: u32 = 6_000;
/// Often enough that one lost packet does not look like a dead peer. Only who connects keeps a link alive: the answers
/// tell both ends that the other is there.
const KEEP_ALIVE: Duration = Duration::from_secs(2);
/// The same where there is another control plane to turn to.
const KEEP_ALIVE_OF_SEVERAL: Duration = Duration::from_millis(500);
/// Streams one peer may hold open at once.
const MAX_STREAMS: u32 = 12;
/// Who gets no answer by QUIC for so long tries TCP.
pub(super) const QUIC_PATIENCE: Duration = Duration::from_secs(3);
/// Room for datagrams that wait: thousands of edges acknowledge one change at once.
const SOCKET_BUFFER: usize = 8 << 20;
/// Ports that are tried until one is free for UDP and for TCP.
const PORTS_TRIED: usize = 16;

fn transport(keep_alive: Option<Duration>) -> TransportConfig {
    let mut config = TransportConfig::default();
    config
        .max_idle_timeout(Some(IdleTimeout::from(VarInt::from_u32(IDLE_TIMEOUT_MS))))
        .keep_alive_interval(keep_alive)
        .max_concurrent_bidi_streams(VarInt::from_u32(MAX_STREAMS))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .datagram_receive_buffer_size(None)
        .datagram_send_buffer_size(0)
        // Thousands of links that are idle: room for ten datagrams each, and looking for larger ones, do not pay.
        .enable_segmentation_offload(false)
        .mtu_discovery_config(None);
    config
}

/// A peer that connects, to be finished by [`LinkServer::authenticate`].
pub struct Incoming(Arrival);

enum Arrival {
    Quic(Box<quinn::Incoming>),
    Tcp(TcpStream, SocketAddr, TlsAcceptor),
}

/// Accepts links from edges and nodes.
pub struct LinkServer {
    endpoint: Endpoint,
    listener: TcpListener,
    acceptor: TlsAcceptor,
}

impl LinkServer {
    /// Binds an address for UDP and for TCP; port 0 takes any that is free for both.
    pub fn bind(address: SocketAddr, identity: &Identity) -> Result<Self, LinkError> {
        let mut tried = 1;
        loop {
            match Self::bind_once(address, identity) {
                Err(LinkError::Address { .. }) if address.port() == 0 && tried < PORTS_TRIED => tried += 1,
                bound => return bound,
            }
        }
    }

    fn bind_once(address: SocketAddr, identity: &Identity) -> Result<Self, LinkError> {
        let mut tls = identity.server_config(&[ALPN])?;
        // Nobody resumes: links are made seldom.
        tls.send_tls13_tickets = 0;
        let acceptor = TlsAcceptor::from(Arc::new(tls.clone()));
        let tls = QuicServerConfig::try_from(tls).map_err(|e| rustls::Error::General(e.to_string()))?;
        let mut config = quinn::ServerConfig::with_crypto(Arc::new(tls));
        config.transport_config(Arc::new(transport(None)));
        let unbound = |kind: &str, at: SocketAddr| {
            let address = format!("{kind} {at}");
            move |source| LinkError::Address { address, source }
        };
        let socket = udp(address).map_err(unbound("udp", address))?;
        let at = socket.local_addr().map_err(unbound("udp", address))?;
        let endpoint = Endpoint::new(EndpointConfig::default(), Some(config), socket, Arc::new(TokioRuntime));
        let endpoint = endpoint.map_err(unbound("udp", at))?;
        let listener = listen(at).map_err(unbound("tcp", at))?;
        Ok(Self { endpoint, listener, acceptor })
    }

    /// The bound address.
    pub fn local_addr(&self) -> Option<SocketAddr> {
        self.endpoint.local_addr().ok()
    }

    /// The next connection attempt, to be finished by [`LinkServer::authenticate`] on a task of its own, so that a slow
    /// handshake holds up nobody. `None` once closed.
    pub async fn accept(&self) -> Option<Incoming> {
        loop {
            tokio::select! {
                incoming = self.endpoint.accept() => return incoming.map(|incoming| Incoming(Arrival::Quic(Box::new(incoming)))),
                accepted = self.listener.accept() => match accepted {
                    Ok((stream, from)) => return Some(Incoming(Arrival::Tcp(stream, from, self.acceptor.clone()))),
                    // Out of files, most likely: they come back as others end.
                    Err(_) => sleep(Duration::from_millis(50)).await,
                },
            }
        }
    }

    /// Finishes the handshake and reads who the peer is.
    pub async fn authenticate(Incoming(arrival): Incoming) -> Result<(Peer, Link), LinkError> {
        match arrival {
            Arrival::Quic(incoming) => {
                let connection = (*incoming).await.map_err(|e| LinkError::Lost(e.to_string()))?;
                Ok((peer_of(&connection)?, Link::quic(connection)))
            }
            Arrival::Tcp(stream, from, acceptor) => {
                let (tcp, certificate) = Tcp::accept(stream, from, acceptor).await?;
                Ok((Peer::from_certificate(&certificate)?, Link::tcp(tcp)))
            }
        }
    }

    /// Closes all links; peers see it at once and reconnect elsewhere or later.
    pub async fn close(&self) {
        self.endpoint.close(VarInt::from_u32(0), b"shutting down");
        self.endpoint.wait_idle().await;
    }
}

fn udp(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind(address)?;
    // Beyond the system's limit where we may, up to it otherwise; a smaller one works, with more sent again.
    if sockopt::set_socket_recv_buffer_size_force(&socket, SOCKET_BUFFER).is_err() {
        let _ = sockopt::set_socket_recv_buffer_size(&socket, SOCKET_BUFFER);
    }
    let _ = sockopt::set_socket_send_buffer_size(&socket, SOCKET_BUFFER);
    Ok(socket)
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let listener = std::net::TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    TcpListener::from_std(listener)
}

fn peer_of(connection: &Connection) -> Result<Peer, LinkError> {
    let identity = connection.peer_identity().ok_or(LinkError::Stranger)?;
    let chain = identity.downcast::<Vec<CertificateDer<'static>>>().map_err(|_| LinkError::Stranger)?;
    chain.first().map_or(Err(LinkError::Stranger), Peer::from_certificate)
}

/// Connects to the control plane at `host:port`: by QUIC, or if nobody answers that, by TCP.
pub async fn connect(address: &str, identity: &Identity) -> Result<Link, LinkError> {
    let remote = resolve(address).await?;
    match timeout(QUIC_PATIENCE, Dialer::bind(remote.is_ipv4())?.dial(address, remote, identity)).await {
        Ok(answered) => answered,
        Err(_) => connect_tcp(address, identity).await,
    }
}

/// Connects by TCP.
pub(super) async fn connect_tcp(address: &str, identity: &Identity) -> Result<Link, LinkError> {
    let remote = resolve(address).await?;
    let config = Arc::new(identity.client_config(&[ALPN])?);
    let failed = |error: io::Error| LinkError::Connect { address: format!("tcp {address}"), reason: error.to_string() };
    Ok(Link::tcp(Tcp::connect(remote, config, CONTROL_DOMAIN).await.map_err(failed)?))
}

/// Makes links by QUIC from one UDP socket. A socket lives as long as its links do.
#[derive(Debug)]
pub struct Dialer {
    endpoint: Endpoint,
    keep_alive: Duration,
}

impl Dialer {
    /// Takes any port.
    pub fn bind(ipv4: bool) -> Result<Self, LinkError> {
        let any: SocketAddr = if ipv4 { ([0, 0, 0, 0], 0).into() } else { (Ipv6Addr::UNSPECIFIED, 0).into() };
        let bound = Endpoint::client(any);
        let endpoint = bound.map_err(|source| LinkError::Address { address: format!("udp {any}"), source })?;
        Ok(Self { endpoint, keep_alive: KEEP_ALIVE })
    }

    /// Notices sooner that a peer is gone.
    pub(super) fn attentive(self) -> Self {
        Self { keep_alive: KEEP_ALIVE_OF_SEVERAL, ..self }
    }

    /// Connects to the control plane at `remote`, which the settings call `address`.
    pub async fn dial(&self, address: &str, remote: SocketAddr, identity: &Identity) -> Result<Link, LinkError> {
        let tls = QuicClientConfig::try_from(identity.client_config(&[ALPN])?)
            .map_err(|e| rustls::Error::General(e.to_string()))?;
        let mut config = quinn::ClientConfig::new(Arc::new(tls));
        config.transport_config(Arc::new(transport(Some(self.keep_alive))));
        let failed = |reason: String| LinkError::Connect { address: address.to_owned(), reason };
        let connecting =
            self.endpoint.connect_with(config, remote, CONTROL_DOMAIN).map_err(|e| failed(e.to_string()))?;
        Ok(Link::quic(connecting.await.map_err(|e| failed(e.to_string()))?))
    }
}

pub(super) async fn resolve(address: &str) -> Result<SocketAddr, LinkError> {
    let failed = |source| LinkError::Address { address: address.to_owned(), source };
    tokio::net::lookup_host(address)
        .await
        .map_err(failed)?
        .next()
        .ok_or_else(|| failed(io::Error::new(io::ErrorKind::NotFound, "the name has no address")))
}
