//! Gateways and routers for models, as one would put them before engines. They are measured where they are installed.

use super::{Door, Subject, Way, lines};
use crate::compare::threads;
use crate::deployment::free_port;
use crate::engine::MODELS;
use crate::program::Program;
use serde_json::json;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

/// What clients of those that look at keys send.
const KEY: &str = "sk-everybody";

/// What is to be started, and how it is asked.
struct Start {
    name: &'static str,
    command: Vec<OsString>,
    address: SocketAddr,
    /// Beside the key.
    headers: Vec<(&'static str, String)>,
}

impl Start {
    fn new(name: &'static str, address: SocketAddr, program: &Path, arguments: Vec<String>) -> Self {
        let mut command = vec![program.into()];
        command.extend(arguments.into_iter().map(OsString::from));
        Self { name, command, address, headers: Vec::new() }
    }

    async fn go(self, directory: &Path) -> anyhow::Result<Subject> {
        let Self { name, command, address, headers } = self;
        let program = Program::start(name, command, directory)?;
        let doors = BTreeMap::from([(Door::Plain, address), (Door::Stream, address)]);
        let mut subject = Subject::listening(program, doors).await?;
        subject.headers = Way::new(address, KEY).headers;
        subject.headers.extend(headers);
        Ok(subject)
    }
}

/// LiteLLM with its key checks, a worker for each thread.
pub(in crate::compare) async fn litellm(
    program: PathBuf,
    engines: &[SocketAddr],
    directory: &Path,
) -> anyhow::Result<Subject> {
    let address = free_port()?;
    let of_engine = |engine: &SocketAddr, model: &str| {
        let parameters =
            json!({"model": format!("openai/{model}"), "api_base": format!("http://{engine}/v1"), "api_key": "none"});
        json!({"model_name": model, "litellm_params": parameters})
    };
    let models = engines.iter().flat_map(|engine| MODELS.iter().map(|model| of_engine(engine, model.name)));
    let models: Vec<_> = models.collect();
    // JSON is YAML.
    let settings = json!({"model_list": models, "general_settings": {"master_key": KEY}});
    let file = directory.join("litellm.yaml");
    std::fs::write(&file, settings.to_string())?;
    let arguments = ["--config", &file.display().to_string(), "--host", "127.0.0.1"].map(str::to_owned);
    let rest = ["--port".to_owned(), address.port().to_string(), "--num_workers".to_owned(), threads().to_string()];
    let mut start = Start::new("litellm", address, &program, [arguments, rest].concat());
    // It would fetch its table of prices otherwise.
    let environment = ["env", "LITELLM_LOCAL_MODEL_COST_MAP=True", "LITELLM_LOG=ERROR"].map(OsString::from);
    start.command.splice(0..0, environment);
    start.go(directory).await
}

/// Portkey's gateway, which is told with each request where to go.
pub(in crate::compare) async fn portkey(
    program: PathBuf,
    engines: &[SocketAddr],
    directory: &Path,
) -> anyhow::Result<Subject> {
    let address = free_port()?;
    let arguments = vec![format!("--port={}", address.port()), "--headless".to_owned()];
    let mut start = Start::new("portkey", address, &program, arguments);
    let target = |engine: &SocketAddr| json!({"provider": "openai", "api_key": "none", "custom_host": format!("http://{engine}/v1")});
    let targets: Vec<_> = engines.iter().map(target).collect();
    let config = json!({"strategy": {"mode": "loadbalance"}, "targets": targets});
    start.headers.push(("x-portkey-config", config.to_string()));
    start.go(directory).await
}

/// SGLang's router: by prefixes, with its key check.
pub(in crate::compare) async fn sglang_router(
    program: PathBuf,
    engines: &[SocketAddr],
    directory: &Path,
) -> anyhow::Result<Subject> {
    let mut arguments = vec!["launch".to_owned()];
    let address = routing(&mut arguments, engines, "cache_aware")?;
    arguments.extend(["--api-key", KEY, "--log-level", "error"].map(str::to_owned));
    Start::new("sglang-router", address, &program, arguments).go(directory).await
}

/// vLLM's router: each engine in turn.
pub(in crate::compare) async fn vllm_router(
    program: PathBuf,
    engines: &[SocketAddr],
    directory: &Path,
) -> anyhow::Result<Subject> {
    let mut arguments = Vec::new();
    let address = routing(&mut arguments, engines, "round_robin")?;
    arguments.extend(["--log-level", "error"].map(str::to_owned));
    Start::new("vllm-router", address, &program, arguments).go(directory).await
}

/// What both routers are told: where to listen, where to go, and by which policy.
fn routing(arguments: &mut Vec<String>, engines: &[SocketAddr], policy: &str) -> anyhow::Result<SocketAddr> {
    let (address, metrics) = (free_port()?, free_port()?);
    arguments.extend(["--host", "127.0.0.1", "--port", &address.port().to_string()].map(str::to_owned));
    arguments.extend(["--prometheus-port", &metrics.port().to_string(), "--policy", policy].map(str::to_owned));
    arguments.push("--worker-urls".to_owned());
    arguments.extend(lines(engines, |_, engine| format!("http://{engine}")).lines().map(str::to_owned));
    Ok(address)
}
