//! Pingora's server around the proxy: listeners, threads, connection cap, stop.

use crate::Error;
use crate::edge::Edge;
use crate::proxy::Proxy;
use crate::settings::Settings;
use async_trait::async_trait;
use pingora::apps::ServerApp;
use pingora::listeners::ListenerConfig;
use pingora::listeners::tls::TlsSettings;
use pingora::protocols::Stream;
use pingora::protocols::l4::stream::L4BufferSettings;
use pingora::server::configuration::ServerConf;
use pingora::server::{RunArgs, Server, ShutdownSignal, ShutdownSignalWatch, ShutdownWatch};
use pingora::services::listening::Service;
use rustls::sign::SingleCertAndKey;
use std::sync::Arc;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use turnpike_config::link::load_certified_key;

/// Heads and small bodies fit; larger buffers only cost idle connections memory.
const READ_BUFFER: usize = 4 << 10;
const WRITE_BUFFER: usize = 8 << 10;

/// TLS towards clients, HTTP/2 preferred; `None` is plaintext.
pub(crate) fn client_tls(settings: &Settings) -> Result<Option<TlsSettings>, Error> {
    let Some((cert, key)) = &settings.client_tls else { return Ok(None) };
    // Loaded here, with an error: given paths, Pingora would panic on a bad file.
    let certified = load_certified_key(cert, key)?;
    let mut tls = TlsSettings::intermediate("", "").map_err(|e| Error::ClientTls(e.to_string()))?;
    tls.set_cert_resolver(Arc::new(SingleCertAndKey::from(certified)));
    tls.enable_h2();
    Ok(Some(tls))
}

/// Serves until `stop`; then no new connections are taken and running requests go on. Blocks.
pub(crate) fn run(edge: &Arc<Edge>, client_tls: Option<TlsSettings>, stop: CancellationToken) {
    let settings = &edge.settings;
    let conf = ServerConf {
        threads: std::thread::available_parallelism().map_or(1, usize::from),
        // Each thread keeps its connections, with their caches.
        work_stealing: false,
        grace_period_seconds: Some(settings.drain_timeout.as_secs().max(1)),
        graceful_shutdown_timeout_seconds: Some(1),
        ..ServerConf::default()
    };
    let mut server = Server::new_with_opt_and_conf(None, conf);
    server.bootstrap();

    let app = CappedApp {
        proxy: Arc::new(Proxy::new(Arc::clone(edge))),
        free: Semaphore::new(settings.limits.max_connections),
        edge: Arc::clone(edge),
    };
    let mut service = Service::new("edge".to_owned(), app);
    let buffers = L4BufferSettings::new(READ_BUFFER, WRITE_BUFFER);
    let listener = ListenerConfig::tcp(settings.listen.to_string()).l4_buffer(buffers);
    service.add_listener(match client_tls {
        Some(tls) => listener.tls(tls),
        None => listener,
    });
    server.add_service(service);
    server.run(RunArgs { shutdown_signal: Box::new(StopSignal(stop)) });
}

/// The proxy with a cap on open connections.
struct CappedApp {
    proxy: Arc<Proxy>,
    free: Semaphore,
    edge: Arc<Edge>,
}

#[async_trait]
impl ServerApp for CappedApp {
    async fn process_new(self: &Arc<Self>, stream: Stream, shutdown: &ShutdownWatch) -> Option<Stream> {
        let Ok(_held) = self.free.try_acquire() else {
            self.edge.metrics.connections_refused.inc();
            return None;
        };
        self.proxy.process_new(stream, shutdown).await
    }
}

struct StopSignal(CancellationToken);

#[async_trait]
impl ShutdownSignalWatch for StopSignal {
    async fn recv(&self) -> ShutdownSignal {
        self.0.cancelled().await;
        ShutdownSignal::GracefulTerminate
    }
}
