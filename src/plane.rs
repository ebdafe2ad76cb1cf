//! Runs one plane in this process, from its settings file until it is told to stop.

use crate::shutdown;
use anyhow::Context as _;
use std::path::PathBuf;
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;
use turnpike_config::settings::BadSettings;

/// How to run a plane.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "\
Any setting can be overridden by the environment: TURNPIKE_SECTION__FIELD, such as TURNPIKE_HTTP__LISTEN.
SIGTERM, SIGINT: drain and stop; the same again: stop at once.")]
pub(crate) struct Args {
    /// Settings file (TOML).
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Also drain and stop when standard input ends, that is, when the process that holds its other end dies.
    #[arg(long)]
    exit_with_parent: bool,
}

impl Args {
    fn settings<T>(
        &self,
        load: impl FnOnce(&str, &str, &dyn Fn(&str) -> Option<String>) -> Result<T, BadSettings>,
    ) -> anyhow::Result<T> {
        let name = self.config.display().to_string();
        let text =
            std::fs::read_to_string(&self.config).with_context(|| format!("reading the settings file {name}"))?;
        Ok(load(&name, &text, &|variable| std::env::var(variable).ok())?)
    }

    fn stop_token(&self, runtime: &Runtime) -> anyhow::Result<CancellationToken> {
        let _inside = runtime.enter();
        let token = shutdown::on_signals().context("listening for signals")?;
        if self.exit_with_parent {
            shutdown::with_parent(token.clone());
        }
        Ok(token)
    }
}

/// `turnpike controlplane`
pub(crate) fn controlplane(args: &Args) -> anyhow::Result<()> {
    let settings = args.settings(turnpike_controlplane::Settings::load)?;
    let runtime = Runtime::new().context("starting the async runtime")?;
    let stop = args.stop_token(&runtime)?;
    runtime.block_on(turnpike_controlplane::run(settings, stop)).context("control plane")
}

/// `turnpike gpu-node`
pub(crate) fn gpu_node(args: &Args) -> anyhow::Result<()> {
    let settings = args.settings(turnpike_gpu_node::Settings::load)?;
    let runtime = Runtime::new().context("starting the async runtime")?;
    let stop = args.stop_token(&runtime)?;
    runtime.block_on(turnpike_gpu_node::run(settings, stop)).context("node")
}

/// `turnpike dataplane`
pub(crate) fn dataplane(args: &Args) -> anyhow::Result<()> {
    let settings = args.settings(turnpike_dataplane::Settings::load)?;
    // The edge brings runtimes of its own and wants the main thread; this one only waits for signals.
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    let runtime =
        builder.worker_threads(1).thread_name("signals").enable_all().build().context("starting a runtime")?;
    let stop = args.stop_token(&runtime)?;
    turnpike_dataplane::run(settings, stop).context("edge")
}
