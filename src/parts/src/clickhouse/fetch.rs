//! The engine as a library: fetched once with npm, checked, and kept in the cache.

use super::Error;
use crate::{cache, process};
use sha2::{Digest as _, Sha256};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use tracing::info;

const VERSION: &str = "26.7.3-stable.1";
const PACKAGE: &str = "@chdb/lib-linux-x64-gnu";
/// Where it lies in the package.
const INSIDE: &str = "package/libchdb.so";
const NAME: &str = "libchdb.so";
const SHA256: &str = "36ad4e999882821ef13cf2d0f52c93f48e6ee1b4498b35a201c23ce4b8d15bf5";

/// The library's path; downloads 178 MB the first time, which unpack to 566 MB.
pub(super) fn library() -> Result<PathBuf, Error> {
    if !cfg!(all(target_os = "linux", target_arch = "x86_64", target_env = "gnu")) {
        return Err(Error::NotFound(format!("{PACKAGE} is for x86-64 Linux with glibc only")));
    }
    let directory = cache::directory().join("clickhouse").join(VERSION);
    let library = directory.join(NAME);
    // It gets its name once it has been checked.
    if library.is_file() {
        return Ok(library);
    }
    let unusable = |e| Error::io(format!("preparing {}", directory.display()))(e);
    std::fs::create_dir_all(&directory).map_err(unusable)?;
    // Tests start side by side, and one download is enough.
    let lock = File::create(directory.join("lock")).map_err(unusable)?;
    lock.lock().map_err(unusable)?;
    if !library.is_file() {
        info!(package = PACKAGE, version = VERSION, "no ClickHouse on this machine; downloading its engine");
        let staging = tempfile::tempdir_in(&directory).map_err(unusable)?;
        download(staging.path(), &directory)?;
        let unpacked = staging.path().join(INSIDE);
        check(&unpacked)?;
        std::fs::rename(&unpacked, &library).map_err(unusable)?;
    }
    Ok(library)
}

fn download(staging: &Path, directory: &Path) -> Result<(), Error> {
    let npm = process::find_program(&["npm"]).ok_or_else(|| {
        Error::NotFound(format!(
            "npm is missing too, with which {PACKAGE} is fetched (apt-get install npm). Or put the package's {NAME} \
             into {}",
            directory.display()
        ))
    })?;
    let mut pack = Command::new(npm);
    pack.args(["pack", "--silent", "--pack-destination"]).arg(staging).arg(format!("{PACKAGE}@{VERSION}"));
    let file = run("npm pack", pack.current_dir(staging))?;
    let mut unpack = Command::new("tar");
    unpack.arg("-xzf").arg(staging.join(file.trim())).arg("-C").arg(staging).arg(INSIDE);
    run("tar", &mut unpack).map(drop)
}

/// What a program printed.
fn run(what: &str, command: &mut Command) -> Result<String, Error> {
    let output = command.stdin(Stdio::null()).output().map_err(Error::io(format!("running {what}")))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let complaint = String::from_utf8_lossy(&output.stderr).trim().chars().take(1000).collect::<String>();
    Err(Error::NotFound(format!("{what} failed to fetch {PACKAGE}@{VERSION} ({}): {complaint}", output.status)))
}

fn check(file: &Path) -> Result<(), Error> {
    let mut hasher = Sha256::new();
    let mut open = File::open(file).map_err(Error::io(format!("opening {}", file.display())))?;
    std::io::copy(&mut open, &mut hasher).map_err(Error::io(format!("reading {}", file.display())))?;
    let found: String = hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    if found == SHA256 {
        return Ok(());
    }
    Err(Error::Checksum { found, expected: SHA256 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_file_than_the_one_we_know_is_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let message = check(file.path()).unwrap_err().to_string();
        assert!(message.contains("e3b0c442") && message.contains(SHA256), "{message}");
    }

    #[test]
    fn a_program_that_fails_is_quoted() {
        let message = run("sh", Command::new("sh").args(["-c", "echo no such package >&2; exit 3"])).unwrap_err();
        let message = message.to_string();
        assert!(message.contains("no such package") && message.contains("apt-get"), "{message}");
    }
}
