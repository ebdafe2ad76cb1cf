//! ClickHouse: throw-away servers of our own.
//!
//! The machine's own server program is run if there is one, else the engine of `libchdb` in a process of its own
//! (`turnpike-clickhouse`): the same engine, the same HTTP interface. A server listens on 127.0.0.1 only and keeps its
//! data in a temporary folder for as long as its owner lives: it may be stopped, killed and started again. When the
//! owner is gone, so are server and folder.

mod fetch;
mod http;
mod launcher;
mod settings;

use crate::home::Home;
use crate::port;
use crate::process::{self, Guarded, GuardedProcess, Signal};
use http::Client;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How long a server may take to answer; it loads its tables in this time.
const START_PATIENCE: Duration = Duration::from_secs(60);
/// How long it may take to answer once it is asked, while it is starting.
const PING_PATIENCE: Duration = Duration::from_secs(2);
/// Longest statement.
const QUERY_PATIENCE: Duration = Duration::from_secs(60);
/// How long it may take to end in good order.
const STOP_PATIENCE: Duration = Duration::from_secs(20);
/// How long the kernel may take to stop or end a process.
const SIGNAL_PATIENCE: Duration = Duration::from_secs(5);
/// For how long a restarted server waits until whoever took its port meanwhile lets go of it.
const PORT_PATIENCE: Duration = Duration::from_secs(10);
/// How many ports are tried for a new server: another process may take one between our look and its start.
const PORT_ATTEMPTS: usize = 10;
/// Who everything connects as.
const USER: &str = "turnpike";

/// Why there is no ClickHouse.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// None on this machine, and none to be downloaded.
    #[error(
        "no clickhouse-server or clickhouse on PATH, and {0}\n\
         Install ClickHouse (its own apt repository has it), or apt-get install npm and let it be downloaded"
    )]
    NotFound(String),
    /// What was downloaded is not what we know.
    #[error(
        "the downloaded libchdb.so has SHA-256 {found} and must have {expected}: the download is damaged or another file"
    )]
    Checksum {
        /// What it has.
        found: String,
        /// The pinned value.
        expected: &'static str,
    },
    /// The program that runs the downloaded engine is missing and could not be built.
    #[error("turnpike-clickhouse is not beside this program and could not be built: {0}\nTry: cargo build --workspace")]
    Launcher(String),
    /// A file or process operation failed.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The server did not come up.
    #[error("ClickHouse did not start on 127.0.0.1:{port} ({reason}); the end of its log:\n{tail}")]
    Start {
        /// The port that it was to listen on.
        port: u16,
        /// What happened.
        reason: String,
        /// The log's last lines.
        tail: String,
    },
    /// It refused a statement, or did not answer.
    #[error("ClickHouse at 127.0.0.1:{port}: {reason}")]
    Query {
        /// Its port.
        port: u16,
        /// What it said.
        reason: String,
    },
}

impl Error {
    fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }

    /// Whether the server could not start because somebody else has its port.
    fn is_port_taken(&self) -> bool {
        matches!(self, Self::Start { tail, .. } if tail.contains("Address already in use"))
    }
}

/// What is run.
#[derive(Clone, Debug)]
enum Program {
    /// The machine's own.
    Server(PathBuf),
    /// The engine as a library, and the program that runs it.
    Library { launcher: PathBuf, library: PathBuf },
}

impl Program {
    fn find() -> Result<Self, Error> {
        match process::find_program(&["clickhouse-server", "clickhouse"]) {
            Some(server) => Ok(Self::Server(server)),
            None => Ok(Self::Library { library: fetch::library()?, launcher: launcher::launcher()? }),
        }
    }

    fn command(&self, home: &Path, port: u16) -> Vec<OsString> {
        let file = |option: &str, name: &str| -> OsString {
            let mut word = OsString::from(option);
            word.push(home.join(name));
            word
        };
        let config = file("--config-file=", "config.xml");
        match self {
            Self::Server(program) if program.ends_with("clickhouse") => {
                vec![program.into(), "server".into(), config]
            }
            Self::Server(program) => vec![program.into(), config],
            Self::Library { launcher, library } => vec![
                launcher.into(),
                library.into(),
                config,
                file("--path=", "data"),
                format!("--http_port={port}").into(),
                "--listen_host=127.0.0.1".into(),
                "--log-level=warning".into(),
                "--queries-file".into(),
                file("", "listen.sql"),
            ],
        }
    }
}

