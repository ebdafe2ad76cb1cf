//! The link between planes: frames of [`crate::wire`] messages on streams, by QUIC with mutual TLS, or where UDP is blocked
//! by TCP and TLS, a connection for each stream.
//!
//! Who a peer is comes from its certificate alone: a DNS name `NAME.edge.turnpike.internal`,
//! `NAME.node.turnpike.internal` or `control.turnpike.internal`, signed by the deployment's own authority.

mod frames;
mod identity;
mod keeper;
mod streams;
mod tcp;
mod transport;

pub use frames::{read_frame, read_sized_frame, write_frame};
pub use identity::{CONTROL_DOMAIN, Identity, Peer, Role, TlsFiles, domain, load_certified_key};
pub use keeper::Links;
pub use streams::{Link, Receiver, Sender, Transport};
pub use transport::{Dialer, Incoming, LinkServer, connect};

/// What can go wrong on a link.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// A certificate or key file cannot be used.
    #[error("{path}: {reason}")]
    File {
        /// The file.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The TLS settings do not work together.
    #[error("TLS: {0}")]
    Tls(#[from] rustls::Error),
    /// The address cannot be bound or resolved.
    #[error("{address}: {source}")]
    Address {
        /// As written in the settings.
        address: String,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The peer cannot be reached or the handshake failed.
    #[error("cannot connect to {address}: {reason}")]
    Connect {
        /// As written in the settings.
        address: String,
        /// Why.
        reason: String,
    },
    /// The peer's certificate names no role of this deployment.
    #[error("the peer's certificate names no Turnpike role")]
    Stranger,
    /// The connection broke or was closed.
    #[error("link lost: {0}")]
    Lost(String),
    /// The peer sent something unintelligible.
    #[error(transparent)]
    Frame(#[from] crate::wire::BadFrame),
}
