//! A deployment made by hand, plane by plane, as an operator does it with settings files and `turnpike certs`.

use super::process::{Running, descendants};
use super::{Admin, Process, eventually, get, turnpike};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use tempfile::TempDir;
use turnpike_parts::clickhouse::ClickHouse;
use turnpike_parts::postgres::Postgres;

/// The model that the fleet's nodes serve.
pub(crate) const MODEL: &str = "echo";
const DATABASE: &str = "turnpike";
const TOKEN: &str = "a-token-for-tests-that-is-long-enough-to-be-taken";

/// Its planes, and the means to ask, stop and start each.
pub(crate) struct Fleet {
    pub(crate) admin: Admin,
    /// Base URL of the first edge, without `/v1`.
    pub(crate) edge_url: String,
    /// Where each plane shows `/metrics`, `/livez` and `/readyz`, by plane.
    pub(crate) metrics: BTreeMap<String, String>,
    /// A key that may do everything.
    pub(crate) key: String,
    pub(crate) organization: String,
    user: String,
    /// Where edges and nodes that are added find their control planes, as TOML.
    pub(crate) control_address: String,
    link_port: u16,
    url: String,
    // Planes go before the database and the directory that they use.
    planes: BTreeMap<String, Process>,
    postgres: Postgres,
    directory: TempDir,
}

/// A port that was free a moment ago.
pub(crate) fn free_port() -> u16 {
    turnpike_parts::port::free_port().unwrap()
}

