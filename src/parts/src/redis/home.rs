//! What a server has for itself: a folder and a port.

use super::Error;
use crate::process::{Guarded, GuardedProcess};
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A node of a cluster also listens for the others at its port plus this.
const BUS_OFFSET: u16 = 10_000;
/// The port of a node of a cluster is below this, so that its bus has one too.
const MAX_CLUSTER_PORT: u16 = 55_000;
/// How many ports are looked at; some are too high for a cluster, and some buses' are taken.
const LOOKS: usize = 200;
/// How long it may take to remove a folder.
const REMOVE_PATIENCE: Duration = Duration::from_secs(20);

/// A temporary folder that outlives its server, so that one can be started on it again, but never us.
#[derive(Debug)]
pub(super) struct Home {
    path: PathBuf,
    keeper: GuardedProcess,
}

impl Home {
    pub(super) fn new() -> Result<Self, Error> {
        let made = tempfile::Builder::new().prefix("turnpike-redis-").tempdir();
        let made = made.map_err(Error::io(format!("making a directory in {}", std::env::temp_dir().display())))?;
        // A process that does nothing but end with us, upon which its guard removes the folder.
        let keeper = Guarded {
            command: vec!["sleep".into(), "infinity".into()],
            run_as: None,
            stop_signal: "KILL",
            remove_afterwards: Some(made.path().to_owned()),
            log: made.path().join("keeper.log"),
        };
        let keeper = keeper.spawn().map_err(Error::io(format!("starting the keeper of {}", made.path().display())))?;
        Ok(Self { path: made.keep(), keeper })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn log(&self) -> PathBuf {
        self.path.join("log")
    }

    pub(super) fn settings(&self) -> PathBuf {
        self.path.join("redis.conf")
    }

    pub(super) fn write_settings(&self, text: &str) -> Result<(), Error> {
        let file = self.settings();
        std::fs::write(&file, text).map_err(Error::io(format!("writing {}", file.display())))
    }

    /// Forgets what earlier starts said.
    pub(super) fn empty_log(&self) -> Result<(), Error> {
        let file = self.log();
        std::fs::write(&file, "").map_err(Error::io(format!("writing {}", file.display())))
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        self.keeper.stop(REMOVE_PATIENCE);
    }
}

/// A port on 127.0.0.1 that nobody has at this moment, and for a node of a cluster its bus's as well.
pub(super) fn free_port(clustered: bool) -> Result<u16, Error> {
    let failed = || Error::io("looking for a free port on 127.0.0.1");
    for _ in 0..LOOKS {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(failed())?;
        let port = listener.local_addr().map_err(failed())?.port();
        let bus_is_free = || TcpListener::bind((Ipv4Addr::LOCALHOST, port + BUS_OFFSET)).is_ok();
        if !clustered || port < MAX_CLUSTER_PORT && bus_is_free() {
            return Ok(port);
        }
    }
    let reason = format!("none below {MAX_CLUSTER_PORT} whose cluster bus (port + {BUS_OFFSET}) is free too");
    Err(failed()(std::io::Error::new(std::io::ErrorKind::AddrInUse, reason)))
}
