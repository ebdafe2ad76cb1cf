//! A program that runs beside this one, and what it costs.

use anyhow::Context as _;
use std::ffi::OsString;
use std::ops::Sub;
use std::path::{Path, PathBuf};
use std::time::Duration;
use turnpike_parts::process::{Guarded, GuardedProcess};

/// Clock ticks a second in /proc, on every Linux.
const TICKS: u64 = 100;
/// Until it is killed.
const PATIENCE: Duration = Duration::from_secs(5);

/// The program, which ends when this is dropped and whenever this process does.
pub(crate) struct Program {
    process: GuardedProcess,
    log: PathBuf,
}

/// What a program and its children have taken so far.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Cost {
    /// CPU time, of user and system.
    pub(crate) cpu: Duration,
    /// Resident memory.
    pub(crate) rss_kib: u64,
}

impl Cost {
    /// Resident memory.
    pub(crate) const fn rss_mib(self) -> f64 {
        self.rss_kib as f64 / 1024.0
    }
}

impl Sub for Cost {
    type Output = Self;

    /// What was taken since `before`, and the memory of now.
    fn sub(self, before: Self) -> Self {
        Self { cpu: self.cpu.saturating_sub(before.cpu), ..self }
    }
}

impl Program {
    /// Starts `command`, whose output goes to `NAME.log` in `directory`.
    pub(crate) fn start(name: &str, command: Vec<OsString>, directory: &Path) -> anyhow::Result<Self> {
        let log = directory.join(format!("{name}.log"));
        let guarded = Guarded { command, run_as: None, stop_signal: "TERM", remove_afterwards: None, log: log.clone() };
        let process = guarded.spawn().with_context(|| format!("starting {name}"))?;
        Ok(Self { process, log })
    }

    /// What it has printed.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// What it has taken so far.
    pub(crate) fn cost(&self) -> anyhow::Result<Cost> {
        cost_of(self.process.id().context("the program did not start")?)
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.process.stop(PATIENCE);
    }
}

/// What a process and its children have taken so far.
pub(crate) fn cost_of(pid: u32) -> anyhow::Result<Cost> {
    let read = |file: &str| {
        let path = format!("/proc/{pid}/{file}");
        std::fs::read_to_string(&path).with_context(|| format!("reading {path}: has the program ended?"))
    };
    let status = read("status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    let stat = read("stat")?;
    // The name, in brackets, may hold anything. User and system time are the 14th and 15th field.
    let (_, fields) = stat.rsplit_once(')').context("no name in stat")?;
    let ticks = fields.split_whitespace().skip(11).take(2).map(str::parse::<u64>);
    let ticks: u64 = ticks.collect::<Result<Vec<_>, _>>()?.into_iter().sum();
    let own = Cost {
        cpu: Duration::from_millis(ticks * 1000 / TICKS),
        rss_kib: line.trim().trim_end_matches("kB").trim().parse()?,
    };
    read(&format!("task/{pid}/children"))?.split_whitespace().try_fold(own, |sum, child| {
        let Cost { cpu, rss_kib } = cost_of(child.parse()?)?;
        Ok(Cost { cpu: sum.cpu + cpu, rss_kib: sum.rss_kib + rss_kib })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    #[test]
    fn what_children_take_is_seen() {
        let directory = tempfile::tempdir().unwrap();
        // The shell waits for a child that counts, and ends by itself: nobody tells it when the shell has ended.
        let script = "sh -c 'i=0; while [ $i -lt 3000000 ]; do i=$((i+1)); done' & wait";
        let program = Program::start("busy", vec!["sh".into(), "-c".into(), script.into()], directory.path()).unwrap();
        let deadline = Instant::now() + Duration::from_secs(30);
        while program.cost().unwrap().cpu < Duration::from_millis(50) {
            assert!(Instant::now() < deadline, "{:?}", program.cost().unwrap());
            std::thread::sleep(Duration::from_millis(5));
        }
        assert!(program.cost().unwrap().rss_kib > 0);
    }
}
