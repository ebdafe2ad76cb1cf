//! Logs: to standard error, never to standard output, which belongs to results.

use anyhow::Context as _;
use clap::ValueEnum;
use std::io::IsTerminal as _;
use tracing_subscriber::EnvFilter;

/// What is logged, and how.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Options {
    /// What to log, such as `info` or `warn,turnpike_dataplane=debug`.
    #[arg(
        long,
        global = true,
        env = "RUST_LOG",
        default_value = "info",
        value_name = "FILTER",
        help_heading = "Logging"
    )]
    log: String,
    /// How log lines look.
    #[arg(
        long,
        global = true,
        env = "TURNPIKE_LOG_FORMAT",
        value_enum,
        default_value = "text",
        help_heading = "Logging"
    )]
    log_format: Format,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Format {
    /// For people.
    Text,
    /// One JSON object per line.
    Json,
}

/// Starts logging; call once.
pub(crate) fn init(options: &Options) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(&options.log).with_context(|| format!("--log {}", options.log))?;
    // Standard error may end before we do (the process that reads it died): that must not end our work half-done, as
    // it would if the complaint about it went there too.
    let builder =
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).log_internal_errors(false);
    let started = match options.log_format {
        Format::Text => builder.with_ansi(std::io::stderr().is_terminal()).try_init(),
        Format::Json => builder.json().flatten_event(true).try_init(),
    };
    started.map_err(anyhow::Error::from_boxed).context("starting the log")
}
