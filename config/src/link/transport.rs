//! QUIC endpoints.

use super::{CONTROL_DOMAIN, Identity, LinkError, Peer};
use crate::wire::ALPN;
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{Connection, Endpoint, IdleTimeout, TransportConfig, VarInt};
use rustls_pki_types::CertificateDer;
use std::net::{Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

/// A peer that has been silent this long is gone.
const IDLE_TIMEOUT_MS: u32 = 6_000;
/// Often enough that one lost packet does not look like a dead peer.
const KEEP_ALIVE: Duration = Duration::from_millis(1_500);
/// Streams one peer may hold open at once.
const MAX_STREAMS: u32 = 16;

fn transport() -> Arc<TransportConfig> {
    let mut config = TransportConfig::default();
    config
        .max_idle_timeout(Some(IdleTimeout::from(VarInt::from_u32(IDLE_TIMEOUT_MS))))
        .keep_alive_interval(Some(KEEP_ALIVE))
        .max_concurrent_bidi_streams(VarInt::from_u32(MAX_STREAMS))
        .max_concurrent_uni_streams(VarInt::from_u32(0));
    Arc::new(config)
}

/// Accepts links from edges and nodes.
#[derive(Debug)]
pub struct LinkServer {
    endpoint: Endpoint,
}

impl LinkServer {
    /// Binds a UDP address; port 0 takes any.
    pub fn bind(address: SocketAddr, identity: &Identity) -> Result<Self, LinkError> {
        let tls = QuicServerConfig::try_from(identity.server_config(&[ALPN])?)
            .map_err(|e| rustls::Error::General(e.to_string()))?;
        let mut config = quinn::ServerConfig::with_crypto(Arc::new(tls));
        config.transport_config(transport());
        let endpoint = Endpoint::server(config, address)
            .map_err(|source| LinkError::Address { address: format!("udp {address}"), source })?;
        Ok(Self { endpoint })
    }

    /// The bound address.
    pub fn local_addr(&self) -> Option<SocketAddr> {
        self.endpoint.local_addr().ok()
    }

    /// The next connection attempt, to be finished by [`LinkServer::authenticate`] on a task of its own, so that a slow
    /// handshake holds up nobody. `None` once closed.
    pub async fn accept(&self) -> Option<quinn::Incoming> {
        self.endpoint.accept().await
    }

    /// Finishes the handshake and reads who the peer is.
    pub async fn authenticate(incoming: quinn::Incoming) -> Result<(Peer, Connection), LinkError> {
        let connection = incoming.await.map_err(|e| LinkError::Lost(e.to_string()))?;
        let peer = peer_of(&connection)?;
        Ok((peer, connection))
    }

    /// Closes all links; peers see it at once and reconnect elsewhere or later.
    pub async fn close(&self) {
        self.endpoint.close(VarInt::from_u32(0), b"shutting down");
        self.endpoint.wait_idle().await;
    }
}

fn peer_of(connection: &Connection) -> Result<Peer, LinkError> {
    let identity = connection.peer_identity().ok_or(LinkError::Stranger)?;
    let chain = identity.downcast::<Vec<CertificateDer<'static>>>().map_err(|_| LinkError::Stranger)?;
    chain.first().map_or(Err(LinkError::Stranger), Peer::from_certificate)
}

/// Connects to the control plane at `host:port`. The endpoint lives as long as the connection does.
pub async fn connect(address: &str, identity: &Identity) -> Result<Connection, LinkError> {
    let remote = resolve(address).await?;
    let tls = QuicClientConfig::try_from(identity.client_config(&[ALPN])?)
        .map_err(|e| rustls::Error::General(e.to_string()))?;
    let mut config = quinn::ClientConfig::new(Arc::new(tls));
    config.transport_config(transport());
    let any: SocketAddr = if remote.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { (Ipv6Addr::UNSPECIFIED, 0).into() };
    let endpoint =
        Endpoint::client(any).map_err(|source| LinkError::Address { address: format!("udp {any}"), source })?;
    let failed = |reason: String| LinkError::Connect { address: address.to_owned(), reason };
    let connecting = endpoint.connect_with(config, remote, CONTROL_DOMAIN).map_err(|e| failed(e.to_string()))?;
    connecting.await.map_err(|e| failed(e.to_string()))
}

async fn resolve(address: &str) -> Result<SocketAddr, LinkError> {
    let failed = |source| LinkError::Address { address: address.to_owned(), source };
    tokio::net::lookup_host(address)
        .await
        .map_err(failed)?
        .next()
        .ok_or_else(|| failed(std::io::Error::new(std::io::ErrorKind::NotFound, "the name has no address")))
}
