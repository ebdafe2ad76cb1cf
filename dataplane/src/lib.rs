//! The edge: a proxy that authenticates, limits, balances and meters.
//!
//! A request meets the stages in the order in which [`proxy`] calls them; each is one file and knows nothing of the others.
//! What a request needs is in memory: the pinned snapshot, limits as atomics, a slot in the journal's queue. The control
//! plane may be dead; the link ([`sync`], [`ship`]) runs beside and never in the way.

mod admin;
mod admit;
mod assign;
mod auth;
mod balance;
#[cfg(feature = "bench")]
pub mod bench;
mod bucket;
mod cache;
mod client;
mod client_stream;
mod clock;
mod deadlines;
mod directory;
mod edge;
mod explain;
mod files;
mod fill;
mod forward;
mod image;
mod ingress;
mod journal;
mod keys;
mod limit;
mod live;
mod meter;
mod metrics;
mod node_client;
mod plan;
mod proxy;
mod redis_client;
mod reject;
mod request;
mod resolve;
mod respond;
mod reuse;
mod rewrite;
mod server;
mod settings;
mod shadow;
mod ship;
mod size;
mod store;
mod sync;
mod trust;
mod unsettled;
mod upstream;

pub use journal::JournalError;
pub use redis_client::BadRedis;
pub use settings::{Limits, RedisSettings, Settings};

use cache::{ResponseCache, SharedAnswers};
use clock::Clock;
use directory::Directory;
use edge::{Edge, Metering, Own};
use journal::{Intent, Journal, Opened, Permit};
use limit::{Limiter, Memory, Terms};
use metrics::Metrics;
use node_client::Aside;
use redis_client::RedisClient;
use server::{Port, Server};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use turnpike_config::link::{Identity, LinkError, Peer, Role};
use turnpike_config::signing::Trust;
use unsettled::{Jobs, Unsettled};
use upstream::Connector;

/// How long a stopping edge goes on shipping what it has metered; the rest is shipped after the next start.
const LAST_SHIPMENT: Duration = Duration::from_secs(3);
/// How long a stopping edge waits for a disk that refuses.
const LAST_SYNC: Duration = Duration::from_secs(10);
const DRAIN_POLL: Duration = Duration::from_millis(20);

