//! An engine that is a server of its own, reached over HTTP.

use super::adapters::{Adapter, MetricNames};
use super::{Body, Engine, EngineError, EngineLoad, EngineRequest, metrics_text};
use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use http::{HeaderMap, HeaderName, HeaderValue, Response, header};
use http_body::Frame;
use http_body_util::{BodyExt as _, StreamBody};
use serde_json::value::RawValue;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Shorter than the keep-alive of the servers behind it (uvicorn and llama.cpp: 5 s), so that a request never goes out
/// on a connection that the engine is just closing.
const POOL_IDLE: Duration = Duration::from_secs(2);

/// Response headers that mean something beyond the connection to the engine.
const PASSED_HEADERS: [HeaderName; 4] =
    [header::CONTENT_TYPE, header::CONTENT_LENGTH, header::RETRY_AFTER, header::CACHE_CONTROL];

/// How to reach an engine.
#[derive(Debug)]
pub(crate) struct RemoteSettings {
    /// Base URL without a slash at its end.
    pub(crate) url: String,
    /// The engine's own name for the model, if it differs.
    pub(crate) model: Option<String>,
    /// Key that the engine asks for.
    pub(crate) api_key: Option<String>,
    /// To open a connection.
    pub(crate) connect_timeout: Duration,
    /// Longest silence.
    pub(crate) idle_timeout: Duration,
}

/// The engine cannot be set up.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RemoteError {
    /// Of the HTTP client.
    #[error("engine.url: {0}")]
    Client(#[from] reqwest::Error),
    /// The key cannot stand in a header.
    #[error("engine.api_key_file: the key holds characters that no HTTP header may have")]
    ApiKey,
    /// A mistake of the program that embeds this crate.
    #[error("no TLS provider is installed in this process; install rustls' ring provider before starting the agent")]
    NoTlsProvider,
}

/// An HTTP engine.
#[derive(Debug)]
pub(crate) struct Remote {
    adapter: &'static Adapter,
    settings: RemoteSettings,
    client: reqwest::Client,
    /// Its metrics page was missing at the last look.
    blind: AtomicBool,
}

impl Remote {
    /// Opens no connection yet.
    pub(crate) fn new(adapter: &'static Adapter, settings: RemoteSettings) -> Result<Self, RemoteError> {
        // Without one the HTTP client would panic.
        if rustls::crypto::CryptoProvider::get_default().is_none() {
            return Err(RemoteError::NoTlsProvider);
        }
        let mut headers = HeaderMap::new();
        if let Some(key) = &settings.api_key {
            let mut value = HeaderValue::from_str(&format!("Bearer {key}")).map_err(|_| RemoteError::ApiKey)?;
            value.set_sensitive(true);
            headers.insert(header::AUTHORIZATION, value);
        }
        let client = reqwest::Client::builder()
            .default_headers(headers)
            .connect_timeout(settings.connect_timeout)
            .read_timeout(settings.idle_timeout)
            .pool_idle_timeout(POOL_IDLE)
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .build()?;
        Ok(Self { adapter, settings, client, blind: AtomicBool::new(false) })
    }

    fn failure(&self, error: &reqwest::Error) -> EngineError {
        // Only the cause: reqwest's own text repeats the URL.
        let cause = root_cause(error);
        if error.is_connect() {
            EngineError::Unavailable(format!("{} cannot be reached: {cause}", self.settings.url))
        } else if error.is_timeout() {
            EngineError::Timeout(self.settings.idle_timeout)
        } else {
            EngineError::Failed(cause)
        }
    }

    /// The engine's answer, once its first bytes are there: some send a head at once and think then, and an edge that gives
    /// a node only so long to begin means the answer.
    async fn pass_on(&self, mut response: reqwest::Response) -> Result<Response<Body>, EngineError> {
        let mut passed = Response::new(());
        *passed.status_mut() = response.status();
        for name in PASSED_HEADERS {
            if let Some(value) = response.headers().get(&name) {
                passed.headers_mut().insert(name, value.clone());
            }
        }
        let first = response.chunk().await.map_err(|error| self.failure(&error))?;
        let rest = response.bytes_stream().map_err(|error| {
            let error = std::io::Error::other(root_cause(&error));
            tracing::warn!(%error, "the engine's answer broke off");
            error
        });
        let stream = stream::iter(first.map(Ok)).chain(rest).map_ok(Frame::data);
        Ok(passed.map(|()| StreamBody::new(stream).boxed_unsync()))
    }

    async fn get(&self, path: &str) -> Result<reqwest::Response, EngineError> {
        let url = format!("{}{path}", self.settings.url);
        let response = self.client.get(url).send().await.map_err(|e| self.failure(&e))?;
        if response.status().is_success() {
            return Ok(response);
        }
        Err(EngineError::Unavailable(format!("{path} answers {}", response.status())))
    }

