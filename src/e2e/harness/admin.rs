//! The admin API.

use super::http::{Reply, send};
use reqwest::Method;
use serde_json::Value;

/// A client with one token.
#[derive(Clone, Debug)]
pub(crate) struct Admin {
    pub(crate) base: String,
    pub(crate) token: String,
}

impl Admin {
    /// A 404 is an answer here (null), since what is asked for may be on its way.
    pub(crate) async fn get(&self, path: &str) -> Value {
        self.call(Method::GET, path, None).await
    }

    pub(crate) async fn post(&self, path: &str, body: Value) -> Value {
        self.call(Method::POST, path, Some(body)).await
    }

    pub(crate) async fn patch(&self, path: &str, body: Value) -> Value {
        self.call(Method::PATCH, path, Some(body)).await
    }

    pub(crate) async fn delete(&self, path: &str) -> Value {
        self.call(Method::DELETE, path, None).await
    }

    async fn call(&self, method: Method, path: &str, body: Option<Value>) -> Value {
        let url = format!("{}/admin/v1{path}", self.base);
        let body = body.map(|body| body.to_string());
        let reply = Reply::read(send(method.clone(), &url, &self.token, body).await.unwrap()).await.unwrap();
        if method == Method::GET && reply.status == 404 {
            return Value::Null;
        }
        assert!((200..300).contains(&reply.status), "{method} {url}: {} {}", reply.status, reply.text);
        if reply.text.is_empty() { Value::Null } else { reply.json() }
    }
}
