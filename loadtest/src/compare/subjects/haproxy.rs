//! HAProxy, as one would put it before engines.

use super::{Door, Subject, lines};
use crate::deployment::free_port;
use crate::program::Program;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

/// Starts it with doors for HTTP/1.1 and HTTP/2.
pub(in crate::compare) async fn haproxy(
    program: PathBuf,
    engines: &[SocketAddr],
    directory: &Path,
) -> anyhow::Result<Subject> {
    let (http1, http2) = (free_port()?, free_port()?);
    let servers = lines(engines, |number, engine| format!("  server engine{number} {engine}"));
    let settings = format!(
        "global\n  nbthread {threads}\n  maxconn 9000\n\
         defaults\n  mode http\n  timeout connect 5s\n  timeout client 600s\n  timeout server 600s\n  \
         option http-keep-alive\n  option http-no-delay\n  http-reuse always\n\
         frontend clients\n  bind {http1}\n  bind {http2} proto h2\n  default_backend engines\n\
         backend engines\n  balance roundrobin\n{servers}",
        threads = super::super::threads(),
    );
    let file = directory.join("haproxy.cfg");
    std::fs::write(&file, settings)?;
    let command = vec![program.into(), "-db".into(), "-f".into(), file.into()];
    let program = Program::start("haproxy", command, directory)?;
    let doors = BTreeMap::from([(Door::Plain, http1), (Door::Stream, http1), (Door::Http2, http2)]);
    Subject::listening(program, doors).await
}
