//! The least that a proxy on Pingora can do: the next engine in turn, nothing looked at.

use super::{Door, Subject};
use crate::deployment::free_port;
use crate::program::Program;
use ::pingora::apps::HttpServerOptions;
use ::pingora::listeners::ListenerConfig;
use ::pingora::modules::http::HttpModules;
use ::pingora::prelude::HttpPeer;
use ::pingora::proxy::{ProxyHttp, Session, http_proxy};
use ::pingora::server::configuration::ServerConf;
use ::pingora::server::{RunArgs, Server};
use ::pingora::services::listening::Service;
use async_trait::async_trait;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Starts it in a process of its own.
pub(in crate::compare) async fn pingora(engines: &[SocketAddr], directory: &Path) -> anyhow::Result<Subject> {
    let address = free_port()?;
    let mut command = vec![std::env::current_exe()?.into(), "pingora".into(), "--listen".into()];
    command.push(address.to_string().into());
    for engine in engines {
        command.extend(["--engine".into(), engine.to_string().into()]);
    }
    let program = Program::start("pingora", command, directory)?;
    let doors = [Door::Plain, Door::Stream, Door::Http2].map(|door| (door, address));
    Subject::listening(program, BTreeMap::from(doors)).await
}

/// What it is started with.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    #[arg(long)]
    listen: SocketAddr,
    #[arg(long = "engine", required = true)]
    engines: Vec<SocketAddr>,
}

/// Serves until the process is told to end.
pub(crate) fn run(args: Args) {
    let conf = ServerConf {
        threads: super::super::threads(),
        work_stealing: false,
        upstream_keepalive_pool_size: 512,
        grace_period_seconds: Some(0),
        graceful_shutdown_timeout_seconds: Some(0),
        ..ServerConf::default()
    };
    let mut server = Server::new_with_opt_and_conf(None, conf);
    server.bootstrap();
    let mut proxy = http_proxy(&server.configuration, PassThrough { engines: args.engines, turn: AtomicUsize::new(0) });
    let mut options = HttpServerOptions::default();
    options.h2c = true;
    proxy.server_options = Some(options);
    let mut service = Service::new("pass-through".to_owned(), proxy);
    service.add_listener(ListenerConfig::tcp(args.listen.to_string()));
    server.add_service(service);
    server.run(RunArgs::default());
}

struct PassThrough {
    engines: Vec<SocketAddr>,
    turn: AtomicUsize,
}

#[async_trait]
impl ProxyHttp for PassThrough {
    type CTX = ();

    fn new_ctx(&self) {}

    fn init_downstream_modules(&self, _modules: &mut HttpModules) {
        // Not even the compression that is there otherwise.
    }

    async fn upstream_peer(&self, _session: &mut Session, (): &mut ()) -> ::pingora::Result<Box<HttpPeer>> {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        Ok(Box::new(HttpPeer::new(self.engines[turn % self.engines.len()], false, String::new())))
    }
}
