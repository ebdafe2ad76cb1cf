//! The region's Redis: one server or a cluster, over TCP or TLS.
//!
//! Connections come back by themselves. Nothing here waits longer than [`RESPONSE_TIMEOUT`], but for threads' own connections,
//! whose users say themselves how long they wait; what is worth waiting for less long is for the caller to say.

use crate::settings::RedisSettings;
use foldhash::HashMap;
use redis::aio::{ConnectionManager, ConnectionManagerConfig};
use redis::cluster::ClusterClientBuilder;
use redis::cluster_async::ClusterConnection;
use redis::{Client, Cmd, FromRedisValue, RedisError, TlsCertificates, ToRedisArgs, Value};
use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// A command without an answer by then has failed.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(1);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// Between attempts to connect again.
const RECONNECT: (Duration, Duration) = (Duration::from_millis(50), Duration::from_millis(500));

/// Why Redis cannot be used at all.
#[derive(Debug, thiserror::Error)]
pub enum BadRedis {
    /// The URL is none.
    #[error("redis.url: {0}; expected redis://[user:password@]host:port[/db], or rediss:// for TLS")]
    Url(String),
    /// A certificate cannot be read.
    #[error("redis.ca: {path}: {source}")]
    Certificate {
        /// The file.
        path: String,
        /// The system's reason.
        source: std::io::Error,
    },
}

/// A handle; clones share the connections.
#[derive(Clone)]
pub(crate) enum RedisClient {
    /// One connection, by which it is known how the server does.
    Single(Arc<Server>),
    /// One for each thread of the proxy: who asks does not wait for another thread to wake up.
    Threads(Arc<Server>),
    Cluster(Box<LazyCluster>),
}

/// A server.
pub(crate) struct Server {
    /// Tells servers apart in what threads have.
    number: u64,
    client: Client,
    config: ConnectionManagerConfig,
    connection: ConnectionManager,
}

static SERVERS: AtomicU64 = AtomicU64::new(0);

thread_local! {
    static CONNECTIONS: RefCell<HashMap<u64, ConnectionManager>> = RefCell::default();
}

impl Server {
    fn new(client: Client, config: ConnectionManagerConfig) -> Result<Self, RedisError> {
        let connection = client.get_connection_manager_lazy(config.clone())?;
        Ok(Self { number: SERVERS.fetch_add(1, Ordering::Relaxed), client, config, connection })
    }

    /// This thread's connection, made when it is first needed.
    fn of_thread(&self) -> Result<ConnectionManager, RedisError> {
        CONNECTIONS.with_borrow_mut(|connections| {
            if let Some(connection) = connections.get(&self.number) {
                return Ok(connection.clone());
            }
            let config = self.config.clone().set_response_timeout(None);
            let made = self.client.get_connection_manager_lazy(config)?;
            connections.insert(self.number, made.clone());
            Ok(made)
        })
    }
}

/// A cluster whose nodes are looked for when it is first used.
#[derive(Clone)]
pub(crate) struct LazyCluster {
    client: redis::cluster::ClusterClient,
    connection: Arc<tokio::sync::OnceCell<ClusterConnection>>,
}

impl LazyCluster {
    async fn connect(&self) -> Result<ClusterConnection, RedisError> {
        Ok(self.connection.get_or_try_init(|| self.client.get_async_connection()).await?.clone())
    }
}

