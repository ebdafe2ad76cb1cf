//! An engine's port: `/v1/chat/completions` and `/metrics`.

use super::answer::{Answer, Ask};
use super::batch::{Load, Sequence};
use super::gpu::Gpu;
use super::{MODELS, Model, Pace};
use bytes::Bytes;
use futures::stream::{self, Stream, StreamExt as _};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::json;
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::net::TcpListener;
use tokio::sync::mpsc::UnboundedReceiver;

type Body = UnsyncBoxBody<Bytes, Infallible>;

/// One engine, which serves every model.
pub(super) struct Engine {
    /// Of each model in [`MODELS`] that has one.
    gpus: Vec<Option<Gpu>>,
    requests: AtomicU64,
    tokens: AtomicU64,
}

/// What an engine has done since it started.
pub(super) struct Done {
    pub(super) requests: u64,
    pub(super) tokens: u64,
}

impl Engine {
    pub(super) fn start() -> Arc<Self> {
        let gpu = |model: &Model| match model.pace {
            Pace::Gpu(profile) => Some(Gpu::start(profile)),
            Pace::AtOnce | Pace::Silent => None,
        };
        let gpus = MODELS.iter().map(gpu).collect();
        Arc::new(Self { gpus, requests: AtomicU64::new(0), tokens: AtomicU64::new(0) })
    }

    pub(super) fn load(&self) -> Load {
        self.gpus.iter().flatten().map(Gpu::load).fold(Load::default(), |sum, load| Load {
            running: sum.running + load.running,
            waiting: sum.waiting + load.waiting,
            kv_permille: sum.kv_permille.max(load.kv_permille),
        })
    }

    pub(super) fn done(&self) -> Done {
        Done { requests: self.requests.load(Ordering::Relaxed), tokens: self.tokens.load(Ordering::Relaxed) }
    }

    /// Serves until the process ends.
    pub(super) async fn serve(self: Arc<Self>, listener: TcpListener) {
        loop {
            let Ok((stream, _)) = listener.accept().await else {
                // Out of files: they come back as others end.
                tokio::time::sleep(std::time::Duration::from_millis(10)).await;
                continue;
            };
            // What is small and late is worse than what is small.
            let _ = stream.set_nodelay(true);
            let engine = Arc::clone(&self);
            tokio::spawn(async move {
                let service = service_fn(move |request| {
                    let engine = Arc::clone(&engine);
                    async move { Ok::<_, Infallible>(engine.respond(request).await) }
                });
                let mut http = hyper::server::conn::http1::Builder::new();
                // Whoever called has left.
                let _ = http.timer(TokioTimer::new()).serve_connection(TokioIo::new(stream), service).await;
            });
        }
    }

    async fn respond(&self, request: Request<Incoming>) -> Response<Body> {
        match (request.method(), request.uri().path()) {
            (&Method::POST, "/v1/chat/completions") => {}
            (&Method::GET, "/metrics") => return plain(StatusCode::OK, self.metrics()),
            (&Method::GET, "/health") => return plain(StatusCode::OK, String::new()),
            (&Method::GET, "/v1/models") => {
                let data: Vec<_> = MODELS.iter().map(|model| json!({"id": model.name, "object": "model"})).collect();
                return plain(StatusCode::OK, json!({"object": "list", "data": data}).to_string());
            }
            _ => return plain(StatusCode::NOT_FOUND, "expected POST /v1/chat/completions or GET /metrics".to_owned()),
        }
        let Ok(body) = request.into_body().collect().await else {
            return plain(StatusCode::BAD_REQUEST, "the body broke off".to_owned());
        };
        let body = body.to_bytes();
        match serde_json::from_slice::<Ask<'_>>(&body) {
            Ok(ask) => self.answer(&ask).await,
            Err(error) => plain(StatusCode::BAD_REQUEST, error.to_string()),
        }
    }

    async fn answer(&self, ask: &Ask<'_>) -> Response<Body> {
        let Some(place) = MODELS.iter().position(|Model { name, .. }| *name == ask.model) else {
            return plain(StatusCode::NOT_FOUND, format!("no model «{}»", ask.model));
        };
        let id = self.requests.fetch_add(1, Ordering::Relaxed);
        let tokens = ask.answer_tokens();
        self.tokens.fetch_add(tokens.into(), Ordering::Relaxed);
        let answer = Answer::new(id, ask);
        let made = self.gpus.get(place).and_then(Option::as_ref).map(|gpu| {
            let prompt_tokens = ask.prompt_tokens();
            gpu.work_on(Sequence { id, prefix: ask.prefix(), prompt_tokens, answer_tokens: tokens })
        });
        if !ask.stream {
            if let Some(mut made) = made {
                while made.recv().await.is_some() {}
            }
            return response("application/json", Full::new(answer.document()).boxed_unsync());
        }
        let (token, end) = (answer.token(), answer.end());
        match made {
            None if matches!(MODELS[place].pace, Pace::Silent) => {
                events(stream::iter([token]).chain(stream::pending()))
            }
            None => events(stream::iter(std::iter::repeat_n(token, tokens as usize).chain([end]))),
            Some(made) => events(received(made).map(move |()| token.clone()).chain(stream::iter([end]))),
        }
    }

    /// Load by the names that vLLM gives it.
    fn metrics(&self) -> String {
        let (Load { running, waiting, kv_permille }, Done { tokens, .. }) = (self.load(), self.done());
        let kv = f64::from(u32::try_from(kv_permille).unwrap_or(u32::MAX)) / 1000.0;
        format!(
            "vllm:num_requests_running {running}\nvllm:num_requests_waiting {waiting}\n\
             vllm:kv_cache_usage_perc {kv}\nvllm:generation_tokens_total {tokens}\n"
        )
    }
}

fn received(receiver: UnboundedReceiver<()>) -> impl Stream<Item = ()> {
    stream::unfold(receiver, |mut receiver| async move { receiver.recv().await.map(|made| (made, receiver)) })
}

fn events(events: impl Stream<Item = Bytes> + Send + 'static) -> Response<Body> {
    response("text/event-stream", StreamBody::new(events.map(|event| Ok(Frame::data(event)))).boxed_unsync())
}

fn plain(status: StatusCode, text: String) -> Response<Body> {
    let mut response = response("text/plain", Full::from(text).boxed_unsync());
    *response.status_mut() = status;
    response
}

fn response(kind: &'static str, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}
