//! A cluster's files: where they lie, whose they are, how they are made, and the server that is to run on them.

use super::{Binaries, Error, ROLE, binaries};
use crate::account::Account;
use crate::process::{self, Guarded};
use sha2::{Digest as _, Sha256};
use std::ffi::OsString;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tracing::{info, warn};

/// Where data go that an unprivileged user cannot reach beside ours.
const SYSTEM_HOME: &str = "/var/lib/turnpike";

/// Whether a crash of the machine may lose data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Durability {
    /// Nothing acknowledged is lost.
    Full,
    /// All may be lost.
    None,
}

/// A server to be started.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) data: PathBuf,
    pub(super) socket_dir: PathBuf,
    pub(super) log: PathBuf,
    pub(super) remove_afterwards: PathBuf,
    pub(super) stop_signal: &'static str,
    pub(super) durability: Durability,
}

impl Plan {
    pub(super) fn guarded(&self, binaries: &Binaries, run_as: Option<Account>) -> Guarded {
        let mut options = vec!["listen_addresses=".to_owned(), "max_connections=200".to_owned()];
        options.push(format!("unix_socket_directories={}", self.socket_dir.display()));
        options.push("unix_socket_permissions=0700".to_owned());
        if self.durability == Durability::None {
            let fast = ["fsync=off", "synchronous_commit=off", "full_page_writes=off", "shared_buffers=32MB"];
            options.extend(fast.map(str::to_owned));
        }
        let mut command: Vec<OsString> = vec!["env".into()];
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("PG")) {
            command.extend(["-u".into(), name]);
        }
        command.extend([binaries.path("postgres").into(), "-D".into(), self.data.clone().into()]);
        command.extend(options.into_iter().flat_map(|option| [OsString::from("-c"), option.into()]));
        Guarded {
            command,
            run_as,
            stop_signal: self.stop_signal,
            remove_afterwards: Some(self.remove_afterwards.clone()),
            log: self.log.clone(),
        }
    }
}

/// Makes an empty cluster, unless one is there.
pub(super) fn init(
    binaries: &Binaries,
    data: &Path,
    run_as: Option<Account>,
    durability: Durability,
) -> Result<(), Error> {
    let version_file = data.join("PG_VERSION");
    if version_file.is_file() {
        return check_version(&version_file, binaries);
    }
    // initdb into a directory aside: one that was interrupted leaves no half-made cluster behind.
    let aside = data.with_extension("new");
    if aside.exists() {
        std::fs::remove_dir_all(&aside).map_err(Error::io(format!("removing {}", aside.display())))?;
    }
    let mut command = binaries.command("initdb", run_as);
    command.arg("-D").arg(&aside).args(["-U", ROLE, "-E", "UTF8", "--locale=C.UTF-8", "-A", "trust"]);
    if durability == Durability::None {
        command.arg("--no-sync");
    }
    binaries::run("initdb", command)?;
    std::fs::rename(&aside, data).map_err(Error::io(format!("renaming {} to {}", aside.display(), data.display())))
}

fn check_version(version_file: &Path, binaries: &Binaries) -> Result<(), Error> {
    let text = std::fs::read_to_string(version_file).map_err(Error::io(version_file.display().to_string()))?;
    if text.trim() == binaries.major().to_string() {
        return Ok(());
    }
    let output = format!(
        "{} was made by PostgreSQL {}, but this machine's is {}; install that version, or use another data directory",
        version_file.display(),
        text.trim(),
        binaries.major()
    );
    Err(Error::Program { program: "postgres", output })
}

/// A new directory with a short path (a Unix socket's path has at most 107 bytes) that belongs to the server's user.
pub(super) fn short_directory(run_as: Option<Account>) -> Result<PathBuf, Error> {
    const LONGEST: usize = 107 - "/.s.PGSQL.65535.lock".len() - "/turnpike-XXXXXX".len();
    let temporary = std::env::temp_dir();
    let reachable = run_as.is_none_or(|account| account.reaches(&temporary));
    let short = temporary.as_os_str().len() <= LONGEST;
    let parent = if reachable && short { temporary } else { PathBuf::from("/tmp") };
    let made = tempfile::Builder::new().prefix("turnpike-").tempdir_in(&parent);
    let path = made.map_err(Error::io(format!("making a directory in {}", parent.display())))?.keep();
    give(&path, run_as)?;
    Ok(path)
}

/// Makes a directory of [`short_directory`] once more, under the same name, after a guard has removed it.
pub(super) fn remake(directory: &Path, run_as: Option<Account>) -> Result<(), Error> {
    match std::fs::create_dir(directory) {
        Err(e) if e.kind() != std::io::ErrorKind::AlreadyExists => {
            Err(Error::io(format!("making {}", directory.display()))(e))
        }
        _ => give(directory, run_as),
    }
}

