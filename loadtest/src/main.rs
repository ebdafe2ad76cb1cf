//! Breaks Turnpike again and again, for longer than its tests do, and measures it.

mod chaos;
mod compare;
mod deployment;
mod engine;
mod percentile;
mod program;
mod push;

use anyhow::{Context as _, ensure};
use clap::{Parser, Subcommand};
use std::path::{Path, PathBuf};

#[derive(Debug, Parser)]
#[command(about, version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Kill edges, nodes, databases and the control plane again and again, and compare the books after each death.
    Chaos(chaos::Args),
    /// Measure the edge beside nginx, HAProxy and a bare Pingora.
    Compare(compare::Args),
    /// Simulate engines on GPUs, which answer at their speed.
    Engine(engine::Args),
    /// Serve as the bare Pingora that `compare` measures.
    #[command(hide = true)]
    Pingora(compare::subjects::pingora::Args),
    /// Measure how fast, how small and how cheap it is to tell edges of a change.
    Push(push::Args),
}

// What Pingora is compared with has it too.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> anyhow::Result<()> {
    match Cli::parse().command {
        Command::Chaos(args) => chaos::run(&args),
        Command::Compare(args) => compare::run(&args),
        Command::Engine(args) => engine::run(&args),
        Command::Pingora(args) => {
            compare::subjects::pingora::run(args);
            Ok(())
        }
        Command::Push(args) => push::run(&args),
    }
}

/// The program to measure: this one, or else the one beside ours.
fn turnpike(named: Option<&Path>) -> anyhow::Result<PathBuf> {
    let beside = std::env::current_exe().context("finding this program")?.with_file_name("turnpike");
    let turnpike = named.map_or(beside, Path::to_path_buf);
    ensure!(
        turnpike.exists(),
        "{} is missing: build it in the same profile (cargo build --bin turnpike), or name it with --turnpike",
        turnpike.display()
    );
    // It is started from elsewhere.
    turnpike.canonicalize().with_context(|| format!("finding {}", turnpike.display()))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_consistent() {
        super::Cli::command().debug_assert();
    }
}
