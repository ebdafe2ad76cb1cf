//! One binary for all of Turnpike: the three planes, and the tools around them.

mod admin;
mod certs;
mod config;
mod cpu;
mod explain;
mod invoices;
mod logging;
mod operator;
mod pki;
mod plane;
mod private;
mod reconcile;
mod rollout;
mod shutdown;
mod up;
mod usage;
mod weights;

use clap::{Parser, Subcommand};
use std::io::Write as _;
use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// LLM serving on your own GPUs: edge proxy, control plane and node agent in one binary.
#[derive(Debug, Parser)]
#[command(name = "turnpike", version, propagate_version = true)]
struct Cli {
    #[command(flatten)]
    logging: logging::Options,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Start everything on this machine: database, control plane, an edge and a node with a model.
    Up(up::Args),
    /// Run the control plane: admin API, configuration push, usage and billing.
    Controlplane(plane::Args),
    /// Run an edge proxy: authenticates, limits, balances and meters requests.
    Dataplane(plane::Args),
    /// Run a node agent: fronts the inference engine of one host.
    GpuNode(plane::Args),
    /// Show what was used, and what it cost.
    Usage(usage::Args),
    /// Declare configuration in files, and see what changed.
    Config(config::Args),
    /// Let changes reach one edge, then its region, then all.
    Rollout(rollout::Args),
    /// List, show and make invoices.
    Invoices(invoices::Args),
    /// Compare the books of a day: edges, nodes, the usage ledger, daily sums, invoices.
    Reconcile(reconcile::Args),
    /// Say what an edge would do with a request, and why.
    Explain(explain::Args),
    /// Make the certificates by which planes know each other.
    #[command(subcommand)]
    Certs(certs::Command),
    /// Manage the built-in engine's model weights.
    #[command(subcommand)]
    Weights(weights::Command),
}

fn main() -> ExitCode {
    let outcome = cpu::check().map_err(anyhow::Error::msg).and_then(|()| run(Cli::parse()));
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Standard error may be gone; then nobody is left to tell.
            let _ = writeln!(std::io::stderr(), "turnpike: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> anyhow::Result<()> {
    logging::init(&cli.logging)?;
    // The one TLS provider of the process; it fails only if it is set already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    match cli.command {
        Command::Up(args) => up::run(args),
        Command::Controlplane(args) => plane::controlplane(&args),
        Command::Dataplane(args) => plane::dataplane(&args),
        Command::GpuNode(args) => plane::gpu_node(&args),
        Command::Usage(args) => usage::run(&args),
        Command::Config(args) => config::run(&args),
        Command::Rollout(args) => rollout::run(&args),
        Command::Invoices(args) => invoices::run(&args),
        Command::Reconcile(args) => reconcile::run(&args),
        Command::Explain(args) => explain::run(&args),
        Command::Certs(command) => certs::run(&command),
        Command::Weights(command) => weights::run(&command),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_consistent() {
        super::Cli::command().debug_assert();
    }
}
