//! A control plane with its database, edges, and certificates for as many more as are wanted.

use crate::program::{Cost, Program};
use anyhow::{Context as _, ensure};
use rcgen::{
    CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PKCS_ED25519, SanType,
};
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tempfile::TempDir;
use turnpike_config::link::{Dialer, Identity, Role, domain};
use turnpike_config::signing::{Signer, Trust};
use turnpike_parts::postgres::Postgres;
use turnpike_parts::process::last_lines;

const TOKEN: &str = "a-token-for-load-tests-that-is-long-enough";
const DATABASE: &str = "turnpike";
/// Until it is ready.
const PATIENCE: Duration = Duration::from_secs(120);
/// Of each log, when something went wrong.
const LINES: usize = 20;

/// An edge.
pub(crate) struct EdgePlane {
    /// Where clients ask it.
    pub(crate) address: SocketAddr,
    /// Where it tells its metrics.
    admin: SocketAddr,
    pub(crate) program: Program,
}

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
    control: Option<Program>,
    postgres: Postgres,
    directory: TempDir,
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
        std::fs::write(at("signing.pub"), signing.public_key_pem())?;
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
        deployment.organization =
            id_of(&deployment.post("organizations", json!({"name": "Load", "slug": "load"})).await?)?;
        let user = json!({"organization_id": deployment.organization, "email": "load@tests.example", "role": "owner"});
        deployment.user = id_of(&deployment.post("users", user).await?)?;
        Ok(deployment)
    }

    async fn start_control(&mut self) -> anyhow::Result<()> {
        // The one before ends first.
        self.control = None;
        let control = self.start_plane("controlplane", "control")?;
        self.until_ready("the control plane", &self.base, &control).await?;
        self.control = Some(control);
        Ok(())
    }

    fn start_plane(&self, plane: &str, name: &str) -> anyhow::Result<Program> {
        let settings = self.path(&format!("{name}.toml"));
        let command = ["env".into(), "RUST_LOG=warn".into(), self.turnpike.clone().into(), plane.into()];
        let command = command.into_iter().chain(["--config".into(), settings.into()]).collect();
        Program::start(name, command, self.directory.path())
    }

    async fn until_ready(&self, what: &str, base: &str, program: &Program) -> anyhow::Result<()> {
        let deadline = Instant::now() + PATIENCE;
        let ready = format!("{base}/readyz");
        while !matches!(self.http.get(&ready).send().await, Ok(reply) if reply.status() == 200) {
            ensure!(Instant::now() < deadline, "{what} is not ready after {PATIENCE:?}: {}", program.log());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
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

    async fn post(&self, what: &str, body: Value) -> anyhow::Result<Value> {
        let request = self.http.post(format!("{}/admin/v1/{what}", self.base));
        self.call(request.header("content-type", "application/json").body(body.to_string())).await
    }

    /// Makes a key; its id.
    pub(crate) async fn make_key(&self) -> anyhow::Result<String> {
        id_of(&self.post("api_keys", self.key_with(&json!({}))).await?)
    }

    /// Makes a key with these fields; the key itself.
    pub(crate) async fn make_key_with(&self, fields: &Value) -> anyhow::Result<String> {
        let made = self.post("api_keys", self.key_with(fields)).await?;
        Ok(made["key"].as_str().with_context(|| format!("no key in {made}"))?.to_owned())
    }

    fn key_with(&self, fields: &Value) -> Value {
        let mut key = json!({"organization_id": self.organization, "user_id": self.user, "name": "a key",
            "permissions": ["inference"]});
        if let (Some(key), Some(fields)) = (key.as_object_mut(), fields.as_object()) {
            key.extend(fields.clone());
        }
        key
    }

    /// Registers a model that is priced and cached for a moment, with a version `1`.
    pub(crate) async fn add_model(&self, id: &str) -> anyhow::Result<()> {
        let model = json!({
            "id": id, "provider": "loadtest", "category": "chat", "context_length": 10_000_000,
            "pricing": {"input_tokens": 0.01, "output_tokens": 0.03, "currency": "USD", "per_tokens": 1_000_000},
            "cache": {"enabled": true, "ttl_s": 1},
        });
        self.post("models", model).await?;
        let version = json!({"version": "1", "model_artifact_path": "a simulator", "make_default": true});
        self.post(&format!("models/{id}/versions"), version).await.map(drop)
    }

    /// Waits until so many nodes are ready.
    pub(crate) async fn until_nodes_are_ready(&self, count: usize) -> anyhow::Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let nodes = self.call(self.http.get(format!("{}/admin/v1/nodes", self.base))).await?;
            let of = |nodes: &Value| nodes.as_array().map(Vec::len).unwrap_or_default();
            let ready = nodes["data"].as_array().into_iter().flatten().filter(|node| node["state"] == "ready").count();
            if ready >= count {
                return Ok(());
            }
            ensure!(
                Instant::now() < deadline,
                "{ready} of {count} nodes are ready ({}): {}",
                of(&nodes["data"]),
                self.logs()
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Writes `NAME.pem` and `NAME.key` beside `ca.pem`.
    pub(crate) fn certify(&self, role: Role, name: &str) -> anyhow::Result<()> {
        let (certificate, key) = issue(&self.issuer, role, name)?;
        std::fs::write(self.path(&format!("{name}.pem")), certificate.pem())?;
        Ok(private(&self.path(&format!("{name}.key")), &key.serialize_pem())?)
    }

    /// Starts an edge with these further settings and waits until it serves.
    pub(crate) async fn add_edge(&self, name: &str, more: &str) -> anyhow::Result<EdgePlane> {
        self.certify(Role::Edge, name)?;
        let (address, admin) = (free_port()?, free_port()?);
        let path = |name: &str| self.path(name).display().to_string();
        let settings = format!(
            "region = \"here\"\ndata_dir = \"{}\"\nhttp.listen = \"{address}\"\nadmin.listen = \"{admin}\"\n\
             control.address = \"{}\"\nsigning.trusted = \"{}\"\n\
             tls = {{ ca = \"{}\", cert = \"{}\", key = \"{}\" }}\n{more}",
            path(&format!("{name}-data")),
            self.link,
            path("signing.pub"),
            path("ca.pem"),
            path(&format!("{name}.pem")),
            path(&format!("{name}.key")),
        );
        std::fs::write(self.path(&format!("{name}.toml")), settings)?;
        let program = self.start_plane("dataplane", name)?;
        self.until_ready(name, &format!("http://{admin}"), &program).await?;
        Ok(EdgePlane { address, admin, program })
    }

    /// What an edge counts, as Prometheus reads it.
    pub(crate) async fn metrics(&self, edge: &EdgePlane) -> anyhow::Result<String> {
        let reply = self.http.get(format!("http://{}/metrics", edge.admin)).send().await?;
        Ok(reply.error_for_status()?.text().await?)
    }

    /// Where its files are.
    pub(crate) fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// What its programs have logged, as far as they had something to say.
    pub(crate) fn logs(&self) -> String {
        let files = std::fs::read_dir(self.directory.path()).into_iter().flatten().flatten();
        let logs = files.map(|file| file.path()).filter(|path| path.extension().is_some_and(|it| it == "log"));
        logs.map(|path| format!("--- {}\n{}\n", path.display(), last_lines(&path, LINES))).collect()
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

    /// What the control plane has taken so far.
    pub(crate) fn control_cost(&self) -> anyhow::Result<Cost> {
        self.control.as_ref().context("the control plane does not run")?.cost()
    }
}

fn id_of(made: &Value) -> anyhow::Result<String> {
    let id = made["id"].as_str().or_else(|| made["api_key"]["id"].as_str());
    Ok(id.with_context(|| format!("no id in {made}"))?.to_owned())
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
pub(crate) fn free_port() -> std::io::Result<SocketAddr> {
    Ok(SocketAddr::from(([127, 0, 0, 1], turnpike_parts::port::free_port()?)))
}
