//! How fast, how small and how cheap it is to tell edges of a change: a real control plane on a real PostgreSQL, and edges
//! that are real links with certificates of their own and follow the log as edges do, but have nothing behind them.

mod figures;
mod subscriber;

use crate::deployment::Deployment;
use anyhow::{Context as _, ensure};
use figures::{Figures, Latency, Wire};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use subscriber::{Crowd, Subscriber};

/// Keys that there are at first.
const FEW_KEYS: u32 = 10;
/// Nothing changes for so long, to see what that costs.
const IDLE: Duration = Duration::from_secs(4);
/// Between two changes, so that one is over before the next begins.
const PAUSE: Duration = Duration::from_millis(150);
/// Changes of which the smallest number of bytes counts: now and then something else is on its way.
const WIRE_CHANGES: usize = 7;

/// What to measure.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    /// Edges that are linked.
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..))]
    subscribers: u32,
    /// Changes, and as many revocations.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..))]
    changes: u32,
    /// Keys that there are in the end, when a change is measured again.
    #[arg(long, default_value_t = 100_000)]
    keys: u32,
    /// Also write the figures here, as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// The program to measure; otherwise the one beside this one.
    #[arg(long, value_name = "FILE")]
    turnpike: Option<PathBuf>,
}

/// Measures and prints.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let turnpike = crate::turnpike(args.turnpike.as_deref())?;
    // Fails only if there is one already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = tokio::runtime::Runtime::new().context("starting the async runtime")?;
    let figures = runtime.block_on(measure(args, turnpike))?;
    figures.print(&mut std::io::stdout())?;
    if let Some(file) = &args.json {
        std::fs::write(file, serde_json::to_string_pretty(&figures)?)
            .with_context(|| format!("writing {}", file.display()))?;
    }
    Ok(())
}

async fn measure(args: &Args, turnpike: PathBuf) -> anyhow::Result<Figures> {
    let mut deployment = Deployment::start(turnpike).await?;
    let mut keys = Vec::new();
    for _ in 0..FEW_KEYS.max(args.changes) {
        keys.push(deployment.make_key().await?);
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    // Before there is a crowd, which would serve by these changes too.
    let few = wire(&deployment, FEW_KEYS.max(args.changes) + 1).await?;

    let before_kib = deployment.control_cost()?.rss_kib;
    let began = Instant::now();
    let crowd = Crowd::connect(&deployment, args.subscribers).await?;
    let connected_s = began.elapsed().as_secs_f64();
    tokio::time::sleep(Duration::from_secs(2)).await;
    let per_subscriber =
        (deployment.control_cost()?.rss_kib.saturating_sub(before_kib) << 10) / u64::from(args.subscribers);
    let cpu = deployment.control_cost()?.cpu;
    tokio::time::sleep(IDLE).await;
    let idle_cpu = (deployment.control_cost()?.cpu - cpu).as_secs_f64() / IDLE.as_secs_f64();

    let (changed, cpu) =
        latencies(args, &deployment, &crowd, &keys, |key, round| deployment.change(key, round)).await?;
    let (revoked, _) = latencies(args, &deployment, &crowd, &keys, |key, _| deployment.revoke(key)).await?;
    ensure!(crowd.lost() == 0, "{} links were lost meanwhile", crowd.lost());
    drop(crowd);

    deployment.insert_keys(args.keys).await?;
    let many = wire(&deployment, args.keys).await?;
    Ok(Figures {
        subscribers: args.subscribers,
        changes: args.changes,
        cores: std::thread::available_parallelism().map_or(1, usize::from),
        connect_s: connected_s,
        change: changed,
        revocation: revoked,
        cpu_us_per_delivery: cpu,
        idle_cpu,
        bytes_per_idle_subscriber: per_subscriber,
        wire: vec![few, many],
    })
}

/// From before a change is asked for until each edge serves by it; and the control plane's CPU time for each, microseconds.
async fn latencies<F: Future<Output = anyhow::Result<()>>>(
    args: &Args,
    deployment: &Deployment,
    crowd: &Crowd,
    keys: &[String],
    change: impl Fn(String, u32) -> F,
) -> anyhow::Result<(Latency, f64)> {
    let mut all = Vec::new();
    let mut cpu = Duration::ZERO;
    for (round, key) in (0..args.changes).zip(keys) {
        let began = (Instant::now(), deployment.control_cost()?.cpu);
        change(key.clone(), round).await?;
        all.extend(crowd.until_served(round, began.0).await?);
        tokio::time::sleep(PAUSE).await;
        cpu += deployment.control_cost()?.cpu - began.1;
    }
    let deliveries = f64::from(args.changes) * f64::from(args.subscribers);
    Ok((Latency::of(all), cpu.as_secs_f64() * 1e6 / deliveries))
}

/// What goes over the wire to one edge: all that there is, then a change of one key.
async fn wire(deployment: &Deployment, keys: u32) -> anyhow::Result<Wire> {
    let dialer = Arc::new(deployment.dialer()?);
    let began = Instant::now();
    let mut edge = Subscriber::connect(deployment, &dialer, "edge-probe").await?;
    let snapshot_bytes = edge.until_whole().await?;
    let snapshot_s = began.elapsed().as_secs_f64();
    let mut smallest: Option<(u64, usize)> = None;
    for round in 0..WIRE_CHANGES {
        let key = deployment.make_key().await?;
        edge.next_change().await?;
        tokio::time::sleep(PAUSE).await;
        let before = edge.received();
        deployment.change(key, u32::try_from(round)?).await?;
        let frame = edge.next_change().await?;
        tokio::time::sleep(PAUSE).await;
        let seen = (edge.received() - before, frame);
        smallest = Some(smallest.map_or(seen, |smallest| smallest.min(seen)));
    }
    let (udp_bytes, frame_bytes) = smallest.unwrap_or_default();
    Ok(Wire { keys, udp_bytes, frame_bytes, snapshot_bytes, snapshot_s })
}