/// Hands a directory to the server's user, closed to all others.
fn give(directory: &Path, run_as: Option<Account>) -> Result<(), Error> {
    let failed = || Error::io(format!("handing {} to PostgreSQL's user", directory.display()));
    if let Some(account) = run_as {
        chown(directory, Some(account.uid), Some(account.gid)).map_err(failed())?;
    }
    std::fs::set_permissions(directory, std::fs::Permissions::from_mode(0o700)).map_err(failed())
}

/// The directory for a lasting cluster: `directory` itself, or one under [`SYSTEM_HOME`] that its note names.
pub(super) fn persistent_home(directory: &Path, run_as: Option<Account>) -> Result<PathBuf, Error> {
    std::fs::create_dir_all(directory).map_err(Error::io(format!("making {}", directory.display())))?;
    let directory = directory.canonicalize().map_err(Error::io(directory.display().to_string()))?;
    let note = directory.join("location");
    let noted = std::fs::read_to_string(&note).ok().map(|text| PathBuf::from(text.trim_end_matches('\n')));
    if let Some(home) = noted {
        return Ok(home);
    }
    // The server's user needs to pass through the directories above; `directory` itself will be its own.
    let reachable = run_as.is_none_or(|account| directory.parent().is_some_and(|parent| account.reaches(parent)));
    if reachable {
        give(&directory, run_as)?;
        return Ok(directory);
    }
    let home = system_home(&directory, run_as)?;
    std::fs::write(&note, format!("{}\n", home.display())).map_err(Error::io(format!("writing {}", note.display())))?;
    info!(home = %home.display(), "PostgreSQL's user cannot reach the data directory; its data lie elsewhere");
    Ok(home)
}

fn system_home(directory: &Path, run_as: Option<Account>) -> Result<PathBuf, Error> {
    std::fs::create_dir_all(SYSTEM_HOME).map_err(Error::io(format!("making {SYSTEM_HOME}")))?;
    let digest = Sha256::digest(directory.as_os_str().as_encoded_bytes());
    let name: String = digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    // Only the note connects the two: data whose note is gone belong to an installation that was deleted, and must not
    // come back as those of a new one in the same place. Hence the random part.
    let made = tempfile::Builder::new().prefix(&format!("{name}-")).tempdir_in(SYSTEM_HOME);
    let home = made.map_err(Error::io(format!("making a directory in {SYSTEM_HOME}")))?.keep();
    let belongs_to = home.join("belongs-to");
    std::fs::write(&belongs_to, format!("{}\n", directory.display()))
        .map_err(Error::io(format!("writing {}", belongs_to.display())))?;
    give(&home, run_as)?;
    Ok(home)
}

/// Stops a server that an earlier run left on these data, and clears away what a crash left.
pub(super) fn stop_leftover(binaries: &Binaries, data: &Path, run_as: Option<Account>) -> Result<(), Error> {
    let pid_file = data.join("postmaster.pid");
    let Some(pid) = first_number(&pid_file) else { return Ok(()) };
    let gone = || !pid_file.exists() || !is_postgres(pid);
    // Usually its guard is stopping it already: the earlier run has just ended.
    if !process::wait_until(Instant::now() + Duration::from_secs(5), gone) {
        warn!(pid, "stopping a PostgreSQL that an earlier run left behind");
        let mut command = binaries.command("pg_ctl", run_as);
        command.arg("stop").arg("-D").arg(data).args(["-m", "fast", "-w", "-t", "30"]);
        if binaries::run("pg_ctl", command).is_err() && !gone() {
            return Err(Error::Busy { pid, data: data.display().to_string() });
        }
    }
    // PostgreSQL clears a stale file away itself, and by it finds sessions of a killed server that still hold memory.
    // But it would take any process that got the same id since for a running server.
    if pid_file.exists() && process::is_alive(pid) && !is_postgres(pid) {
        std::fs::remove_file(&pid_file).map_err(Error::io(format!("removing {}", pid_file.display())))?;
    }
    Ok(())
}

fn first_number(file: &Path) -> Option<u32> {
    std::fs::read_to_string(file).ok()?.lines().next()?.trim().parse().ok()
}

/// Whether the process exists and, where the system tells, is a PostgreSQL.
fn is_postgres(pid: u32) -> bool {
    match std::fs::read_to_string(format!("/proc/{pid}/comm")) {
        Ok(name) => name.trim().starts_with("postgres"),
        Err(_) => !Path::new("/proc/self").exists() && process::is_alive(pid),
    }
}
