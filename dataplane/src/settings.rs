//! What an edge must be told at start; everything else is pushed to it.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;
use turnpike_config::link::TlsFiles;
use turnpike_config::settings::{BadSettings, Fields};

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
    /// Where operators find `/metrics`, `/livez` and `/readyz`.
    pub admin_listen: SocketAddr,
    /// `host:port` of the control plane's link.
    pub control_address: String,
    /// Certificate, key and authority for the links and for nodes.
    pub tls: TlsFiles,
    /// Sizes and times that bound every request.
    pub limits: Limits,
    /// How long running requests may go on after a stop was asked for.
    pub drain_timeout: Duration,
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
        let control_address = fields.required("control.address");
        let tls = TlsFiles::from_fields(&mut fields);
        let limits = Limits {
            max_body_bytes: positive(&mut fields, "limits.max_body_bytes", 64 << 20),
            max_connections: positive(&mut fields, "limits.max_connections", 20_000),
            body_timeout: fields.or("limits.body_timeout", Duration::from_secs(60)),
            connect_timeout: fields.or("limits.connect_timeout", Duration::from_secs(2)),
            node_timeout: fields.or("limits.node_timeout", Duration::from_secs(300)),
        };
        let drain_timeout = fields.or("drain.timeout", Duration::from_secs(30));
        let journal_max_bytes = fields.or("journal.max_bytes", 4 << 30);
        let settings = (|| {
            Some(Self {
                region,
                data_dir: data_dir?,
                listen: listen?,
                client_tls,
                admin_listen: admin_listen?,
                control_address: control_address?,
                tls: tls?,
                limits,
                drain_timeout,
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
    "#;

    #[test]
    fn defaults_fill_what_is_not_said() {
        let settings = Settings::load("edge.toml", MINIMAL, &|_| None).unwrap();
        assert_eq!(settings.limits.max_body_bytes, 64 << 20);
        assert_eq!(settings.region, "local");
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
