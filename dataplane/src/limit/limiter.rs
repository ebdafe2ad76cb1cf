//! The limiter at work: asks the region's buckets when shares have nothing left, and keeps shares in order.
//!
//! Buckets are in Redis, which all edges of a region share, or in this process when the edge is on its own. A request that
//! finds units in its share neither waits nor asks.

use super::ask::{Ask, Grant};
use super::clock::Vouch;
use super::ledger::Ledger;
use super::memory::Memory;
use super::reach::{Reach, SLOW_IN_A_ROW};
use super::servers::{Server, Servers};
use super::share::{Take, Taken};
use super::subject::Limit;
use crate::clock::{Clock, nanos, since_epoch};
use crate::metrics::Metrics;
use crate::redis_client::{RedisClient, Script};
use redis::RedisError;
use std::pin::pin;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// A request that was told neither yes nor no in this time is refused; where answers may take long before they count as slow,
/// not before it is known whether Redis is away.
const PATIENCE: Duration = Duration::from_millis(100);
/// How often shares are looked after.
const KEEP_EVERY: Duration = Duration::from_millis(100);
/// How often is looked whether a server is to be probed.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// Keeping rounds between two tidyings of the buckets in this process.
const TIDY_EVERY: u32 = 600;
/// Looks between two writings of what is known of the servers' clocks.
const REMEMBER_EVERY: u32 = 10;
/// How long a start waits for the first word of Redis.
const FIRST_WORD: Duration = Duration::from_secs(2);

/// Units are not to be had now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Denied {
    /// Worth another try after this many nanoseconds.
    pub(crate) retry_after_ns: u64,
}

/// See the module.
pub(crate) struct Limiter {
    buckets: Buckets,
    clock: Clock,
    metrics: Arc<Metrics>,
    /// Shares that hold something, or did a moment ago.
    active: Mutex<Vec<Arc<Limit>>>,
}

enum Buckets {
    Here(Mutex<Ledger>),
    Redis(Box<Region>),
}

/// The region's Redis, as this edge sees it.
struct Region {
    client: RedisClient,
    name: String,
    servers: Servers,
    slow: Duration,
    bucket: Script,
    probe: Script,
}

/// How the region's Redis is dealt with.
pub(crate) struct Terms {
    /// Longer than this, and the edge goes its own way.
    pub(crate) slow: Duration,
    /// Least number of edges that share the limits.
    pub(crate) edges: u32,
    pub(crate) memory: Option<Memory>,
}

impl Limiter {
    /// With buckets in this process, for an edge on its own.
    pub(crate) fn alone(clock: Clock, metrics: Arc<Metrics>) -> Self {
        let buckets = Buckets::Here(Mutex::new(Ledger::settled(unix_us())));
        Self { buckets, clock, metrics, active: Mutex::default() }
    }

    /// With buckets in the region's Redis. `name` is the edge's.
    pub(crate) fn shared(
        client: RedisClient,
        name: &str,
        settings: Terms,
        clock: Clock,
        metrics: Arc<Metrics>,
    ) -> Self {
        let Terms { slow, edges, memory } = settings;
        let region = Region {
            servers: Servers::new(client.is_cluster(), edges, clock.now_ns(), memory),
            client,
            name: name.to_owned(),
            slow,
            bucket: Script::new(include_str!("bucket.lua")),
            probe: Script::new(include_str!("probe.lua")),
        };
        Self { buckets: Buckets::Redis(Box::new(region)), clock, metrics, active: Mutex::default() }
    }

    /// The time on the clock by which shares are kept, nanoseconds.
    pub(crate) fn now_ns(&self) -> u64 {
        self.clock.now_ns()
    }

    /// Takes units if the share has them now. Neither waits nor allocates.
    pub(crate) fn try_take(self: &Arc<Self>, limit: &Arc<Limit>, units: u64, now_ns: u64) -> Take {
        let taken = limit.share.take(units, self.reach(limit), now_ns);
        if let Take::Taken(Taken { runs_low: true, .. }) = taken {
            self.ask(limit);
        }
        taken
    }

