//! A client's connection as Pingora's sessions want one. It has no buffers of its own but while something is being written:
//! most connections wait, for a request or for a token.

use crate::deadlines::until;
use async_trait::async_trait;
use pingora::protocols::http::ServerSession as Session;
use pingora::protocols::raw_connect::ProxyDigest;
use pingora::protocols::{
    GetProxyDigest, GetSocketDigest, GetTimingDigest, Peek, Shutdown, SocketDigest, Ssl, TimingDigest, UniqueID,
    UniqueIDType,
};
use rustix::net::{SendFlags, send, sockopt};
use std::fmt;
use std::io::{Error, ErrorKind, IoSlice, Result};
use std::os::fd::AsRawFd as _;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;

/// So much waits for what comes with it, bytes: an answer's head for its body.
const GATHERED: usize = 8 << 10;
/// Room for what comes first, bytes: most requests.
const FIRST: usize = 4 << 10;
/// How long a client may take nothing while something is written to him.
const PATIENCE: Duration = Duration::from_secs(60);
/// After so much silence the system asks whether the other end is still there.
const KEEP_ALIVE: Duration = Duration::from_secs(120);
/// What every HTTP/2 connection begins with.
const H2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A client's connection.
pub(crate) struct ClientStream {
    tcp: TcpStream,
    socket: Arc<SocketDigest>,
    /// Read to find out which protocol it is, and not yet by who speaks that.
    first: Vec<u8>,
    /// Is written with what comes next, or by a flush.
    gathered: Vec<u8>,
    /// Flushing does nothing.
    is_held: AtomicBool,
    /// Nothing is taken any more: it was shut down, or the client did not read for too long.
    is_closed: bool,
    /// How long the client may take nothing.
    patience: Duration,
    /// Runs while he does.
    stalled: Option<Stall>,
}

type Stall = Pin<Box<dyn Future<Output = ()> + Send + Sync>>;

impl ClientStream {
    /// Keeps back what a session writes, until it is to be kept back no more and more is written. Pingora sends the head of a
    /// chunked answer alone, also when its first chunk is there. Over TLS nothing is kept back.
    pub(crate) fn hold(session: &Session, is_held: bool) {
        if let Some(stream) = session.stream().and_then(|stream| stream.as_any().downcast_ref::<Self>()) {
            stream.is_held.store(is_held, Ordering::Relaxed);
        }
    }

    /// Takes over a connection inside the runtime that is to serve it.
    pub(crate) fn new(tcp: std::net::TcpStream) -> Result<Self> {
        let tcp = TcpStream::from_std(tcp)?;
        tcp.set_nodelay(true)?;
        // Clients that vanish without a word are noticed.
        sockopt::set_tcp_keepidle(&tcp, KEEP_ALIVE)?;
        sockopt::set_socket_keepalive(&tcp, true)?;
        let socket = Arc::new(SocketDigest::from_raw_fd(tcp.as_raw_fd()));
        // Looked up while there is a peer.
        let _ = socket.peer_addr();
        Ok(Self {
            tcp,
            socket,
            first: Vec::new(),
            gathered: Vec::new(),
            is_held: AtomicBool::new(false),
            is_closed: false,
            patience: PATIENCE,
            stalled: None,
        })
    }

    /// Waits until it is known whether the client speaks HTTP/2.
    pub(crate) async fn read_first(&mut self) -> Result<()> {
        self.first.reserve_exact(FIRST);
        while self.first.len() < H2_PREFACE.len() && H2_PREFACE.starts_with(&self.first) {
            if self.tcp.read_buf(&mut self.first).await? == 0 {
                return Err(Error::from(ErrorKind::UnexpectedEof));
            }
        }
        Ok(())
    }

    /// Whether it is one of HTTP/2, by what was read first.
    pub(crate) fn begins_http2(&self) -> bool {
        self.first.starts_with(H2_PREFACE)
    }

