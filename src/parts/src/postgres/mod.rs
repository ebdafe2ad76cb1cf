//! PostgreSQL: a private server of our own, throw-away for tests or lasting for `turnpike up`.
//!
//! It listens on a Unix socket only, in a directory that only its user (and root) can enter; so whoever may connect
//! could also read its files, and no password is needed.

mod binaries;
mod cluster;

pub use binaries::Binaries;

use crate::account::{self, Account};
use crate::process::{self, GuardedProcess};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Its superuser, which everything connects as.
pub const ROLE: &str = "postgres";

/// How long a server may take to accept connections; crash recovery happens in this time.
const START_PATIENCE: Duration = Duration::from_secs(60);
/// How long processes of a killed server may hold on to its memory.
const LEFTOVER_PATIENCE: Duration = Duration::from_secs(10);
/// How long it may take to write its last checkpoint.
const STOP_PATIENCE: Duration = Duration::from_secs(20);

/// Why there is no PostgreSQL.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// None on this machine, and none to be downloaded.
    #[error(
        "no PostgreSQL (version {MIN_VERSION} or newer) on PATH or in /usr/lib/postgresql/*/bin, and downloading one failed: {0}\n\
         Install it with: apt-get install postgresql", MIN_VERSION = binaries::MIN_VERSION
    )]
    NotFound(String),
    /// PostgreSQL refuses to run as root, and no other user is there.
    #[error("PostgreSQL refuses to run as root, and neither user `postgres` nor `nobody` exists in /etc/passwd")]
    NoUser,
    /// A file or process operation failed.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// The system's reason.
        source: std::io::Error,
    },
    /// One of PostgreSQL's programs failed.
    #[error("{program} failed: {output}")]
    Program {
        /// Which one.
        program: &'static str,
        /// What it said.
        output: String,
    },
    /// The server did not come up.
    #[error("PostgreSQL did not start ({reason}); the end of {log}:\n{tail}")]
    Start {
        /// What happened.
        reason: String,
        /// Its log file.
        log: String,
        /// The log's last lines.
        tail: String,
    },
    /// Something else holds the data directory.
    #[error("another PostgreSQL (process {pid}) still runs on {data} and could not be stopped; stop it first")]
    Busy {
        /// Its process id.
        pid: u32,
        /// The data directory.
        data: String,
    },
    /// The name cannot be a database's.
    #[error("«{0}» cannot be a database name: use 1 to 63 of a-z, 0-9 and _, not starting with a digit")]
    Name(String),
}

impl Error {
    fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }
}

/// A running server. Dropping it stops it; it also stops when this process dies, however that happens.
#[derive(Debug)]
pub struct Postgres {
    process: GuardedProcess,
    binaries: Binaries,
    plan: cluster::Plan,
    run_as: Option<Account>,
}

impl Postgres {
    /// A throw-away server for tests: empty, fast rather than durable, removed with all its data when dropped.
    pub fn start_temporary() -> Result<Self, Error> {
        let binaries = Binaries::find()?;
        let run_as = unprivileged()?;
        let base = cluster::short_directory(run_as)?;
        let data = base.join("data");
        cluster::init(&binaries, &data, run_as, cluster::Durability::None)?;
        let plan = cluster::Plan {
            data,
            socket_dir: base.clone(),
            log: base.join("log"),
            remove_afterwards: base,
            // Immediate: there is nothing to save.
            stop_signal: "QUIT",
            durability: cluster::Durability::None,
        };
        Self::start(binaries, plan, run_as)
    }

    /// One throw-away server for all tests of this process, started at first use; it stops when the process ends. Give
    /// each test a database of its own with [`Postgres::fresh_database`].
    pub fn shared_temporary() -> Result<&'static Self, &'static Error> {
        static SHARED: std::sync::OnceLock<Result<Postgres, Error>> = std::sync::OnceLock::new();
        SHARED.get_or_init(Self::start_temporary).as_ref()
    }

    /// A lasting server whose data lie in `directory/data`, created at the first start, with its log in
    /// `directory/log`. Another server that still runs on the same data, left behind by a crash, is stopped first.
    ///
    /// As root, the server runs as user `postgres` or `nobody`. Where that user cannot reach `directory`, the data lie
    /// under `/var/lib/turnpike` instead, and the file `directory/location` says where.
    pub fn start_persistent(directory: &Path) -> Result<Self, Error> {
        let binaries = Binaries::find()?;
        let run_as = unprivileged()?;
        let home = cluster::persistent_home(directory, run_as)?;
        let data = home.join("data");
        cluster::init(&binaries, &data, run_as, cluster::Durability::Full)?;
        cluster::stop_leftover(&binaries, &data, run_as)?;
        let socket_dir = cluster::short_directory(run_as)?;
        let plan = cluster::Plan {
            data,
            remove_afterwards: socket_dir.clone(),
            socket_dir,
            log: home.join("log"),
            // Fast: open sessions are ended, a checkpoint is written.
            stop_signal: "INT",
            durability: cluster::Durability::Full,
        };
        Self::start(binaries, plan, run_as)
    }

    fn start(binaries: Binaries, plan: cluster::Plan, run_as: Option<Account>) -> Result<Self, Error> {
        let process = launch(&binaries, &plan, run_as)?;
        Ok(Self { process, binaries, plan, run_as })
    }