    async fn page(&self, path: &str) -> Result<Vec<u8>, EngineError> {
        let mut response = self.get(path).await?;
        let mut page = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|e| self.failure(&e))? {
            if page.len() + chunk.len() > metrics_text::MAX_PAGE {
                return Err(EngineError::Failed(format!("{path} is longer than {} bytes", metrics_text::MAX_PAGE)));
            }
            page.extend_from_slice(&chunk);
        }
        Ok(page)
    }
}

#[async_trait]
impl Engine for Remote {
    async fn serve(&self, request: EngineRequest) -> Result<Response<Body>, EngineError> {
        let body = match &self.settings.model {
            Some(model) => with_model(&request.body, model)?,
            None => request.body,
        };
        let response = self
            .client
            .post(format!("{}{}", self.settings.url, request.endpoint.path()))
            .header(header::CONTENT_TYPE, "application/json")
            .header(turnpike_config::headers::REQUEST_ID, &request.request_id)
            .body(body)
            .send()
            .await
            .map_err(|e| self.failure(&e))?;
        self.pass_on(response).await
    }

    async fn observe(&self) -> Result<EngineLoad, EngineError> {
        // Read to its end, so that the connection can be used again.
        self.page(self.adapter.health_path).await?;
        let Some(names) = &self.adapter.metrics else {
            return Ok(EngineLoad::default());
        };
        // An engine that keeps its load to itself is still an engine.
        match self.page("/metrics").await {
            Ok(page) => {
                self.blind.store(false, Ordering::Relaxed);
                Ok(read_load(&String::from_utf8_lossy(&page), names))
            }
            Err(error) => {
                if !self.blind.swap(true, Ordering::Relaxed) {
                    let (kind, hint) = (self.adapter.kind, self.adapter.metrics_hint);
                    tracing::warn!(engine = kind, %error, hint, "the engine does not tell its load");
                }
                Ok(EngineLoad::default())
            }
        }
    }

    fn kind(&self) -> &'static str {
        self.adapter.kind
    }
}

/// The body with another `model`; every other field byte for byte as the client sent it.
fn with_model(body: &Bytes, model: &str) -> Result<Bytes, EngineError> {
    let malformed = |error: serde_json::Error| EngineError::BadRequest {
        message: format!("the request is not a JSON object: {error}"),
        param: None,
        code: None,
    };
    let mut fields: BTreeMap<String, &RawValue> = serde_json::from_slice(body).map_err(malformed)?;
    let model = serde_json::value::to_raw_value(model).map_err(malformed)?;
    fields.insert("model".to_owned(), &model);
    Ok(serde_json::to_vec(&fields).map_err(malformed)?.into())
}

fn read_load(page: &str, names: &MetricNames) -> EngineLoad {
    let sum = |names: &[&str]| metrics_text::find(page, names).map(|samples| whole(samples.sum));
    let small = |figure: Option<u64>| figure.map(|n| u32::try_from(n).unwrap_or(u32::MAX));
    let share = metrics_text::find(page, names.kv_cache).map(|samples| whole(samples.max.clamp(0.0, 1.0) * 1000.0));
    EngineLoad {
        running: small(sum(names.running)),
        waiting: small(sum(names.waiting)),
        kv_cache_permille: share.and_then(|share| u16::try_from(share).ok()),
        generated_tokens: sum(names.generated),
    }
}

#[expect(clippy::cast_possible_truncation, reason = "float to integer saturates, which is what a gauge wants")]
#[expect(clippy::cast_sign_loss, reason = "as above: a negative figure becomes 0")]
fn whole(figure: f64) -> u64 {
    figure.round() as u64
}

fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::adapters::{LLAMACPP, VLLM};

    #[test]
    fn only_the_model_is_replaced() {
        let body = Bytes::from(r#"{"model":"theirs","seed":12345678901234567890123,"stop":["\u00e9"]}"#);
        let replaced = with_model(&body, "our\"s").unwrap();
        let text = std::str::from_utf8(&replaced).unwrap();
        assert!(text.contains(r#""model":"our\"s""#) && !text.contains("theirs"), "{text}");
        assert!(text.contains("12345678901234567890123") && text.contains(r#"["\u00e9"]"#), "{text}");
        assert!(matches!(with_model(&Bytes::from("[]"), "m"), Err(EngineError::BadRequest { .. })));
    }

    #[test]
    fn an_engines_own_page_becomes_its_load() {
        let page = "vllm:num_requests_running{engine=\"0\"} 2.0\nvllm:num_requests_waiting{engine=\"0\"} 1.0\n\
                    vllm:gpu_cache_usage_perc{engine=\"0\"} 0.1234\nvllm:generation_tokens_total{engine=\"0\"} 1.5e3\n";
        let load = read_load(page, VLLM.metrics.as_ref().unwrap());
        let expected = EngineLoad {
            running: Some(2),
            waiting: Some(1),
            kv_cache_permille: Some(123),
            generated_tokens: Some(1500),
        };
        assert_eq!(load, expected);
        assert_eq!(read_load(page, LLAMACPP.metrics.as_ref().unwrap()), EngineLoad::default());
    }
}