    /// Writes what was gathered and what comes after it, and says how much. Not without end for a client who takes nothing,
    /// whoever waits for it.
    fn poll_send(&mut self, context: &mut Context<'_>, after: &[u8]) -> Poll<Result<usize>> {
        let both = [IoSlice::new(&self.gathered), IoSlice::new(after)];
        let sent = Pin::new(&mut self.tcp).poll_write_vectored(context, &both);
        if sent.is_ready() {
            self.stalled = None;
            return sent;
        }
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(until(Instant::now() + self.patience)));
        ready!(stalled.as_mut().poll(context));
        (self.is_closed, self.stalled, self.gathered) = (true, None, Vec::new());
        Poll::Ready(Err(Error::from(ErrorKind::TimedOut)))
    }

    /// Writes what was gathered.
    fn poll_write_gathered(&mut self, context: &mut Context<'_>) -> Poll<Result<()>> {
        while !self.gathered.is_empty() {
            let written = ready!(self.poll_send(context, &[]))?;
            self.has_written(written)?;
        }
        Poll::Ready(Ok(()))
    }

    /// Lets go of so many gathered bytes, and of their room with the last.
    fn has_written(&mut self, bytes: usize) -> Result<()> {
        match bytes {
            0 => return Err(Error::from(ErrorKind::WriteZero)),
            all if all >= self.gathered.len() => self.gathered = Vec::new(),
            some => drop(self.gathered.drain(..some)),
        }
        Ok(())
    }
}

