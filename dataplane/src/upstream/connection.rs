//! One connection to a node, with one request at a time.

use super::body::Body;
use super::head::{self, Head, Wrong};
use bytes::{Buf as _, Bytes, BytesMut};
use futures::FutureExt as _;
use pingora::{Error, ErrorType};
use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Poll, ready};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf};

/// Most that is read at once, bytes.
const ROOM: usize = 64 << 10;

thread_local! {
    /// Where a thread's connections are read into, one after the other: most wait most of the time, and none needs room for that.
    static READ: RefCell<Box<[u8]>> = RefCell::new(vec![0; ROOM].into());
}

/// A connection.
#[derive(Debug)]
pub(crate) struct Connection<S> {
    stream: S,
    /// What was read and not taken.
    buffer: BytesMut,
    body: Body,
    /// Met while more was looked for: told once what came before it was taken.
    failed: Option<Box<Error>>,
    keeps: bool,
}

type Result<T> = std::result::Result<T, Box<Error>>;

impl<S: AsyncRead + AsyncWrite + Unpin> Connection<S> {
    pub(super) fn new(stream: S) -> Self {
        Self { stream, buffer: BytesMut::new(), body: Body::Over, failed: None, keeps: true }
    }

    /// Sends a request, head and body at once, and waits for the head of its answer.
    pub(super) async fn ask(&mut self, head: Bytes, body: Bytes) -> Result<Head> {
        self.send(head, body).await?;
        self.head().await
    }

    /// Whether it was closed before a byte of an answer came.
    pub(super) fn said_nothing(&self, error: &Error) -> bool {
        use ErrorType::{ConnectionClosed, ReadError, WriteError};
        self.buffer.is_empty() && matches!(error.etype(), ConnectionClosed | ReadError | WriteError)
    }

    /// Sends a request, head and body at once.
    async fn send(&mut self, head: Bytes, body: Bytes) -> Result<()> {
        self.keeps = false;
        let failed = |error| Error::because(ErrorType::WriteError, "sending to the node", error).into_up();
        self.stream.write_all_buf(&mut head.chain(body)).await.map_err(failed)?;
        self.stream.flush().await.map_err(failed)
    }

    /// The head of the answer. Dropped before it is there, nothing is lost.
    async fn head(&mut self) -> Result<Head> {
        loop {
            if let Some(found) = head::take(&mut self.buffer).map_err(wrong)? {
                self.body = Body::from(found.framing);
                self.keeps = found.keeps;
                return Ok(found.head);
            }
            if self.fill().await? == 0 {
                return Err(Error::explain(ErrorType::ConnectionClosed, "the node closed before its answer").into_up());
            }
        }
    }

    /// The next part of the body, as much as there is; empty at its end. Dropped before it is there, nothing is lost.
    pub(crate) async fn body(&mut self) -> Result<Bytes> {
        if let Some(error) = self.failed.take() {
            return Err(error);
        }
        loop {
            let piece = self.body.take(&mut self.buffer).map_err(wrong)?;
            if !piece.is_empty() || self.is_over() {
                return Ok(piece);
            }
            if self.fill().await? == 0 {
                if self.body != Body::UntilClose {
                    return Err(Error::explain(ErrorType::ConnectionClosed, "the node closed in its answer").into_up());
                }
                self.body = Body::Over;
            }
        }
    }

    /// The next part of the body if it is there already.
    pub(crate) fn body_now(&mut self) -> Option<Result<Bytes>> {
        self.body().now_or_never()
    }

    /// What is there together goes on together, up to about `enough` bytes: a node that has many tokens ready sends each for
    /// itself. One that comes alone goes on as soon as everything else on this thread has had its turn.
    pub(crate) async fn gather(&mut self, piece: Bytes, enough: usize) -> Bytes {
        // Copied only if more comes.
        let (mut all, mut length) = (BytesMut::new(), piece.len());
        loop {
            let before = length;
            if !self.may_have_more(length, enough) {
                break;
            }
            tokio::task::yield_now().await;
            while self.may_have_more(length, enough)
                && let Some(more) = self.body_now()
            {
                match more {
                    Ok(more) => {
                        all.extend_from_slice(if all.is_empty() { &piece } else { &[] });
                        all.extend_from_slice(&more);
                        length = all.len();
                    }
                    Err(error) => self.failed = Some(error),
                }
            }
            if length == before {
                break;
            }
        }
        if all.is_empty() { piece } else { all.freeze() }
    }

    fn may_have_more(&self, length: usize, enough: usize) -> bool {
        length < enough && !self.is_over() && self.failed.is_none()
    }

    /// Whether the answer has been read to its end.
    pub(crate) fn is_over(&self) -> bool {
        self.body == Body::Over
    }

