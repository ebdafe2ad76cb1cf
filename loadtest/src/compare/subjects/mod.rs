//! What stands between clients and engines, each with everything set as its makers advise.

mod edge;
mod haproxy;
mod nginx;
pub(crate) mod pingora;
mod rivals;

pub(super) use edge::Edge;
pub(super) use haproxy::haproxy;
pub(super) use nginx::{KEY as NGINX_KEY, nginx};
pub(super) use pingora::pingora;
pub(super) use rivals::{litellm, portkey, sglang_router, vllm_router};

use crate::program::{Cost, Program};
use anyhow::ensure;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// Until a program listens.
const PATIENCE: Duration = Duration::from_secs(60);
/// A key that nobody has, of the form that the edge's have.
const UNKNOWN_KEY: &str = "tp-0000000000000000000000000000000000000000000";

/// Which port of a subject is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Door {
    /// Answers as they are.
    Plain,
    /// Answers that must not be held back.
    Stream,
    /// HTTP/2 without TLS.
    Http2,
    /// Keys are looked up and requests limited.
    Keyed,
    /// Answers are kept.
    Cache,
}

/// Where to ask, and what to send with each request.
#[derive(Clone, Debug)]
pub(super) struct Way {
    pub(super) address: SocketAddr,
    pub(super) headers: Vec<(&'static str, String)>,
}

impl Way {
    pub(super) fn new(address: SocketAddr, key: &str) -> Self {
        Self { address, headers: vec![("authorization", format!("Bearer {key}"))] }
    }
}

/// A program that takes requests for the engines.
pub(super) struct Subject {
    pub(super) doors: BTreeMap<Door, SocketAddr>,
    /// What is sent to it in place of a key, if it is particular.
    pub(super) headers: Vec<(&'static str, String)>,
    program: Program,
}

impl Subject {
    /// Waits until all its doors are open.
    async fn listening(program: Program, doors: BTreeMap<Door, SocketAddr>) -> anyhow::Result<Self> {
        let deadline = Instant::now() + PATIENCE;
        for address in doors.values() {
            while tokio::net::TcpStream::connect(address).await.is_err() {
                ensure!(Instant::now() < deadline, "nobody listens on {address}: {}", program.log());
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
        Ok(Self { doors, headers: Vec::new(), program })
    }

    pub(super) fn cost(&self) -> anyhow::Result<Cost> {
        self.program.cost()
    }
}

/// Addresses of engines, or how each is written, in lines.
fn lines(engines: &[SocketAddr], line: impl Fn(usize, &SocketAddr) -> String) -> String {
    engines.iter().enumerate().map(|(number, engine)| line(number, engine) + "\n").collect()
}
