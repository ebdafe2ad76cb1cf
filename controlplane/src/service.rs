//! The composition root: starts every part in order, and stops them.

use crate::admission::{BadTokens, Tokens};
use crate::api::{self, ApiState};
use crate::budgets;
use crate::closer;
use crate::collecting;
use crate::context::Context;
use crate::copying;
use crate::feed::{Feed, FeedError};
use crate::ingest::Ingest;
use crate::ledger::{ClickHouse, Ledger, Retention};
use crate::links;
use crate::metrics::Metrics;
use crate::notes::Notes;
use crate::partitions;
use crate::performance::{self, Recorder, Reported};
use crate::posting;
use crate::pricing;
use crate::reconcile;
use crate::rollout;
use crate::rollup::Rollup;
use crate::roster::Roster;
use crate::settings::{Settings, StripeSettings};
use crate::signing;
use crate::spending::Spending;
use crate::store::{ConnectError, Store, StoreError};
use crate::stripe::{BadSecret, Client, Secret, Stripe};
use crate::watermarks::Watermarks;
use chrono::Utc;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};
use turnpike_config::link::{Identity, LinkError, LinkServer, Role};

/// How long running work may take once a stop was asked for.
const DRAIN: Duration = Duration::from_secs(10);

/// Why the control plane could not start or had to stop.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct Error(#[from] Cause);

