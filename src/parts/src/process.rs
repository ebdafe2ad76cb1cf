//! Child processes that never outlive us, whatever ends us.

use crate::account::Account;
use rustix::process::{Pid, kill_process, test_kill_process};
use std::ffi::{OsStr, OsString};
use std::io::{BufRead as _, BufReader};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

pub use rustix::process::Signal;

/// A shell that starts the server and waits for it, while its background half waits for the end of standard input: we
/// hold the other end, so the kernel closes it however we end, SIGKILL included. (PR_SET_PDEATHSIG would not do: it
/// fires when the spawning *thread* ends.) It is deaf to SIGHUP, which the kernel sends to the whole group when we end
/// while the server is halted by SIGSTOP. Arguments: signal, directory to remove afterwards or nothing, command.
const GUARD: &str = r#"
signal=$1 trash=$2
shift 2
exec 3<&0
"$@" 3<&- </dev/null >&2 &
server=$!
echo "$server"
exec >&2
trap '' HUP
( while read -r _; do :; done; kill -s "$signal" "$server" ) <&3 &
reader=$!
exec 3<&-
wait "$server"
status=$?
kill "$reader" 2>/dev/null
[ -z "$trash" ] || rm -rf -- "$trash"
exit "$status"
"#;

/// How often a condition is looked at while waiting for it.
pub const POLL: Duration = Duration::from_millis(10);

/// What to run under guard.
#[derive(Debug)]
pub struct Guarded {
    /// Program and arguments.
    pub command: Vec<OsString>,
    /// Another user to run as; only root can.
    pub run_as: Option<Account>,
    /// Name of the signal that stops the server when we are gone, such as `INT`.
    pub stop_signal: &'static str,
    /// Removed with all its contents once the server has stopped.
    pub remove_afterwards: Option<PathBuf>,
    /// Where the server's standard output and error go.
    pub log: PathBuf,
}

/// A running server. Dropping it stops the server without waiting.
#[derive(Debug)]
pub struct GuardedProcess {
    guard: Child,
    server: Option<Pid>,
}

impl Guarded {
    /// Starts it.
    pub fn spawn(self) -> std::io::Result<GuardedProcess> {
        let log = std::fs::File::options().create(true).append(true).open(&self.log)?;
        if let Some(account) = self.run_as {
            std::os::unix::fs::chown(&self.log, Some(account.uid), Some(account.gid))?;
        }
        let mut command = as_user("sh", self.run_as);
        command.args(["-c", GUARD, "guard", self.stop_signal]);
        command.arg(self.remove_afterwards.as_deref().map_or(OsStr::new(""), Path::as_os_str)).args(&self.command);
        // Its own process group: a Ctrl-C at the terminal is for us, and we stop servers in the right order.
        command.process_group(0).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(log);
        let mut guard = command.spawn()?;
        let mut first_line = String::new();
        if let Some(stdout) = guard.stdout.take() {
            BufReader::new(stdout).read_line(&mut first_line)?;
        }
        Ok(GuardedProcess { guard, server: first_line.trim().parse().ok().and_then(Pid::from_raw) })
    }
}

impl GuardedProcess {
    /// The server's process id.
    pub fn id(&self) -> Option<u32> {
        self.server.map(|pid| pid.as_raw_nonzero().get().unsigned_abs())
    }

    /// How it ended, if it has.
    pub fn try_wait(&mut self) -> std::io::Result<Option<ExitStatus>> {
        self.guard.try_wait()
    }

    /// Sends the stop signal and waits; after `patience` kills. Returns whether it stopped by itself.
    pub fn stop(&mut self, patience: Duration) -> bool {
        drop(self.guard.stdin.take());
        if self.ended_within(patience) {
            return true;
        }
        if let Some(server) = self.server {
            // The guard has not reaped it yet, so the id is still the server's.
            let _ = kill_process(server, Signal::KILL);
        }
        self.ended_within(Duration::from_secs(5));
        false
    }

    /// Sends the server a signal; an error if it has ended.
    pub fn signal(&mut self, signal: Signal) -> std::io::Result<()> {
        match (self.guard.try_wait()?, self.server) {
            // The guard has not reaped it yet, so the id is still the server's.
            (None, Some(server)) => Ok(kill_process(server, signal)?),
            _ => Err(std::io::Error::new(std::io::ErrorKind::NotFound, "the process has ended")),
        }
    }

    /// Waits until it has ended, but no longer than `patience`; says whether it has.
    pub fn ended_within(&mut self, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        wait_until(deadline, || !matches!(self.guard.try_wait(), Ok(None)))
    }
}

impl Drop for GuardedProcess {
    fn drop(&mut self) {
        drop(self.guard.stdin.take());
    }
}

/// A command that runs as `account` (only root can change user), from a directory that everybody may be in.
pub fn as_user(program: impl AsRef<OsStr>, account: Option<Account>) -> Command {
    let mut command = Command::new(program);
    command.current_dir("/");
    if let Some(account) = account {
        command.gid(account.gid).uid(account.uid);
    }
    command
}

/// Looks at a condition until it holds or the deadline has passed; says whether it held.
pub fn wait_until(deadline: Instant, mut condition: impl FnMut() -> bool) -> bool {
    loop {
        if condition() {
            return true;
        }
        if Instant::now() >= deadline {
            return false;
        }
        std::thread::sleep(POLL);
    }
}

/// Whether a process of this id exists (and may be signalled by us).
pub fn is_alive(id: u32) -> bool {
    i32::try_from(id).ok().and_then(Pid::from_raw).is_some_and(|pid| test_kill_process(pid).is_ok())
}

/// Whether SIGSTOP has taken effect; where the system does not tell, it is believed to have.
pub fn has_halted(id: u32) -> bool {
    let Ok(stat) = std::fs::read_to_string(format!("/proc/{id}/stat")) else { return true };
    // The state comes after the program's name, which is in parentheses and may hold anything.
    stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with('T'))
}

/// The last `lines` lines of a log file, for an error message.
pub fn last_lines(log: &Path, lines: usize) -> String {
    let text = std::fs::read(log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

/// The first program of one of these names in the absolute directories on PATH, or in `/usr/bin`. Absolute, because
/// servers are started from another directory.
pub fn find_program(names: &[&str]) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let on_path = std::env::split_paths(&path).filter(|directory| directory.is_absolute());
    let mut directories = on_path.chain([PathBuf::from("/usr/bin")]);
    directories
        .find_map(|directory| names.iter().map(|name| directory.join(name)).find(|candidate| candidate.is_file()))
}