/// A running server. Dropping it ends it and removes its data; that also happens when this process dies, however it
/// does.
#[derive(Debug)]
pub struct ClickHouse {
    // Before the folder: fields are dropped in this order.
    process: GuardedProcess,
    program: Program,
    client: Client,
    home: Home,
}

impl ClickHouse {
    /// A throw-away server: empty, removed with all its data when dropped.
    pub fn start_temporary() -> Result<Self, Error> {
        let program = Program::find()?;
        let mut attempts = 1;
        loop {
            match Self::attempt(&program) {
                Err(e) if e.is_port_taken() && attempts < PORT_ATTEMPTS => attempts += 1,
                result => return result,
            }
        }
    }

    /// One throw-away server for all tests of this process, which take databases of their own. It ends with the process.
    pub fn shared_temporary() -> Result<&'static Self, Error> {
        static SHARED: Mutex<Option<&'static ClickHouse>> = Mutex::new(None);
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        match *shared {
            Some(server) => Ok(server),
            None => Ok(shared.insert(Box::leak(Box::new(Self::start_temporary()?)))),
        }
    }

    fn attempt(program: &Program) -> Result<Self, Error> {
        let home = Home::new("clickhouse").map_err(Error::io("making a folder for ClickHouse"))?;
        let port = port::free_port().map_err(Error::io("looking for a free port on 127.0.0.1"))?;
        // The folder's name is random; and only this server knows it as a password, so that no other is taken for it.
        let password = home.path().file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let client = Client { port, user: USER, password };
        configure(&home, &client, false)?;
        let process = launch(program, &client, &home)?;
        Ok(Self { process, program: program.clone(), client, home })
    }

    /// How to connect: `http://USER:PASSWORD@127.0.0.1:PORT`. It stays the same over restarts.
    pub fn url(&self) -> String {
        self.client.url()
    }

    /// The TCP port on 127.0.0.1 of its HTTP interface.
    pub fn port(&self) -> u16 {
        self.client.port
    }

    /// The server's process id; another one after a restart.
    pub fn id(&self) -> Option<u32> {
        self.process.id()
    }

    /// Where its data lie.
    pub fn data_directory(&self) -> &Path {
        self.home.path()
    }

    /// Whether its process exists, paused or not.
    pub fn is_running(&mut self) -> bool {
        matches!(self.process.try_wait(), Ok(None))
    }

    /// Whether it answers a statement within `patience`.
    pub fn answers(&self, patience: Duration) -> bool {
        self.client.query("SELECT 1", patience).is_ok()
    }

    /// Runs one statement and returns what it printed, tab-separated, trimmed. A refusal by the server is an error, and
    /// so is no answer for 60 seconds.
    pub fn query(&self, sql: &str) -> Result<String, Error> {
        let failed = |reason| Error::Query { port: self.port(), reason };
        self.client.query(sql, QUERY_PATIENCE).map_err(failed)
    }

    /// Ends it in good order, and waits until it has ended. Returns whether it did so by itself.
    pub fn stop(&mut self) -> bool {
        // A paused server only notices once it goes on.
        let asked = self.process.signal(Signal::TERM).and_then(|()| self.process.signal(Signal::CONT));
        let ended = self.process.ended_within(if asked.is_ok() { STOP_PATIENCE } else { Duration::ZERO });
        self.kill();
        ended
    }

    /// Ends it with SIGKILL, as a crash would, and waits until it is gone.
    pub fn kill(&mut self) {
        self.process.stop(SIGNAL_PATIENCE);
    }

    /// Starts it again on the same port and the same data; one that still runs is stopped first.
    pub fn restart(&mut self) -> Result<(), Error> {
        self.restart_as(false)
    }

    /// Like [`ClickHouse::restart`], but it refuses to be written to.
    pub fn restart_read_only(&mut self) -> Result<(), Error> {
        self.restart_as(true)
    }

    fn restart_as(&mut self, read_only: bool) -> Result<(), Error> {
        self.stop();
        configure(&self.home, &self.client, read_only)?;
        let deadline = Instant::now() + PORT_PATIENCE;
        loop {
            match launch(&self.program, &self.client, &self.home) {
                Ok(process) => {
                    self.process = process;
                    return Ok(());
                }
                Err(e) if e.is_port_taken() && Instant::now() < deadline => std::thread::sleep(process::POLL),
                Err(e) => return Err(e),
            }
        }
    }

    /// Halts it with SIGSTOP: connections stay open and new ones are accepted by the kernel, but nothing is answered.
    pub fn pause(&mut self) -> Result<(), Error> {
        self.process.signal(Signal::STOP).map_err(Error::io(format!("pausing ClickHouse at port {}", self.port())))?;
        let id = self.id();
        process::wait_until(Instant::now() + SIGNAL_PATIENCE, || id.is_none_or(process::has_halted));
        Ok(())
    }

    /// Lets it go on after [`ClickHouse::pause`].
    pub fn resume(&mut self) -> Result<(), Error> {
        self.process.signal(Signal::CONT).map_err(Error::io(format!("resuming ClickHouse at port {}", self.port())))
    }
}