    /// Whether another request can be sent.
    pub(super) fn is_free(&self) -> bool {
        self.keeps && self.is_over() && self.buffer.is_empty()
    }

    /// Whether the node has left it open and silent.
    pub(super) fn is_alive(&mut self) -> bool {
        self.is_free() && self.stream.read(&mut [0]).now_or_never().is_none()
    }

    async fn fill(&mut self) -> Result<usize> {
        let Self { stream, buffer, .. } = self;
        let read = poll_fn(|context| {
            READ.with_borrow_mut(|room| {
                let mut read = ReadBuf::new(room);
                ready!(Pin::new(&mut *stream).poll_read(context, &mut read))?;
                buffer.extend_from_slice(read.filled());
                Poll::Ready(Ok(read.filled().len()))
            })
        });
        read.await
            .map_err(|error: io::Error| Error::because(ErrorType::ReadError, "reading from the node", error).into_up())
    }
}

fn wrong(what: Wrong) -> Box<Error> {
    Error::explain(ErrorType::InvalidHTTPHeader, format!("the node answered with {what}")).into_up()
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::duplex;

    #[tokio::test]
    async fn one_request_after_the_other() {
        let (near, mut far) = duplex(1 << 20);
        let mut connection = Connection::new(near);
        for turn in 0..3 {
            assert!(connection.is_alive(), "turn {turn}");
            connection.send(Bytes::from_static(b"HEAD "), Bytes::from_static(b"BODY")).await.unwrap();
            let mut sent = [0; 9];
            far.read_exact(&mut sent).await.unwrap();
            assert_eq!(&sent, b"HEAD BODY");
            far.write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhi\r\n").await.unwrap();
            assert_eq!(connection.head().await.unwrap().length, None);
            assert_eq!(connection.body().await.unwrap(), "hi");
            assert!(connection.body_now().is_none() && !connection.is_alive());
            far.write_all(b"1\r\n!\r\n0\r\n\r\n").await.unwrap();
            assert_eq!(connection.body().await.unwrap(), "!");
            assert!(connection.is_over());
        }
        drop(far);
        assert!(!connection.is_alive(), "it was closed");
    }

    #[tokio::test]
    async fn what_is_there_together_is_one_piece_also_before_a_failure() {
        for (rest, ends_well) in [("0\r\n\r\n", true), ("", false), ("nonsense\r\n", false)] {
            let (near, mut far) = duplex(1 << 20);
            let mut connection = Connection::new(near);
            far.write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n").await.unwrap();
            connection.head().await.unwrap();
            let first = connection.body().await.unwrap();
            far.write_all(format!("1\r\nb\r\n{rest}").as_bytes()).await.unwrap();
            drop(far);
            assert_eq!(connection.gather(first, 1 << 10).await, "ab", "{rest}");
            assert_eq!(connection.is_over(), ends_well, "{rest}");
            assert_eq!(connection.body().await.is_ok(), ends_well, "{rest}");
        }
    }

    #[tokio::test]
    async fn enough_is_enough_and_one_that_comes_alone_does_not_wait() {
        let (near, mut far) = duplex(1 << 20);
        let mut connection = Connection::new(near);
        far.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
        connection.head().await.unwrap();
        far.write_all(b"alone").await.unwrap();
        let first = connection.body().await.unwrap();
        assert_eq!(connection.gather(first, 1 << 10).await, "alone");
        far.write_all(b"more").await.unwrap();
        assert_eq!(connection.gather(Bytes::from_static(b"enough"), 6).await, "enough");
        assert_eq!(connection.body().await.unwrap(), "more");
    }

    #[tokio::test]
    async fn an_end_that_comes_early_is_an_error_of_the_node() {
        for text in ["", "HTTP/1.1 200 OK\r\n", "HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nab"] {
            let (near, mut far) = duplex(1 << 20);
            let mut connection = Connection::new(near);
            far.write_all(text.as_bytes()).await.unwrap();
            drop(far);
            let read = async {
                connection.head().await?;
                while !connection.is_over() {
                    connection.body().await?;
                }
                Ok::<_, Box<Error>>(())
            };
            let error = read.await.unwrap_err();
            assert_eq!(error.esource(), &pingora::ErrorSource::Upstream, "{text}");
        }
    }

    #[tokio::test]
    async fn a_body_without_a_length_ends_with_its_connection() {
        let (near, mut far) = duplex(1 << 20);
        let mut connection = Connection::new(near);
        far.write_all(b"HTTP/1.1 200 OK\r\n\r\nall").await.unwrap();
        connection.head().await.unwrap();
        assert_eq!(connection.body().await.unwrap(), "all");
        drop(far);
        assert_eq!(connection.body().await.unwrap(), "");
        assert!(connection.is_over() && !connection.is_free());
    }
}
