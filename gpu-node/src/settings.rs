//! Bootstrap settings of a node agent.

use crate::ledger;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;
use turnpike_config::NodeUrl;
use turnpike_config::link::TlsFiles;
use turnpike_config::records::Served;
use turnpike_config::settings::{BadSettings, Fields};

/// Which engine the agent fronts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EngineKind {
    /// The small CPU engine inside this binary.
    Builtin,
    /// Answers with what it was asked.
    Echo,
    /// vLLM's OpenAI server.
    Vllm,
    /// SGLang's server.
    Sglang,
    /// llama.cpp's server.
    LlamaCpp,
    /// Any other server that speaks the OpenAI API.
    OpenAi,
}

impl EngineKind {
    const NAMES: [(&'static str, Self); 6] = [
        ("builtin", Self::Builtin),
        ("echo", Self::Echo),
        ("vllm", Self::Vllm),
        ("sglang", Self::Sglang),
        ("llamacpp", Self::LlamaCpp),
        ("openai", Self::OpenAi),
    ];

    fn from_name(name: &str) -> Option<Self> {
        Self::NAMES.iter().find(|(known, _)| *known == name).map(|(_, kind)| *kind)
    }

    /// Whether it is a server of its own, reached by URL.
    pub(crate) const fn is_remote(self) -> bool {
        !matches!(self, Self::Builtin | Self::Echo)
    }
}

/// `[engine]`.
#[derive(Clone, Debug)]
pub(crate) struct EngineSettings {
    /// `engine.kind`
    pub(crate) kind: EngineKind,
    /// `engine.url`: base of an HTTP engine, without `/v1` and without a slash at its end. Empty for the others.
    pub(crate) url: String,
    /// `engine.model`: name the HTTP engine knows its model by, if it is not the name that edges send.
    pub(crate) model: Option<String>,
    /// `engine.api_key_file`: file that holds a key the HTTP engine asks for.
    pub(crate) api_key_file: Option<PathBuf>,
    /// `engine.command`: program and arguments to run and supervise; empty for none.
    pub(crate) command: Vec<String>,
    /// `engine.connect_timeout`: to open a connection to an HTTP engine.
    pub(crate) connect_timeout: Duration,
    /// `engine.idle_timeout`: longest silence of an HTTP engine, before its first byte and between two of them.
    pub(crate) idle_timeout: Duration,
    /// `engine.probe_every`: between two looks at health and load.
    pub(crate) probe_every: Duration,
    /// `engine.probe_timeout`: longest that such a look may take.
    pub(crate) probe_timeout: Duration,
    /// `engine.token_delay`: pause of the echo engine before each word.
    pub(crate) token_delay: Duration,
}

/// `[queue]`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct QueueSettings {
    /// `queue.slots`: requests the engine gets at once, at least 1.
    pub(crate) slots: u32,
    /// `queue.max_waiting`: requests that wait for a slot.
    pub(crate) max_waiting: u32,
    /// `queue.deadline`: longest that one waits.
    pub(crate) deadline: Duration,
}

/// `[ledger]`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LedgerSettings {
    /// `ledger.keep`: how long what the node worked on stays on its disk, at least [`ledger::MIN_KEEP`].
    pub(crate) keep: Duration,
    /// `ledger.max_bytes`: most that it takes of the disk; beyond it, requests are refused.
    pub(crate) max_bytes: u64,
}

/// Settings of a node agent, validated.
#[derive(Clone, Debug)]
pub struct Settings {
    pub(crate) region: String,
    pub(crate) data_dir: PathBuf,
    pub(crate) http_listen: SocketAddr,
    pub(crate) advertise: String,
    pub(crate) max_body_bytes: usize,
    pub(crate) max_connections: usize,
    pub(crate) metrics_listen: SocketAddr,
    pub(crate) control_addresses: Vec<String>,
    pub(crate) tls: TlsFiles,
    pub(crate) engine: EngineSettings,
    /// `engine.weights_dir`: where the built-in engine keeps its weights.
    #[cfg_attr(not(feature = "builtin-engine"), expect(dead_code, reason = "only the built-in engine has weights"))]
    pub(crate) weights_dir: PathBuf,
    pub(crate) serves: Vec<Served>,
    pub(crate) queue: QueueSettings,
    pub(crate) ledger: LedgerSettings,
    pub(crate) drain_timeout: Duration,
}

