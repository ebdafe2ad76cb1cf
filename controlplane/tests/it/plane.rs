//! A running control plane with a database and an authority of its own.

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, PublicKeyData as _};
use reqwest::{Client, Method, StatusCode};
use serde_json::{Value, json};
use sqlx::PgPool;
use std::future::Future;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Once;
use std::time::Duration;
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use turnpike_config::link::{Identity, Role, TlsFiles, domain};
use turnpike_config::signing::Trust;
use turnpike_controlplane::{ControlPlane, Error, Settings};
use turnpike_parts::clickhouse::ClickHouse;
use turnpike_parts::postgres::Postgres;

/// Longest that anything expected may take on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(40);
pub(crate) const OWNER: &str = "owner-token-for-tests";
pub(crate) const ADMIN: &str = "admin-token-for-tests";
pub(crate) const VIEWER: &str = "viewer-token-for-tests";

/// Polls until `condition` gives something.
pub(crate) async fn eventually<T, F: Future<Output = Option<T>>>(what: &str, mut condition: impl FnMut() -> F) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = condition().await {
            return value;
        }
        assert!(Instant::now() < deadline, "{what} did not happen within {PATIENCE:?}");
        sleep(Duration::from_millis(20)).await;
    }
}

/// Where usage is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kept {
    Postgres,
    ClickHouse,
}

impl Kept {
    /// Settings for a database of its own on the server that all tests share.
    pub(crate) async fn settings(self) -> String {
        match self {
            Self::Postgres => String::new(),
            Self::ClickHouse => {
                let server = tokio::task::spawn_blocking(|| ClickHouse::shared_temporary().unwrap()).await.unwrap();
                clickhouse_settings(&server.url())
            }
        }
    }
}

/// Settings for a new database of this ClickHouse.
pub(crate) fn clickhouse_settings(url: &str) -> String {
    let database = format!("t_{}", uuid::Uuid::new_v4().simple());
    format!("clickhouse = {{ url = \"{url}\", database = \"{database}\", timeout = \"2s\" }}\n")
}

/// Of the server that all tests share.
pub(crate) async fn fresh_database() -> String {
    let url = tokio::task::spawn_blocking(|| Postgres::shared_temporary().unwrap().fresh_database().unwrap());
    url.await.unwrap()
}

pub(crate) struct Plane {
    pub(crate) database: String,
    pub(crate) pool: PgPool,
    pub(crate) link: SocketAddr,
    /// Further lines of its settings.
    pub(crate) more: String,
    base: String,
    http: Client,
    directory: TempDir,
    issuer: Issuer<'static, KeyPair>,
    signing: KeyPair,
    stop: CancellationToken,
    running: Option<JoinHandle<Result<(), Error>>>,
}

impl Plane {
    /// On a fresh database of the server that all tests share.
    pub(crate) async fn start() -> Self {
        Self::start_with("").await
    }

    /// The same with further lines of settings.
    pub(crate) async fn start_with(settings: &str) -> Self {
        Self::start_on(fresh_database().await, settings).await
    }

    pub(crate) async fn start_on(database: String, settings: &str) -> Self {
        static PROVIDER: Once = Once::new();
        PROVIDER.call_once(|| rustls::crypto::ring::default_provider().install_default().unwrap());
        let directory = TempDir::new().unwrap();
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        std::fs::write(directory.path().join("ca.pem"), params.self_signed(&key).unwrap().pem()).unwrap();
        let signing = KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
        std::fs::write(directory.path().join("signing.key"), signing.serialize_pem()).unwrap();
        let tokens = format!("{OWNER}\nadmin:{ADMIN}\nviewer:{VIEWER}\n");
        std::fs::write(directory.path().join("tokens"), tokens).unwrap();
        let mut plane = Self {
            pool: sqlx::postgres::PgPoolOptions::new().max_connections(2).connect_lazy(&database).unwrap(),
            database,
            more: settings.to_owned(),
            link: ([127, 0, 0, 1], 0).into(),
            base: String::new(),
            http: Client::builder().no_proxy().timeout(PATIENCE).build().unwrap(),
            issuer: Issuer::new(params, key),
            signing,
            directory,
            stop: CancellationToken::new(),
            running: None,
        };
        plane.certify(Role::Control, "control");
        plane.launch().await;
        plane
    }

