//! Breaks Turnpike again and again, for longer than its tests do, and measures it.

mod chaos;
mod push;

use clap::{Parser, Subcommand};

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
    /// Measure how fast, how small and how cheap it is to tell edges of a change.
    Push(push::Args),
}

fn main() -> anyhow::Result<()> {
    match Cli::parse().command {
        Command::Chaos(args) => chaos::run(&args),
        Command::Push(args) => push::run(&args),
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
