//! nginx, as one would put it before engines.

use super::{Door, Subject, lines};
use crate::deployment::free_port;
use crate::program::Program;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

/// A key that its map knows.
pub(in crate::compare) const KEY: &str = "a-key-that-nginx-knows";

/// Starts it with a door for each way.
pub(in crate::compare) async fn nginx(
    program: PathBuf,
    engines: &[SocketAddr],
    directory: &Path,
) -> anyhow::Result<Subject> {
    let home = directory.join("nginx");
    std::fs::create_dir_all(&home)?;
    let file = home.join("nginx.conf");
    let ways = [Door::Plain, Door::Stream, Door::Http2, Door::Keyed, Door::Cache];
    let doors = ways.iter().map(|door| Ok((*door, free_port()?))).collect::<std::io::Result<_>>()?;
    let server = |(door, address): (&Door, &SocketAddr)| {
        let (protocol, more) = match door {
            Door::Plain => ("", ""),
            Door::Stream => ("", "proxy_buffering off;"),
            Door::Http2 => (" http2", ""),
            Door::Keyed => ("", "limit_req zone=keys burst=100000 nodelay; if ($known = 0) { return 401; }"),
            Door::Cache => {
                ("", "proxy_cache kept; proxy_cache_methods POST; proxy_cache_key $request_body; proxy_cache_valid 1h;")
            }
        };
        format!(
            "server {{ listen {address}{protocol} backlog=4096; location / {{ proxy_pass http://engines; {more} }} }}\n"
        )
    };
    let servers: String = std::collections::BTreeMap::iter(&doors).map(server).collect();
    let at = home.display();
    let upstreams = lines(engines, |_, engine| format!("server {engine};"));
    let settings = format!(
        "daemon off;\nuser root;\nworker_processes {threads};\nworker_rlimit_nofile 65536;\npid {at}/pid;\n\
         error_log stderr warn;\nevents {{ worker_connections 32768; }}\nhttp {{\naccess_log off;\n\
         client_body_temp_path {at}/body;\nproxy_temp_path {at}/proxy;\nfastcgi_temp_path {at}/f;\n\
         uwsgi_temp_path {at}/u;\nscgi_temp_path {at}/s;\nclient_max_body_size 64m;\nclient_body_buffer_size 4m;\n\
         keepalive_requests 1000000000;\nproxy_cache_path {at}/cache keys_zone=kept:16m;\n\
         limit_req_zone $http_authorization zone=keys:16m rate=1000000r/s;\n\
         map $http_authorization $known {{ default 0; \"Bearer {KEY}\" 1; }}\n\
         upstream engines {{\n{upstreams}keepalive 512;\nkeepalive_requests 1000000000;\n}}\n\
         proxy_http_version 1.1;\nproxy_read_timeout 600s;\nproxy_set_header Connection \"\";\n{servers}}}\n",
        threads = super::super::threads(),
    );
    std::fs::write(&file, settings)?;
    let program = Program::start("nginx", vec![program.into(), "-c".into(), file.into()], directory)?;
    Subject::listening(program, doors).await
}
