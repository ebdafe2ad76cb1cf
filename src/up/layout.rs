//! The data directory: what lies where, and who may use it.

use crate::private;
use anyhow::{Context as _, bail};
use serde::{Deserialize, Serialize};
use std::fs::{File, TryLockError};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tracing::{info, warn};
use turnpike_parts::process::wait_until;

/// How long planes of a crashed run may drain.
const OUTLAST_PATIENCE: Duration = Duration::from_secs(30);
const PROBE_TIMEOUT: Duration = Duration::from_millis(500);

/// A data directory that this process has locked.
pub(super) struct DataDir {
    root: PathBuf,
    /// Held open for its lock, which the kernel lifts however we end.
    _lock: File,
}

/// Where the parts of a running installation are reached; kept in `running.json` from start to clean end, for other
/// commands and for the start after a crash.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Running {
    /// Base URL for OpenAI clients.
    pub(crate) base_url: String,
    /// The control plane's address.
    pub(crate) admin_url: String,
    /// The edge's own, for operators.
    #[serde(default)]
    pub(crate) edge_url: String,
    /// File that holds the admin token.
    pub(crate) admin_token_file: PathBuf,
    /// Process id of `turnpike up`.
    pub(crate) pid: u32,
    /// Listeners that its planes keep to their very end.
    pub(super) last_listeners: Vec<SocketAddr>,
}

impl Running {
    const FILE: &'static str = "running.json";

    /// What the `up` in `data_dir` has written: it runs, or has crashed.
    pub(crate) fn read(data_dir: &Path) -> anyhow::Result<Option<Self>> {
        let Some(text) = private::read(&data_dir.join(Self::FILE))? else { return Ok(None) };
        serde_json::from_str(&text)
            .map(Some)
            .with_context(|| format!("reading {}", data_dir.join(Self::FILE).display()))
    }

    /// Waits until the planes of a run that crashed have drained, which they do when they notice. Blocks.
    pub(super) fn outlast(dir: &DataDir) -> anyhow::Result<()> {
        let Some(crashed) = Self::read(&dir.root)? else { return Ok(()) };
        let alive = || crashed.last_listeners.iter().any(|at| TcpStream::connect_timeout(at, PROBE_TIMEOUT).is_ok());
        if !alive() {
            return Ok(());
        }
        info!(pid = crashed.pid, "an earlier run ended without stopping its planes; waiting until they have drained");
        if !wait_until(Instant::now() + OUTLAST_PATIENCE, || !alive()) {
            warn!(listeners = ?crashed.last_listeners, "something still listens there; starting anyway");
        }
        Ok(())
    }

    /// Forgets it, at a clean end.
    pub(super) fn remove(dir: &DataDir) {
        // If it stays, the next start looks for planes that are not there, and goes on.
        let _ = std::fs::remove_file(dir.root.join(Self::FILE));
    }

    pub(super) fn write(&self, dir: &DataDir) -> anyhow::Result<()> {
        Ok(private::write(&dir.root.join(Self::FILE), serde_json::to_string_pretty(self)?)?)
    }
}

impl DataDir {
    /// Makes the directory if need be, and takes it for this process alone.
    pub(super) fn open(path: &Path) -> anyhow::Result<Self> {
        // As root the database runs as another user, who must pass through here but may not look around.
        let mode = if turnpike_parts::account::is_root() { 0o711 } else { 0o700 };
        private::directory(path, mode)?;
        let root = path.canonicalize().with_context(|| path.display().to_string())?;
        let lock_file = root.join("lock");
        let lock = File::options().create(true).truncate(false).write(true).open(&lock_file);
        let lock = lock.with_context(|| format!("opening {}", lock_file.display()))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => bail!("{}", in_use(&root)),
            Err(TryLockError::Error(e)) => return Err(e).with_context(|| format!("locking {}", lock_file.display())),
        }
        let dir = Self { root, _lock: lock };
        for private in [dir.certificates(), dir.secrets(), dir.logs(), dir.edge(), dir.node()] {
            private::directory(&private, 0o700)?;
        }
        Ok(dir)
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    pub(super) fn certificates(&self) -> PathBuf {
        self.root.join("certs")
    }

    pub(super) fn secrets(&self) -> PathBuf {
        self.root.join("secrets")
    }

    pub(super) fn admin_token_file(&self) -> PathBuf {
        self.secrets().join("admin_token")
    }

    pub(super) fn api_key_file(&self) -> PathBuf {
        self.secrets().join("api_key")
    }

    pub(super) fn postgres(&self) -> PathBuf {
        self.root.join("postgres")
    }

    pub(super) fn logs(&self) -> PathBuf {
        self.root.join("logs")
    }

    /// The edge's own data: last good routing, usage journal.
    pub(super) fn edge(&self) -> PathBuf {
        self.root.join("edge")
    }

    /// The node's own data.
    pub(super) fn node(&self) -> PathBuf {
        self.root.join("node")
    }

    /// A plane's settings file.
    pub(super) fn settings(&self, plane: &str) -> PathBuf {
        self.root.join(format!("{plane}.toml"))
    }
}

fn in_use(root: &Path) -> String {
    let who =
        Running::read(root).ok().flatten().map(|running| format!(" (process {})", running.pid)).unwrap_or_default();
    format!(
        "another `turnpike up`{who} already uses {}; stop it first, or choose another directory with --data-dir",
        root.display()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crashed_run_is_outlasted() {
        let temporary = tempfile::tempdir().unwrap();
        let dir = DataDir::open(temporary.path()).unwrap();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let crashed = Running {
            base_url: String::new(),
            admin_url: String::new(),
            edge_url: String::new(),
            admin_token_file: PathBuf::new(),
            pid: 1,
            last_listeners: vec![listener.local_addr().unwrap()],
        };
        crashed.write(&dir).unwrap();
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| Running::outlast(&dir));
            assert!(listener.accept().is_ok(), "it looks for the listener");
            assert!(!waiting.is_finished());
            drop(listener);
            waiting.join().unwrap().unwrap();
        });
        Running::remove(&dir);
        assert_eq!(Running::read(temporary.path()).unwrap(), None);
    }

    #[test]
    fn one_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("data");
        let first = DataDir::open(&path).unwrap();
        let running = Running {
            base_url: "http://127.0.0.1:1/v1".to_owned(),
            admin_url: "http://127.0.0.1:2".to_owned(),
            edge_url: String::new(),
            admin_token_file: first.admin_token_file(),
            pid: 4321,
            last_listeners: Vec::new(),
        };
        assert_eq!(Running::read(&path).unwrap(), None);
        running.write(&first).unwrap();
        assert_eq!(Running::read(&path).unwrap(), Some(running));
        let refused = DataDir::open(&path).err().unwrap().to_string();
        assert!(refused.contains("process 4321") && refused.contains("--data-dir"), "{refused}");
        drop(first);
        assert!(DataDir::open(&path).is_ok());
    }
}
