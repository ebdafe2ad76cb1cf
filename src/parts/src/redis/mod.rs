//! Redis: throw-away servers of our own, one alone or three that form a cluster.
//!
//! A server listens on 127.0.0.1 only, appends every write to a file (`appendfsync everysec`), and keeps its data in a
//! temporary folder for as long as its owner lives: it may be stopped, killed and started again. When the owner is gone,
//! so are server and folder.

mod client;
mod cluster;
mod options;
mod port;
mod programs;

pub use cluster::RedisCluster;
pub use options::{Options, Tls};

use crate::home::Home;
use crate::process::{self, Guarded, GuardedProcess, Signal};
use client::Client;
use programs::Programs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long a server may take to answer; it reads its append-only file in this time.
const START_PATIENCE: Duration = Duration::from_secs(30);
/// How long a server of ours may take to say PONG once it is asked, while it is starting.
const PING_PATIENCE: Duration = Duration::from_secs(1);
/// How long it may take to write out what it has and end.
const STOP_PATIENCE: Duration = Duration::from_secs(10);
/// How long the kernel may take to stop or end a process.
const SIGNAL_PATIENCE: Duration = Duration::from_secs(5);
/// For how long a restarted server waits until whoever took its port meanwhile lets go of it.
const PORT_PATIENCE: Duration = Duration::from_secs(10);
/// How many ports are tried for a new server: another process may take one between our look and its start.
const PORT_ATTEMPTS: usize = 10;