    /// Asks the bucket for units and waits for its word, after [`Take::Ask`].
    pub(crate) async fn wait(self: &Arc<Self>, limit: &Arc<Limit>, units: u64) -> Result<Taken, Denied> {
        limit.waiting.fetch_add(units, Ordering::AcqRel);
        let patience = self.patience();
        let outcome = tokio::time::timeout(patience, self.ask_until_told(limit, units)).await;
        limit.waiting.fetch_sub(units, Ordering::AcqRel);
        outcome.unwrap_or_else(|_| {
            self.metrics.limiter_untold.inc();
            let until = self.clock.now_ns() + nanos(patience);
            Err(self.denied(until))
        })
    }

    fn patience(&self) -> Duration {
        match &self.buckets {
            Buckets::Here(_) => PATIENCE,
            Buckets::Redis(region) => PATIENCE.max(region.slow * (SLOW_IN_A_ROW + 1)),
        }
    }

    async fn ask_until_told(self: &Arc<Self>, limit: &Arc<Limit>, units: u64) -> Result<Taken, Denied> {
        loop {
            let mut changed = pin!(limit.changed.notified());
            // Registered before the ask, so that no answer is missed.
            changed.as_mut().enable();
            self.ask(limit);
            match limit.share.try_take(units, self.reach(limit), self.clock.now_ns()) {
                Take::Taken(taken) => return Ok(taken),
                Take::Denied { until_ns } => return Err(self.denied(until_ns)),
                Take::Ask => changed.await,
            }
            match limit.share.try_take(units, self.reach(limit), self.clock.now_ns()) {
                Take::Taken(taken) => return Ok(taken),
                Take::Denied { until_ns } => return Err(self.denied(until_ns)),
                Take::Ask => {}
            }
        }
    }

    /// Until when it is no use to ask again.
    pub(crate) fn denied(&self, until_ns: u64) -> Denied {
        Denied { retry_after_ns: until_ns.saturating_sub(self.clock.now_ns()).max(1) }
    }

    fn reach(&self, limit: &Limit) -> Reach {
        match &self.buckets {
            Buckets::Here(_) => Reach { alone_since_ns: None, edges: 1 },
            Buckets::Redis(region) => region.servers.of(limit.slot).reach(),
        }
    }

    /// Corrects what was taken to what was used.
    pub(crate) fn settle(&self, limit: &Limit, taken: Taken, used: u64, now_ns: u64) {
        limit.share.settle(taken, used, self.reach(limit), now_ns);
    }

    /// Sends the share's ask, unless one is on its way.
    fn ask(self: &Arc<Self>, limit: &Arc<Limit>) {
        let (now, waiting) = (self.clock.now_ns(), limit.waiting.load(Ordering::Acquire));
        if self.reach(limit).alone_since_ns.is_none()
            && let Some(ask) = limit.share.ask(waiting, limit.floor(), self.vouch(limit, now), now)
        {
            self.send(limit, ask, now);
        }
    }

    fn vouch(&self, limit: &Limit, now_ns: u64) -> Vouch {
        match &self.buckets {
            Buckets::Here(_) => Vouch { from: 0, not_after: unix_us() },
            Buckets::Redis(region) => region.servers.of(limit.slot).vouch(now_ns),
        }
    }

    fn send(self: &Arc<Self>, limit: &Arc<Limit>, ask: Ask, now_ns: u64) {
        self.metrics.limiter_asks.inc();
        self.keep_an_eye_on(limit);
        match &self.buckets {
            Buckets::Here(ledger) => {
                let mut ledger = ledger.lock().unwrap_or_else(PoisonError::into_inner);
                let grant = ledger.answer(&limit.key, &limit.holder, &ask, unix_us(), "");
                drop(ledger);
                limit.share.granted(&ask, &grant, now_ns, now_ns);
                limit.changed.notify_waiters();
            }
            Buckets::Redis(_) => {
                let (limiter, limit) = (Arc::clone(self), Arc::clone(limit));
                drop(tokio::spawn(async move { limiter.converse(&limit, ask, now_ns).await }));
            }
        }
    }

