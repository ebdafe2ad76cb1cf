//! A link and its streams, whichever transport carries them.

use super::LinkError;
use super::tcp::{self, Tcp};
use bytes::Bytes;
use quinn::{Connection, ReadExactError, RecvStream, SendStream, VarInt};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, ReadHalf, WriteHalf};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsStream;

/// A peer that does not take what it is sent for so long is gone.
const WRITE_DEADLINE: Duration = Duration::from_secs(60);

/// What carries a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// One connection for all streams.
    Quic,
    /// TLS over TCP, a connection for each stream: where UDP is blocked.
    Tcp,
}

impl Transport {
    /// For people and for metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Quic => "quic",
            Self::Tcp => "tcp",
        }
    }
}

/// An authenticated connection to a peer.
#[derive(Clone, Debug)]
pub struct Link {
    id: u64,
    carrier: Carrier,
}

#[derive(Clone, Debug)]
enum Carrier {
    Quic(Connection),
    Tcp(Arc<Tcp>),
}

impl Link {
    fn new(carrier: Carrier) -> Self {
        static LINKS: AtomicU64 = AtomicU64::new(0);
        Self { id: LINKS.fetch_add(1, Ordering::Relaxed), carrier }
    }

    pub(super) fn quic(connection: Connection) -> Self {
        Self::new(Carrier::Quic(connection))
    }

    pub(super) fn tcp(tcp: Tcp) -> Self {
        Self::new(Carrier::Tcp(Arc::new(tcp)))
    }

    /// Tells links of this process apart.
    pub const fn id(&self) -> u64 {
        self.id
    }

    /// What carries it.
    pub const fn transport(&self) -> Transport {
        match self.carrier {
            Carrier::Quic(_) => Transport::Quic,
            Carrier::Tcp(_) => Transport::Tcp,
        }
    }

    /// Where the peer is.
    pub fn remote_address(&self) -> SocketAddr {
        match &self.carrier {
            Carrier::Quic(connection) => connection.remote_address(),
            Carrier::Tcp(tcp) => tcp.remote(),
        }
    }

    /// Opens a stream. The peer sees it once something is sent.
    pub async fn open(&self) -> Result<(Sender, Receiver), LinkError> {
        match &self.carrier {
            Carrier::Quic(connection) => {
                let (send, receive) = connection.open_bi().await.map_err(lost)?;
                Ok((Sender::Quic(send), Receiver::Quic(receive)))
            }
            Carrier::Tcp(tcp) => Ok(split(tcp.open().await?)),
        }
    }

    /// The next stream that the peer opens.
    pub async fn accept(&self) -> Result<(Sender, Receiver), LinkError> {
        match &self.carrier {
            Carrier::Quic(connection) => {
                let (send, receive) = connection.accept_bi().await.map_err(lost)?;
                Ok((Sender::Quic(send), Receiver::Quic(receive)))
            }
            Carrier::Tcp(tcp) => match tcp.take() {
                Some(stream) => Ok(split(stream)),
                None => Err(LinkError::Lost(tcp.closed().await.to_owned())),
            },
        }
    }

    /// Closes it, and all of its streams; the peer is told why where the transport can.
    pub fn close(&self, code: u32, reason: &'static str) {
        match &self.carrier {
            Carrier::Quic(connection) => connection.close(VarInt::from_u32(code), reason.as_bytes()),
            Carrier::Tcp(tcp) => tcp.close(reason),
        }
    }

    /// Until it is closed or lost; says why. A link by TCP is only lost stream by stream.
    pub async fn closed(&self) -> String {
        match &self.carrier {
            Carrier::Quic(connection) => connection.closed().await.to_string(),
            Carrier::Tcp(tcp) => tcp.closed().await.to_owned(),
        }
    }

    /// Whether it is closed or lost.
    pub fn is_closed(&self) -> bool {
        match &self.carrier {
            Carrier::Quic(connection) => connection.close_reason().is_some(),
            Carrier::Tcp(tcp) => tcp.is_closed(),
        }
    }

    /// Datagrams that came, and bytes in them; nothing is known of TCP's.
    pub fn received(&self) -> Option<(u64, u64)> {
        match &self.carrier {
            Carrier::Quic(connection) => {
                let received = connection.stats().udp_rx;
                Some((received.datagrams, received.bytes))
            }
            Carrier::Tcp(_) => None,
        }
    }
}

