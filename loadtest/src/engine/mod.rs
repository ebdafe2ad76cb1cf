//! A simulator that stands for engines on GPUs: it answers at the speed and with the load of one, and knows nothing.

mod answer;
mod batch;
mod gpu;
mod register;
mod serve;

use anyhow::Context as _;
use batch::Profile;
use serve::Engine;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use turnpike_config::link::{Identity, TlsFiles};

/// A model that the simulator serves.
pub(crate) struct Model {
    pub(crate) name: &'static str,
    pub(crate) pace: Pace,
}

/// How fast a model answers.
pub(crate) enum Pace {
    /// To measure what stands in front.
    AtOnce,
    /// One token at once, and then nothing for as long as somebody waits: for what it costs to wait.
    Silent,
    Gpu(Profile),
}

/// All of them.
pub(crate) const MODELS: [Model; 4] = [
    Model { name: "sim-instant", pace: Pace::AtOnce },
    Model { name: "sim-silent", pace: Pace::Silent },
    // A token every 6 ms for everybody.
    Model {
        name: "sim-paced",
        pace: Pace::Gpu(Profile {
            prefill_per_token: Duration::ZERO,
            step: Duration::from_millis(6),
            step_per_sequence: Duration::ZERO,
            max_batch: usize::MAX,
            kv_blocks: usize::MAX >> 16,
        }),
    },
    // A model of eight billion parameters on an H200, at contexts of about 1,024 tokens, as `loadtest/gpu.py` printed: 5.3 ms
    // for a step, 45 µs more for each sequence (16.7 ms for 256), 25 to 28 µs for a token of a prompt. Blocks: what is left of
    // 140 GiB beside the weights.
    Model {
        name: "sim-gpu",
        pace: Pace::Gpu(Profile {
            prefill_per_token: Duration::from_micros(27),
            step: Duration::from_micros(5_300),
            step_per_sequence: Duration::from_micros(45),
            max_batch: 256,
            kv_blocks: 52_000,
        }),
    },
];

/// What to serve where.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    /// An engine for each address.
    #[arg(long, value_name = "HOST:PORT", required = true)]
    listen: Vec<SocketAddr>,
    /// Register them as nodes with this control plane.
    #[arg(long, value_name = "HOST:PORT", requires = "certs")]
    control: Option<String>,
    /// Where `ca.pem` is, and `engine-1.pem` with `engine-1.key` and so on, of the role `node`.
    #[arg(long, value_name = "DIRECTORY")]
    certs: Option<PathBuf>,
    /// The region that they stand in.
    #[arg(long, default_value = "here")]
    region: String,
}

/// Serves until the process ends.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    // Fails only if there is one already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = tokio::runtime::Runtime::new().context("starting the async runtime")?;
    runtime.block_on(serve(args))
}

async fn serve(args: &Args) -> anyhow::Result<()> {
    for (number, address) in (1..).zip(&args.listen) {
        let listener = TcpListener::bind(address).await.with_context(|| format!("listening on {address}"))?;
        let engine = Engine::start();
        tokio::spawn(Arc::clone(&engine).serve(listener));
        if let (Some(control), Some(certs)) = (&args.control, &args.certs) {
            let file = |suffix: &str| certs.join(format!("engine-{number}.{suffix}"));
            let files = TlsFiles { ca: certs.join("ca.pem"), cert: file("pem"), key: file("key") };
            let identity = Identity::load(&files)?;
            tokio::spawn(register::keep(engine, identity, control.clone(), (args.region.clone(), *address)));
        }
    }
    std::future::pending().await
}
