//! Plain HTTP, for what the SDK does not let one say.

use reqwest::header::HeaderMap;
use reqwest::{Client, Method, Response};
use serde_json::{Value, json};
use std::sync::LazyLock;
use std::time::Duration;

static CLIENT: LazyLock<Client> = LazyLock::new(|| {
    // Fails only if another test was first.
    let _ = rustls::crypto::ring::default_provider().install_default();
    Client::builder().no_proxy().timeout(Duration::from_secs(120)).build().unwrap()
});

/// An answer, read whole.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) text: String,
}

impl Reply {
    pub(crate) async fn read(response: Response) -> Result<Self, String> {
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let text = response.text().await.map_err(|e| format!("{e:?}"))?;
        Ok(Self { status, headers, text })
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|e| panic!("{e}: {}", self.text))
    }

    /// OpenAI's error code.
    pub(crate) fn code(&self) -> String {
        let error = &self.json()["error"];
        assert!(error["message"].is_string() && error["type"].is_string(), "no OpenAI error: {}", self.text);
        error["code"].as_str().unwrap_or_default().to_owned()
    }
}

/// Sends a request and hands back the answer before its body was read.
pub(crate) async fn send(method: Method, url: &str, token: &str, body: Option<String>) -> Result<Response, String> {
    send_with(method, url, token, &[], body).await
}

/// The same with further headers.
pub(crate) async fn send_with(
    method: Method,
    url: &str,
    token: &str,
    headers: &[(&str, &str)],
    body: Option<String>,
) -> Result<Response, String> {
    let mut request = CLIENT.request(method, url).bearer_auth(token);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    if let Some(body) = body {
        request = request.header("content-type", "application/json").body(body);
    }
    request.send().await.map_err(|e| format!("{e:?}"))
}

pub(crate) async fn get(url: &str, token: &str) -> Result<Reply, String> {
    Reply::read(send(Method::GET, url, token, None).await?).await
}

pub(crate) async fn post(url: &str, token: &str, body: impl ToString) -> Result<Reply, String> {
    Reply::read(send(Method::POST, url, token, Some(body.to_string())).await?).await
}

/// A chat request with one user message.
pub(crate) fn chat_body(model: &str, text: &str, stream: bool) -> Value {
    json!({"model": model, "messages": [{"role": "user", "content": text}], "stream": stream})
}