fn lost(error: impl std::fmt::Display) -> LinkError {
    LinkError::Lost(error.to_string())
}

fn split(stream: TlsStream<TcpStream>) -> (Sender, Receiver) {
    let (receive, send) = tokio::io::split(stream);
    (Sender::Tcp(send), Receiver::Tcp(receive))
}

/// The sending half of a stream.
#[derive(Debug)]
pub enum Sender {
    /// A stream of the connection.
    Quic(SendStream),
    /// A connection of its own.
    Tcp(WriteHalf<TlsStream<TcpStream>>),
}

impl Sender {
    /// Sends a frame.
    pub(super) async fn write(&mut self, bytes: &[u8]) -> Result<(), LinkError> {
        within(async {
            match self {
                Self::Quic(stream) => stream.write_all(bytes).await.map_err(lost),
                Self::Tcp(stream) => write_tcp(stream, bytes).await.map_err(lost),
            }
        })
        .await
    }

    /// Sends bytes that many are sent, without a copy where that is possible.
    pub async fn write_shared(&mut self, bytes: Bytes) -> Result<(), LinkError> {
        within(async {
            match self {
                Self::Quic(stream) => stream.write_chunk(bytes).await.map_err(lost),
                Self::Tcp(stream) => write_tcp(stream, &bytes).await.map_err(lost),
            }
        })
        .await
    }

    /// Says that nothing more comes, and waits until what was sent has arrived or nobody will take it.
    pub async fn finish(&mut self) {
        match self {
            Self::Quic(stream) => {
                if stream.finish().is_ok() {
                    // What it says is that the other end has gone.
                    let _ = stream.stopped().await;
                }
            }
            // The kernel delivers what it has taken.
            Self::Tcp(stream) => {
                let _ = stream.shutdown().await;
            }
        }
    }
}

/// A peer that keeps its link alive and reads nothing must not hold up whoever writes to it.
async fn within(writing: impl Future<Output = Result<(), LinkError>>) -> Result<(), LinkError> {
    timeout(WRITE_DEADLINE, writing).await.map_err(|_| lost("the peer does not take what it is sent"))?
}

async fn write_tcp(stream: &mut WriteHalf<TlsStream<TcpStream>>, bytes: &[u8]) -> std::io::Result<()> {
    stream.write_all(bytes).await?;
    // TLS keeps back what did not fit.
    stream.flush().await
}

/// The receiving half of a stream.
#[derive(Debug)]
pub enum Receiver {
    /// A stream of the connection.
    Quic(RecvStream),
    /// A connection of its own.
    Tcp(ReadHalf<TlsStream<TcpStream>>),
}

impl Receiver {
    /// Fills `bytes`; false if the stream ended before the first of them.
    pub(super) async fn fill(&mut self, bytes: &mut [u8]) -> Result<bool, LinkError> {
        match self {
            Self::Quic(stream) => match stream.read_exact(bytes).await {
                Ok(()) => Ok(true),
                Err(ReadExactError::FinishedEarly(0)) => Ok(false),
                Err(error) => Err(lost(error)),
            },
            Self::Tcp(stream) => {
                let mut filled = 0;
                while let Some(rest) = bytes.get_mut(filled..).filter(|rest| !rest.is_empty()) {
                    match stream.read(rest).await {
                        Ok(0) if filled == 0 => return Ok(false),
                        Ok(0) => return Err(lost("stream ended inside a message")),
                        Ok(more) => filled += more,
                        // Ended without a goodbye, as a process does that is killed.
                        Err(error) if tcp::is_end(&error) && filled == 0 => return Ok(false),
                        Err(error) => return Err(lost(error)),
                    }
                }
                Ok(true)
            }
        }
    }

    /// Adds what comes, at most `most` bytes and at least one.
    pub(super) async fn append(&mut self, to: &mut Vec<u8>, most: usize) -> Result<(), LinkError> {
        let cut_off = || lost("stream ended inside a message");
        match self {
            Self::Quic(stream) => {
                let chunk = stream.read_chunk(most, true).await.map_err(lost)?.ok_or_else(cut_off)?;
                to.extend_from_slice(&chunk.bytes);
            }
            Self::Tcp(stream) => {
                let read = stream.take(most as u64).read_buf(to).await.map_err(lost)?;
                if read == 0 {
                    return Err(cut_off());
                }
            }
        }
        Ok(())
    }
}
