//! A control plane with its database, and certificates for as many edges as are wanted.

use anyhow::{Context as _, ensure};
use rcgen::{
    CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PKCS_ED25519, SanType,
};
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use serde_json::{Value, json};
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;
use turnpike_config::link::{Dialer, Identity, Role, domain};
use turnpike_config::signing::{Signer, Trust};
use turnpike_parts::postgres::Postgres;

const TOKEN: &str = "a-token-for-load-tests-that-is-long-enough";
const DATABASE: &str = "turnpike";
/// Until it is ready.
const PATIENCE: Duration = Duration::from_secs(120);
/// Clock ticks a second in /proc, on every Linux.
const TICKS: u64 = 100;

pub(crate) struct Deployment {
    http: reqwest::Client,
    base: String,
    link: SocketAddr,
    trust: Trust,
    authority: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
    organization: String,
    user: String,
    turnpike: PathBuf,
    // The process goes before the database and the directory that it uses.
    control: Option<Control>,
    postgres: Postgres,
    directory: TempDir,
}

/// The control plane's process, ended when dropped.
struct Control(Child);

impl Drop for Control {
    fn drop(&mut self) {
        // It may be gone already, which is what is wanted.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Deployment {
    pub(crate) async fn start(turnpike: PathBuf) -> anyhow::Result<Self> {
        let directory = tempfile::tempdir()?;
        let postgres = tokio::task::spawn_blocking(Postgres::start_temporary).await??;
        let url = postgres.create_database(DATABASE)?;
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let authority = params.self_signed(&key)?;
        let issuer = Issuer::new(params, key);
        let (control, control_key) = issue(&issuer, Role::Control, "control")?;
        let signing = KeyPair::generate_for(&PKCS_ED25519)?;
        let at = |name: &str| directory.path().join(name);
        std::fs::write(at("ca.pem"), authority.pem())?;
        std::fs::write(at("control.pem"), control.pem())?;
        private(&at("control.key"), &control_key.serialize_pem())?;
        private(&at("signing.key"), &signing.serialize_pem())?;
        private(&at("token"), TOKEN)?;
        let (http, link) = (free_port()?, free_port()?);
        let path = |name: &str| at(name).display().to_string();
        let settings = format!(
            "region = \"here\"\nhttp.listen = \"{http}\"\nlink.listen = \"{link}\"\npostgres.url = \"{url}\"\n\
             admin.token_file = \"{}\"\nsigning.key = \"{}\"\ntls = {{ ca = \"{}\", cert = \"{}\", key = \"{}\" }}\n",
            path("token"),
            path("signing.key"),
            path("ca.pem"),
            path("control.pem"),
            path("control.key")
        );
        std::fs::write(at("control.toml"), settings)?;
        let trust = Signer::from_pkcs8(&signing.serialize_der())?.trust();
        let mut deployment = Self {
            http: reqwest::Client::builder().no_proxy().build()?,
            base: format!("http://{http}"),
            link,
            trust,
            authority: authority.der().clone(),
            issuer,
            organization: String::new(),
            user: String::new(),
            turnpike,
            control: None,
            postgres,
            directory,
        };
        deployment.start_control().await?;
        deployment.organization = deployment.make("organizations", json!({"name": "Load", "slug": "load"})).await?;
        let user = json!({"organization_id": deployment.organization, "email": "load@tests.example", "role": "owner"});
        deployment.user = deployment.make("users", user).await?;
        Ok(deployment)
    }

    async fn start_control(&mut self) -> anyhow::Result<()> {
        self.control = None;
        let log = std::fs::File::options().create(true).append(true).open(self.directory.path().join("control.log"))?;
        let mut command = Command::new(&self.turnpike);
        command
            .args(["controlplane", "--exit-with-parent", "--config"])
            .arg(self.directory.path().join("control.toml"));
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(log).env("RUST_LOG", "warn");
        self.control = Some(Control(command.spawn().with_context(|| format!("starting {}", self.turnpike.display()))?));
        let deadline = Instant::now() + PATIENCE;
        let ready = format!("{}/readyz", self.base);
        while !matches!(self.http.get(&ready).send().await, Ok(reply) if reply.status() == 200) {
            ensure!(Instant::now() < deadline, "the control plane is not ready after {PATIENCE:?}: {}", self.log());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("control.log")).unwrap_or_default()
    }

    pub(crate) const fn link(&self) -> SocketAddr {
        self.link
    }

    pub(crate) fn trust(&self) -> Trust {
        self.trust.clone()
    }

    pub(crate) fn dialer(&self) -> anyhow::Result<Dialer> {
        Ok(Dialer::bind(self.link.is_ipv4())?)
    }

    /// A certificate that is in no file.
    pub(crate) fn edge_identity(&self, name: &str) -> anyhow::Result<Identity> {
        let (certificate, key) = issue(&self.issuer, Role::Edge, name)?;
        let key = PrivatePkcs8KeyDer::from(key.serialize_der());
        Ok(Identity::new(self.authority.clone(), certificate.der().clone(), key))
    }

    async fn call(&self, request: reqwest::RequestBuilder) -> anyhow::Result<Value> {
        let reply = request.bearer_auth(TOKEN).send().await?;
        let (status, text) = (reply.status(), reply.text().await?);
        ensure!(status.is_success(), "{status} {text}");
        Ok(if text.is_empty() { Value::Null } else { serde_json::from_str(&text)? })
    }

    async fn make(&self, what: &str, body: Value) -> anyhow::Result<String> {
        let request = self.http.post(format!("{}/admin/v1/{what}", self.base));
        let made = self.call(request.header("content-type", "application/json").body(body.to_string())).await?;
        let id = made["id"].as_str().or_else(|| made["api_key"]["id"].as_str());
        Ok(id.with_context(|| format!("no id in {made}"))?.to_owned())
    }

    /// Makes a key; its id.
    pub(crate) async fn make_key(&self) -> anyhow::Result<String> {
        let key = json!({"organization_id": self.organization, "user_id": self.user, "name": "a key",
            "permissions": ["inference"]});
        self.make("api_keys", key).await
    }

    /// Changes a key's limits.
    pub(crate) async fn change(&self, key: String, round: u32) -> anyhow::Result<()> {
        let limits = json!({"rate_limits": {"requests_per_minute": 1_000 + round}});
        let request = self.http.patch(format!("{}/admin/v1/api_keys/{key}", self.base));
        self.call(request.header("content-type", "application/json").body(limits.to_string())).await.map(drop)
    }

    /// Takes a key back.
    pub(crate) async fn revoke(&self, key: String) -> anyhow::Result<()> {
        self.call(self.http.delete(format!("{}/admin/v1/api_keys/{key}", self.base))).await.map(drop)
    }

    /// Makes so many keys without telling anybody, and starts the control plane again.
    pub(crate) async fn insert_keys(&mut self, count: u32) -> anyhow::Result<()> {
        self.control = None;
        let sql = format!(
            "INSERT INTO api_keys (organization_id, user_id, name, key_hash, key_prefix, permissions)
             SELECT '{}', '{}', 'one of many', encode(sha256(n::text::bytea), 'hex'), 'tp-many', '{{inference}}'
             FROM generate_series(1, {count}) AS n",
            self.organization, self.user
        );
        self.postgres.psql(DATABASE, &sql)?;
        self.start_control().await
    }

    fn proc(&self, file: &str) -> anyhow::Result<String> {
        let control = self.control.as_ref().context("the control plane does not run")?;
        Ok(std::fs::read_to_string(format!("/proc/{}/{file}", control.0.id()))?)
    }

    /// The control plane's resident memory.
    pub(crate) fn rss_kib(&self) -> anyhow::Result<u64> {
        let status = self.proc("status")?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
        Ok(line.trim().trim_end_matches("kB").trim().parse()?)
    }

    /// The CPU time that the control plane has taken.
    pub(crate) fn cpu(&self) -> anyhow::Result<Duration> {
        let stat = self.proc("stat")?;
        // The name, in brackets, may hold anything. User and system time are the 14th and 15th field.
        let (_, fields) = stat.rsplit_once(')').context("no name in stat")?;
        let ticks = fields.split_whitespace().skip(11).take(2).map(str::parse::<u64>);
        let ticks: u64 = ticks.collect::<Result<Vec<_>, _>>()?.into_iter().sum();
        Ok(Duration::from_millis(ticks * 1000 / TICKS))
    }
}

fn issue(
    issuer: &Issuer<'static, KeyPair>,
    role: Role,
    name: &str,
) -> Result<(rcgen::Certificate, KeyPair), rcgen::Error> {
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![SanType::DnsName(domain(role, name).as_str().try_into()?)];
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    let key = KeyPair::generate()?;
    Ok((params.signed_by(&key, issuer)?, key))
}

fn private(file: &Path, text: &str) -> std::io::Result<()> {
    use std::io::Write as _;
    use std::os::unix::fs::OpenOptionsExt as _;
    std::fs::OpenOptions::new().create_new(true).write(true).mode(0o600).open(file)?.write_all(text.as_bytes())
}

/// An address that was free a moment ago, for TCP and for UDP.
fn free_port() -> std::io::Result<SocketAddr> {
    loop {
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        if UdpSocket::bind(address).is_ok() {
            return Ok(address);
        }
    }
}
