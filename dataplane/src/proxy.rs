//! Pingora's phases, each handing over to the stage that belongs there. Pingora reads requests and writes answers; what comes
//! between, nodes included, is ours.

use crate::admit::{Admitted, admit};
use crate::edge::Edge;
use crate::forward::{self, forward};
use crate::request::Request;
use crate::{ingress, meter, respond};
use async_trait::async_trait;
use pingora::modules::http::HttpModules;
use pingora::prelude::HttpPeer;
use pingora::proxy::{FailToProxy, ProxyHttp, Session};
use pingora::{Error, ErrorSource, ErrorType, Result};
use std::sync::Arc;
use turnpike_config::Tap;

/// The edge as Pingora sees it.
pub(crate) struct Proxy {
    pub(crate) edge: Arc<Edge>,
}

#[async_trait]
impl ProxyHttp for Proxy {
    type CTX = Request;

    fn new_ctx(&self) -> Request {
        Request::begin(&self.edge)
    }

    fn init_downstream_modules(&self, _modules: &mut HttpModules) {
        // None: compressing token streams costs more than it saves, and delays them.
    }

    async fn request_filter(&self, session: &mut Session, request: &mut Request) -> Result<bool> {
        match admit(&self.edge, session, request).await {
            Ok(Admitted::Dispatch) => forward(&self.edge, session, request).await.map(|()| true),
            Ok(Admitted::Answered) => Ok(true),
            Err(reject) => {
                ingress::discard_body(session).await;
                let written = respond::reject(session, request, &reject, self.edge.now_ns()).await;
                request.reject = Some(reject);
                written.map(|()| true).map_err(|e| e.into_down())
            }
        }
    }

    async fn upstream_peer(&self, _session: &mut Session, _request: &mut Request) -> Result<Box<HttpPeer>> {
        // Every request is answered before Pingora would ask.
        Err(Error::new(ErrorType::InternalError))
    }

    async fn fail_to_proxy(&self, session: &mut Session, error: &Error, request: &mut Request) -> FailToProxy {
        let ended = FailToProxy { error_code: 0, can_reuse_downstream: false };
        if matches!(error.esource(), ErrorSource::Downstream) {
            return ended;
        }
        let reject = request.reject.take().unwrap_or_else(|| forward::reason(error));
        let answer = reject.answer();
        let streams = request.dispatch().is_some_and(|d| matches!(d.tap, Some(Tap::Stream(_))));
        let written = if session.response_written().is_none() {
            // Its connection is closed afterwards, and must not look as if another request could be sent on it.
            session.set_keepalive(None);
            respond::reject(session, request, &reject, self.edge.now_ns()).await
        } else if streams {
            respond::stream_error(session, &answer).await
        } else {
            // A JSON answer that breaks off: closing the connection is the only way left to say so.
            Ok(())
        };
        if let Err(error) = written {
            tracing::debug!(%error, "the client left before it could be told of a failure");
        }
        request.reject = Some(reject);
        FailToProxy { error_code: answer.status.as_u16(), ..ended }
    }

    fn suppress_error_log(&self, _session: &Session, _request: &Request, _error: &Error) -> bool {
        // The outcome is logged once, by the meter.
        true
    }

    async fn logging(&self, session: &mut Session, error: Option<&Error>, request: &mut Request) {
        if let Some(dispatch) = request.dispatch() {
            dispatch.assignment = None;
        }
        if request.metered.is_none() {
            self.edge.metrics.unmetered.inc();
        }
        // Unless its answer was complete, the request ends here.
        drop(meter::conclude(&self.edge, session, request, 0, error));
    }
}
