//! Extractors whose refusals are problem documents, and pagination.

use super::problem::Problem;
use axum::body::Bytes;
use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::response::IntoResponse as _;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::header;
use http::request::Parts;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::str::FromStr;
use utoipa::{IntoParams, ToSchema};

/// A JSON body. Syntax errors are 400, anything that is JSON but does not fit is 422 with the field's path.
pub(crate) struct Body<T>(pub(crate) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Body<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        let declared = request.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
        let essence = declared.map(|value| value.split(';').next().unwrap_or_default().trim());
        if !essence.is_some_and(|essence| essence.eq_ignore_ascii_case("application/json")) {
            return Err(Problem::media_type());
        }
        let bytes = Bytes::from_request(request, state).await.map_err(|rejection| {
            let detail = rejection.body_text();
            Problem::bad_body(rejection.into_response().status(), detail)
        })?;
        let mut json = serde_json::Deserializer::from_slice(&bytes);
        let value = serde_path_to_error::deserialize(&mut json).map_err(|error| {
            let path = error.path().to_string();
            let inner = error.inner();
            if inner.is_data() {
                Problem::field(if path == "." { "body" } else { &path }, inner.to_string())
            } else {
                Problem::bad_json(inner.to_string())
            }
        })?;
        json.end().map_err(|error| Problem::bad_json(error.to_string()))?;
        Ok(Self(value))
    }
}

/// Query parameters; unknown ones are refused by the types that use this.
pub(crate) struct Query<T>(pub(crate) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Query<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        axum::extract::Query::from_request_parts(parts, state)
            .await
            .map(|axum::extract::Query(value)| Self(value))
            .map_err(|rejection| Problem::field("query", rejection.body_text()))
    }
}

/// Parameters inside the path.
pub(crate) struct Path<T>(pub(crate) T);

impl<S: Send + Sync, T: DeserializeOwned + Send> FromRequestParts<S> for Path<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        axum::extract::Path::from_request_parts(parts, state)
            .await
            .map(|axum::extract::Path(value)| Self(value))
            .map_err(|rejection| Problem::field("path", rejection.body_text()))
    }
}

const DEFAULT_LIMIT: u16 = 50;
const MAX_LIMIT: u16 = 500;

/// Which page of a list.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct PageQuery {
    /// Most entries, 1 to 500; 50 if absent.
    pub(crate) limit: Option<u16>,
    /// `next_cursor` of the page before.
    pub(crate) cursor: Option<String>,
}

/// A page of an organization's things.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct OwnedPageQuery {
    /// Only of this organization.
    pub(crate) organization: Option<uuid::Uuid>,
    /// Most entries, 1 to 500; 50 if absent.
    pub(crate) limit: Option<u16>,
    /// `next_cursor` of the page before.
    pub(crate) cursor: Option<String>,
}

/// Where a page starts and how long it is, checked.
pub(crate) struct Window<K> {
    /// Key of the last entry of the page before.
    pub(crate) after: Option<K>,
    limit: u16,
}

impl<K: FromStr> Window<K> {
    /// Reads the two parameters that every list takes.
    pub(crate) fn new(limit: Option<u16>, cursor: Option<&str>) -> Result<Self, Problem> {
        let limit = limit.unwrap_or(DEFAULT_LIMIT);
        if !(1..=MAX_LIMIT).contains(&limit) {
            return Err(Problem::field("limit", "expected 1 to 500"));
        }
        let after = cursor.map(|cursor| {
            decode(cursor).ok_or_else(|| Problem::field("cursor", "expected the next_cursor of an earlier page"))
        });
        Ok(Self { after: after.transpose()?, limit })
    }

    /// One more than the page holds, to know whether there is another.
    pub(crate) fn fetch(&self) -> i64 {
        i64::from(self.limit) + 1
    }

    /// Cuts what was fetched to the page.
    pub(crate) fn page<T>(&self, mut data: Vec<T>, key: impl Fn(&T) -> String) -> Page<T> {
        let more = data.len() > usize::from(self.limit);
        data.truncate(self.limit.into());
        let next_cursor = data.last().filter(|_| more).map(|last| URL_SAFE_NO_PAD.encode(key(last)));
        Page { data, next_cursor }
    }
}

fn decode<K: FromStr>(cursor: &str) -> Option<K> {
    String::from_utf8(URL_SAFE_NO_PAD.decode(cursor).ok()?).ok()?.parse().ok()
}

/// A part of a list, in an order that does not change between pages.
#[derive(Serialize, ToSchema)]
pub(crate) struct Page<T> {
    /// The entries.
    pub(crate) data: Vec<T>,
    /// Pass as `cursor` for the next page; null on the last.
    pub(crate) next_cursor: Option<String>,
}