    async fn launch(&mut self) {
        let control = ControlPlane::start(&self.settings()).await.unwrap();
        self.link = control.link_address().unwrap();
        self.base = format!("http://{}", control.http_address());
        self.stop = CancellationToken::new();
        self.running = Some(tokio::spawn(control.serve(self.stop.clone())));
    }

    /// Whom its edges trust.
    pub(crate) fn trust(&self) -> Trust {
        let mut trust = Trust::default();
        trust.add_spki(&self.signing.subject_public_key_info()).unwrap();
        trust
    }

    /// Why one that was stopped does not start.
    pub(crate) async fn start_fails(&self) -> String {
        ControlPlane::start(&self.settings()).await.err().expect("it does not start").to_string()
    }

    fn settings(&self) -> Settings {
        let files = self.files("control");
        let text = format!(
            "region = \"test\"\nhttp.listen = \"127.0.0.1:0\"\nlink.listen = \"{}\"\nadmin.token_file = {:?}\n\
             signing.key = {:?}\ntls = {{ ca = {:?}, cert = {:?}, key = {:?} }}\npostgres.url = \"{}\"\n\
             {}{}\n",
            self.link,
            self.directory.path().join("tokens"),
            self.directory.path().join("signing.key"),
            files.ca,
            files.cert,
            files.key,
            self.database,
            if self.more.contains("billing.reconcile_every") { "" } else { "billing.reconcile_every = \"200ms\"\n" },
            self.more,
        );
        Settings::load("test", &text, &|_| None).unwrap()
    }

    /// Stops it in good order; the links' port stays the same at the next start.
    pub(crate) async fn stop(&mut self) {
        self.stop.cancel();
        let running = self.running.take().unwrap();
        timeout(PATIENCE, running).await.expect("it stops in time").unwrap().expect("it stops without an error");
    }

    pub(crate) async fn restart(&mut self) {
        self.stop().await;
        self.launch().await;
    }

    /// Starts it again after [`Plane::stop`].
    pub(crate) async fn restart_stopped(&mut self) {
        self.launch().await;
    }

    fn files(&self, name: &str) -> TlsFiles {
        let file = |kind: &str| -> PathBuf { self.directory.path().join(format!("{name}.{kind}")) };
        TlsFiles { ca: self.directory.path().join("ca.pem"), cert: file("pem"), key: file("key") }
    }