fn issue(directory: &Path, role: &str, name: &str) {
    let output = turnpike()
        .args(["certs", "issue", "--role", role, "--name", name, "--host", "127.0.0.1", "--dir"])
        .arg(directory)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

impl Fleet {
    /// A control plane, an edge, and one node with the echo engine for each name. The engine pauses `token_delay`
    /// (such as `100ms`) before each word.
    pub(crate) async fn start(nodes: &[&str], token_delay: &str) -> Self {
        Self::start_with(nodes, token_delay, "").await
    }

    /// The same with further settings for the edge, in TOML.
    pub(crate) async fn start_with(nodes: &[&str], token_delay: &str, edge_settings: &str) -> Self {
        Self::start_all(nodes, token_delay, edge_settings, "").await
    }

    /// The same as [`Fleet::start`] with its usage in this ClickHouse.
    pub(crate) async fn start_on_clickhouse(nodes: &[&str], token_delay: &str, server: &ClickHouse) -> Self {
        Self::start_all(nodes, token_delay, "", &format!("clickhouse.url = \"{}\"\n", server.url())).await
    }

    /// Two control planes on one database, `control` and `control2`; the edge and the nodes know both.
    pub(crate) async fn start_pair(nodes: &[&str], token_delay: &str) -> Self {
        let mut fleet = Self::start_control("").await;
        fleet.add_control("control2").await;
        fleet.join(nodes, token_delay, "").await;
        fleet
    }

    async fn start_all(nodes: &[&str], token_delay: &str, edge_settings: &str, control_settings: &str) -> Self {
        let mut fleet = Self::start_control(control_settings).await;
        fleet.join(nodes, token_delay, edge_settings).await;
        fleet
    }

    async fn start_control(control_settings: &str) -> Self {
        let postgres = tokio::task::spawn_blocking(|| Postgres::start_temporary().unwrap()).await.unwrap();
        let url = postgres.create_database(DATABASE).unwrap();
        let directory = tempfile::tempdir().unwrap();
        for what in ["init", "signing"] {
            let made = turnpike().args(["certs", what, "--dir"]).arg(directory.path().join("certs")).output().unwrap();
            assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        }
        let (admin_port, link_port) = (free_port(), free_port());
        let mut fleet = Self {
            admin: Admin { base: format!("http://127.0.0.1:{admin_port}"), token: TOKEN.to_owned() },
            edge_url: String::new(),
            metrics: BTreeMap::new(),
            key: String::new(),
            organization: String::new(),
            user: String::new(),
            control_address: format!("\"127.0.0.1:{link_port}\""),
            link_port,
            url,
            planes: BTreeMap::new(),
            postgres,
            directory,
        };
        std::fs::write(fleet.path("admin_token"), TOKEN).unwrap();
        fleet.write_control("control", (admin_port, link_port), control_settings);
        fleet.start_plane("control").await;
        fleet.register().await;
        fleet
    }

    async fn join(&mut self, nodes: &[&str], token_delay: &str, edge_settings: &str) {
        self.edge_url = self.add_edge("edge", edge_settings).await;
        self.until_known(&self.key).await;
        for node in nodes {
            let engine = format!("engine.kind = \"echo\"\nengine.token_delay = \"{token_delay}\"\n");
            self.add_node(node, MODEL, &engine).await;
        }
    }

    async fn add_control(&mut self, name: &str) {
        let (admin_port, link_port) = (free_port(), free_port());
        self.control_address = format!("[{}, \"127.0.0.1:{link_port}\"]", self.control_address);
        self.write_control(name, (admin_port, link_port), "");
        self.start_plane(name).await;
    }

    /// The admin API of another control plane.
    pub(crate) fn admin_of(&self, name: &str) -> Admin {
        Admin { base: self.metrics[name].clone(), token: TOKEN.to_owned() }
    }

    /// Where the first control plane is linked to.
    pub(crate) const fn link_port(&self) -> u16 {
        self.link_port
    }

    fn write_control(&mut self, name: &str, (admin_port, link_port): (u16, u16), more: &str) {
        let (token_file, postgres_url) = (self.path("admin_token"), self.url.clone());
        let settings = format!(
            "region = \"here\"\nhttp.listen = \"127.0.0.1:{admin_port}\"\nlink.listen = \"127.0.0.1:{link_port}\"\n\
             postgres.url = \"{postgres_url}\"\nadmin.token_file = \"{}\"\nsigning.key = \"{}\"\n{more}",
            token_file.display(),
            self.path("certs").join("signing.key").display()
        );
        self.write(name, "control", &settings, admin_port);
    }

    /// Adds an edge, whose name begins with `edge`, with these further settings; returns its base URL.
    pub(crate) async fn add_edge(&mut self, name: &str, more: &str) -> String {
        self.add_edge_in("here", name, more).await
    }

    /// The same in another region.
    pub(crate) async fn add_edge_in(&mut self, region: &str, name: &str, more: &str) -> String {
        let control = self.control_address.clone();
        let (port, admin_port) = (free_port(), free_port());
        let settings = format!(
            "region = \"{region}\"\ndata_dir = \"{}\"\nhttp.listen = \"127.0.0.1:{port}\"\n\
             admin.listen = \"127.0.0.1:{admin_port}\"\ncontrol.address = {control}\n\
             signing.trusted = \"{}\"\n{more}\n",
            self.path(&format!("{name}-data")).display(),
            self.path("certs").join("signing.pub").display()
        );
        self.write(name, "edge", &settings, admin_port);
        self.start_plane(name).await;
        format!("http://127.0.0.1:{port}")
    }

    /// Adds a node that serves version 1 of a model with this engine, and waits until the edge sends it requests.
    pub(crate) async fn add_node(&mut self, name: &str, model: &str, engine: &str) {
        self.add_node_in("here", name, &format!("{model}@1"), engine).await;
    }

    /// The same in a region, for a version as `model@version`.
    pub(crate) async fn add_node_in(&mut self, region: &str, name: &str, serves: &str, engine: &str) {
        let (port, metrics_port, control) = (free_port(), free_port(), self.control_address.clone());
        let settings = format!(
            "region = \"{region}\"\ndata_dir = \"{}\"\nserves = [\"{serves}\"]\nhttp.listen = \"127.0.0.1:{port}\"\n\
             http.advertise = \"https://127.0.0.1:{port}\"\nmetrics.listen = \"127.0.0.1:{metrics_port}\"\n\
             control.address = {control}\nqueue.slots = 32\n{engine}",
            self.path(&format!("{name}-data")).display()
        );
        self.write(name, "node", &settings, metrics_port);
        self.start_plane(name).await;
        self.until_routed(name).await;
    }

    fn write(&mut self, name: &str, role: &str, settings: &str, metrics_port: u16) {
        let certificates = self.path("certs");
        issue(&certificates, role, name);
        let certificate = |file: &str| certificates.join(file).display().to_string();
        let tls = format!(
            "tls = {{ ca = \"{}\", cert = \"{}\", key = \"{}\" }}\n",
            certificate("ca.pem"),
            certificate(&format!("{name}.pem")),
            certificate(&format!("{name}.key"))
        );
        std::fs::write(self.path(&format!("{name}.toml")), format!("{settings}{tls}")).unwrap();
        self.metrics.insert(name.to_owned(), format!("http://127.0.0.1:{metrics_port}"));
    }

    /// A file of its own: settings, logs, and the planes' data as `NAME-data`.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Starts a plane with the settings it has, and waits until it says it is ready.
    pub(crate) async fn start_plane(&mut self, name: &str) {
        self.start_plane_with(name, &[]).await;
    }

    /// Kills a plane and starts it again as one that dies where it passes `point` (`NAME` or `NAME#n`).
    pub(crate) async fn restart_to_crash(&mut self, name: &str, point: &str) {
        self.kill(name);
        self.start_plane_with(name, &[("TURNPIKE_CRASH_AT", point)]).await;
    }

    /// Adds settings to a plane's own and starts it as one that dies where it passes `point`, be that before it is ready.
    pub(crate) fn start_to_crash_with(&mut self, name: &str, settings: &str, point: &str) {
        let file = self.path(&format!("{name}.toml"));
        let text = std::fs::read_to_string(&file).unwrap();
        std::fs::write(&file, format!("{settings}\n{text}")).unwrap();
        self.spawn(name, &[("TURNPIKE_CRASH_AT", point)]);
    }

    /// Whether a plane's process is there.
    pub(crate) fn is_running(&mut self, name: &str) -> bool {
        self.planes.get_mut(name).is_some_and(Process::is_running)
    }

    /// Kills a plane and starts it again with another idea of the time, such as `-1d`.
    pub(crate) async fn restart_at(&mut self, name: &str, offset: &str) {
        let library =
            ["x86_64", "aarch64"].map(|machine| format!("/usr/lib/{machine}-linux-gnu/faketime/libfaketime.so.1"));
        let library = library.iter().find(|path| Path::new(path).exists());
        let library =
            library.unwrap_or_else(|| panic!("libfaketime is missing; ./test installs it (package faketime)"));
        self.kill(name);
        let clock = [("LD_PRELOAD", library.as_str()), ("FAKETIME", offset), ("FAKETIME_DONT_FAKE_MONOTONIC", "1")];
        self.start_plane_with(name, &clock).await;
    }

    async fn start_plane_with(&mut self, name: &str, environment: &[(&str, &str)]) {
        self.spawn(name, environment);
        let ready = format!("{}/readyz", self.metrics[name]);
        eventually(&format!("{name} is ready"), async || match get(&ready, "").await? {
            reply if reply.status == 200 => Ok(()),
            reply => Err(format!("{} {}\n{}", reply.status, reply.text, self.last_words(name))),
        })
        .await;
    }

    /// The ends of a plane's log and of the control plane's, to see why something does not come about.
    fn last_words(&self, name: &str) -> String {
        let end = |plane: &str| {
            let log = std::fs::read_to_string(self.path(&format!("{plane}.log"))).unwrap_or_default();
            let lines: Vec<_> = log.lines().collect();
            lines[lines.len().saturating_sub(30)..].join("\n")
        };
        format!("--- {name}\n{}\n--- control\n{}", end(name), end("control"))
    }

    fn spawn(&mut self, name: &str, environment: &[(&str, &str)]) {
        let plane = match name {
            control if control.starts_with("control") => "controlplane",
            edge if edge.starts_with("edge") => "dataplane",
            _ => "gpu-node",
        };
        let mut command = turnpike();
        command.envs(environment.iter().copied());
        command.arg(plane).arg("--exit-with-parent").arg("--config").arg(self.path(&format!("{name}.toml")));
        let process = Process::start(command, &self.path(&format!("{name}.log")));
        self.planes.insert(name.to_owned(), process);
    }

    /// Kills an edge and starts it again without a way to the control plane, by the routing it has on disk.
    pub(crate) async fn cut_off(&mut self, edge: &str) {
        self.kill(edge);
        let file = self.path(&format!("{edge}.toml"));
        let nowhere = format!("control.address = \"127.0.0.1:{}\"", free_port());
        let address = format!("control.address = {}", self.control_address);
        let settings = std::fs::read_to_string(&file).unwrap().replace(&address, &nowhere);
        std::fs::write(&file, settings).unwrap();
        self.start_plane(edge).await;
    }

    /// A plane's process.
    pub(crate) fn process(&mut self, name: &str) -> &mut Process {
        self.planes.get_mut(name).unwrap()
    }

    /// Kills a plane as a power cut would.
    pub(crate) fn kill(&mut self, name: &str) {
        self.process(name).kill();
    }

    /// Crashes the database: one of its processes is killed, it ends all others, and recovers by its log.
    pub(crate) async fn crash_database(&self) {
        eventually("a process of PostgreSQL is killed", async || {
            let victim = descendants(self.postgres.id().unwrap()).pop();
            victim.filter(Running::try_kill).map(drop).ok_or_else(|| "it recovers".to_owned())
        })
        .await;
    }

    /// A plane's process id.
    pub(crate) fn id(&self, name: &str) -> u32 {
        self.planes[name].id()
    }

    /// The log of a plane over all its lives.
    pub(crate) fn log(&self, name: &str) -> String {
        self.planes[name].log()
    }

    /// What psql prints: rows by line, columns separated by `|`.
    pub(crate) fn sql(&self, sql: &str) -> String {
        self.postgres.psql(DATABASE, sql).unwrap().trim().to_owned()
    }

    async fn register(&mut self) {
        let organization = self.admin.post("/organizations", json!({"name": "Tests", "slug": "tests"})).await;
        self.organization = organization["id"].as_str().unwrap().to_owned();
        let user = json!({"organization_id": self.organization, "email": "owner@tests.example", "role": "owner"});
        self.user = self.admin.post("/users", user).await["id"].as_str().unwrap().to_owned();
        self.add_model(MODEL).await;
        self.key = self.make_key(json!({"permissions": ["inference", "models.read"]})).await.1;
    }

    /// Registers a model with a default version `1`.
    pub(crate) async fn add_model(&self, id: &str) {
        let model = json!({
            "id": id, "provider": "tests", "category": "chat", "context_length": 1_000_000,
            "pricing": {"input_tokens": 0.01, "output_tokens": 0.03, "currency": "USD", "per_tokens": 1000},
        });
        self.admin.post("/models", model).await;
        let version = json!({"version": "1", "model_artifact_path": "for tests", "make_default": true});
        self.admin.post(&format!("/models/{id}/versions"), version).await;
    }

    /// Adds a version to a model: one that takes requests where it is named.
    pub(crate) async fn add_version(&self, model: &str, version: &str) {
        let version = json!({"version": version, "model_artifact_path": "for tests", "activate": true});
        self.admin.post(&format!("/models/{model}/versions"), version).await;
    }

    /// Makes a route, everybody's, and waits until the edges go by it; its id.
    pub(crate) async fn add_route(&self, name: &str, policy: Value) -> String {
        let route = self.admin.post("/routes", json!({"name": name, "policy": policy})).await;
        self.until_pushed().await;
        route["id"].as_str().unwrap().to_owned()
    }

    /// Changes a route and waits until the edges go by it.
    pub(crate) async fn set_route(&self, id: &str, policy: Value) {
        self.admin.patch(&format!("/routes/{id}"), json!({"policy": policy})).await;
        self.until_pushed().await;
    }

    /// Makes a key with these fields; its id and the key itself.
    pub(crate) async fn make_key(&self, fields: Value) -> (String, String) {
        let mut key = json!({"organization_id": self.organization, "user_id": self.user, "name": "a key"});
        key.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        let made = self.admin.post("/api_keys", key).await;
        let text = |field: &Value| field.as_str().unwrap_or_else(|| panic!("{made}")).to_owned();
        (text(&made["id"]), text(&made["key"]))
    }

    /// Waits until the edge knows the key: it lists models with it.
    pub(crate) async fn until_known(&self, key: &str) {
        eventually("the edge knows the key", async || {
            match get(&format!("{}/v1/models", self.edge_url), key).await? {
                reply if reply.status == 401 => Err(reply.text),
                _ => Ok(()),
            }
        })
        .await;
    }

    /// Waits until the node is ready and the edge holds a routing that says so.
    async fn until_routed(&self, node: &str) {
        eventually("the node is ready", async || match self.admin.get(&format!("/nodes/{node}")).await {
            found if found["state"] == "ready" => Ok(()),
            found => Err(found.to_string()),
        })
        .await;
        self.until_pushed().await;
    }

    /// Waits until every edge serves by the newest routing.
    pub(crate) async fn until_pushed(&self) {
        eventually("the edges serve by the newest routing", async || {
            let head = self.sql("SELECT max(version) FROM config_log");
            let held = self.sql("SELECT min(holds) FROM edges WHERE connected");
            if head == held { Ok(()) } else { Err(format!("one holds {held} of {head}")) }
        })
        .await;
    }
}