/// Why there is no Redis.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// One of its programs is not on this machine.
    #[error("no {0} on PATH or in /usr/bin. Install it with: apt-get install redis-server")]
    NotFound(&'static str),
    /// The machine's Redis is older than what we ask of it.
    #[error("{program} is {found}, but version {min} or newer is needed. Install it with: apt-get install redis-server (Debian 12 or newer)", min = programs::MIN_VERSION)]
    TooOld {
        /// Its path.
        program: String,
        /// What it says of itself.
        found: String,
    },
    /// A file or process operation failed.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// The system's reason.
        source: std::io::Error,
    },
    /// redis-cli failed, or the server refused what it was asked.
    #[error("redis-cli {command} at 127.0.0.1:{port} failed: {output}")]
    Command {
        /// The first word that it was given; the others may hold secrets.
        command: String,
        /// The server's port.
        port: u16,
        /// What it said.
        output: String,
    },
    /// The server did not come up.
    #[error("Redis did not start on 127.0.0.1:{port} ({reason}); the end of its log:\n{tail}")]
    Start {
        /// The port that it was to listen on.
        port: u16,
        /// What happened.
        reason: String,
        /// The log's last lines.
        tail: String,
    },
    /// The nodes run, but they are no cluster.
    #[error(
        "the Redis nodes at {nodes} did not agree on a cluster within {seconds} s; the first that is not ready says:\n\
         {state}\nAre all nodes running (not killed, not paused)?"
    )]
    Cluster {
        /// The nodes' ports.
        nodes: String,
        /// How long they were waited for.
        seconds: u64,
        /// Its `CLUSTER INFO`, or why there is none.
        state: String,
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

/// A running server. Dropping it ends it and removes its data; that also happens when this process dies, however it
/// does.
#[derive(Debug)]
pub struct Redis {
    // Before the folder: fields are dropped in this order.
    process: GuardedProcess,
    programs: Programs,
    settings: PathBuf,
    client: Client,
    url: String,
    home: Home,
}

impl Redis {
    /// A throw-away server: empty, open to everybody on this machine, removed with all its data when dropped.
    pub fn start_temporary() -> Result<Self, Error> {
        Self::start_temporary_with(&Options::default())
    }

    /// A throw-away server with settings of its own.
    pub fn start_temporary_with(options: &Options) -> Result<Self, Error> {
        let programs = Programs::find()?;
        let mut attempts = 1;
        loop {
            match Self::attempt(&programs, options) {
                Err(e) if e.is_port_taken() && attempts < PORT_ATTEMPTS => attempts += 1,
                result => return result,
            }
        }
    }

    fn attempt(programs: &Programs, options: &Options) -> Result<Self, Error> {
        let home = Home::new("redis").map_err(Error::io("making a folder for Redis"))?;
        let port = port::free_port(options.is_clustered())?;
        let operator = options.operator_password()?;
        let settings = options.settings(port, home.path(), operator.as_deref());
        let settings = home.write("redis.conf", &settings).map_err(Error::io("configuring Redis"))?;
        let client = Client::new(programs, port, operator, options.ca());
        let process = launch(programs, &settings, &client, &home)?;
        Ok(Self { process, programs: programs.clone(), settings, client, url: options.url(port), home })
    }

    /// How to connect: `redis://127.0.0.1:PORT`, or `rediss://` with TLS, with the user and password that clients are
    /// meant to use, if any.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The TCP port on 127.0.0.1. It stays the same over restarts.
    pub fn port(&self) -> u16 {
        self.client.port()
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

    /// Whether it answers a PING within `patience`.
    pub fn answers(&self, patience: Duration) -> bool {
        self.client.answering_process(patience).is_some()
    }

    /// Lets it write out what it has, and waits until it has ended. Returns whether it did so by itself.
    pub fn stop(&mut self) -> bool {
        // A paused server only notices once it goes on.
        let asked = self.process.signal(Signal::TERM).and_then(|()| self.process.signal(Signal::CONT));
        let ended = self.process.ended_within(if asked.is_ok() { STOP_PATIENCE } else { Duration::ZERO });
        self.kill();
        ended
    }

    /// Ends it with SIGKILL, as a crash would, and waits until it is gone.
    ///
    /// What it has answered is usually in its append-only file by then, but up to two seconds of it may not be while the
    /// disk is slow: that is what `everysec` means.
    pub fn kill(&mut self) {
        self.process.stop(SIGNAL_PATIENCE);
    }

    /// Starts it again on the same port and the same data; one that still runs is stopped first.
    pub fn restart(&mut self) -> Result<(), Error> {
        self.stop();
        let deadline = Instant::now() + PORT_PATIENCE;
        loop {
            match launch(&self.programs, &self.settings, &self.client, &self.home) {
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
        self.process.signal(Signal::STOP).map_err(Error::io(format!("pausing Redis at port {}", self.port())))?;
        let id = self.id();
        process::wait_until(Instant::now() + SIGNAL_PATIENCE, || id.is_none_or(process::has_halted));
        Ok(())
    }

    /// Lets it go on after [`Redis::pause`].
    pub fn resume(&mut self) -> Result<(), Error> {
        self.process.signal(Signal::CONT).map_err(Error::io(format!("resuming Redis at port {}", self.port())))
    }

    /// Runs redis-cli with these arguments, as the server's operator who may do everything, and returns what it
    /// printed, trimmed. Options of redis-cli may come first: `-c` follows a cluster's redirections, `-n 1` chooses a
    /// database. A refusal by the server is an error, and so is no answer for 30 seconds.
    pub fn command(&self, arguments: &[&str]) -> Result<String, Error> {
        self.client.command(arguments)
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Starts a server and waits until it answers.
fn launch(programs: &Programs, settings: &Path, client: &Client, home: &Home) -> Result<GuardedProcess, Error> {
    home.empty_log().map_err(Error::io("starting redis-server"))?;
    let guarded = Guarded {
        command: vec![programs.server().into(), settings.into()],
        run_as: None,
        // We are gone and its data will be: there is nothing to save, and only this ends a paused server.
        stop_signal: "KILL",
        remove_afterwards: None,
        log: home.log(),
    };
    let mut process = guarded.spawn().map_err(Error::io("starting redis-server"))?;
    let Err(reason) = wait_until_ready(&mut process, client) else { return Ok(process) };
    process.stop(SIGNAL_PATIENCE);
    Err(Error::Start { port: client.port(), reason, tail: process::last_lines(&home.log(), 15) })
}

/// Waits until this very process answers at the port, not another server that has taken it.
fn wait_until_ready(process: &mut GuardedProcess, client: &Client) -> Result<(), String> {
    let mut ended = None;
    let ready = process::wait_until(Instant::now() + START_PATIENCE, || {
        ended = process.try_wait().ok().flatten();
        ended.is_some() || process.id().is_some_and(|id| client.answering_process(PING_PATIENCE) == Some(id))
    });
    match ended {
        None if ready => Ok(()),
        None => Err(format!("no answer after {} s", START_PATIENCE.as_secs())),
        Some(status) => Err(status.to_string()),
    }
}
