//! The planes' settings files, written anew at every start.

use super::engine::Engine;
use super::layout::DataDir;
use super::ports::Ports;
use crate::{pki, private};
use std::path::{Path, PathBuf};
use toml::{Table, Value};

/// Subcommand of each plane, and the name of its files.
pub(super) const CONTROL: &str = "controlplane";
pub(super) const EDGE: &str = "dataplane";
pub(super) const NODE: &str = "gpu-node";

/// Names in the certificates of the edge and the node.
pub(super) const EDGE_NAME: &str = "edge-1";
pub(super) const NODE_NAME: &str = "node-1";

const HEADER: &str = "# Written by `turnpike up` at every start; changes made here are lost.\n";

/// How long a plane may finish what it has begun, seconds.
pub(super) const DRAIN_SECONDS: u64 = 20;

/// What the settings are made from.
pub(super) struct Plan<'a> {
    /// This binary's file, which is every plane's.
    pub(super) program: PathBuf,
    pub(super) dir: &'a DataDir,
    pub(super) signing: pki::SigningFiles,
    pub(super) ports: Ports,
    pub(super) region: &'a str,
    pub(super) redis_url: Option<String>,
    pub(super) clickhouse_url: Option<String>,
}

impl Plan<'_> {
    /// Writes the control plane's file.
    pub(super) fn write_control(&self, tls: &pki::Files, postgres_url: &str) -> std::io::Result<()> {
        let clickhouse = url_section("clickhouse", self.clickhouse_url.as_deref());
        self.write(
            CONTROL,
            [
                ("region", self.region.into()),
                ("http", section([("listen", self.ports.admin.to_string().into())])),
                ("link", section([("listen", self.ports.link.to_string().into())])),
                ("tls", tls_section(tls)),
                ("signing", section([("key", path(&self.signing.key))])),
                ("postgres", section([("url", postgres_url.into())])),
                ("admin", section([("token_file", path(&self.dir.admin_token_file()))])),
            ]
            .into_iter()
            .chain(clickhouse),
        )
    }

    /// Writes the edge's file.
    pub(super) fn write_edge(&self, tls: &pki::Files) -> std::io::Result<()> {
        let redis = url_section("redis", self.redis_url.as_deref());
        self.write(
            EDGE,
            [
                ("region", self.region.into()),
                ("data_dir", path(&self.dir.edge())),
                ("http", section([("listen", self.ports.edge.to_string().into())])),
                ("admin", section([("listen", self.ports.edge_metrics.to_string().into())])),
                ("control", section([("address", self.ports.link.to_string().into())])),
                ("tls", tls_section(tls)),
                ("signing", section([("trusted", path(&self.signing.public))])),
                ("drain", drain()),
            ]
            .into_iter()
            .chain(redis),
        )
    }

    /// Writes the node's file.
    pub(super) fn write_node(&self, tls: &pki::Files, engine: Engine) -> std::io::Result<()> {
        let serves = engine.models().iter().map(|model| format!("{}@{}", model.id, model.version).into());
        let http = [
            ("listen", self.ports.node.to_string().into()),
            ("advertise", format!("https://{}", self.ports.node).into()),
        ];
        self.write(
            NODE,
            [
                ("region", self.region.into()),
                ("data_dir", path(&self.dir.node())),
                ("serves", Value::Array(serves.collect())),
                ("http", section(http)),
                ("metrics", section([("listen", self.ports.node_metrics.to_string().into())])),
                ("control", section([("address", self.ports.link.to_string().into())])),
                ("tls", tls_section(tls)),
                ("engine", section([("kind", engine.kind().into())])),
                ("drain", drain()),
            ],
        )
    }

    fn write<'f>(&self, plane: &str, fields: impl IntoIterator<Item = (&'f str, Value)>) -> std::io::Result<()> {
        let table: Table = fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        private::write(&self.dir.settings(plane), format!("{HEADER}{table}"))
    }
}

fn section<'f>(fields: impl IntoIterator<Item = (&'f str, Value)>) -> Value {
    Value::Table(fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect())
}

/// A section that only says where a server is, if there is one.
fn url_section<'f>(name: &'f str, url: Option<&str>) -> Option<(&'f str, Value)> {
    url.map(|url| (name, section([("url", url.into())])))
}

fn path(path: &Path) -> Value {
    path.to_string_lossy().into_owned().into()
}

fn tls_section(files: &pki::Files) -> Value {
    section([("ca", path(&files.ca)), ("cert", path(&files.cert)), ("key", path(&files.key))])
}

fn drain() -> Value {
    section([("timeout", format!("{DRAIN_SECONDS}s").into())])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_plane_accepts_its_file() {
        let temporary = tempfile::tempdir().unwrap();
        let dir = DataDir::open(&temporary.path().join("a \"quoted\" \\ name")).unwrap();
        let address = |port| std::net::SocketAddr::from(([127, 0, 0, 1], port));
        let ports = Ports {
            edge: address(1),
            admin: address(2),
            link: address(3),
            node: address(4),
            edge_metrics: address(5),
            node_metrics: address(6),
        };
        let clickhouse_url = Some("http://u:p@localhost:8123".to_owned());
        let file = |name: &str| dir.certificates().join(name);
        let signing = pki::SigningFiles { key: file("signing.key"), public: file("signing.pub") };
        let (program, region, redis_url) = (PathBuf::new(), "eu-1", None);
        let plan = Plan { program, dir: &dir, signing, ports, region, redis_url, clickhouse_url };
        let tls = pki::Files { ca: file("ca.pem"), cert: file("x.pem"), key: file("x.key") };
        plan.write_control(&tls, "postgres://postgres@localhost/turnpike?host=%2Ftmp%2Fx").unwrap();
        plan.write_edge(&tls).unwrap();
        let text = |plane| std::fs::read_to_string(dir.settings(plane)).unwrap();
        turnpike_controlplane::Settings::load(CONTROL, &text(CONTROL), &|_| None).unwrap();
        let edge = turnpike_dataplane::Settings::load(EDGE, &text(EDGE), &|_| None).unwrap();
        assert_eq!((edge.region.as_str(), edge.data_dir, edge.listen.port()), ("eu-1", dir.edge(), 1));
        for engine in [Engine::Echo, Engine::Builtin] {
            plan.write_node(&tls, engine).unwrap();
            let node = turnpike_gpu_node::Settings::load(NODE, &text(NODE), &|_| None);
            assert_eq!(node.is_ok(), engine == Engine::Echo || cfg!(feature = "builtin-engine"), "{node:?}");
        }
    }
}