/// Why an edge cannot run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An address is taken or not ours.
    #[error("cannot listen on {address} (setting {setting}): {source}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Which setting to change.
        setting: &'static str,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The certificate does not do.
    #[error("certificate: {0}")]
    Identity(#[from] LinkError),
    /// The certificate is another role's.
    #[error("tls.cert is that of {0:?}, but an edge needs one for NAME.edge.turnpike.internal")]
    WrongRole(Peer),
    /// It is not known whose signatures count.
    #[error("signing.trusted: {0}")]
    Trust(String),
    /// The usage journal cannot be used.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The directory for the last good routing cannot be used.
    #[error("data_dir: the last good routing cannot be kept there: {0}")]
    Routing(std::io::Error),
    /// The runtime cannot be started.
    #[error("cannot start: {0}")]
    Runtime(std::io::Error),
    /// TLS for clients cannot be set up.
    #[error("TLS for clients (http.tls_cert): {0}")]
    ClientTls(String),
    /// The settings of Redis do not do.
    #[error(transparent)]
    Redis(#[from] BadRedis),
}

/// Runs an edge until `shutdown`, then drains: running requests finish (up to `drain.timeout`), usage is synced to disk.
pub fn run(settings: Settings, shutdown: CancellationToken) -> Result<(), Error> {
    // A connection's buffers are kilobytes here and there: with pages of two megabytes, twice as much would be resident.
    if let Err(error) = rustix::thread::disable_transparent_huge_pages(true) {
        tracing::debug!(%error, "huge pages stay on");
    }
    let identity = Identity::load(&settings.tls)?;
    let trust = trust::load(&settings.trusted).map_err(Error::Trust)?;
    let own = identity.own()?;
    if own.role != Role::Edge {
        return Err(Error::WrongRole(own));
    }
    let port = Port::bind(&settings)?;
    let metrics = Arc::new(Metrics::new());
    let observe = Arc::clone(&metrics);
    let journal_dir = settings.data_dir.join("journal");
    let Opened { journal, orphans, .. } =
        Journal::open(&journal_dir, settings.journal_max_bytes, move |event, waited| observe.observe(event, waited))?;
    let (unsettled, jobs) = Unsettled::new();
    let nodes = Connector::new(identity.client_config(&[b"http/1.1"])?);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("edge-side")
        .enable_all()
        .build()
        .map_err(Error::Runtime)?;
    let clock = Clock;
    let redis = {
        let _inside = runtime.enter();
        settings.redis.as_ref().map(RedisClient::new).transpose()?
    };
    let limiter = Arc::new(limiter(&settings, redis.clone(), &own.name, clock, &metrics));
    let shared = redis.clone().map(|client| SharedAnswers::new(client.of_threads(), clock));
    let aside = Aside::new(&identity, runtime.handle().clone())?;
    let own = Own { name: own.name, nodes, aside };
    let directory = redis.map(|client| Directory::new(client, clock, Arc::clone(&metrics)));
    let cache = ResponseCache::new(settings.cache_max_bytes, shared);
    let edge = Arc::new(Edge::new(settings, own, Metering { journal, unsettled }, metrics, limiter, cache, directory));
    runtime.block_on(serve(edge, port, Linking { identity, trust }, Unresolved { jobs, orphans }, shutdown))
}

/// Limits are kept in the region's Redis, or here if there is none.
fn limiter(
    settings: &Settings,
    client: Option<RedisClient>,
    name: &str,
    clock: Clock,
    metrics: &Arc<Metrics>,
) -> Limiter {
    let metrics = Arc::clone(metrics);
    match (client, &settings.redis) {
        (Some(client), Some(redis)) => {
            let memory = Memory::new(settings.data_dir.join("region_clock.json"));
            let terms = Terms { slow: redis.slow, edges: redis.edges, memory };
            Limiter::shared(client, name, terms, clock, metrics)
        }
        _ => Limiter::alone(clock, metrics),
    }
}

fn listen_error(address: SocketAddr, setting: &'static str) -> impl FnOnce(std::io::Error) -> Error {
    move |source| Error::Listen { address, setting, source }
}

/// What the link needs.
struct Linking {
    identity: Identity,
    trust: Trust,
}

/// Requests whose nodes know what they used.
struct Unresolved {
    jobs: Jobs,
    orphans: Vec<(Intent, Permit)>,
}

async fn serve(
    edge: Arc<Edge>,
    port: Port,
    linking: Linking,
    unresolved: Unresolved,
    shutdown: CancellationToken,
) -> Result<(), Error> {
    let admin_address = edge.settings.admin_listen;
    let listener = TcpListener::bind(admin_address).await.map_err(listen_error(admin_address, "admin.listen"))?;
    tokio::spawn(axum::serve(listener, admin::router(Arc::clone(&edge))).into_future());

    let stop_resolving = CancellationToken::new();
    let Unresolved { jobs, orphans } = unresolved;
    let own = Identity::load(&edge.settings.tls)?;
    let stop_sync = CancellationToken::new();
    // Knows the nodes of the last good routing, which the resolver asks.
    let link = sync::Sync::start(Arc::clone(&edge), linking.trust).map_err(Error::Routing)?;
    let sync = tokio::spawn(link.run(linking.identity, stop_sync.clone()));
    let resolving = tokio::spawn(resolve::run(Arc::clone(&edge), own, jobs, orphans, stop_resolving.clone()));

    edge.limiter.ready().await;
    tokio::spawn(Arc::clone(&edge.limiter).run(stop_sync.clone()));
    tokio::spawn(tell_region(Arc::clone(&edge), stop_sync.clone()));

    let server = Server::start(&edge, port)?;
    edge.listening.store(true, Ordering::Relaxed);
    tracing::info!(listen = %edge.settings.listen, admin = %admin_address, name = edge.name, "edge started");

    shutdown.cancelled().await;
    finish_requests(&edge, &server).await;
    stop_resolving.cancel();
    // The task only fails by panicking, which has been reported.
    let _ = resolving.await;
    drain_journal(&edge).await;
    stop_sync.cancel();
    // The task only fails by panicking, which has been reported.
    let _ = sync.await;
    Ok(())
}

/// Keeps the region informed, if there is one.
async fn tell_region(edge: Arc<Edge>, stop: CancellationToken) {
    if let Some(directory) = &edge.directory {
        directory.writer.run(|| edge.metrics.linked.get() == 1, stop).await;
    }
}

/// Waits for running requests, within their deadline.
async fn finish_requests(edge: &Edge, server: &Server) {
    tracing::info!(in_flight = edge.metrics.in_flight.get(), "draining");
    edge.draining.store(true, Ordering::Relaxed);
    server.stop_accepting();
    let deadline = Instant::now() + edge.settings.drain_timeout;
    while edge.metrics.in_flight.get() > 0 && Instant::now() < deadline {
        tokio::time::sleep(DRAIN_POLL).await;
    }
    let left = edge.metrics.in_flight.get();
    if left > 0 {
        tracing::warn!(requests = left, "drain.timeout passed: running requests are cut off");
    }
}

/// Waits for usage to be safe on disk and then to leave, each within its deadline.
async fn drain_journal(edge: &Edge) {
    if tokio::time::timeout(LAST_SYNC, edge.journal.flush()).await.is_err() {
        let trouble = edge.journal.trouble();
        tracing::error!(trouble, "the usage of the last requests could not be written to disk and is lost");
    }
    let deadline = Instant::now() + LAST_SHIPMENT;
    while edge.metrics.linked.get() == 1 && !all_shipped(edge) && Instant::now() < deadline {
        tokio::time::sleep(DRAIN_POLL).await;
    }
    tracing::info!("drained");
}

fn all_shipped(edge: &Edge) -> bool {
    let durable = edge.journal.position().borrow().durable;
    u64::try_from(edge.metrics.journal_shipped.get()).is_ok_and(|shipped| shipped >= durable)
}
