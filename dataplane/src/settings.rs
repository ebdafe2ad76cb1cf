//! What an edge must be told at start; everything else is pushed to it.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;
use turnpike_config::link::TlsFiles;
use turnpike_config::settings::{BadSettings, Fields};

/// Smallest `journal.max_bytes`: a segment is 16 MiB, and the one that is written to stays.
const MIN_JOURNAL: u64 = 64 << 20;

/// Bootstrap settings of an edge.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Region it serves, as written into usage events.
    pub region: String,
    /// Directory for the last good routing and the usage journal.
    pub data_dir: PathBuf,
    /// Where clients connect.
    pub listen: SocketAddr,
    /// Certificate chain and key shown to clients, PEM; `None` is plaintext, for loopback or behind a TLS terminator.
    pub client_tls: Option<(PathBuf, PathBuf)>,
    /// Where operators find `/metrics`, `/livez`, `/readyz` and `/explain`.
    pub admin_listen: SocketAddr,
    /// `host:port` of the link of each control plane.
    pub control_addresses: Vec<String>,
    /// Certificate, key and authority for the links and for nodes.
    pub tls: TlsFiles,
    /// Public keys of those who may sign what this edge serves by, PEM.
    pub trusted: PathBuf,
    /// Sizes and times that bound every request.
    pub limits: Limits,
    /// How long running requests may go on after a stop was asked for.
    pub drain_timeout: Duration,
    /// What the edges of a region share: limits and cached answers. `None`: this edge is the only one, and keeps them
    /// itself.
    pub redis: Option<RedisSettings>,
    /// Most bytes of cached answers in memory.
    pub cache_max_bytes: u64,
    /// An edge that died so often in a row by the same routing starts from the one before; 0 is never.
    pub give_up_after: u32,
    /// Most bytes of journal kept on disk while the control plane does not take them; beyond, requests are refused.
    pub journal_max_bytes: u64,
}

/// Bounds on what a client may cost.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Request body, bytes.
    pub max_body_bytes: usize,
    /// Client connections open at once.
    pub max_connections: usize,
    /// From the end of the head until the end of the body.
    pub body_timeout: Duration,
    /// Until a node accepts a connection.
    pub connect_timeout: Duration,
    /// Longest silence of a node, before and inside an answer.
    pub node_timeout: Duration,
}

/// Where the region's Redis is, and how much patience it gets.
#[derive(Clone)]
pub struct RedisSettings {
    /// `redis://` or `rediss://` URLs, with user and password if need be; several for a cluster.
    pub urls: Vec<String>,
    /// The URLs are nodes of a cluster (they are if there are several).
    pub cluster: bool,
    /// Certificate of the authority that signed the servers', PEM; `None` is the system's authorities.
    pub ca: Option<PathBuf>,
    /// An answer that takes longer counts as slow; three in a row and the edge goes on alone.
    pub slow: Duration,
    /// Edges of the region at least: what an edge divides the limits by when it is alone.
    pub edges: u32,
}

impl std::fmt::Debug for RedisSettings {
    /// Without the URLs, which may hold a password.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RedisSettings")
            .field("cluster", &self.cluster)
            .field("slow", &self.slow)
            .finish_non_exhaustive()
    }
}