impl Drop for ClickHouse {
    fn drop(&mut self) {
        self.kill();
    }
}

fn configure(home: &Home, client: &Client, read_only: bool) -> Result<(), Error> {
    let files = [
        ("config.xml", settings::config(client, home.path())),
        ("users.xml", settings::users(client, read_only)),
        ("listen.sql", settings::LISTEN.to_owned()),
    ];
    for (name, text) in files {
        home.write(name, &text).map_err(Error::io("configuring ClickHouse"))?;
    }
    Ok(())
}

/// Starts a server and waits until it answers.
fn launch(program: &Program, client: &Client, home: &Home) -> Result<GuardedProcess, Error> {
    home.empty_log().map_err(Error::io("starting ClickHouse"))?;
    let guarded = Guarded {
        // Its own setting for the time zone is not heeded by the library.
        command: ["env", "TZ=UTC"]
            .map(Into::into)
            .into_iter()
            .chain(program.command(home.path(), client.port))
            .collect(),
        run_as: None,
        // We are gone and its data will be: there is nothing to save, and only this ends a paused server.
        stop_signal: "KILL",
        remove_afterwards: None,
        log: home.log(),
    };
    let mut process = guarded.spawn().map_err(Error::io("starting ClickHouse"))?;
    let mut ended = None;
    let ready = process::wait_until(Instant::now() + START_PATIENCE, || {
        ended = process.try_wait().ok().flatten();
        // Only this server takes the password: another one that has the port does not.
        ended.is_some() || client.query("SELECT 1", PING_PATIENCE).is_ok()
    });
    let reason = match ended {
        None if ready => return Ok(process),
        None => format!("no answer after {} s", START_PATIENCE.as_secs()),
        Some(status) => status.to_string(),
    };
    process.stop(SIGNAL_PATIENCE);
    Err(Error::Start { port: client.port, reason, tail: process::last_lines(&home.log(), 15) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_program_is_given_its_settings() {
        let words = |program: Program| {
            let words = program.command(Path::new("/home"), 8123).into_iter();
            words.map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
        };
        let own = |path: &str| words(Program::Server(path.into()));
        assert_eq!(own("/usr/bin/clickhouse-server"), "/usr/bin/clickhouse-server --config-file=/home/config.xml");
        assert_eq!(own("/usr/bin/clickhouse"), "/usr/bin/clickhouse server --config-file=/home/config.xml");
        let library = words(Program::Library { launcher: "/l".into(), library: "/so".into() });
        assert!(library.starts_with("/l /so --config-file=/home/config.xml --path=/home/data"), "{library}");
    }
}