    fn certify(&self, role: Role, name: &str) -> TlsFiles {
        let files = self.files(name);
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec![domain(role, name)]).unwrap();
        std::fs::write(&files.cert, params.signed_by(&key, &self.issuer).unwrap().pem()).unwrap();
        std::fs::write(&files.key, key.serialize_pem()).unwrap();
        files
    }

    /// A certificate for a peer.
    pub(crate) fn identity(&self, role: Role, name: &str) -> Identity {
        Identity::load(&self.certify(role, name)).unwrap()
    }

    /// One call with any token and body; gives status, content type and JSON.
    pub(crate) async fn raw(&self, method: Method, path: &str, token: Option<&str>, body: Option<String>) -> Answer {
        let mut request = self.http.request(method, format!("{}{path}", self.base));
        if let Some(token) = token {
            request = request.bearer_auth(token);
        }
        if let Some(body) = body {
            request = request.header("content-type", "application/json").body(body);
        }
        let response = request.send().await.unwrap();
        let content_type = response.headers().get("content-type").map(|v| v.to_str().unwrap().to_owned());
        let status = response.status();
        let text = response.text().await.unwrap();
        Answer { status, content_type, json: serde_json::from_str(&text).unwrap_or(Value::Null), text }
    }

    /// Creates something for a reason; gives the status.
    pub(crate) async fn post_because(&self, path: &str, body: Value, reason: &str) -> u16 {
        let request = self.http.post(format!("{}/admin/v1{path}", self.base)).bearer_auth(OWNER);
        request.header("turnpike-reason", reason).json(&body).send().await.unwrap().status().as_u16()
    }

    /// Delivers a webhook; gives the status.
    pub(crate) async fn webhook(&self, body: &str, signature: &str) -> u16 {
        let request = self.http.post(format!("{}/webhooks/stripe", self.base)).body(body.to_owned());
        request.header("stripe-signature", signature).send().await.unwrap().status().as_u16()
    }

    /// An owner's call that must succeed.
    pub(crate) async fn call(&self, method: Method, path: &str, body: Option<Value>) -> Value {
        let body = body.map(|body| body.to_string());
        let answer = self.raw(method.clone(), &format!("/admin/v1{path}"), Some(OWNER), body).await;
        assert!(answer.status.is_success(), "{method} {path}: {} {}", answer.status, answer.text);
        answer.json
    }

    pub(crate) async fn get(&self, path: &str) -> Value {
        self.call(Method::GET, path, None).await
    }

    pub(crate) async fn post(&self, path: &str, body: Value) -> Value {
        self.call(Method::POST, path, Some(body)).await
    }

    /// An owner's call that must be refused as a problem document.
    pub(crate) async fn refused(&self, method: Method, path: &str, body: &str, status: u16) -> Value {
        let body = (!body.is_empty()).then(|| body.to_owned());
        let answer = self.raw(method.clone(), &format!("/admin/v1{path}"), Some(OWNER), body).await;
        answer.problem(status)
    }

    pub(crate) async fn organization(&self, slug: &str) -> String {
        id(&self.post("/organizations", json!({"name": slug, "slug": slug})).await)
    }

    /// An organization with a user and a key; gives their ids and the key.
    pub(crate) async fn tenant(&self, slug: &str) -> Tenant {
        let organization = self.organization(slug).await;
        let user = json!({"organization_id": organization, "email": format!("o@{slug}.example"), "role": "owner"});
        let user = id(&self.post("/users", user).await);
        let key = json!({"organization_id": organization, "user_id": user, "name": "first"});
        let key = self.post("/api_keys", key).await;
        Tenant { organization, user, key_id: id(&key), key: key["key"].as_str().unwrap().to_owned() }
    }

    pub(crate) async fn model(&self, model: &str) -> Value {
        let pricing = json!({"input_tokens": 0.01, "output_tokens": 0.03, "currency": "USD", "per_tokens": 1000});
        let body =
            json!({"id": model, "provider": "acme", "category": "chat", "context_length": 2048, "pricing": pricing});
        self.post("/models", body).await
    }

    /// A figure of `/metrics`, labels included in the name; `None` if it is not there.
    pub(crate) async fn metric(&self, name: &str) -> Option<f64> {
        let answer = self.raw(Method::GET, "/metrics", None, None).await;
        let line = answer.text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ').map(str::to_owned));
        line.map(|value| value.trim().parse().unwrap())
    }
}

impl Drop for Plane {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

#[derive(Clone)]
pub(crate) struct Tenant {
    pub(crate) organization: String,
    pub(crate) user: String,
    pub(crate) key_id: String,
    pub(crate) key: String,
}

pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) content_type: Option<String>,
    pub(crate) json: Value,
    pub(crate) text: String,
}

impl Answer {
    pub(crate) fn problem(self, status: u16) -> Value {
        assert_eq!(self.status.as_u16(), status, "{}", self.text);
        assert_eq!(self.content_type.as_deref(), Some("application/problem+json"));
        assert_eq!(self.json["status"], status);
        assert!(self.json["type"].as_str().is_some_and(|t| t.starts_with("urn:turnpike:problem:")), "{}", self.text);
        assert!(self.json["title"].is_string() && self.json["detail"].is_string(), "{}", self.text);
        self.json
    }
}

/// The fields that a problem names.
pub(crate) fn fields(problem: &Value) -> Vec<String> {
    let errors = problem["errors"].as_array().unwrap();
    errors.iter().map(|error| error["field"].as_str().unwrap().to_owned()).collect()
}

pub(crate) fn id(value: &Value) -> String {
    value["id"].as_str().unwrap_or_else(|| panic!("no id in {value}")).to_owned()
}
