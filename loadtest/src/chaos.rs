//! The chaos matrix, long: the cases of the end-to-end tests, each repeated with the process dying a little later.

use anyhow::{Context as _, ensure};
use std::process::Command;

/// How long to go on.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    /// How often each case is repeated; a round takes some minutes.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Only cases whose name contains this.
    #[arg(long, default_value = "chaos::", value_name = "NAME")]
    only: String,
}

/// Runs the cases one after the other, so that each has the machine to itself.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let workspace = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
    // The cases die at points that only debug builds have, and that only the tests know how to look after.
    let mut tests = Command::new(cargo);
    tests.current_dir(workspace).args(["test", "--package", "turnpike", "--test", "e2e", "--", &args.only]);
    tests.args(["--nocapture", "--test-threads=1"]).env("TURNPIKE_CHAOS_ROUNDS", args.rounds.to_string());
    let status = tests.status().context("starting cargo")?;
    ensure!(status.success(), "the books differ, or a case did not come to its end: see above");
    Ok(())
}
