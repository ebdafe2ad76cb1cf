//! Pieces of an answer that are there together go to the client together.
//!
//! Pingora hands over at most five pieces at once, and each time is a write. A node that has many tokens ready sends each as
//! a piece of its own: here they wait until no more are there, or until they are much. One that comes alone goes on at once.

use bytes::BytesMut;
use pingora::Result;
use pingora::protocols::http::{HttpTask, ServerSession};

/// So many bytes are worth a write of their own.
const MUCH: usize = 16 << 10;

/// What waits to be written to a client.
#[derive(Default)]
pub(crate) struct Waiting(BytesMut);

impl Waiting {
    /// Takes pieces that may wait; gives back what has to be written now, with what waited before in front. Only a body of
    /// HTTP/1.1 in its middle may wait: HTTP/2 puts its frames together by itself. Nothing waits behind a write that the
    /// client holds up: the node is held up with it.
    pub(crate) fn take(&mut self, client: &ServerSession, mut tasks: Vec<HttpTask>) -> Option<Vec<HttpTask>> {
        let has_begun = client.as_http1().is_some_and(|client| client.response_written().is_some());
        let pieces = tasks.iter().map(|task| match task {
            HttpTask::Body(piece, false) => Some(piece.as_ref().map_or(0, bytes::Bytes::len)),
            _ => None,
        });
        let more: Option<usize> = pieces.sum();
        let is_free = has_begun && !client.has_pending_downstream_proxy_tasks();
        if is_free && more.is_some_and(|more| self.0.len() + more < MUCH) {
            for task in tasks {
                if let HttpTask::Body(Some(piece), _) = task {
                    self.0.extend_from_slice(&piece);
                }
            }
            return None;
        }
        if !self.0.is_empty() {
            tasks.insert(0, HttpTask::Body(Some(self.0.split().freeze()), false));
        }
        Some(tasks)
    }

    /// Writes what waits. Dropped before it has, the next call goes on where it was.
    pub(crate) async fn write(&mut self, client: &mut ServerSession) -> Result<()> {
        if !self.0.is_empty() {
            client.send_downstream_proxy_task(HttpTask::Body(Some(self.0.split().freeze()), false));
        }
        Self::end_write(client).await
    }

    /// Ends a write that was dropped; nothing else may be written before.
    pub(crate) async fn end_write(client: &mut ServerSession) -> Result<()> {
        if client.has_pending_downstream_proxy_tasks() {
            client.write_downstream_proxy_tasks().await?;
        }
        Ok(())
    }

    pub(crate) fn is_empty(&self, client: &ServerSession) -> bool {
        self.0.is_empty() && !client.has_pending_downstream_proxy_tasks()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use pingora::http::ResponseHeader;
    use pingora::protocols::l4::stream::Stream;
    use std::time::Duration;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::{TcpListener, TcpStream};

    /// A client and the session with it, whose answer has a head.
    async fn begun() -> (TcpStream, ServerSession) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        client.write_all(b"GET / HTTP/1.1\r\nhost: edge\r\n\r\n").await.unwrap();
        let mut session = ServerSession::new_http1(Box::new(Stream::from(listener.accept().await.unwrap().0)));
        session.read_request().await.unwrap();
        assert!(Waiting::default().take(&session, vec![piece("a")]).is_some(), "there is no head yet");
        let mut head = ResponseHeader::build(200, None).unwrap();
        head.insert_header("transfer-encoding", "chunked").unwrap();
        session.write_response_header(Box::new(head)).await.unwrap();
        (client, session)
    }

    fn piece(text: &'static str) -> HttpTask {
        HttpTask::Body(Some(Bytes::from_static(text.as_bytes())), false)
    }

    #[tokio::test]
    async fn what_is_there_together_is_one_chunk() {
        let ((mut client, mut session), mut waiting) = (begun().await, Waiting::default());
        for text in ["one ", "two ", "three"] {
            assert!(waiting.take(&session, vec![piece(text)]).is_none());
        }
        waiting.write(&mut session).await.unwrap();
        assert!(waiting.is_empty(&session));
        let mut read = Vec::new();
        while !read.ends_with(b"three\r\n") {
            client.read_buf(&mut read).await.unwrap();
        }
        let text = String::from_utf8(read).unwrap();
        assert!(text.ends_with("\r\n\r\nD\r\none two three\r\n"), "{text}");
    }

    #[tokio::test]
    async fn nothing_waits_behind_a_client_who_does_not_read() {
        let ((_client, mut session), mut waiting) = (begun().await, Waiting::default());
        let is_full = async {
            while waiting.take(&session, vec![HttpTask::Body(Some(Bytes::from(vec![b'x'; MUCH - 1])), false)]).is_none()
            {
                // Dropped in the middle of a write as soon as the socket takes no more.
                let _ = tokio::time::timeout(Duration::from_millis(50), waiting.write(&mut session)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), is_full).await.unwrap();
    }

    #[tokio::test]
    async fn much_and_the_end_do_not_wait_and_order_is_kept() {
        let ((_client, session), mut waiting) = (begun().await, Waiting::default());
        assert!(waiting.take(&session, vec![piece("a")]).is_none());
        let much = HttpTask::Body(Some(Bytes::from(vec![b'x'; MUCH])), false);
        let due = waiting.take(&session, vec![much]).unwrap();
        assert!(matches!(&due[..], [HttpTask::Body(Some(first), false), _] if first == "a"));
        assert!(waiting.take(&session, vec![piece("b")]).is_none());
        let due = waiting.take(&session, vec![piece("c"), HttpTask::Done]).unwrap();
        assert!(matches!(&due[..], [HttpTask::Body(Some(first), false), _, HttpTask::Done] if first == "b"));
    }
}
