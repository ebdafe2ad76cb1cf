//! Lets a request whose body has already been read be proxied, and proxied again on a retry.
//!
//! Pingora picks the node before it forwards the body, and replays at most 64 KiB of a body read earlier. The model's
//! name is in the body, so the edge reads all of it first, and then stands a session in front of the client's own that
//! hands the (possibly rewritten) body out as the "retry buffer", whatever its size. [`take_out`] puts the client's own
//! session back, without which its connection could not be kept alive.
//!
//! It also lets an answer that others listen to go on when the client who asked first has left.

use crate::cache::Audience;
use crate::coalesce::Waiting;
use crate::journal::Written;
use async_trait::async_trait;
use bytes::Bytes;
use futures::Stream;
use http::HeaderMap;
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::protocols::Digest;
use pingora::protocols::http::custom::{CustomMessageWrite, server::Session as CustomSession};
use pingora::protocols::http::{HttpTask, ServerSession};
use pingora::protocols::l4::socket::SocketAddr;
use pingora::proxy::Session;
use pingora::{Error, ErrorSource, ErrorType, Result};
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;
use std::time::{Duration, Instant};
use turnpike_config::crash_point;

/// How often is looked whether anybody still listens to an answer whose client has left.
const AUDIENCE_POLL: Duration = Duration::from_millis(50);

/// Longest that a client who does not read holds up others who get the same answer.
const LEFT_BEHIND: Duration = Duration::from_secs(5);

/// How long a request, or the end of its answer, waits for its usage to be recorded; then it does not come.
const METERING_PATIENCE: Duration = Duration::from_secs(30);
pub(crate) const NOT_RECORDED: ErrorType = ErrorType::Custom("usage cannot be recorded");

/// Where the client's own session waits to be put back.
#[derive(Clone)]
pub(crate) struct Swapped(Arc<Place>);

#[derive(Default)]
struct Place {
    own: Mutex<Option<ServerSession>>,
    /// What nodes get, from the next one that is tried on.
    body: Mutex<Bytes>,
    deadlines: Mutex<Deadlines>,
    client_left: AtomicBool,
    /// What must be written down before the client gets the end of the answer.
    held_for: Mutex<Option<Written>>,
}

/// Until when a node may take; `None` is forever.
#[derive(Clone, Copy, Debug, Default)]
struct Deadlines {
    first_byte: Option<Instant>,
    end: Option<Instant>,
}

/// A node did not begin its answer in time.
pub(crate) const LATE_FIRST_BYTE: ErrorType = ErrorType::Custom("the node did not begin in time");
/// A node did not end its answer in time.
pub(crate) const LATE_END: ErrorType = ErrorType::Custom("the node did not end in time");

impl Deadlines {
    /// Resolves with the error once one of them has passed.
    async fn passed(self) -> Box<Error> {
        let first = self.first_byte.into_iter().chain(self.end).min();
        let Some(first) = first else { return std::future::pending().await };
        tokio::time::sleep_until(first.into()).await;
        Error::new(if self.end == Some(first) { LATE_END } else { LATE_FIRST_BYTE })
    }
}

impl Swapped {
    /// The next node that is tried gets this body.
    pub(crate) fn set_body(&self, body: Bytes) {
        *self.0.body.lock().unwrap_or_else(PoisonError::into_inner) = body;
    }