impl RedisClient {
    /// A client for these settings; it connects when it is first used. To be called inside a tokio runtime.
    pub(crate) fn new(settings: &RedisSettings) -> Result<Self, BadRedis> {
        let unusable = |error: RedisError| BadRedis::Url(error.to_string());
        let certificates = certificates(settings)?;
        if settings.cluster || settings.urls.len() > 1 {
            let mut builder = ClusterClientBuilder::new(settings.urls.clone())
                .connection_timeout(CONNECT_TIMEOUT)
                .response_timeout(RESPONSE_TIMEOUT)
                .retries(1);
            if let Some(certificates) = certificates {
                builder = builder.certs(certificates);
            }
            let client = builder.build().map_err(unusable)?;
            return Ok(Self::Cluster(Box::new(LazyCluster { client, connection: Arc::default() })));
        }
        let url = settings.urls.first().map_or("", String::as_str);
        let client = match certificates {
            Some(certificates) => Client::build_with_tls(url, certificates),
            None => Client::open(url),
        };
        let config = ConnectionManagerConfig::new()
            .set_connection_timeout(Some(CONNECT_TIMEOUT))
            .set_response_timeout(Some(RESPONSE_TIMEOUT))
            // Whoever asks again connects again: an error that is told late helps nobody.
            .set_number_of_retries(0)
            .set_min_delay(RECONNECT.0)
            .set_max_delay(RECONNECT.1);
        let server = client.and_then(|client| Server::new(client, config));
        server.map(|server| Self::Single(Arc::new(server))).map_err(unusable)
    }

    /// The same with a connection for each thread, where there is one server. Each may be cold or dead by itself: not for
    /// those who judge by it how the server does, and only for those who say themselves how long they wait.
    pub(crate) fn of_threads(self) -> Self {
        match self {
            Self::Single(server) => Self::Threads(server),
            other => other,
        }
    }

    pub(crate) const fn is_cluster(&self) -> bool {
        matches!(self, Self::Cluster(_))
    }

    /// Runs a command.
    pub(crate) async fn query<T: FromRedisValue>(&self, command: &Cmd) -> Result<T, RedisError> {
        match self {
            Self::Single(server) => command.query_async(&mut server.connection.clone()).await,
            Self::Threads(server) => command.query_async(&mut server.of_thread()?).await,
            Self::Cluster(lazy) => command.query_async(&mut lazy.connect().await?).await,
        }
    }

    /// Runs a script, by its digest if the server knows it.
    pub(crate) async fn run<T: FromRedisValue>(
        &self,
        script: &Script,
        keys: &[impl AsRef<str>],
        arguments: &[impl ToRedisArgs],
    ) -> Result<T, RedisError> {
        match self.query(&script.command("EVALSHA", &script.digest, keys, arguments)).await {
            Err(error) if error.code() == Some("NOSCRIPT") => {
                self.query(&script.command("EVAL", script.text, keys, arguments)).await
            }
            result => result,
        }
    }
}

impl RedisClient {
    /// Runs commands, in one message where there is one server. All have run if it succeeds.
    pub(crate) async fn query_all(&self, commands: Vec<Cmd>) -> Result<(), RedisError> {
        let mut connection = match self {
            Self::Single(server) => server.connection.clone(),
            Self::Threads(server) => server.of_thread()?,
            Self::Cluster(_) => {
                for command in &commands {
                    self.query::<Value>(command).await?;
                }
                return Ok(());
            }
        };
        let mut pipeline = redis::pipe();
        for command in commands {
            pipeline.add_command(command).ignore();
        }
        pipeline.query_async(&mut connection).await
    }
}

fn certificates(settings: &RedisSettings) -> Result<Option<TlsCertificates>, BadRedis> {
    let Some(path) = &settings.ca else { return Ok(None) };
    let pem =
        std::fs::read(path).map_err(|source| BadRedis::Certificate { path: path.display().to_string(), source })?;
    Ok(Some(TlsCertificates { client_tls: None, root_cert: Some(pem) }))
}

/// A Lua script.
pub(crate) struct Script {
    text: &'static str,
    digest: String,
}

impl Script {
    pub(crate) fn new(text: &'static str) -> Self {
        Self { text, digest: redis::Script::new(text).get_hash().to_owned() }
    }

    fn command(&self, verb: &str, which: &str, keys: &[impl AsRef<str>], arguments: &[impl ToRedisArgs]) -> Cmd {
        let mut command = redis::cmd(verb);
        command.arg(which).arg(keys.len());
        for key in keys {
            command.arg(key.as_ref());
        }
        command.arg(arguments);
        command
    }
}