impl Settings {
    /// Reads and validates everything at once.
    pub fn load(
        source_name: &str,
        text: &str,
        environment: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Self, BadSettings> {
        let mut fields = Fields::parse(source_name, text, environment)?;
        let region = fields.or("region", "local".to_owned());
        let data_dir = fields.required("data_dir");
        let listen = fields.required("http.listen");
        let client_tls = client_tls(&mut fields);
        let admin_listen = fields.required("admin.listen");
        let control_addresses = fields.required("control.address");
        let tls = TlsFiles::from_fields(&mut fields);
        let trusted = fields.required("signing.trusted");
        let limits = Limits {
            max_body_bytes: positive(&mut fields, "limits.max_body_bytes", 64 << 20),
            max_connections: positive(&mut fields, "limits.max_connections", 20_000),
            body_timeout: fields.or("limits.body_timeout", Duration::from_secs(60)),
            connect_timeout: fields.or("limits.connect_timeout", Duration::from_secs(2)),
            node_timeout: fields.or("limits.node_timeout", Duration::from_secs(300)),
        };
        let drain_timeout = fields.or("drain.timeout", Duration::from_secs(30));
        let redis = redis(&mut fields);
        let cache_max_bytes = fields.or("cache.max_bytes", 256 << 20);
        let give_up_after = fields.or("routing.give_up_after", 3);
        let journal_max_bytes = fields.or("journal.max_bytes", 4 << 30);
        if journal_max_bytes < MIN_JOURNAL {
            fields.mistake("journal.max_bytes", "expected 67108864 (64 MiB) or more: some segments must fit");
        }
        let settings = (|| {
            Some(Self {
                region,
                data_dir: data_dir?,
                listen: listen?,
                client_tls,
                admin_listen: admin_listen?,
                control_addresses: control_addresses?,
                tls: tls?,
                trusted: trusted?,
                limits,
                drain_timeout,
                redis,
                cache_max_bytes,
                give_up_after,
                journal_max_bytes,
            })
        })();
        fields.finish(settings)
    }
}

/// `http.tls_cert` and `http.tls_key`: both or neither.
fn client_tls(fields: &mut Fields<'_>) -> Option<(PathBuf, PathBuf)> {
    match (fields.optional("http.tls_cert"), fields.optional("http.tls_key")) {
        (Some(cert), Some(key)) => Some((cert, key)),
        (None, None) => None,
        (Some(_), None) => {
            fields.mistake("http.tls_key", "missing, but http.tls_cert is given");
            None
        }
        (None, Some(_)) => {
            fields.mistake("http.tls_cert", "missing, but http.tls_key is given");
            None
        }
    }
}

fn redis(fields: &mut Fields<'_>) -> Option<RedisSettings> {
    let urls: Option<Vec<String>> = fields.optional("redis.url");
    let settings = RedisSettings {
        urls: urls.clone().unwrap_or_default(),
        cluster: fields.or("redis.cluster", false),
        ca: fields.optional("redis.ca"),
        slow: fields.or("redis.slow", Duration::from_millis(5)),
        edges: fields.or("redis.edges", 1),
    };
    let known = |url: &String| url.starts_with("redis://") || url.starts_with("rediss://");
    if urls.is_some_and(|urls| urls.is_empty() || !urls.iter().all(known)) {
        // The value is not repeated: it may hold a password.
        fields.mistake("redis.url", "expected redis://host:port or rediss://host:port, several of a cluster as a list");
    }
    (!settings.urls.is_empty()).then_some(settings)
}

fn positive(fields: &mut Fields<'_>, path: &str, default: u64) -> usize {
    let value = fields.or(path, default);
    if value == 0 {
        fields.mistake(path, "must be at least 1");
    }
    usize::try_from(value).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINIMAL: &str = r#"
        data_dir = "/tmp/edge"
        [http]
        listen = "127.0.0.1:8080"
        [admin]
        listen = "127.0.0.1:9101"
        [control]
        address = "127.0.0.1:7443"
        [tls]
        ca = "ca.pem"
        cert = "edge.pem"
        key = "edge.key"
        [signing]
        trusted = "signing.pem"
    "#;

    #[test]
    fn defaults_fill_what_is_not_said() {
        let settings = Settings::load("edge.toml", MINIMAL, &|_| None).unwrap();
        assert_eq!(settings.limits.max_body_bytes, 64 << 20);
        assert_eq!(settings.region, "local");
    }

    #[test]
    fn redis_is_one_url_or_several_and_its_password_is_never_shown() {
        let load = |redis: &str| Settings::load("edge.toml", &format!("{MINIMAL}\n[redis]\n{redis}"), &|_| None);
        let one = load("url = \"redis://:hush@h:1\"").unwrap();
        assert_eq!(one.redis.as_ref().unwrap().urls.len(), 1);
        assert!(!format!("{one:?}").contains("hush"));
        let three = load("url = [\"redis://a:1\", \"redis://b:1\", \"redis://c:1\"]").unwrap();
        assert_eq!(three.redis.unwrap().urls.len(), 3);
        let error = load("url = \"http://:hush@h:1\"").unwrap_err().to_string();
        assert!(error.contains("redis.url") && !error.contains("hush"), "{error}");
    }

    #[test]
    fn a_certificate_for_clients_needs_its_key() {
        let text = MINIMAL.replace("[admin]", "tls_cert = \"a.pem\"\n[admin]");
        let error = Settings::load("edge.toml", &text, &|_| None).unwrap_err();
        assert!(error.to_string().contains("http.tls_key: missing"), "{error}");
    }

    #[test]
    fn all_mistakes_come_together() {
        let text =
            MINIMAL.replace("127.0.0.1:8080", "x").replace("[control]", "[limits]\nmax_body_bytes = 0\n[control]");
        let error = Settings::load("edge.toml", &text, &|_| None).unwrap_err();
        assert_eq!(error.mistakes.len(), 2, "{error}");
    }
}
