//! Which control plane the operator's commands talk to, and with which token.

use crate::{admin, private, up};
use anyhow::Context as _;
use std::path::PathBuf;

/// A control plane and a token for it.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Operator {
    /// The control plane's address; otherwise that of the `up` in --data-dir.
    #[arg(long, env = "TURNPIKE_ADMIN_URL", value_name = "URL", global = true)]
    admin_url: Option<String>,
    /// A token for it; otherwise that of the `up` in --data-dir.
    #[arg(long, env = "TURNPIKE_ADMIN_TOKEN", value_name = "TOKEN", hide_env_values = true, global = true)]
    admin_token: Option<String>,
    /// Data directory of a `turnpike up`.
    #[arg(long, default_value = "./.turnpike", value_name = "DIR", global = true)]
    data_dir: PathBuf,
}

impl Operator {
    /// A client for it.
    pub(crate) fn client(&self) -> anyhow::Result<admin::Client> {
        let running = match (&self.admin_url, &self.admin_token) {
            (Some(_), Some(_)) => None,
            _ => up::Running::read(&self.data_dir)?,
        };
        let missing = || {
            let dir = self.data_dir.display();
            format!("no `turnpike up` runs in {dir}; name its --data-dir, or give --admin-url and --admin-token")
        };
        let url = self.admin_url.clone().or_else(|| running.as_ref().map(|running| running.admin_url.clone()));
        let token = match (&self.admin_token, &running) {
            (Some(token), _) => Some(token.clone()),
            (None, Some(running)) => private::read(&running.admin_token_file)?,
            (None, None) => None,
        };
        Ok(admin::Client::new(&url.with_context(missing)?, &token.with_context(missing)?)?)
    }
}

/// Runs a command's calls to their end.
pub(crate) fn block_on<T>(calls: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().context("starting a runtime")?.block_on(calls)
}

/// Columns padded to line up, a line each; those from `numbers_from` on to the right.
pub(crate) fn columns<const N: usize>(rows: &[[String; N]], numbers_from: usize) -> String {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: [usize; N] = std::array::from_fn(width);
    let mut text = String::new();
    for row in rows {
        let cells = row.iter().zip(widths).enumerate();
        let padded =
            cells.map(
                |(column, (cell, width))| {
                    if column < numbers_from { format!("{cell:<width$}") } else { format!("{cell:>width$}") }
                },
            );
        text.push_str(&padded.collect::<Vec<_>>().join("  "));
        text.push('\n');
    }
    text
}
