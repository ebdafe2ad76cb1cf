//! The client's end of an answer that comes from a node. An answer that others listen to goes on without him.

use crate::cache::Audience;
use crate::client_stream::ClientStream;
use bytes::Bytes;
use pingora::http::ResponseHeader;
use pingora::protocols::http::ServerSession as Session;
use pingora::{Error, ErrorType, Result};
use std::pin::pin;
use std::time::Duration;

/// How often is looked whether anybody still listens to an answer whose client has left.
const AUDIENCE_POLL: Duration = Duration::from_millis(50);
/// Longest that a client who does not read holds up others who get the same answer.
const LEFT_BEHIND: Duration = Duration::from_secs(5);

/// Who the answer is for.
pub(crate) struct Client<'a> {
    session: &'a mut Session,
    audience: Option<Audience>,
    has_left: bool,
}

impl<'a> Client<'a> {
    pub(crate) const fn new(session: &'a mut Session, audience: Option<Audience>) -> Self {
        Self { session, audience, has_left: false }
    }

    pub(crate) const fn session(&mut self) -> &mut Session {
        self.session
    }

    /// Whether he left, or was left behind, while the answer went on for others.
    pub(crate) const fn has_left(&self) -> bool {
        self.has_left
    }

    /// Comes to an error once nobody waits for the answer any more.
    pub(crate) async fn nobody_waits(&mut self) -> Box<Error> {
        if !self.has_left {
            // Nothing is left to read: this ends when he goes away.
            let error = match self.session.read_body_or_idle(true).await {
                Ok(_) => gone(),
                Err(error) => error.into_down(),
            };
            if !is_heard(self.audience.as_ref()) {
                return error;
            }
            self.has_left = true;
        }
        while is_heard(self.audience.as_ref()) {
            tokio::time::sleep(AUDIENCE_POLL).await;
        }
        gone()
    }

    /// Writes the head.
    pub(crate) async fn begin(&mut self, head: Box<ResponseHeader>) -> Result<()> {
        self.write(async |session| session.write_response_header(head).await).await
    }

    /// Writes the head together with what comes first, and the end.
    pub(crate) async fn begin_with(
        &mut self,
        head: Box<ResponseHeader>,
        piece: Option<Bytes>,
        end: bool,
    ) -> Result<()> {
        let has_more = piece.is_some() || end;
        ClientStream::hold(self.session, has_more);
        let begun = self.begin(head).await;
        ClientStream::hold(self.session, false);
        begun?;
        self.pass(piece, end).await
    }

    /// Writes what comes next, and the end.
    pub(crate) async fn pass(&mut self, piece: Option<Bytes>, end: bool) -> Result<()> {
        if piece.is_none() && !end {
            return Ok(());
        }
        self.write(async |session| session.write_response_body(piece.unwrap_or_default(), end).await).await
    }

    /// After the end. A client who has not had everything loses his connection, so that it does not look as if he had.
    pub(crate) async fn leave(&mut self) {
        if self.has_left {
            self.session.shutdown().await;
        }
    }

    /// While others listen, he is waited for, but not for long, and does without the rest then.
    async fn write(&mut self, write: impl AsyncFnOnce(&mut Session) -> Result<()>) -> Result<()> {
        if self.has_left {
            return if is_heard(self.audience.as_ref()) { Ok(()) } else { Err(gone()) };
        }
        let written = match &self.audience {
            None => write(self.session).await,
            Some(audience) => patiently(audience, write(self.session)).await,
        };
        match written {
            Err(_) if is_heard(self.audience.as_ref()) => {
                self.has_left = true;
                Ok(())
            }
            other => other.map_err(Error::into_down),
        }
    }
}

async fn patiently(audience: &Audience, write: impl Future<Output = Result<()>>) -> Result<()> {
    let mut write = pin!(write);
    loop {
        match tokio::time::timeout(LEFT_BEHIND, &mut write).await {
            Ok(written) => return written,
            Err(_) if audience.is_listening() => return Err(gone()),
            Err(_) => {}
        }
    }
}

fn is_heard(audience: Option<&Audience>) -> bool {
    audience.is_some_and(Audience::is_listening)
}

fn gone() -> Box<Error> {
    Error::explain(ErrorType::ConnectionClosed, "the client left").into_down()
}