    /// Sends an ask to Redis and takes in what comes of it.
    async fn converse(&self, limit: &Limit, mut ask: Ask, sent_ns: u64) {
        let Buckets::Redis(region) = &self.buckets else { return };
        let mut server = region.servers.of(limit.slot);
        if region.servers.is_unknown(limit.slot) {
            // Whose clock it is must be known before a bucket can be asked.
            region.learn(limit, self.clock).await;
            server = region.servers.of(limit.slot);
            ask.vouch = server.vouch(self.clock.now_ns());
        }
        let mut answer = pin!(region.ask(limit, &ask));
        let answered = loop {
            tokio::select! {
                answered = &mut answer => break answered,
                () = tokio::time::sleep(region.slow) => {
                    self.metrics.limiter_slow.inc();
                    server.slow(self.clock.now_ns());
                    limit.changed.notify_waiters();
                }
            }
        };
        let now = self.clock.now_ns();
        match answered {
            Ok((grant, run)) => {
                region.servers.heard(limit.slot, &run, grant.at, sent_ns, now);
                limit.share.granted(&ask, &grant, sent_ns, now);
            }
            Err(error) => {
                limit.share.lost(&ask);
                region.fail(&server, self.clock, &error);
            }
        }
        limit.changed.notify_waiters();
    }

    fn keep_an_eye_on(&self, limit: &Arc<Limit>) {
        if !limit.active.swap(true, Ordering::AcqRel) {
            self.active.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(limit));
        }
    }

    /// Waits for the first word of Redis, so that the first requests are not refused for want of it; not for ever.
    pub(crate) async fn ready(&self) {
        let Buckets::Redis(region) = &self.buckets else { return };
        let mut last = None;
        let first_word = async {
            while region.servers.any_alone() {
                if let Err(error) = region.probe_all(true, self.clock).await {
                    last = Some(error);
                }
                if region.servers.any_alone() {
                    tokio::time::sleep(LOOK_EVERY).await;
                }
            }
        };
        if tokio::time::timeout(FIRST_WORD, first_word).await.is_err() {
            let error = last.map_or_else(|| "it does not react".to_owned(), |error| error.to_string());
            for (_, server) in region.servers.known() {
                server.failed(self.clock.now_ns());
            }
            tracing::warn!(error, "limits: Redis does not answer; starting alone, with this edge's part of each limit");
        }
    }

    /// Looks after the shares and the servers until stopped.
    pub(crate) async fn run(self: Arc<Self>, stop: CancellationToken) {
        let probing = async {
            let Buckets::Redis(region) = &self.buckets else { return std::future::pending().await };
            let mut warned = false;
            for round in 0_u32.. {
                let busy = !self.active.lock().unwrap_or_else(PoisonError::into_inner).is_empty();
                if let Err(error) = region.probe_all(busy, self.clock).await {
                    tracing::debug!(%error, "limits: a probe of Redis failed");
                }
                if round % REMEMBER_EVERY == 0 {
                    // It writes a file.
                    tokio::task::block_in_place(|| region.servers.remember());
                }
                let alone = region.servers.any_alone();
                self.metrics.limiter_alone.set(i64::from(alone));
                if !alone && !std::mem::replace(&mut warned, true) {
                    region.warn_of_eviction().await;
                }
                tokio::time::sleep(LOOK_EVERY).await;
            }
        };
        let keeping = async {
            for round in 0_u32.. {
                tokio::time::sleep(KEEP_EVERY).await;
                self.keep();
                if let Buckets::Here(ledger) = &self.buckets
                    && round % TIDY_EVERY == 0
                {
                    ledger.lock().unwrap_or_else(PoisonError::into_inner).tidy();
                }
            }
        };
        tokio::select! {
            () = stop.cancelled() => {}
            () = probing => {}
            () = keeping => {}
        }
    }

    /// Renews what is reserved, gives back what is idle, forgets shares that hold nothing.
    fn keep(self: &Arc<Self>) {
        let active = std::mem::take(&mut *self.active.lock().unwrap_or_else(PoisonError::into_inner));
        let now = self.clock.now_ns();
        let mut kept = Vec::with_capacity(active.len());
        for limit in active {
            if limit.share.is_dormant(now) {
                limit.active.store(false, Ordering::Release);
                continue;
            }
            if self.reach(&limit).alone_since_ns.is_none()
                && let Some(ask) = limit.share.keep(limit.floor(), self.vouch(&limit, now), now)
            {
                self.send(&limit, ask, now);
            }
            kept.push(limit);
        }
        self.active.lock().unwrap_or_else(PoisonError::into_inner).append(&mut kept);
    }
}

