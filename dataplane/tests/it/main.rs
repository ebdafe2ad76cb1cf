//! An edge on its own, with nothing behind it: what it tells clients and operators, and how it stops.
#![expect(clippy::unwrap_used, reason = "tests fail loudly")]

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, PKCS_ED25519};
use reqwest::{Certificate, Client, StatusCode, Version};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;
use turnpike_config::link::{Role, domain};
use turnpike_dataplane::{Error, Settings, run};

const PATIENCE: Duration = Duration::from_secs(20);

fn free_address() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], turnpike_parts::port::free_port().unwrap()))
}

struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    /// Writes NAME.pem and NAME.key.
    fn issue(&self, directory: &Path, name: &str, host: &str) {
        let key = KeyPair::generate().unwrap();
        let leaf = CertificateParams::new([host.to_owned()]).unwrap().signed_by(&key, &self.0).unwrap();
        std::fs::write(directory.join("ca.pem"), self.0.pem()).unwrap();
        let signing = KeyPair::generate_for(&PKCS_ED25519).unwrap();
        std::fs::write(directory.join("signing.pem"), signing.public_key_pem()).unwrap();
        std::fs::write(directory.join(format!("{name}.pem")), leaf.pem()).unwrap();
        std::fs::write(directory.join(format!("{name}.key")), key.serialize_pem()).unwrap();
    }
}

struct Edge {
    client: Client,
    listen: SocketAddr,
    admin: SocketAddr,
    stop: CancellationToken,
    thread: JoinHandle<Result<(), Error>>,
}

fn settings(directory: &Path, listen: SocketAddr, admin: SocketAddr, http: &str) -> Settings {
    let here = directory.display();
    let text = format!(
        "data_dir = \"{here}/data\"\n[http]\nlisten = \"{listen}\"\n{http}\n[admin]\nlisten = \"{admin}\"\n\
         [control]\naddress = \"127.0.0.1:9\"\n\
         [tls]\nca = \"{here}/ca.pem\"\ncert = \"{here}/edge.pem\"\nkey = \"{here}/edge.key\"\n\
         [signing]\ntrusted = \"{here}/signing.pem\"\n"
    );
    Settings::load("edge.toml", &text, &|_| None).unwrap()
}

impl Edge {
    fn start(directory: &Path, authority: &Authority, http: &str) -> Self {
        // Whoever was first has installed the same one.
        let _ = rustls::crypto::ring::default_provider().install_default();
        authority.issue(directory, "edge", &domain(Role::Edge, "e1"));
        let (listen, admin) = (free_address(), free_address());
        let settings = settings(directory, listen, admin, http);
        let stop = CancellationToken::new();
        let token = stop.clone();
        let thread = std::thread::spawn(move || run(settings, token));
        let trusted = Certificate::from_pem(authority.0.pem().as_bytes()).unwrap();
        let client = Client::builder().no_proxy().tls_certs_only([trusted]).timeout(PATIENCE).build().unwrap();
        Self { client, listen, admin, stop, thread }
    }

    /// Polls a URL until it answers.
    async fn get(&self, url: &str) -> reqwest::Response {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.client.get(url).send().await {
                Ok(answer) => return answer,
                Err(error) => assert!(Instant::now() < deadline, "{url}: {error:?}"),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn stop(self) {
        self.stop.cancel();
        self.thread.join().unwrap().unwrap();
    }
}

#[tokio::test]
async fn without_any_routing_it_lives_and_says_that_it_is_not_ready() {
    let directory = tempfile::tempdir().unwrap();
    let edge = Edge::start(directory.path(), &Authority::new(), "");
    let admin = edge.admin;
    assert_eq!(edge.get(&format!("http://{admin}/livez")).await.status(), StatusCode::OK);
    let ready = edge.get(&format!("http://{admin}/readyz")).await;
    assert_eq!(ready.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(ready.text().await.unwrap().contains("no routing yet"));
    let models = edge.get(&format!("http://{}/v1/models", edge.listen)).await;
    assert_eq!(models.status(), StatusCode::UNAUTHORIZED);
    // A request is counted once it is over, which is a moment after its answer.
    let counted = "turnpike_edge_unmetered_requests_total 1";
    let deadline = Instant::now() + PATIENCE;
    loop {
        let metrics = edge.get(&format!("http://{admin}/metrics")).await.text().await.unwrap();
        if metrics.lines().any(|line| line == counted) {
            break;
        }
        assert!(Instant::now() < deadline, "{metrics}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    edge.stop();
}

#[tokio::test]
async fn clients_come_over_tls_with_http_2_once_there_is_a_certificate() {
    let directory = tempfile::tempdir().unwrap();
    let authority = Authority::new();
    authority.issue(directory.path(), "site", "localhost");
    let here = directory.path().display();
    let http = format!("tls_cert = \"{here}/site.pem\"\ntls_key = \"{here}/site.key\"");
    let edge = Edge::start(directory.path(), &authority, &http);
    let url = format!("https://localhost:{}/v1/models", edge.listen.port());
    let answer = edge.get(&url).await;
    assert_eq!((answer.version(), answer.status()), (Version::HTTP_2, StatusCode::UNAUTHORIZED));
    assert!(answer.text().await.unwrap().contains("missing_api_key"));
    edge.stop();
}

#[test]
fn what_keeps_it_from_starting_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let authority = Authority::new();
    authority.issue(directory.path(), "edge", &domain(Role::Edge, "e1"));
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let start = |listen, http: &str| {
        let settings = settings(directory.path(), listen, free_address(), http);
        run(settings, CancellationToken::new()).unwrap_err().to_string()
    };
    let error = start(taken.local_addr().unwrap(), "");
    assert!(error.contains("http.listen"), "{error}");

    let missing = "tls_cert = \"/nowhere/site.pem\"\ntls_key = \"/nowhere/site.key\"";
    let error = start(free_address(), missing);
    assert!(error.contains("/nowhere/site.pem"), "{error}");

    std::fs::write(directory.path().join("signing.pem"), "").unwrap();
    let error = start(free_address(), "");
    assert!(error.contains("signing.trusted") && error.contains("no PUBLIC KEY"), "{error}");

    authority.issue(directory.path(), "edge", &domain(Role::Node, "n1"));
    let error = start(free_address(), "");
    assert!(error.contains("NAME.edge.turnpike.internal"), "{error}");
}
