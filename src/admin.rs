//! A client of the admin API, as far as this binary's own commands need it.

use reqwest::{Method, StatusCode};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::time::Duration;

/// Longest that one call may take.
const DEADLINE: Duration = Duration::from_secs(30);

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// No answer.
    #[error("{url}: {source}")]
    Unreachable {
        /// What was called.
        url: String,
        /// Why.
        source: reqwest::Error,
    },
    /// An answer that says no.
    #[error("{url}: {status}: {detail}")]
    Refused {
        /// What was called.
        url: String,
        /// The answer's status.
        status: StatusCode,
        /// The problem's detail or title.
        detail: String,
    },
}

impl Error {
    /// Whether the answer was this status.
    pub(crate) fn is(&self, wanted: StatusCode) -> bool {
        matches!(self, Self::Refused { status, .. } if *status == wanted)
    }
}

/// RFC 9457, as far as people read it.
#[derive(Deserialize)]
struct Problem {
    #[serde(default)]
    title: String,
    detail: Option<String>,
}

/// Entries asked for at once.
const PAGE: u16 = 500;

/// A page of a list.
#[derive(Deserialize)]
struct Page<T> {
    data: Vec<T>,
    next_cursor: Option<String>,
}

/// Calls one control plane with one token.
#[derive(Clone)]
pub(crate) struct Client {
    http: reqwest::Client,
    deadline: Duration,
    base: String,
    token: String,
}

impl Client {
    /// `base` is the control plane's address, such as `http://127.0.0.1:8081`.
    pub(crate) fn new(base: &str, token: &str) -> reqwest::Result<Self> {
        // Its address is a given one, so no proxy stands between.
        let http = reqwest::Client::builder().no_proxy().build()?;
        Ok(Self { http, deadline: DEADLINE, base: base.trim_end_matches('/').to_owned(), token: token.to_owned() })
    }

    /// The same with another bound on the time of each request than 30 s.
    #[must_use]
    pub(crate) fn within(self, deadline: Duration) -> Self {
        Self { deadline, ..self }
    }

    /// Reads what is at `path`, such as `/organizations?limit=1`.
    pub(crate) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Error> {
        self.call(Method::GET, path, None).await
    }

    /// Reads what is at `path` as it comes, whatever its type.
    pub(crate) async fn text(&self, path: &str) -> Result<String, Error> {
        let (url, response) = self.send(Method::GET, path, None).await?;
        response.text().await.map_err(|source| Error::Unreachable { url, source: source.without_url() })
    }

    /// Creates something.
    pub(crate) async fn post<T: DeserializeOwned>(&self, path: &str, body: &Value) -> Result<T, Error> {
        self.call(Method::POST, path, Some(body)).await
    }

    /// The first entry of a list that fits, over all its pages.
    pub(crate) async fn find<T: DeserializeOwned>(
        &self,
        list: &str,
        mut fits: impl FnMut(&T) -> bool,
    ) -> Result<Option<T>, Error> {
        let mut cursor = None;
        loop {
            let page: Page<T> = self.page(list, cursor.as_deref()).await?;
            if let Some(found) = page.data.into_iter().find(&mut fits) {
                return Ok(Some(found));
            }
            cursor = page.next_cursor;
            if cursor.is_none() {
                return Ok(None);
            }
        }
    }

    /// Every entry of a list, over all its pages.
    pub(crate) async fn all<T: DeserializeOwned>(&self, list: &str) -> Result<Vec<T>, Error> {
        let mut all = Vec::new();
        let mut cursor = None;
        loop {
            let page: Page<T> = self.page(list, cursor.as_deref()).await?;
            all.extend(page.data);
            cursor = page.next_cursor;
            if cursor.is_none() {
                return Ok(all);
            }
        }
    }

    async fn page<T: DeserializeOwned>(&self, list: &str, cursor: Option<&str>) -> Result<Page<T>, Error> {
        let mut path = format!("{list}{}limit={PAGE}", if list.contains('?') { '&' } else { '?' });
        if let Some(cursor) = cursor {
            // Cursors are made of characters that a query takes as they are.
            path.push_str(&format!("&cursor={cursor}"));
        }
        self.get(&path).await
    }

    async fn call<T: DeserializeOwned>(&self, method: Method, path: &str, body: Option<&Value>) -> Result<T, Error> {
        let (url, response) = self.send(method, path, body).await?;
        response.json().await.map_err(|source| Error::Unreachable { url, source: source.without_url() })
    }

    /// The answer, if it says yes.
    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<(String, reqwest::Response), Error> {
        let url = format!("{}/admin/v1{path}", self.base);
        let mut request = self.http.request(method, &url).timeout(self.deadline).bearer_auth(&self.token);
        if let Some(body) = body {
            request = request.json(body);
        }
        let unreachable =
            |source: reqwest::Error| Error::Unreachable { url: url.clone(), source: source.without_url() };
        let response = request.send().await.map_err(unreachable)?;
        let status = response.status();
        if status.is_success() {
            return Ok((url, response));
        }
        let detail = match response.json::<Problem>().await {
            Ok(problem) => problem.detail.unwrap_or(problem.title),
            Err(_) => "no reason was given".to_owned(),
        };
        Err(Error::Refused { url, status, detail })
    }
}
