//! Who is let in, and how far: operators by a token of theirs, customers by an API key.
//!
//! What customers may read says so in its own description (`security(("token" = []), ("api_key" = []))`); an API key opens
//! nothing else. Whatever says so takes a [`Reader`] and asks it which organization may be shown.

use super::ApiState;
use super::problem::Problem;
use crate::action::{ActionError, Operator, Reader, keys};
use crate::admission::Role;
use crate::reason;
use axum::extract::{MatchedPath, Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use chrono::Utc;
use http::{Method, header};
use serde_json::Value;
use std::collections::BTreeSet;
use std::sync::Arc;
use tokio::sync::Semaphore;
use utoipa::openapi::OpenApi;
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};

/// Operators' tokens, in the document.
const TOKEN: &str = "token";
/// Customers' keys, in the document.
const API_KEY: &str = "api_key";
/// Keys looked up at once: a flood of wrong ones leaves connections to the database for everything else.
const LOOKUPS: usize = 2;

/// Describes both ways to be let in.
pub(super) struct Schemes;

impl utoipa::Modify for Schemes {
    fn modify(&self, document: &mut OpenApi) {
        let components = document.components.get_or_insert_default();
        let keys = "An API key of an organization, which reads what is its own";
        for (name, description) in [(TOKEN, "A token from admin.token_file"), (API_KEY, keys)] {
            let scheme = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).description(Some(description)).build();
            components.add_security_scheme(name, SecurityScheme::Http(scheme));
        }
    }
}

/// The door of the admin API.
#[derive(Clone)]
pub(super) struct Gate {
    state: ApiState,
    /// Paths that customers may read, as they are routed.
    open: Arc<BTreeSet<String>>,
    lookups: Arc<Semaphore>,
}

impl Gate {
    pub(super) fn new(state: ApiState, document: &OpenApi) -> Self {
        Self { state, open: Arc::new(open(document)), lookups: Arc::new(Semaphore::new(LOOKUPS)) }
    }

    /// Whose key this is, if it is alive.
    async fn customer(&self, key: &str) -> Result<Reader, Problem> {
        let _turn = self.lookups.acquire().await.map_err(|error| ActionError::Internal(error.to_string()))?;
        let owner = keys::owner(&self.state.context, key, Utc::now()).await?;
        owner.map(Reader::Customer).ok_or_else(Problem::unauthorized)
    }
}

/// Paths of which the document says that customers may get them.
fn open(document: &OpenApi) -> BTreeSet<String> {
    let is_open = |item: &utoipa::openapi::PathItem| {
        let security = item.get.as_ref().and_then(|operation| operation.security.as_ref());
        let named = serde_json::to_value(security).unwrap_or_default();
        named.as_array().is_some_and(|ways| ways.iter().any(|way| way.get(API_KEY).is_some_and(Value::is_array)))
    };
    document.paths.paths.iter().filter(|(_, item)| is_open(item)).map(|(path, _)| path.clone()).collect()
}

/// Lets in who has a token whose role allows the method, or an API key for what it may read.
pub(super) async fn authorize(State(gate): State<Gate>, mut request: Request, next: Next) -> Response {
    let header = request.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let token =
        header.and_then(|value| value.split_once(' ')).filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"));
    let Some(token) = token.map(|(_, token)| token.trim().to_owned()) else {
        return Problem::unauthorized().into_response();
    };
    let reads = matches!(*request.method(), Method::GET | Method::HEAD);
    let reader = if let Some(role) = gate.state.tokens.role(&token) {
        if role < Role::Admin && !reads {
            return Problem::forbidden("a viewer's token only reads").into_response();
        }
        request.extensions_mut().insert(Operator { role });
        Reader::Operator
    } else {
        let reader = match gate.customer(&token).await {
            Ok(reader) => reader,
            Err(problem) => return problem.into_response(),
        };
        let path = request.extensions().get::<MatchedPath>().map(MatchedPath::as_str);
        if !reads || !path.is_some_and(|path| gate.open.contains(path)) {
            let detail = "an API key reads the usage, requests, invoices and money paid ahead of its own organization; \
                          everything else needs an operator's token";
            return Problem::forbidden(detail).into_response();
        }
        reader
    };
    request.extensions_mut().insert(reader);
    let reason = match request.headers().get(reason::HEADER) {
        None => None,
        Some(said) => match said.to_str().ok().and_then(reason::sound) {
            Some(said) => Some(said),
            None => return Problem::field(reason::HEADER, reason::EXPECTED).into_response(),
        },
    };
    reason::with(reason, next.run(request)).await
}