#[derive(Debug, thiserror::Error)]
enum Cause {
    #[error(transparent)]
    Tokens(#[from] BadTokens),
    #[error("http.listen {address}: {source}; is the port taken?")]
    Listen { address: SocketAddr, source: std::io::Error },
    #[error("link: {0}")]
    Link(#[from] LinkError),
    #[error("{}: the certificate is not a control plane's (control.turnpike.internal); check tls.cert", .0.display())]
    Role(PathBuf),
    #[error(transparent)]
    Signing(#[from] signing::BadKeyFile),
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error(transparent)]
    ClickHouse(#[from] crate::ledger::ConnectError),
    #[error("noting which ledger of usage is the one: {0}")]
    Switch(#[source] StoreError),
    #[error("waiting for the right to migrate ClickHouse: {0}")]
    MigrationLock(#[source] StoreError),
    #[error("making partitions: {0}")]
    Partitions(#[source] StoreError),
    #[error("compiling the routing: {0}")]
    Feed(#[from] FeedError),
    #[error(transparent)]
    Stripe(#[from] BadSecret),
    #[error("serving http: {0}")]
    Serve(#[from] std::io::Error),
}

/// A control plane that is bound and has its database in order, but does not serve yet.
pub struct ControlPlane {
    context: Arc<Context>,
    tokens: Arc<Tokens>,
    http: TcpListener,
    http_address: SocketAddr,
    link: Arc<LinkServer>,
    retention: Retention,
    reconcile_every: Duration,
    collect_every: Option<Duration>,
}

/// The account that collects the money.
fn load_stripe(settings: &StripeSettings) -> Result<Stripe, BadSecret> {
    let key = Secret::load("stripe.secret_key_file", &settings.secret_key_file)?;
    let webhook_secret = Secret::load("stripe.webhook_secret_file", &settings.webhook_secret_file)?;
    Ok(Stripe { client: Client::new(settings.url.clone(), key, settings.timeout)?, webhook_secret })
}

/// Runs the control plane until `shutdown` is cancelled, then drains. To be called inside a tokio runtime.
///
/// # Errors
/// A file, port or database of the settings cannot be used; the text names the setting.
pub async fn run(settings: Settings, shutdown: CancellationToken) -> Result<(), Error> {
    ControlPlane::start(&settings).await?.serve(shutdown).await
}

impl ControlPlane {
    /// Binds both listeners, waits for PostgreSQL (up to 30 s), migrates, makes partitions and compiles the routing.
    ///
    /// # Errors
    /// As for [`run`].
    pub async fn start(settings: &Settings) -> Result<Self, Error> {
        Ok(Self::prepare(settings).await?)
    }

    async fn prepare(settings: &Settings) -> Result<Self, Cause> {
        let tokens = Arc::new(Tokens::load(&settings.token_file)?);
        let identity = Identity::load(&settings.tls)?;
        if identity.own().map(|own| own.role).ok() != Some(Role::Control) {
            return Err(Cause::Role(settings.tls.cert.clone()));
        }
        let signer = signing::load(&settings.signing_key)?;
        let unbound = |source| Cause::Listen { address: settings.http_listen, source };
        let http = TcpListener::bind(settings.http_listen).await.map_err(unbound)?;
        let http_address = http.local_addr().map_err(unbound)?;
        let link = Arc::new(LinkServer::bind(settings.link_listen, &identity)?);

        let store = Store::open(&settings.postgres.0, settings.max_connections).await?;
        partitions::reconcile(&store, Utc::now(), settings.keep_months).await.map_err(Cause::Partitions)?;
        let metrics = Arc::new(Metrics::new());
        let feed = Arc::new(Feed::load(store.clone(), signer, Arc::clone(&metrics)).await?);
        let stripe = settings.stripe.as_ref().map(load_stripe).transpose()?.map(Arc::new);
        let spending = Arc::new(Spending::default());
        let ledger = Arc::new(open_ledger(settings, &store, &metrics).await?);
        copying::switch(&ledger, &store).await.map_err(Cause::Switch)?;
        let retention = Retention {
            log_months: settings.keep_months,
            log_sample: settings.log_sample,
            ledger_days: settings.clickhouse.as_ref().map(|options| options.keep_days),
        };
        let (books, spenders) = (Arc::clone(&ledger), Arc::clone(&spending));
        let rollup = Arc::new(Rollup::new(store.clone(), books, retention, Arc::clone(&metrics), spenders));
        let ingest =
            Ingest::new(store.clone(), Arc::clone(&ledger), Arc::clone(&rollup), Arc::clone(&metrics), retention);
        let (watermarks, reported) = (Watermarks::default(), Arc::<Reported>::default());
        let (edges, nodes) = (Roster::default(), Roster::default());
        let context = Arc::new(Context {
            id: uuid::Uuid::new_v4(),
            store,
            feed,
            ingest,
            ledger,
            rollup,
            watermarks,
            reported,
            spending,
            edges,
            notes: Notes::default(),
            nodes,
            invoicing: settings.invoicing.clone(),
            stripe,
            comparing: Mutex::default(),
            metrics,
        });
        info!(region = settings.region, http = %http_address, link = ?link.local_addr(), "control plane started");
        let reconcile_every = settings.reconcile_every;
        let collect_every = settings.stripe.as_ref().map(|stripe| stripe.every);
        Ok(Self { context, tokens, http, http_address, link, retention, reconcile_every, collect_every })
    }

    /// Where the admin API listens.
    pub const fn http_address(&self) -> SocketAddr {
        self.http_address
    }

    /// Where edges and nodes connect: UDP, and TCP.
    pub fn link_address(&self) -> Option<SocketAddr> {
        self.link.local_addr()
    }

    /// Serves until `shutdown` is cancelled, then drains for at most 10 s.
    ///
    /// # Errors
    /// The HTTP listener broke.
    pub async fn serve(self, shutdown: CancellationToken) -> Result<(), Error> {
        let tasks = TaskTracker::new();
        let Self { context, tokens, http, link, retention, reconcile_every, collect_every, .. } = self;
        let keep_months = retention.log_months;
        let (feed, stop) = (Arc::clone(&context.feed), shutdown.clone());
        tasks.spawn(async move { feed.run(stop).await });
        let (feed, stop) = (Arc::clone(&context.feed), shutdown.clone());
        tasks.spawn(async move { feed.listen(stop).await });
        let metrics = Arc::clone(&context.metrics);
        tasks.spawn(partitions::run(context.store.clone(), metrics, keep_months, shutdown.clone()));
        let (rollup, stop) = (Arc::clone(&context.rollup), shutdown.clone());
        tasks.spawn(async move { rollup.run(stop).await });
        let recorder = Recorder {
            reported: Arc::clone(&context.reported),
            store: context.store.clone(),
            ledger: Arc::clone(&context.ledger),
            keep_months,
        };
        tasks.spawn(performance::run(recorder, shutdown.clone()));
        tasks.spawn(copying::run(Arc::clone(&context), retention, shutdown.clone()));
        tasks.spawn(budgets::run(Arc::clone(&context), reconcile_every, shutdown.clone()));
        if let Some(every) = collect_every {
            tasks.spawn(collecting::run(Arc::clone(&context), every, shutdown.clone()));
        }
        tasks.spawn(closer::run(Arc::clone(&context), shutdown.clone()));
        tasks.spawn(pricing::run(Arc::clone(&context), shutdown.clone()));
        tasks.spawn(posting::run(Arc::clone(&context), shutdown.clone()));
        tasks.spawn(reconcile::run(Arc::clone(&context), shutdown.clone()));
        tasks.spawn(rollout::run(Arc::clone(&context), shutdown.clone()));
        tasks.spawn(links::write_notes(Arc::clone(&context), shutdown.clone()));
        tasks.spawn(links::watch_silence(Arc::clone(&context), shutdown.clone()));
        tasks.spawn(links::serve(link, Arc::clone(&context), shutdown.clone()));
        tasks.close();

        let router = api::router(ApiState { context: Arc::clone(&context), tokens });
        let stop = shutdown.clone();
        let serving = axum::serve(http, router).with_graceful_shutdown(async move { stop.cancelled().await });
        let drained = async {
            shutdown.cancelled().await;
            tokio::time::sleep(DRAIN).await;
        };
        let served = tokio::select! {
            served = serving.into_future() => served,
            () = drained => {
                warn!("connections of the admin API were still open after 10 s; closing them");
                Ok(())
            }
        };
        // Also when the listener broke by itself.
        shutdown.cancel();
        if tokio::time::timeout(DRAIN, tasks.wait()).await.is_err() {
            warn!("work was still running after 10 s; leaving it");
        }
        context.store.close().await;
        info!("control plane stopped");
        served.map_err(|error| Error(error.into()))
    }
}

/// Connects to ClickHouse if there is one, and brings its schema up to date. There is no lock over there to keep two
/// control planes from doing so at once; the one that PostgreSQL has does.
async fn open_ledger(settings: &Settings, store: &Store, metrics: &Arc<Metrics>) -> Result<Ledger, Cause> {
    let Some(options) = &settings.clickhouse else { return Ok(Ledger::Postgres) };
    let lock = store.lock_migrations().await.map_err(Cause::MigrationLock)?;
    let clickhouse = ClickHouse::open(options, Arc::clone(metrics)).await?;
    // Nothing was written: ending the transaction gives the lock back.
    drop(lock);
    Ok(Ledger::ClickHouse(Box::new(clickhouse)))
}