impl AsyncRead for ClientStream {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<Result<()>> {
        let this = self.get_mut();
        if this.first.is_empty() {
            return Pin::new(&mut this.tcp).poll_read(context, into);
        }
        let fits = into.remaining().min(this.first.len());
        into.put_slice(&this.first[..fits]);
        this.first.drain(..fits);
        if this.first.is_empty() {
            this.first = Vec::new();
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for ClientStream {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<Result<usize>> {
        let this = self.get_mut();
        if this.is_closed {
            return Poll::Ready(Err(Error::from(ErrorKind::BrokenPipe)));
        }
        if this.gathered.len() + bytes.len() <= GATHERED {
            this.gathered.extend_from_slice(bytes);
            return Poll::Ready(Ok(bytes.len()));
        }
        loop {
            let written = ready!(this.poll_send(context, bytes))?;
            let of_bytes = written.saturating_sub(this.gathered.len());
            this.has_written(written)?;
            if of_bytes > 0 {
                return Poll::Ready(Ok(of_bytes));
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<()>> {
        let this = self.get_mut();
        if *this.is_held.get_mut() {
            return Poll::Ready(Ok(()));
        }
        this.poll_write_gathered(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<()>> {
        let this = self.get_mut();
        // What is written afterwards would make an answer that was cut off look whole.
        this.is_closed = true;
        ready!(this.poll_write_gathered(context))?;
        Pin::new(&mut this.tcp).poll_shutdown(context)
    }
}

impl Drop for ClientStream {
    fn drop(&mut self) {
        if !self.gathered.is_empty() {
            // The beginning of an answer that broke off, or the reason why there is no TLS. It goes or it does not.
            let _ = send(&self.tcp, &self.gathered, SendFlags::DONTWAIT | SendFlags::NOSIGNAL);
        }
    }
}

impl fmt::Debug for ClientStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ClientStream").field(&self.tcp).finish()
    }
}

#[async_trait]
impl Peek for ClientStream {
    /// Of a client that does not speak HTTP/2, less than asked for may have come.
    async fn try_peek(&mut self, into: &mut [u8]) -> Result<bool> {
        let known = into.len().min(self.first.len());
        into[..known].copy_from_slice(&self.first[..known]);
        Ok(true)
    }
}

#[async_trait]
impl Shutdown for ClientStream {
    async fn shutdown(&mut self) {
        if let Err(error) = AsyncWriteExt::shutdown(self).await {
            tracing::debug!(%error, "a connection was gone before it was closed");
        }
    }
}

impl UniqueID for ClientStream {
    fn id(&self) -> UniqueIDType {
        self.tcp.as_raw_fd()
    }
}

impl Ssl for ClientStream {}

impl GetTimingDigest for ClientStream {
    fn get_timing_digest(&self) -> Vec<Option<TimingDigest>> {
        Vec::new()
    }
}

impl GetProxyDigest for ClientStream {
    fn get_proxy_digest(&self) -> Option<Arc<ProxyDigest>> {
        None
    }
}

impl GetSocketDigest for ClientStream {
    fn get_socket_digest(&self) -> Option<Arc<SocketDigest>> {
        Some(Arc::clone(&self.socket))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pingora::http::ResponseHeader;
    use tokio::net::TcpListener;

    /// A connection, and its other end.
    async fn pair() -> (ClientStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (accepted, _) = listener.accept().await.unwrap();
        (ClientStream::new(accepted.into_std().unwrap()).unwrap(), client)
    }

    #[tokio::test]
    async fn what_tells_the_protocol_is_read_again() {
        for (sent, told) in [
            (&b"GET / HTTP/1.1\r\n\r\n"[..], false),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\nmore", true),
            (b"PRI *", false),
            (b"PUT /", false),
        ] {
            let (mut stream, mut client) = pair().await;
            for byte in sent {
                client.write_all(&[*byte]).await.unwrap();
            }
            if sent != b"PRI *" {
                stream.read_first().await.unwrap();
            }
            drop(client);
            let mut peeked = [0; 24];
            assert!(stream.try_peek(&mut peeked).await.unwrap());
            assert_eq!(peeked == H2_PREFACE, told);
            let mut all = Vec::new();
            stream.read_to_end(&mut all).await.unwrap();
            assert_eq!(all, sent);
        }
        let (mut stream, client) = pair().await;
        drop(client);
        assert_eq!(stream.read_first().await.unwrap_err().kind(), ErrorKind::UnexpectedEof);
    }

    #[tokio::test]
    async fn everything_arrives_in_order_whatever_its_size() {
        let (mut stream, mut client) = pair().await;
        // More than the kernel takes at once: writes come back half done.
        let sizes = [1, 300, GATHERED - 301, 1, GATHERED + 1, 3 << 20, 5, 0, 4 << 20, 9];
        let pieces: Vec<Vec<u8>> = sizes.iter().zip(1u8..).map(|(size, byte)| vec![byte; *size]).collect();
        let expected = pieces.concat();
        let writing = tokio::spawn(async move {
            for piece in pieces {
                stream.write_all(&piece).await.unwrap();
            }
            assert!(!stream.gathered.is_empty(), "the last few bytes wait");
            stream.flush().await.unwrap();
            assert_eq!(stream.gathered.capacity(), 0);
            Shutdown::shutdown(&mut stream).await;
        });
        let mut all = Vec::new();
        client.read_to_end(&mut all).await.unwrap();
        assert!(all == expected);
        writing.await.unwrap();
    }

    #[tokio::test]
    async fn nothing_is_taken_after_the_end_and_what_was_before_it_arrives() {
        let (mut stream, mut client) = pair().await;
        stream.write_all(b"cut off").await.unwrap();
        Shutdown::shutdown(&mut stream).await;
        assert_eq!(stream.write_all(b"0").await.unwrap_err().kind(), ErrorKind::BrokenPipe);
        let mut all = Vec::new();
        client.read_to_end(&mut all).await.unwrap();
        assert_eq!(all, b"cut off");

        let (mut stream, mut client) = pair().await;
        stream.write_all(b"never flushed").await.unwrap();
        drop(stream);
        all.clear();
        client.read_to_end(&mut all).await.unwrap();
        assert_eq!(all, b"never flushed");
    }

    #[tokio::test]
    async fn a_client_who_takes_nothing_holds_nobody_for_ever() {
        let (mut stream, _client) = pair().await;
        stream.patience = Duration::from_millis(30);
        let error = loop {
            if let Err(error) = stream.write_all(&[0; 1 << 16]).await {
                break error;
            }
        };
        assert_eq!(error.kind(), ErrorKind::TimedOut);
        stream.flush().await.unwrap();
        Shutdown::shutdown(&mut stream).await;
    }

    #[tokio::test]
    async fn what_is_held_goes_with_what_comes_next() {
        let (stream, mut client) = pair().await;
        client.write_all(b"GET / HTTP/1.1\r\nhost: h\r\n\r\n").await.unwrap();
        let mut session = Session::new_http1(Box::new(stream));
        assert!(session.read_request().await.unwrap());
        let mut head = ResponseHeader::build(200, None).unwrap();
        head.insert_header("transfer-encoding", "chunked").unwrap();
        ClientStream::hold(&session, true);
        session.write_response_header(Box::new(head)).await.unwrap();
        let comes = tokio::time::timeout(Duration::from_millis(100), client.readable()).await;
        assert!(comes.is_err(), "it is held");
        ClientStream::hold(&session, false);
        session.write_response_body("first".into(), false).await.unwrap();
        let mut came = vec![0; 1024];
        let length = client.read(&mut came).await.unwrap();
        let came = String::from_utf8_lossy(&came[..length]);
        assert!(came.starts_with("HTTP/1.1 200") && came.ends_with("5\r\nfirst\r\n"), "{came}");
    }
}
