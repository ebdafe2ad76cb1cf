//! The composition root: every part of the agent is made and connected here, and nowhere else.

use crate::admin::Admin;
use crate::echo::Echo;
use crate::engine::Engine;
use crate::engine::adapters::{Adapter, LLAMACPP, OPENAI, SGLANG, VLLM};
use crate::engine::remote::{Remote, RemoteError, RemoteSettings};
use crate::gpu::Gpus;
use crate::ledger::{Ledger, LedgerError, Options};
use crate::listener::Listener;
use crate::metrics::Metrics;
use crate::queue::Queue;
use crate::report::Reporter;
use crate::server::Front;
use crate::settings::{EngineKind, EngineSettings, Settings};
use crate::status::Status;
use crate::{observe, supervise};
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use turnpike_config::link::{Identity, LinkError, Role};
use turnpike_config::wire::NodeHello;

/// Connections that operators' tools may hold open.
const MAX_ADMIN_CONNECTIONS: usize = 64;

/// Why the agent did not start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A certificate, key or TLS setting.
    #[error(transparent)]
    Tls(#[from] LinkError),
    /// The certificate is another role's.
    #[error("tls.cert names a {0:?}, but a node agent needs a certificate for NAME.node.turnpike.internal")]
    NotANode(Role),
    /// A port is taken, or the address is not this machine's.
    #[error("{setting}: cannot listen on {address}: {source}")]
    Listen {
        /// Name of the setting.
        setting: &'static str,
        /// Its value.
        address: SocketAddr,
        /// The system's reason.
        source: std::io::Error,
    },
    /// A file that a setting names cannot be read.
    #[error("{setting}: {path}: {source}")]
    File {
        /// Name of the setting.
        setting: &'static str,
        /// The file.
        path: String,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The ledger in `data_dir` cannot be used.
    #[error("ledger: {0}")]
    Ledger(#[from] LedgerError),
    /// The engine cannot be set up.
    #[error("engine: {0}")]
    Engine(String),
}

/// Serves until `shutdown`, then drains and returns.
///
/// # Errors
/// When the agent cannot start. Once it has started, what goes wrong is logged, reported and retried.
pub async fn run(settings: Settings, shutdown: CancellationToken) -> Result<(), Error> {
    Agent::bind(settings).await?.serve(shutdown).await;
    Ok(())
}

/// An agent whose engine is set up and whose ports are bound.
pub struct Agent {
    settings: Settings,
    engine: Arc<dyn Engine>,
    ledger: Ledger,
    identity: Identity,
    http: Listener,
    admin: Listener,
    addresses: (SocketAddr, SocketAddr),
}

impl Agent {
    /// Sets up the engine and binds the ports.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn bind(settings: Settings) -> Result<Self, Error> {
        let identity = Identity::load(&settings.tls)?;
        let own = identity.own()?;
        if own.role != Role::Node {
            return Err(Error::NotANode(own.role));
        }
        let tls = settings.uses_tls().then(|| identity.server_config(&[b"h2", b"http/1.1"])).transpose()?;
        let (http, http_address) = listen("http.listen", settings.http_listen, tls, settings.max_connections).await?;
        let (admin, admin_address) =
            listen("metrics.listen", settings.metrics_listen, None, MAX_ADMIN_CONNECTIONS).await?;
        let options = ledger_options(&settings);
        // Reads and writes files: not on a thread that serves requests.
        let ledger = tokio::task::spawn_blocking(move || Ledger::open(options)).await;
        let ledger = ledger.map_err(|error| Error::Engine(error.to_string()))??;
        let engine = engine(&settings).await?;
        tracing::info!(
            name = %own.name, engine = engine.kind(), http = %http_address, metrics = %admin_address, "node agent bound"
        );
        Ok(Self { settings, engine, ledger, identity, http, admin, addresses: (http_address, admin_address) })
    }

    /// Where edges reach it.
    pub fn http_address(&self) -> SocketAddr {
        self.addresses.0
    }

    /// Where `/metrics`, `/livez` and `/readyz` are.
    pub fn metrics_address(&self) -> SocketAddr {
        self.addresses.1
    }

    /// Serves until `shutdown`, then drains: what runs is finished within `drain.timeout`, what comes is refused.
    pub async fn serve(self, shutdown: CancellationToken) {
        let Self { settings, engine, ledger, identity, http, admin, .. } = self;
        let gpus = Arc::new(Gpus::detect());
        let queue = Arc::new(Queue::new(settings.queue.slots, settings.queue.max_waiting, settings.queue.deadline));
        let status = Arc::new(Status::new(Arc::clone(&queue)));
        let metrics = Arc::new(Metrics::new(Arc::clone(&status)));
        let reporter = Reporter {
            addresses: settings.control_addresses.clone(),
            identity,
            hello: hello(&settings, &*engine, &gpus),
            status: Arc::clone(&status),
            shipper: ledger.shipper(),
        };
        let ledger = Arc::new(ledger);
        let front = Arc::new(Front {
            engine: Arc::clone(&engine),
            ledger: Arc::clone(&ledger),
            queue: Arc::clone(&queue),
            status: Arc::clone(&status),
            metrics: Arc::clone(&metrics),
            serves: settings.serves,
            max_body_bytes: settings.max_body_bytes,
        });
        let operators = Arc::new(Admin { status: Arc::clone(&status), metrics: Arc::clone(&metrics) });

        // Two stages: requests end first, then everything that they and their observers needed.
        let (stop_front, stop_rest) = (CancellationToken::new(), CancellationToken::new());
        let (serving, rest) = (TaskTracker::new(), TaskTracker::new());
        serving.spawn(http.serve(front, stop_front.clone()));
        rest.spawn(admin.serve(operators, stop_rest.clone()));
        rest.spawn(reporter.run(stop_rest.clone()));
        rest.spawn(watch_ledger(ledger.trouble(), Arc::clone(&status), stop_rest.clone()));
        let rhythm = (settings.engine.probe_every, settings.engine.probe_timeout);
        rest.spawn(observe::run(engine, gpus, Arc::clone(&status), Arc::clone(&metrics), rhythm, stop_rest.clone()));
        rest.spawn(supervise::run(settings.engine.command, settings.data_dir, metrics, stop_rest.clone()));
        serving.close();
        rest.close();

        shutdown.cancelled().await;
        tracing::info!(running = queue.running(), waiting = queue.waiting(), "draining");
        queue.close();
        status.drain();
        if timeout(settings.drain_timeout, queue.idle()).await.is_err() {
            tracing::warn!(running = queue.running(), "drain.timeout is over; the answers that still run are cut");
        }
        stop_front.cancel();
        serving.wait().await;
        // Whole before the control plane is told the rest of it.
        if let Err(error) = tokio::task::spawn_blocking(move || ledger.close()).await {
            tracing::error!(%error, "closing the ledger");
        }
        stop_rest.cancel();
        rest.wait().await;
        tracing::info!("drained");
    }
}

/// Has the state say whether requests can be recorded.
async fn watch_ledger(mut trouble: watch::Receiver<Option<String>>, status: Arc<Status>, stop: CancellationToken) {
    loop {
        status.set_recording(trouble.borrow_and_update().is_none());
        tokio::select! {
            () = stop.cancelled() => return,
            changed = trouble.changed() => if changed.is_err() { return },
        }
    }
}

fn ledger_options(settings: &Settings) -> Options {
    let since_1970 = || std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    Options {
        directory: settings.data_dir.join("ledger"),
        keep: settings.ledger.keep,
        max_bytes: settings.ledger.max_bytes,
        clock: Box::new(move || u64::try_from(since_1970().as_millis()).unwrap_or(u64::MAX)),
    }
}

async fn listen(
    setting: &'static str,
    address: SocketAddr,
    tls: Option<rustls::ServerConfig>,
    max_connections: usize,
) -> Result<(Listener, SocketAddr), Error> {
    let failed = |source| Error::Listen { setting, address, source };
    let listener = Listener::bind(address, tls, max_connections).await.map_err(failed)?;
    let bound = listener.address().map_err(failed)?;
    Ok((listener, bound))
}

fn hello(settings: &Settings, engine: &dyn Engine, gpus: &Gpus) -> NodeHello {
    NodeHello {
        region: settings.region.clone(),
        url: settings.advertise.clone(),
        engine: engine.kind().to_owned(),
        serves: settings.serves.clone(),
        slots: settings.queue.slots,
        gpus: gpus.names().to_vec(),
        build: env!("CARGO_PKG_VERSION").to_owned(),
    }
}

async fn engine(settings: &Settings) -> Result<Arc<dyn Engine>, Error> {
    let engine = &settings.engine;
    Ok(match engine.kind {
        EngineKind::Builtin => builtin(settings).await?,
        EngineKind::Echo => Arc::new(Echo::new(engine.token_delay)),
        EngineKind::Vllm => remote(&VLLM, engine).await?,
        EngineKind::Sglang => remote(&SGLANG, engine).await?,
        EngineKind::LlamaCpp => remote(&LLAMACPP, engine).await?,
        EngineKind::OpenAi => remote(&OPENAI, engine).await?,
    })
}

async fn remote(adapter: &'static Adapter, settings: &EngineSettings) -> Result<Arc<dyn Engine>, Error> {
    let api_key = match &settings.api_key_file {
        Some(path) => {
            let failed =
                |source| Error::File { setting: "engine.api_key_file", path: path.display().to_string(), source };
            Some(tokio::fs::read_to_string(path).await.map_err(failed)?.trim().to_owned())
        }
        None => None,
    };
    let settings = RemoteSettings {
        url: settings.url.clone(),
        model: settings.model.clone(),
        api_key,
        connect_timeout: settings.connect_timeout,
        idle_timeout: settings.idle_timeout,
    };
    let remote = Remote::new(adapter, settings).map_err(|error: RemoteError| Error::Engine(error.to_string()))?;
    Ok(Arc::new(remote))
}

#[cfg(feature = "builtin-engine")]
async fn builtin(settings: &Settings) -> Result<Arc<dyn Engine>, Error> {
    use crate::builtin::{BuiltinEngine, weights};
    let broken = |error: &dyn std::error::Error| Error::Engine(error.to_string());
    let dir = settings.weights_dir.clone();
    // Downloads and hashes files: not on a thread that serves requests.
    let weights = tokio::task::spawn_blocking(move || weights::ensure(&dir, &mut |_| {}))
        .await
        .map_err(|error| broken(&error))?
        .map_err(|error| broken(&error))?;
    let engine = BuiltinEngine::load(weights, settings.queue.slots).await.map_err(|error| broken(&error))?;
    Ok(Arc::new(engine))
}

#[cfg(not(feature = "builtin-engine"))]
#[expect(clippy::unused_async, reason = "same signature as with the feature")]
async fn builtin(_settings: &Settings) -> Result<Arc<dyn Engine>, Error> {
    Err(Error::Engine("this binary was built without the built-in engine (feature builtin-engine)".to_owned()))
}