    fn body(&self) -> Bytes {
        self.0.body.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// A node is tried that is to begin its answer by then, and end it by `end`, if that is not known yet.
    pub(crate) fn is_due(&self, first_byte: Option<Instant>, end: Option<Instant>) {
        let mut deadlines = self.0.deadlines.lock().unwrap_or_else(PoisonError::into_inner);
        *deadlines = Deadlines { first_byte, end: deadlines.end.or(end) };
    }

    /// The node has begun its answer.
    pub(crate) fn has_begun(&self) {
        self.0.deadlines.lock().unwrap_or_else(PoisonError::into_inner).first_byte = None;
    }

    fn deadlines(&self) -> Deadlines {
        *self.0.deadlines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the client left while the answer went on for others.
    pub(crate) fn client_left(&self) -> bool {
        self.0.client_left.load(Ordering::Relaxed)
    }

    /// The client gets the end of the answer only once this is written down.
    pub(crate) fn hold_end_for(&self, written: Written) {
        *self.0.held_for.lock().unwrap_or_else(PoisonError::into_inner) = Some(written);
    }

    /// Waits for what the end is held for.
    async fn end_is_due(&self) -> Result<()> {
        let held_for = self.0.held_for.lock().unwrap_or_else(PoisonError::into_inner).take();
        match held_for {
            Some(written) => {
                recorded(written).await?;
                crash_point("edge.after_final");
                Ok(())
            }
            None => Ok(()),
        }
    }
}

/// Waits until usage is recorded, within its patience.
pub(crate) async fn recorded(written: Written) -> Result<()> {
    if written.is_now() {
        return Ok(());
    }
    tokio::time::timeout(METERING_PATIENCE, written.wait())
        .await
        .map_err(|_| Error::explain(NOT_RECORDED, "usage could not be recorded in time"))
}

/// From here on the request's body is `body`. While `audience` listens, a client that leaves does not end the answer.
pub(crate) fn put_in(session: &mut Session, body: Bytes, audience: Option<Audience>) -> Swapped {
    let swapped = Swapped(Arc::default());
    swapped.set_body(body);
    let inner = std::mem::replace(&mut *session.downstream_session, placeholder());
    let replay = ReplaySession { inner, own: swapped.clone(), audience, waiting: Waiting::default() };
    *session.downstream_session = ServerSession::new_custom(Box::new(replay));
    swapped
}

/// Puts the client's own session back; harmless if done twice.
pub(crate) fn take_out(session: &mut Session, swapped: &Swapped) {
    // The only method of the trait that Pingora never calls itself serves as the signal to let go of the session.
    session.downstream_session.set_proxy_tasks_enabled(true);
    let own = swapped.0.own.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(own) = own {
        *session.downstream_session = own;
    }
}

/// A session that is never called, only there while another is elsewhere.
fn placeholder() -> ServerSession {
    ServerSession::new_custom(Box::new(()))
}

struct ReplaySession {
    inner: ServerSession,
    own: Swapped,
    audience: Option<Audience>,
    waiting: Waiting,
}

impl ReplaySession {
    fn goes_on(&self) -> bool {
        self.audience.as_ref().is_some_and(Audience::is_listening)
    }

    /// Waits until the client goes away, and then until nobody listens any more.
    async fn idle(&mut self) -> Result<Option<Bytes>> {
        if !self.own.client_left() && !self.waiting.is_empty(&self.inner) {
            // Whatever else is there already comes first, which ends this and is written with it.
            others_first().await;
            let written = self.waiting.write(&mut self.inner).await;
            self.bear(written, ())?;
        }
        if !self.own.client_left() {
            let read = self.inner.read_body_or_idle(true).await;
            if read.is_ok() {
                return read;
            }
            self.bear(read, None)?;
        }
        while self.goes_on() {
            tokio::time::sleep(AUDIENCE_POLL).await;
        }
        Err(gone())
    }

    /// An error of the client's connection ends the answer, unless others listen. What the node did wrong is passed on.
    fn bear<T>(&self, outcome: Result<T>, otherwise: T) -> Result<T> {
        match outcome {
            Err(error) if self.goes_on() && !matches!(error.esource(), ErrorSource::Upstream) => {
                self.own.0.client_left.store(true, Ordering::Relaxed);
                Ok(otherwise)
            }
            other => other,
        }
    }

    /// Writes to the client, unless it has left.
    async fn write(&mut self, write: impl AsyncFnOnce(&mut ServerSession) -> Result<()>) -> Result<()> {
        if self.own.client_left() {
            return self.bear(Err(gone()), ());
        }
        let (audience, waiting) = (self.audience.clone(), &mut self.waiting);
        let write = async {
            waiting.write(&mut self.inner).await?;
            write(&mut self.inner).await
        };
        let written = patiently(audience, write).await;
        self.bear(written, ())
    }
}

/// Lets everything else that the task waits for have its turn: the node's connection, to hand over what it has, and who
/// takes that. In whichever order they are asked, and that changes, both have been asked after three turns.
async fn others_first() {
    let mut turns = 3;
    std::future::poll_fn(|context| {
        if turns == 0 {
            return Poll::Ready(());
        }
        turns -= 1;
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// Waits for a write to a client; while others listen, not for long.
async fn patiently<T>(audience: Option<Audience>, write: impl Future<Output = Result<T>>) -> Result<T> {
    let Some(audience) = audience else { return write.await };
    let mut write = pin!(write);
    loop {
        match tokio::time::timeout(LEFT_BEHIND, &mut write).await {
            Ok(written) => return written,
            Err(_) if audience.is_listening() => return Err(gone()),
            Err(_) => {}
        }
    }
}

fn failure(task: HttpTask) -> Option<Box<Error>> {
    match task {
        HttpTask::Failed(error) => Some(error),
        _ => None,
    }
}

fn gone() -> Box<Error> {
    Error::explain(ErrorType::ConnectionClosed, "the client left").into_down()
}

type MessageReader = Box<dyn Stream<Item = Result<Bytes>> + Unpin + Send + Sync + 'static>;

#[async_trait]
impl CustomSession for ReplaySession {
    fn set_proxy_tasks_enabled(&mut self, enabled: bool) {
        if enabled {
            let inner = std::mem::replace(&mut self.inner, placeholder());
            *self.own.0.own.lock().unwrap_or_else(PoisonError::into_inner) = Some(inner);
        }
    }

    // The body: already here.

    async fn read_body_bytes(&mut self) -> Result<Option<Bytes>> {
        Ok(None)
    }

    async fn drain_request_body(&mut self) -> Result<()> {
        Ok(())
    }

    fn is_body_done(&mut self) -> bool {
        true
    }

    fn is_body_empty(&mut self) -> bool {
        self.own.body().is_empty()
    }

    fn enable_retry_buffering(&mut self) {}

    fn retry_buffer_truncated(&self) -> bool {
        false
    }

    fn get_retry_buffer(&self) -> Option<Bytes> {
        Some(self.own.body()).filter(|body| !body.is_empty())
    }

    async fn read_body_or_idle(&mut self, _no_body_expected: bool) -> Result<Option<Bytes>> {
        // Nothing is left to read. Pingora asks all the same as long as the node works, so this is where its time is watched.
        let deadlines = self.own.deadlines();
        tokio::select! {
            biased;
            idle = self.idle() => idle,
            error = deadlines.passed() => Err(error),
        }
    }

    // Everything else is the client's own session's.

    fn req_header(&self) -> &RequestHeader {
        self.inner.req_header()
    }

    fn req_header_mut(&mut self) -> &mut RequestHeader {
        self.inner.req_header_mut()
    }

    async fn write_response_header(&mut self, response: Box<ResponseHeader>, _end: bool) -> Result<()> {
        self.write(async |client| client.write_response_header(response).await).await
    }

    async fn write_response_header_ref(&mut self, response: &ResponseHeader, _end: bool) -> Result<()> {
        self.write(async |client| client.write_response_header_ref(response).await).await
    }

    async fn write_body(&mut self, data: Bytes, end: bool) -> Result<()> {
        self.own.end_is_due().await?;
        self.write(async |client| client.write_response_body(data, end).await).await
    }

    async fn write_trailers(&mut self, trailers: HeaderMap) -> Result<()> {
        self.write(async |client| client.write_response_trailers(trailers).await).await
    }

    async fn response_duplex_vec(&mut self, tasks: Vec<HttpTask>) -> Result<bool> {
        let ends = tasks.iter().any(HttpTask::is_end);
        self.own.end_is_due().await?;
        if self.own.client_left() {
            return match tasks.into_iter().find_map(failure) {
                Some(error) => Err(error),
                None => self.bear(Err(gone()), ends),
            };
        }
        let node_failed = tasks.iter().any(|task| matches!(task, HttpTask::Failed(_)));
        let Some(tasks) = self.waiting.take(&self.inner, tasks) else { return Ok(false) };
        let write = async {
            Waiting::end_write(&mut self.inner).await?;
            self.inner.response_duplex_vec(tasks).await
        };
        let written = patiently(self.audience.clone(), write).await;
        // Whatever becomes of the client, that is not the end of an answer.
        if node_failed { written } else { self.bear(written, ends) }
    }

    fn set_read_timeout(&mut self, timeout: Option<Duration>) {
        self.inner.set_read_timeout(timeout);
    }

    fn get_read_timeout(&self) -> Option<Duration> {
        self.inner.get_read_timeout()
    }

    fn set_write_timeout(&mut self, timeout: Option<Duration>) {
        self.inner.set_write_timeout(timeout);
    }

    fn get_write_timeout(&self) -> Option<Duration> {
        self.inner.get_write_timeout()
    }

    fn set_total_drain_timeout(&mut self, timeout: Option<Duration>) {
        self.inner.set_total_drain_timeout(timeout);
    }

    fn get_total_drain_timeout(&self) -> Option<Duration> {
        self.inner.get_total_drain_timeout()
    }

    fn request_summary(&self) -> String {
        self.inner.request_summary()
    }

    fn response_written(&self) -> Option<&ResponseHeader> {
        self.inner.response_written()
    }

    async fn shutdown(&mut self, _code: u32, _context: &str) {
        self.inner.shutdown().await;
    }

    async fn finish(&mut self) -> Result<()> {
        self.own.end_is_due().await?;
        self.write(async |client| client.finish_body().await).await
    }

    fn body_bytes_sent(&self) -> usize {
        self.inner.body_bytes_sent()
    }

    fn body_bytes_read(&self) -> usize {
        self.inner.body_bytes_read()
    }

    fn digest(&self) -> Option<&Digest> {
        self.inner.digest()
    }

    fn digest_mut(&mut self) -> Option<&mut Digest> {
        self.inner.digest_mut()
    }

    fn client_addr(&self) -> Option<&SocketAddr> {
        self.inner.client_addr()
    }

    fn server_addr(&self) -> Option<&SocketAddr> {
        self.inner.server_addr()
    }

    fn pseudo_raw_h1_request_header(&self) -> Bytes {
        self.inner.to_h1_raw()
    }

    async fn finish_custom(&mut self) -> Result<()> {
        Ok(())
    }

    fn take_custom_message_reader(&mut self) -> Option<MessageReader> {
        None
    }

    fn restore_custom_message_reader(&mut self, _reader: MessageReader) -> Result<()> {
        Ok(())
    }

    fn take_custom_message_writer(&mut self) -> Option<Box<dyn CustomMessageWrite>> {
        None
    }

    fn restore_custom_message_writer(&mut self, _writer: Box<dyn CustomMessageWrite>) -> Result<()> {
        Ok(())
    }
}