    /// Starts it again on the same data and at the same URL, after it died by itself.
    pub fn restart(&mut self) -> Result<(), Error> {
        self.stop();
        cluster::stop_leftover(&self.binaries, &self.plan.data, self.run_as)?;
        self.process = launch(&self.binaries, &self.plan, self.run_as)?;
        Ok(())
    }

    /// How to connect to the database `postgres`, in the form that sqlx and libpq both read.
    pub fn url(&self) -> String {
        self.url_of(ROLE)
    }

    fn url_of(&self, database: &str) -> String {
        // The host is ignored in favour of the socket, but a URL needs one.
        let socket_dir =
            self.plan.socket_dir.to_string_lossy().replace('%', "%25").replace('/', "%2F").replace(' ', "%20");
        format!("postgres://{ROLE}@localhost/{database}?host={socket_dir}&sslmode=disable")
    }

    /// Creates an empty database and says how to connect to it.
    pub fn create_database(&self, name: &str) -> Result<String, Error> {
        let clean = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        if !(1..=63).contains(&name.len()) || !name.chars().all(clean) || name.starts_with(|c: char| c.is_ascii_digit())
        {
            return Err(Error::Name(name.to_owned()));
        }
        self.psql(ROLE, &format!("CREATE DATABASE {name}"))?;
        Ok(self.url_of(name))
    }

    /// Creates `name` unless it is there, and says how to connect to it.
    pub fn ensure_database(&self, name: &str) -> Result<String, Error> {
        let there =
            self.psql(ROLE, &format!("SELECT 1 FROM pg_database WHERE datname = '{}'", name.replace('\'', "''")))?;
        if there.trim() == "1" { Ok(self.url_of(name)) } else { self.create_database(name) }
    }

    /// Creates a database under a name that was not used before in this process, for one test.
    pub fn fresh_database(&self) -> Result<String, Error> {
        static COUNTER: AtomicU64 = AtomicU64::new(0);
        self.create_database(&format!("test_{}_{}", std::process::id(), COUNTER.fetch_add(1, Ordering::Relaxed)))
    }

    /// Runs SQL with psql and returns what it printed: rows by line, columns separated by `|`.
    pub fn psql(&self, database: &str, sql: &str) -> Result<String, Error> {
        let mut command = self.binaries.command("psql", None);
        command.arg("-h").arg(&self.plan.socket_dir).args(["-U", ROLE, "-d", database]);
        command.args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-c", sql]);
        binaries::run("psql", command)
    }

    /// Where its data lie.
    pub fn data_directory(&self) -> &Path {
        &self.plan.data
    }

    /// The server's process id.
    pub fn id(&self) -> Option<u32> {
        self.process.id()
    }

    /// Whether the server still runs.
    pub fn is_running(&mut self) -> bool {
        matches!(self.process.try_wait(), Ok(None))
    }

    /// Stops it and waits until it has; open sessions are ended. Returns whether it stopped in good order.
    pub fn stop(&mut self) -> bool {
        self.process.stop(STOP_PATIENCE)
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        if self.is_running() {
            self.stop();
        }
    }
}

/// Starts a server and waits until it accepts connections.
fn launch(binaries: &Binaries, plan: &cluster::Plan, run_as: Option<Account>) -> Result<GuardedProcess, Error> {
    let patience = Instant::now() + LEFTOVER_PATIENCE;
    loop {
        // The guard of an attempt before has removed it.
        cluster::remake(&plan.socket_dir, run_as)?;
        let mut process = plan.guarded(binaries, run_as).spawn().map_err(Error::io("starting postgres"))?;
        match wait_until_ready(&mut process, plan) {
            Ok(()) => return Ok(process),
            // Sessions of a server that was killed may need a moment to notice.
            Err(e) if plan.data.join("postmaster.pid").exists() && Instant::now() < patience => {
                tracing::info!(reason = %e, "PostgreSQL did not start; trying again");
                std::thread::sleep(Duration::from_millis(300));
            }
            Err(e) => return Err(e),
        }
    }
}

/// The postmaster writes `ready` into line 8 of its pid file once it accepts connections; pg_ctl waits for the same.
fn wait_until_ready(process: &mut GuardedProcess, plan: &cluster::Plan) -> Result<(), Error> {
    let pid_file = plan.data.join("postmaster.pid");
    let own = process.id().map(|id| id.to_string());
    let mut ended = None;
    let ready = process::wait_until(Instant::now() + START_PATIENCE, || {
        ended = process.try_wait().ok().flatten();
        let text = std::fs::read_to_string(&pid_file).unwrap_or_default();
        let mut lines = text.lines().map(str::trim);
        ended.is_some() || lines.next().map(str::to_owned) == own && lines.nth(6) == Some("ready")
    });
    let reason = match ended {
        None if ready => return Ok(()),
        None => format!("not ready after {} s", START_PATIENCE.as_secs()),
        Some(status) => status.to_string(),
    };
    let (log, tail) = (plan.log.display().to_string(), process::last_lines(&plan.log, 15));
    Err(Error::Start { reason, log, tail })
}

/// Whom to run as: nobody else, unless we are root.
fn unprivileged() -> Result<Option<Account>, Error> {
    if !account::is_root() {
        return Ok(None);
    }
    Account::first_of(&["postgres", "nobody"]).map(Some).ok_or(Error::NoUser)
}
