//! An agent under test, the control plane's end of its link, and clients.

use reqwest::{Client, RequestBuilder, Response};
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use turnpike_config::NodeState;
use turnpike_config::link::{Identity, Link, LinkServer, Peer, Role, TlsFiles, domain, read_frame, write_frame};
use turnpike_config::wire::{LedgerAck, LedgerBatch, LedgerEntry, NodeHello, NodeReply, NodeReport, Open};
use turnpike_gpu_node::{Agent, Settings};

/// Longest that anything is waited for.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Asks until the answer is yes.
pub(crate) async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds().await {
        assert!(Instant::now() < deadline, "still not so after {PATIENCE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// A deployment's authority and the certificates it has signed.
pub(crate) struct Authority {
    directory: TempDir,
    issuer: rcgen::Issuer<'static, rcgen::KeyPair>,
}

impl Authority {
    pub(crate) fn new() -> Self {
        // As the binary does.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let directory = tempfile::tempdir().unwrap();
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::default();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key).unwrap();
        std::fs::write(directory.path().join("ca.pem"), certificate.pem()).unwrap();
        Self { directory, issuer: rcgen::Issuer::new(params, key) }
    }

    pub(crate) fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Signs a certificate for a process.
    pub(crate) fn files(&self, role: Role, name: &str) -> TlsFiles {
        let key = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new(vec![domain(role, name)]).unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let file = |end: &str| self.path().join(format!("{role:?}-{name}.{end}"));
        std::fs::write(file("pem"), certificate.pem()).unwrap();
        std::fs::write(file("key"), key.serialize_pem()).unwrap();
        TlsFiles { ca: self.path().join("ca.pem"), cert: file("pem"), key: file("key") }
    }

    pub(crate) fn identity(&self, role: Role, name: &str) -> Identity {
        Identity::load(&self.files(role, name)).unwrap()
    }
}

/// What a control plane has heard from a node.
#[derive(Default)]
struct Heard {
    hellos: Vec<(Peer, NodeHello)>,
    reports: Vec<NodeReport>,
    entries: Vec<LedgerEntry>,
    /// Batches that are taken and not acknowledged: the link ends instead.
    acks_to_lose: u32,
}

/// The control plane's end of the link: welcomes every node and notes its reports.
pub(crate) struct Control {
    heard: Arc<Mutex<Heard>>,
    pub(crate) address: SocketAddr,
    task: JoinHandle<()>,
}

/// Takes in a node's ledger.
async fn take_ledger(heard: &Mutex<Heard>, connection: &Link) {
    let Ok((mut send, mut receive)) = connection.accept().await else { return };
    let Ok(Some(Open::Ledger)) = read_frame(&mut receive).await else { panic!("no ledger") };
    while let Ok(Some(LedgerBatch { position, entries })) = read_frame(&mut receive).await {
        let is_lost = {
            let mut heard = heard.lock().unwrap();
            heard.entries.extend(entries);
            let is_lost = heard.acks_to_lose > 0;
            heard.acks_to_lose -= u32::from(is_lost);
            is_lost
        };
        if is_lost {
            return connection.close(0, "lost");
        }
        write_frame(&mut send, &LedgerAck { position }).await.unwrap();
    }
}

impl Control {
    pub(crate) fn start(authority: &Authority, address: SocketAddr) -> Self {
        let identity = authority.identity(Role::Control, "control");
        let deadline = Instant::now() + PATIENCE;
        // A port that was free a moment ago may be another connection's until that ends.
        let server = loop {
            match LinkServer::bind(address, &identity) {
                Ok(server) => break server,
                Err(error) => assert!(Instant::now() < deadline, "{error}"),
            }
            std::thread::sleep(Duration::from_millis(10));
        };
        let (address, heard) = (server.local_addr().unwrap(), Arc::<Mutex<Heard>>::default());
        let noted = Arc::clone(&heard);
        let task = tokio::spawn(async move {
            while let Some(incoming) = server.accept().await {
                let heard = Arc::clone(&noted);
                tokio::spawn(async move {
                    let (peer, connection) = LinkServer::authenticate(incoming).await.unwrap();
                    let (mut send, mut receive) = connection.accept().await.unwrap();
                    let Ok(Some(Open::Node(hello))) = read_frame(&mut receive).await else { panic!("no NodeHello") };
                    heard.lock().unwrap().hellos.push((peer, hello));
                    write_frame(&mut send, &NodeReply::Welcome { report_every_ms: 100 }).await.unwrap();
                    let reports = async {
                        while let Ok(Some(report)) = read_frame(&mut receive).await {
                            heard.lock().unwrap().reports.push(report);
                        }
                    };
                    tokio::join!(reports, take_ledger(&heard, &connection));
                });
            }
        });
        Self { heard, address, task }
    }

    pub(crate) fn hellos(&self) -> Vec<(Peer, NodeHello)> {
        self.heard.lock().unwrap().hellos.clone()
    }

    pub(crate) fn reports(&self) -> Vec<NodeReport> {
        self.heard.lock().unwrap().reports.clone()
    }

    /// Everything of its ledger, as often as it came.
    pub(crate) fn entries(&self) -> Vec<LedgerEntry> {
        self.heard.lock().unwrap().entries.clone()
    }

    pub(crate) fn lose_acks(&self, batches: u32) {
        self.heard.lock().unwrap().acks_to_lose = batches;
    }

    pub(crate) fn states(&self) -> Vec<NodeState> {
        let mut states: Vec<_> = self.reports().into_iter().map(|report| report.state).collect();
        states.dedup();
        states
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A running agent called `n1`.
pub(crate) struct Node {
    pub(crate) authority: Authority,
    pub(crate) control: Control,
    pub(crate) http: SocketAddr,
    metrics: SocketAddr,
    pub(crate) client: Client,
    pub(crate) shutdown: CancellationToken,
    task: JoinHandle<()>,
}

impl Node {
    /// Without TLS. `settings` are further lines such as `engine.kind = "echo"`.
    pub(crate) async fn start(settings: &str) -> Self {
        Self::start_as("http", settings).await
    }

    pub(crate) async fn start_as(scheme: &str, settings: &str) -> Self {
        let authority = Authority::new();
        let control = Control::start(&authority, ([127, 0, 0, 1], 0).into());
        let settings = settings_text(&authority, &control.address.to_string(), scheme, settings);
        let agent = Agent::bind(Settings::load("node.toml", &settings, &|_| None).unwrap()).await.unwrap();
        let (http, metrics) = (agent.http_address(), agent.metrics_address());
        let shutdown = CancellationToken::new();
        let task = tokio::spawn(agent.serve(shutdown.clone()));
        let client = Client::builder().no_proxy().timeout(PATIENCE).build().unwrap();
        Self { authority, control, http, metrics, client, shutdown, task }
    }

    /// Waits until the engine answers and the control plane has heard of the node.
    pub(crate) async fn ready(self) -> Self {
        eventually("the node is ready", async || self.operator("/readyz").await.status() == 200).await;
        self
    }

    /// What operators see.
    pub(crate) async fn operator(&self, path: &str) -> Response {
        self.client.get(format!("http://{}{path}", self.metrics)).send().await.unwrap()
    }

    /// The value of a metric without labels.
    pub(crate) async fn metric(&self, name: &str) -> Option<f64> {
        let page = self.operator("/metrics").await.text().await.unwrap();
        page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
    }

    pub(crate) fn post(&self, path: &str, body: &Value) -> RequestBuilder {
        self.client.post(format!("http://{}{path}", self.http)).body(body.to_string())
    }

    /// A chat with the model `m`; `extra` are further fields.
    pub(crate) fn chat(&self, text: &str, extra: &Value) -> RequestBuilder {
        self.post("/v1/chat/completions", &chat_body(text, extra))
    }

    /// Waits until the drained agent has ended.
    pub(crate) async fn ended(self) {
        self.end().await;
    }

    /// As [`Self::ended`]; what the control plane then had of its ledger.
    pub(crate) async fn end(self) -> Vec<LedgerEntry> {
        tokio::time::timeout(PATIENCE, self.task).await.expect("the agent ends").unwrap();
        self.control.entries()
    }
}

pub(crate) fn chat_body(text: &str, extra: &Value) -> Value {
    let mut body = json!({"model": "m", "messages": [{"role": "user", "content": text}]});
    body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    body
}

pub(crate) fn settings_text(authority: &Authority, control: &str, scheme: &str, further: &str) -> String {
    let tls = authority.files(Role::Node, "n1");
    let path = |path: PathBuf| path.display().to_string();
    format!(
        "region = \"here\"\ndata_dir = {:?}\nserves = [\"m@1\"]\nhttp.listen = \"127.0.0.1:0\"\n\
         http.advertise = \"{scheme}://127.0.0.1:9\"\nmetrics.listen = \"127.0.0.1:0\"\ncontrol.address = {control:?}\n\
         tls = {{ ca = {:?}, cert = {:?}, key = {:?} }}\nengine.probe_every = \"50ms\"\n{further}\n",
        path(authority.path().join("data")),
        path(tls.ca),
        path(tls.cert),
        path(tls.key),
    )
}

/// A response's status, OpenAI error code and whether another node may try.
pub(crate) async fn refusal(response: Response) -> (u16, String, bool) {
    let retryable = response.headers().get("x-turnpike-retryable").is_some_and(|value| value == "1");
    let status = response.status().as_u16();
    let body: Value = response.json().await.unwrap();
    (status, body["error"]["code"].as_str().unwrap_or_default().to_owned(), retryable)
}
