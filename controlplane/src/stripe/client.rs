//! Asking Stripe: form in, JSON out, and the same idempotency key at every attempt.

use super::form::Form;
use super::objects::{ErrorAnswer, ErrorBody};
use super::{BadSecret, Secret};
use reqwest::{Method, StatusCode, Url};
use serde::de::DeserializeOwned;
use std::time::Duration;
use tokio::time::sleep;
use tracing::debug;

/// The version of the API that requests and answers are of.
const VERSION: &str = "2024-06-20";
/// Attempts of one call.
const ATTEMPTS: u32 = 4;
/// Before the second attempt; doubles from then on.
const PAUSE: Duration = Duration::from_millis(200);
/// Longest that an answer's `Retry-After` is waited for; longer is left to the next run.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// To connect.
const CONNECT: Duration = Duration::from_secs(5);

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClientError {
    /// No answer, or one that asks to try again. It may have been carried out: ask again with the same key.
    #[error("Stripe did not answer {what}: {reason}")]
    Unanswered {
        /// Method and path.
        what: String,
        /// Of the last attempt.
        reason: String,
    },
    /// It said no; asking again does not help.
    #[error("Stripe refused {what}: {status}: {error}")]
    Refused {
        /// Method and path.
        what: String,
        /// HTTP status.
        status: u16,
        /// In its words.
        error: ErrorBody,
    },
    /// An answer that is not understood.
    #[error("Stripe's answer to {what} is not understood: {reason}")]
    Garbled {
        /// Method and path.
        what: String,
        /// What is wrong.
        reason: String,
    },
}

/// What became of one attempt.
enum Attempt {
    Answered(Vec<u8>),
    Again(String, Option<Duration>),
    Refused(StatusCode, ErrorBody),
}

/// Asks one Stripe account.
pub(crate) struct Client {
    http: reqwest::Client,
    base: Url,
    key: Secret,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("base", &self.base.as_str()).finish_non_exhaustive()
    }
}

impl Client {
    /// `base` is such as `https://api.stripe.com`; `timeout` bounds an attempt.
    pub(crate) fn new(base: Url, key: Secret, timeout: Duration) -> Result<Self, BadSecret> {
        let http = reqwest::Client::builder().timeout(timeout).connect_timeout(CONNECT.min(timeout));
        // Redirects would carry the key elsewhere.
        let http = http.redirect(reqwest::redirect::Policy::none()).build().map_err(BadSecret::Client)?;
        Ok(Self { http, base, key })
    }

    /// Reads something.
    pub(crate) async fn get<T: DeserializeOwned>(&self, path: &str, query: &Form) -> Result<T, ClientError> {
        self.call(Method::GET, path, query, None).await
    }

    /// Makes or changes something. The same key with the same form is carried out once, however often it is asked.
    pub(crate) async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        form: &Form,
        idempotency_key: &str,
    ) -> Result<T, ClientError> {
        self.call(Method::POST, path, form, Some(idempotency_key)).await
    }

    async fn call<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        form: &Form,
        idempotency_key: Option<&str>,
    ) -> Result<T, ClientError> {
        let what = format!("{method} {path}");
        let mut pause = PAUSE;
        for attempt in 1.. {
            let (reason, wait) = match self.attempt(&method, path, form, idempotency_key).await {
                Attempt::Answered(body) => {
                    return serde_json::from_slice(&body)
                        .map_err(|error| ClientError::Garbled { what, reason: error.to_string() });
                }
                Attempt::Refused(status, error) => {
                    return Err(ClientError::Refused { what, status: status.as_u16(), error });
                }
                Attempt::Again(reason, wait) => (reason, wait.unwrap_or(pause)),
            };
            if attempt >= ATTEMPTS || wait > LONGEST_PAUSE {
                return Err(ClientError::Unanswered { what, reason });
            }
            debug!(what, reason, attempt, "asking Stripe again");
            sleep(wait).await;
            pause *= 2;
        }
        Err(ClientError::Unanswered { what, reason: "no attempt was made".to_owned() })
    }

    async fn attempt(&self, method: &Method, path: &str, form: &Form, key: Option<&str>) -> Attempt {
        let mut url = self.base.clone();
        url.set_path(path);
        let mut request = if *method == Method::GET {
            url.set_query(Some(form.as_str()).filter(|query| !query.is_empty()));
            self.http.get(url)
        } else {
            let form = form.as_str().to_owned();
            self.http.post(url).header("content-type", "application/x-www-form-urlencoded").body(form)
        };
        request = request.bearer_auth(&self.key.0).header("stripe-version", VERSION);
        if let Some(key) = key {
            request = request.header("idempotency-key", key);
        }
        let response = match request.send().await {
            Ok(response) => response,
            // Without the URL, as ours never hold a secret but a proxy's might.
            Err(error) => return Attempt::Again(error.without_url().to_string(), None),
        };
        let status = response.status();
        let header = |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
        let wait = header("retry-after").and_then(|text| text.parse().ok()).map(Duration::from_secs);
        let should = header("stripe-should-retry");
        let body = match response.bytes().await {
            Ok(body) => body,
            Err(error) => return Attempt::Again(error.without_url().to_string(), None),
        };
        if status.is_success() {
            return Attempt::Answered(body.to_vec());
        }
        let error = serde_json::from_slice::<ErrorAnswer>(&body).map(|answer| answer.error).unwrap_or_default();
        // 409: another attempt with this key is still being carried out.
        let passes =
            status == StatusCode::TOO_MANY_REQUESTS || status == StatusCode::CONFLICT || status.is_server_error();
        match should.as_deref() {
            Some("true") => Attempt::Again(format!("{status}: {error}"), wait),
            Some("false") if !status.is_server_error() => Attempt::Refused(status, error),
            _ if passes => Attempt::Again(format!("{status}: {error}"), wait),
            _ => Attempt::Refused(status, error),
        }
    }
}
