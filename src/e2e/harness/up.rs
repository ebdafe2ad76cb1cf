//! `turnpike up`, as a user starts it.

use super::{Admin, Process, turnpike};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};

/// A running `turnpike up`.
pub(crate) struct Up {
    pub(crate) process: Process,
    /// The line that `--json` prints.
    pub(crate) ready: Value,
    data_dir: PathBuf,
}

impl Up {
    /// Starts it on free ports and waits until all is ready.
    pub(crate) fn start(data_dir: &Path, engine: &str) -> Self {
        Self::start_with(turnpike(), data_dir, engine)
    }

    /// The same, with a command that has an environment of its own.
    pub(crate) fn start_with(mut command: Command, data_dir: &Path, engine: &str) -> Self {
        command.args(["up", "--json", "--auto-ports", "--engine", engine, "--data-dir"]).arg(data_dir);
        let log = data_dir.with_extension("log");
        let mut process = Process::start(command, &log);
        let line = process.first_line();
        let ready = serde_json::from_str(&line).unwrap_or_else(|e| panic!("{e}: {line}"));
        Self { process, ready, data_dir: data_dir.to_owned() }
    }

    pub(crate) fn text(&self, field: &str) -> String {
        self.ready[field].as_str().unwrap_or_else(|| panic!("no {field} in {}", self.ready)).to_owned()
    }

    pub(crate) fn admin(&self) -> Admin {
        Admin { base: self.text("admin_url"), token: self.text("admin_token") }
    }

    /// Runs SQL on the private database, found by the control plane's settings.
    pub(crate) fn sql(&self, sql: &str) -> String {
        let settings = std::fs::read_to_string(self.data_dir.join("controlplane.toml")).unwrap();
        let settings: toml::Table = settings.parse().unwrap();
        let url = settings["postgres"]["url"].as_str().unwrap();
        let psql = turnpike_parts::postgres::Binaries::find().unwrap().path("psql");
        let output = std::process::Command::new(psql).args(["-XqAt", "-d", url, "-c", sql]).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    /// Ctrl-C, and wait for the end.
    pub(crate) fn interrupt(&mut self) -> ExitStatus {
        self.process.signal("INT");
        self.process.wait()
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        // In good order, so that the next test has the processor for itself; the process is killed if that fails.
        if !std::thread::panicking() && self.process.is_running() {
            self.interrupt();
        }
    }
}