impl Region {
    async fn ask(&self, limit: &Limit, ask: &Ask) -> Result<(Grant, String), RedisError> {
        let arguments = ask.arguments(&limit.holder);
        let sentinel = self.servers.sentinel(limit.slot);
        let (granted, left, at, generation, credited, run): (u64, f64, i64, String, f64, String) =
            self.client.run(&self.bucket, &[&limit.key, &sentinel], &arguments).await?;
        Ok((Grant { granted, left, at, generation, credited }, run))
    }

    /// Asks whose the slot of a limit is.
    async fn learn(&self, limit: &Limit, clock: Clock) {
        // What goes wrong here goes wrong with the ask that follows, which tells.
        drop(self.probe(limit.slot, Vouch::NOTHING, clock).await);
    }

    /// Asks a server how it is, and says that this edge is there.
    async fn probe(&self, slot: u16, vouch: Vouch, clock: Clock) -> Result<(), RedisError> {
        let (sentinel, edges) = (self.servers.sentinel(slot), self.servers.edges(slot));
        let arguments = [vouch.from.to_string(), vouch.not_after.to_string(), self.name.clone()];
        let sent = clock.now_ns();
        let (at, run, there, only): (i64, String, u32, Option<bool>) =
            self.client.run(&self.probe, &[&sentinel, &edges], &arguments).await?;
        // First: whether there are others decides what a first word is worth.
        self.servers.counted(slot, there, only.unwrap_or(false));
        self.servers.heard(slot, &run, at, sent, clock.now_ns());
        Ok(())
    }

    /// Probes every server that is known and whose turn it is. `busy`: limits depend on them.
    async fn probe_all(&self, busy: bool, clock: Clock) -> Result<(), RedisError> {
        let mut last = Ok(());
        for (slot, server) in self.servers.known() {
            let (now, was_alone) = (clock.now_ns(), server.is_alone());
            if !server.probe_is_due(busy, now) {
                continue;
            }
            match self.probe(slot, server.vouch(now), clock).await {
                Ok(()) if was_alone => tracing::info!("limits: Redis answers"),
                Ok(()) => {}
                Err(error) => {
                    self.fail(&server, clock, &error);
                    last = Err(error);
                }
            }
        }
        last
    }

    fn fail(&self, server: &Server, clock: Clock, error: &RedisError) {
        if server.failed(clock.now_ns()) {
            tracing::warn!(%error, "limits: Redis does not answer; going on with what is held, then with this edge's part of each limit");
        }
    }

    /// Limits that Redis may throw away at will are none.
    async fn warn_of_eviction(&self) {
        let text: Result<String, _> = self.client.query(redis::cmd("INFO").arg("memory")).await;
        let policy = text.ok().and_then(|text| {
            text.lines().find_map(|line| line.strip_prefix("maxmemory_policy:").map(|policy| policy.trim().to_owned()))
        });
        if let Some(policy) = policy.filter(|policy| policy != "noeviction") {
            tracing::warn!(
                policy,
                "Redis may evict what limits are counted by, and then starts counting from nothing: set maxmemory-policy noeviction"
            );
        }
    }
}

fn unix_us() -> i64 {
    i64::try_from(since_epoch().as_micros()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::RedisSettings;

    #[tokio::test]
    async fn nobody_is_refused_before_the_edge_goes_its_own_way() {
        for slow in [5, 50, 500].map(Duration::from_millis) {
            let urls = vec!["redis://127.0.0.1:1".to_owned()];
            let client = RedisClient::new(&RedisSettings { urls, cluster: false, ca: None, slow, edges: 1 }).unwrap();
            let terms = Terms { slow, edges: 1, memory: None };
            let limiter = Limiter::shared(client, "edge", terms, Clock, Arc::new(Metrics::new()));
            assert!(limiter.patience() >= PATIENCE.max(slow * SLOW_IN_A_ROW), "{slow:?}");
        }
    }
}
