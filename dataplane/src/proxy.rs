//! A request from its head to its outcome, handed from stage to stage. Pingora reads requests and writes answers; what comes
//! between, nodes included, is ours.

use crate::admit::{Admitted, admit};
use crate::deadlines::Alarm;
use crate::edge::Edge;
use crate::forward::{self, forward};
use crate::request::Request;
use crate::{ingress, meter, respond};
use async_trait::async_trait;
use http::Method;
use pingora::apps::{HttpPersistentSettings, HttpServerApp, HttpServerOptions, ReusedHttpStream};
use pingora::protocols::Stream;
use pingora::protocols::http::ServerSession as Session;
use pingora::server::ShutdownWatch;
use pingora::{Error, ErrorSource, ErrorType, Result};
use std::sync::Arc;
use std::time::{Duration, Instant};
use turnpike_config::Tap;

/// How long a connection may wait for a request together with the time that its head takes: longer than load balancers keep
/// theirs (10 minutes). Pingora's own limits are for each read, and a timer for each.
const HEAD_PATIENCE: Duration = Duration::from_secs(660);

/// Pingora's word for connections that it is not to close, seconds.
const KEPT: u64 = 0;

/// What is done with connections. Pingora sees to those that speak HTTP/2, and asks for each of their streams.
pub(crate) struct Proxy {
    edge: Arc<Edge>,
    options: HttpServerOptions,
}

impl Proxy {
    pub(crate) fn new(edge: Arc<Edge>) -> Self {
        let mut options = HttpServerOptions::default();
        options.h2c = true;
        options.h2_idle_timeout = Some(HEAD_PATIENCE);
        Self { edge, options }
    }

    /// Serves a connection that speaks HTTP/1, one request after the other.
    pub(crate) async fn serve_http1(&self, stream: Stream, stopping: &ShutdownWatch) {
        let mut session = Session::new_http1(stream);
        session.set_keepalive(Some(KEPT));
        let mut alarm = Alarm::default();
        while self.next_request(&mut session, stopping, &mut alarm).await {
            let settings = HttpPersistentSettings::for_session(&session);
            let Ok(Some(kept)) = session.finish().await else { return };
            let kept = ReusedHttpStream::from_reusable_stream(kept, settings);
            let (stream, settings) = kept.consume();
            session = Session::new_http1(stream);
            if let Some(settings) = settings {
                settings.apply_to_session(&mut session);
            }
        }
    }

    /// Waits for a request and serves it; false if the session is of no further use.
    async fn next_request(&self, session: &mut Session, stopping: &ShutdownWatch, alarm: &mut Alarm) -> bool {
        if !has_request(session, stopping, HEAD_PATIENCE, alarm).await {
            return false;
        }
        if *stopping.borrow() {
            session.set_keepalive(None);
        }
        self.serve(session, alarm).await.is_ok()
    }

    /// Sees to one request, and to its outcome. Of an error, the client has been told where that was possible; his connection
    /// is of no further use.
    async fn serve(&self, session: &mut Session, alarm: &mut Alarm) -> Result<()> {
        let mut request = Request::begin(&self.edge);
        let served = self.answer(session, &mut request, alarm).await;
        if let Err(error) = &served {
            self.fail(session, error, &mut request).await;
        }
        if let Some(dispatch) = request.dispatch() {
            dispatch.assignment = None;
        }
        if request.metered.is_none() {
            self.edge.metrics.unmetered.inc();
        }
        // Unless its answer was complete, the request ends here.
        drop(meter::conclude(&self.edge, session, &mut request, 0, served.as_ref().err().map(|error| &**error)));
        served
    }

    async fn answer(&self, session: &mut Session, request: &mut Request, alarm: &mut Alarm) -> Result<()> {
        match admit(&self.edge, session, request).await {
            Ok(Admitted::Dispatch) => forward(&self.edge, session, request, alarm).await,
            Ok(Admitted::Answered) => Ok(()),
            Err(reject) => {
                ingress::discard_body(session).await;
                let written = respond::reject(session, request, &reject, self.edge.now_ns()).await;
                request.reject = Some(reject);
                written.map_err(Error::into_down)
            }
        }
    }

