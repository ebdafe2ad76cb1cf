//! Load by oha, and what it saw.

use super::scenario::Load;
use super::subjects::Way;
use anyhow::{Context as _, bail, ensure};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::process::Command;
use turnpike_parts::process::find_program;

/// The version that the figures are made with.
const VERSION: &str = "1.16.0";

/// Where it is installed.
pub(super) struct Oha(PathBuf);

/// One run.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seen {
    pub(super) requests: u64,
    pub(super) per_second: f64,
    pub(super) p50_us: f64,
    pub(super) p99_us: f64,
}

/// What it prints.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Printed {
    summary: Summary,
    latency_percentiles: Percentiles,
    status_code_distribution: BTreeMap<String, u64>,
    error_distribution: BTreeMap<String, u64>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Summary {
    requests_per_sec: f64,
}

/// Seconds.
#[derive(Deserialize)]
struct Percentiles {
    p50: Option<f64>,
    p99: Option<f64>,
}

impl Oha {
    pub(super) fn find() -> anyhow::Result<Self> {
        // Where cargo installs, which need not be where users look.
        let variable = |name: &str| std::env::var_os(name).map(PathBuf::from);
        let cargo = variable("CARGO_HOME").or_else(|| Some(variable("HOME")?.join(".cargo")));
        let installed = cargo.map(|cargo| cargo.join("bin/oha")).filter(|path| path.is_file());
        let found = find_program(&["oha"]).or(installed);
        let install = format!("cargo install oha --locked --version {VERSION}");
        let found = found.with_context(|| format!("oha is missing, which makes the load: {install}"))?;
        let version = std::process::Command::new(&found).arg("--version").output().context("asking oha its version")?;
        let version = String::from_utf8_lossy(&version.stdout).trim().to_owned();
        ensure!(version == format!("oha {VERSION}"), "{} is «{version}»: {install}", found.display());
        Ok(Self(found))
    }

    /// Asks for so long with the bodies that are lines of a file, and expects this status every time.
    pub(super) async fn run(
        &self,
        Way { address, headers }: &Way,
        bodies: &Path,
        load: Load,
        (lasting, status): (Duration, u16),
    ) -> anyhow::Result<Seen> {
        let mut command = Command::new(&self.0);
        command.args(["--no-tui", "--output-format", "json", "-w", "-m", "POST", "-T", "application/json"]);
        command.args(["-z", &format!("{}ms", lasting.as_millis()), "-c", &load.connections.to_string()]);
        command.args(headers.iter().flat_map(|(name, value)| ["-H".to_owned(), format!("{name}: {value}")]));
        command.arg("-Z").arg(bodies);
        if load.http2 {
            command.args(["--http2", "-p", "32"]);
        }
        if let Some(rate) = load.rate {
            command.args(["-q", &rate.to_string(), "--latency-correction"]);
        }
        let output = command.arg(format!("http://{address}/v1/chat/completions")).kill_on_drop(true).output().await?;
        if !output.status.success() {
            bail!("oha: {}", String::from_utf8_lossy(&output.stderr));
        }
        let printed: Printed = serde_json::from_slice(&output.stdout).context("reading what oha printed")?;
        let Printed { summary, latency_percentiles, status_code_distribution: codes, error_distribution } = printed;
        let expected = codes.get(&status.to_string()).copied().unwrap_or(0);
        let others = codes.values().sum::<u64>() - expected;
        // A limit lets one pass now and then.
        let passed = if status == 429 { codes.get("200").copied().unwrap_or(0) } else { 0 };
        ensure!(
            expected > 0 && others == passed && passed <= expected / 1_000 && error_distribution.is_empty(),
            "expected {status} every time, but got {codes:?}, {error_distribution:?}"
        );
        let us = |seconds: Option<f64>| seconds.unwrap_or(f64::NAN) * 1e6;
        Ok(Seen {
            requests: expected + others,
            per_second: summary.requests_per_sec,
            p50_us: us(latency_percentiles.p50),
            p99_us: us(latency_percentiles.p99),
        })
    }
}