impl Settings {
    /// Reads settings from TOML text, overridden by `TURNPIKE_*` variables that `environment` is asked for.
    ///
    /// # Errors
    /// All mistakes at once, each with its path and what was expected.
    pub fn load(
        source_name: &str,
        text: &str,
        environment: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Self, BadSettings> {
        let mut fields = Fields::parse(source_name, text, environment)?;
        let settings = read(&mut fields, environment);
        fields.finish(settings)
    }

    /// Whether edges reach this node over TLS, as `http.advertise` says.
    pub(crate) fn uses_tls(&self) -> bool {
        self.advertise.starts_with("https://")
    }
}

fn read(fields: &mut Fields<'_>, environment: &dyn Fn(&str) -> Option<String>) -> Option<Settings> {
    let region = fields.required("region");
    let data_dir: Option<PathBuf> = fields.required("data_dir");
    let http_listen = fields.required("http.listen");
    let advertise = read_advertise(fields);
    let max_body_bytes = positive(fields, "http.max_body_bytes", 64_u64 << 20);
    let max_connections = positive(fields, "http.max_connections", 4096_u32);
    let metrics_listen = fields.required("metrics.listen");
    let control_addresses = fields.required("control.address");
    let tls = TlsFiles::from_fields(fields);
    let weights_dir = fields.optional("engine.weights_dir").or_else(|| default_weights_dir(environment));
    let engine = read_engine(fields);
    let serves = read_serves(fields);
    let queue = QueueSettings {
        slots: positive(fields, "queue.slots", 4),
        max_waiting: fields.or("queue.max_waiting", 64),
        deadline: positive_duration(fields, "queue.deadline", 10),
    };
    let ledger = read_ledger(fields);
    let drain_timeout = fields.or("drain.timeout", Duration::from_secs(30));
    let data_dir = data_dir?;
    Some(Settings {
        region: region?,
        http_listen: http_listen?,
        advertise: advertise?,
        max_body_bytes: usize::try_from(max_body_bytes).unwrap_or(usize::MAX),
        max_connections: usize::try_from(max_connections).unwrap_or(usize::MAX),
        metrics_listen: metrics_listen?,
        control_addresses: control_addresses?,
        tls: tls?,
        engine: engine?,
        weights_dir: weights_dir.unwrap_or_else(|| data_dir.join("weights")),
        data_dir,
        serves: serves?,
        queue,
        ledger,
        drain_timeout,
    })
}

/// The cache that all of a user's nodes share, so that weights are fetched once.
#[cfg(feature = "builtin-engine")]
fn default_weights_dir(environment: &dyn Fn(&str) -> Option<String>) -> Option<PathBuf> {
    crate::builtin::weights::default_cache_dir(environment)
}

#[cfg(not(feature = "builtin-engine"))]
fn default_weights_dir(_environment: &dyn Fn(&str) -> Option<String>) -> Option<PathBuf> {
    None
}

fn read_advertise(fields: &mut Fields<'_>) -> Option<String> {
    let path = "http.advertise";
    let url: String = fields.required(path)?;
    if NodeUrl::parse(&url).is_none() {
        fields.mistake(path, "expected https://host:port (mutual TLS) or http://host:port, without a path");
    }
    Some(url.trim_end_matches('/').to_owned())
}

fn read_engine(fields: &mut Fields<'_>) -> Option<EngineSettings> {
    let kind = read_kind(fields);
    let url: Option<String> = fields.optional("engine.url");
    let command: Vec<String> = fields.or("engine.command", Vec::new());
    let settings = EngineSettings {
        kind: kind.unwrap_or(EngineKind::Echo),
        url: url.clone().unwrap_or_default().trim_end_matches('/').trim_end_matches("/v1").to_owned(),
        model: fields.optional("engine.model"),
        api_key_file: fields.optional("engine.api_key_file"),
        command,
        connect_timeout: positive_duration(fields, "engine.connect_timeout", 2),
        idle_timeout: positive_duration(fields, "engine.idle_timeout", 300),
        probe_every: positive_duration(fields, "engine.probe_every", 1),
        probe_timeout: positive_duration(fields, "engine.probe_timeout", 2),
        token_delay: fields.or("engine.token_delay", Duration::ZERO),
    };
    let kind = kind?;
    match &url {
        Some(url) if !kind.is_remote() => {
            fields.mistake("engine.url", &format!("this engine runs inside the agent and has no URL; remove «{url}»"));
        }
        Some(url) if !url.starts_with("http://") && !url.starts_with("https://") => {
            fields.mistake("engine.url", "expected the base URL of the engine such as http://127.0.0.1:8000");
        }
        None if kind.is_remote() => {
            fields.mistake("engine.url", "missing; expected the base URL of the engine such as http://127.0.0.1:8000");
        }
        _ => {}
    }
    if !kind.is_remote() && !settings.command.is_empty() {
        fields.mistake("engine.command", "this engine runs inside the agent and has no command");
    }
    Some(settings)
}

fn read_kind(fields: &mut Fields<'_>) -> Option<EngineKind> {
    let name: String = fields.required("engine.kind")?;
    let kind = EngineKind::from_name(&name);
    if kind.is_none() {
        let known: Vec<&str> = EngineKind::NAMES.iter().map(|(name, _)| *name).collect();
        fields.mistake("engine.kind", &format!("«{name}» is unknown; expected one of {}", known.join(", ")));
    }
    if kind == Some(EngineKind::Builtin) && cfg!(not(feature = "builtin-engine")) {
        fields.mistake("engine.kind", "this binary was built without the built-in engine (feature builtin-engine)");
    }
    kind
}

fn read_ledger(fields: &mut Fields<'_>) -> LedgerSettings {
    let keep = fields.or("ledger.keep", Duration::from_secs(72 * 3600));
    if keep < ledger::MIN_KEEP {
        fields.mistake("ledger.keep", "must be at least \"48h\": edges ask for what they began up to two days ago");
    }
    LedgerSettings { keep, max_bytes: positive(fields, "ledger.max_bytes", 4_u64 << 30) }
}

fn read_serves(fields: &mut Fields<'_>) -> Option<Vec<Served>> {
    let path = "serves";
    let written: Vec<String> = fields.required(path)?;
    if written.is_empty() {
        fields.mistake(path, "names no model; expected a list such as [\"smollm2-135m-instruct@1\"]");
    }
    let mut serves = Vec::with_capacity(written.len());
    for entry in &written {
        match entry.rsplit_once('@') {
            Some((model, version)) if !model.is_empty() && !version.is_empty() => {
                serves.push(Served { model: model.to_owned(), version: version.to_owned() });
            }
            _ => fields.mistake(path, &format!("«{entry}»: expected MODEL@VERSION")),
        }
    }
    Some(serves)
}

fn positive<T>(fields: &mut Fields<'_>, path: &str, default: T) -> T
where
    T: turnpike_config::settings::Setting + PartialEq + From<u16>,
{
    let value = fields.or(path, default);
    if value == T::from(0) {
        fields.mistake(path, "must be at least 1");
    }
    value
}

fn positive_duration(fields: &mut Fields<'_>, path: &str, default_seconds: u64) -> Duration {
    let value = fields.or(path, Duration::from_secs(default_seconds));
    if value.is_zero() {
        fields.mistake(path, "must be longer than nothing");
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
        region = "eu-1"
        data_dir = "/var/lib/turnpike"
        serves = ["llama@2", "org/mistral@v1"]
        [http]
        listen = "127.0.0.1:0"
        advertise = "https://10.0.0.1:9000"
        [metrics]
        listen = "127.0.0.1:0"
        [control]
        address = "127.0.0.1:7000"
        [tls]
        ca = "ca.pem"
        cert = "cert.pem"
        key = "key.pem"
        [engine]
        kind = "vllm"
        url = "http://127.0.0.1:8000/v1/"
    "#;

    fn mistakes(text: &str) -> String {
        Settings::load("node.toml", text, &|_| None).err().map(|e| e.to_string()).unwrap_or_default()
    }

    #[test]
    fn good_settings_get_their_defaults() {
        let settings = Settings::load("node.toml", GOOD, &|_| None).unwrap();
        assert_eq!(settings.engine.url, "http://127.0.0.1:8000");
        assert_eq!(settings.serves[1], Served { model: "org/mistral".to_owned(), version: "v1".to_owned() });
        assert!(settings.uses_tls());
        assert_eq!((settings.queue.slots, settings.max_body_bytes), (4, 64 << 20));
    }

    #[test]
    fn mistakes_are_named() {
        for (from, to, expected) in [
            ("\"vllm\"", "\"tgi\"", "engine.kind: «tgi» is unknown"),
            ("\"vllm\"", "\"echo\"", "engine.url: this engine runs inside the agent"),
            ("url = \"http://127.0.0.1:8000/v1/\"", "", "engine.url: missing"),
            ("http://127.0.0.1:8000", "127.0.0.1:8000", "engine.url: expected the base URL"),
            ("https://10.0.0.1:9000", "10.0.0.1:9000", "http.advertise: expected https://host:port"),
            ("llama@2", "llama", "serves: «llama»: expected MODEL@VERSION"),
            ("[engine]", "[queue]\nslots = 0\n[engine]", "queue.slots: must be at least 1"),
            ("[engine]", "[ledger]\nkeep = \"47h\"\n[engine]", "ledger.keep: must be at least \"48h\""),
            ("[engine]", "[engine]\nidle_timeout = \"0s\"", "engine.idle_timeout: must be longer"),
            ("[engine]", "[engine]\nurll = \"x\"", "engine.urll: unknown setting"),
        ] {
            let text = GOOD.replace(from, to);
            assert!(mistakes(&text).contains(expected), "{expected} is not in {}", mistakes(&text));
        }
    }
}