    /// Tells the client of a failure, as far as he can still be told.
    async fn fail(&self, session: &mut Session, error: &Error, request: &mut Request) {
        if matches!(error.esource(), ErrorSource::Downstream) {
            return;
        }
        let reject = request.reject.take().unwrap_or_else(|| forward::reason(error));
        let streams = request.dispatch().is_some_and(|d| matches!(d.tap, Some(Tap::Stream(_))));
        let written = if respond::status_sent(session).is_none() {
            // Its connection is closed afterwards, and must not look as if another request could be sent on it.
            session.set_keepalive(None);
            respond::reject(session, request, &reject, self.edge.now_ns()).await
        } else if streams {
            respond::stream_error(session, &reject.answer()).await
        } else {
            // A JSON answer that breaks off: closing the connection is the only way left to say so.
            Ok(())
        };
        if let Err(error) = written {
            tracing::debug!(%error, "the client left before it could be told of a failure");
        }
        request.reject = Some(reject);
    }
}

#[async_trait]
impl HttpServerApp for Proxy {
    async fn process_new_http(
        self: &Arc<Self>,
        mut session: Session,
        stopping: &ShutdownWatch,
    ) -> Option<ReusedHttpStream> {
        if self.next_request(&mut session, stopping, &mut Alarm::default()).await {
            drop(session.finish().await);
        }
        None
    }

    fn server_options(&self) -> Option<&HttpServerOptions> {
        Some(&self.options)
    }
}

/// Waits for the head of a request. A connection on which none comes in time is closed, also when the edge stops.
async fn has_request(session: &mut Session, stopping: &ShutdownWatch, patience: Duration, alarm: &mut Alarm) -> bool {
    let mut stopping = stopping.clone();
    let read = tokio::select! {
        biased;
        read = session.read_request() => read,
        _ = stopping.wait_for(|stops| *stops) => return false,
        () = alarm.until(Instant::now() + patience) => return false,
    };
    let refusal = match read {
        // How a tunnel's requests are framed is another matter.
        Ok(true) if session.req_header().method == Method::CONNECT => 405,
        Ok(is_there) => return is_there,
        Err(error) if matches!(error.etype(), ErrorType::InvalidHTTPHeader) => 400,
        Err(error) => {
            tracing::debug!(%error, "a connection broke off");
            return false;
        }
    };
    if let Err(error) = session.respond_error(refusal).await {
        tracing::debug!(%error, "the client left before it could be told what is wrong with his request");
    }
    session.shutdown().await;
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client_stream::ClientStream;
    use tokio::io::AsyncWriteExt as _;
    use tokio::net::{TcpListener, TcpStream};
    use tokio::sync::watch;

    /// A session, and its client who has sent so much.
    async fn session(sent: &[u8]) -> (Session, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        client.write_all(sent).await.unwrap();
        let (accepted, _) = listener.accept().await.unwrap();
        let stream = ClientStream::new(accepted.into_std().unwrap()).unwrap();
        (Session::new_http1(Box::new(stream)), client)
    }

    #[tokio::test]
    async fn a_head_must_be_whole_in_time_and_before_a_stop() {
        let (stop, stopping) = watch::channel(false);
        let long = Duration::from_secs(60);
        let (mut whole, _client) = session(b"GET / HTTP/1.1\r\nhost: h\r\n\r\n").await;
        assert!(has_request(&mut whole, &stopping, long, &mut Alarm::default()).await);
        let (mut slow, _client) = session(b"GET / HTTP/1.1\r\nho").await;
        assert!(!has_request(&mut slow, &stopping, Duration::from_millis(30), &mut Alarm::default()).await);
        let (mut tunnel, _client) = session(b"CONNECT h:1 HTTP/1.1\r\nhost: h\r\n\r\n").await;
        assert!(!has_request(&mut tunnel, &stopping, long, &mut Alarm::default()).await);
        let (mut waiting, _client) = session(b"").await;
        let began = Instant::now();
        let mut alarm = Alarm::default();
        let stopped = async {
            tokio::task::yield_now().await;
            stop.send_replace(true);
        };
        let (has, ()) = tokio::join!(has_request(&mut waiting, &stopping, long, &mut alarm), stopped);
        assert!(!has && began.elapsed() < long);
    }
}
