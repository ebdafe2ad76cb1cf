//! Writes what is new in the routing.

use super::news::{Item, News, Step};
use super::records::{Listing, RECORD_TTL, SERVERS_TTL, key_name, metadata_name, servers_name, version_name};
use crate::redis_client::{RedisClient, Script};
use redis::{Cmd, RedisError};
use serde::Serialize;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::Notify;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

/// What is written lives a few times as long.
const REFRESH_EVERY: Duration = Duration::from_secs(100);
/// After a failure, and while the routing is not current.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// Writes an entry, unless there is one of a newer routing. ARGV: entry, its version, seconds.
const SET_NEWER: &str = "local there = redis.call('GET', KEYS[1])
if there then
  local ok, entry = pcall(cjson.decode, there)
  if ok and type(entry) == 'table' and (tonumber(entry.routing_version) or 0) > tonumber(ARGV[2]) then return 0 end
end
redis.call('SET', KEYS[1], ARGV[1], 'EX', ARGV[3])
return 1";
/// Replaces a list in one step. ARGV: seconds, items.
const SET_LIST: &str = "redis.call('DEL', KEYS[1])
if #ARGV > 1 then
  redis.call('RPUSH', KEYS[1], unpack(ARGV, 2))
  redis.call('EXPIRE', KEYS[1], ARGV[1])
end
return 1";

/// Tells the region.
pub(crate) struct Writer {
    client: RedisClient,
    set_newer: Script,
    set_list: Script,
    news: Mutex<News>,
    came: Notify,
}

impl Writer {
    pub(crate) fn new(client: RedisClient) -> Self {
        let (set_newer, set_list) = (Script::new(SET_NEWER), Script::new(SET_LIST));
        Self { client, set_newer, set_list, news: Mutex::default(), came: Notify::new() }
    }

    /// Takes in what is served by now: what was on disk, or what the control plane has just pushed.
    pub(crate) fn take(&self, step: &Step<'_>) {
        self.news().take(step, Instant::now());
        self.came.notify_one();
    }

    fn news(&self) -> MutexGuard<'_, News> {
        self.news.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes until stopped, while `is_current` says that the routing is: an edge that lost its link must not keep old
    /// news alive.
    pub(crate) async fn run(&self, is_current: impl Fn() -> bool, stop: CancellationToken) {
        let mut refresh = tokio::time::interval(REFRESH_EVERY);
        refresh.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.came.notified() => {}
                _ = refresh.tick() => self.news().refresh(),
            }
            while self.news().next().is_some() {
                let written = if is_current() { self.write_all().await } else { Ok(false) };
                if let Err(error) = &written {
                    tracing::debug!(%error, "the region cannot be told what is new; trying again");
                }
                if matches!(written, Ok(true)) {
                    continue;
                }
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = tokio::time::sleep(RETRY_AFTER) => {}
                }
            }
        }
    }

    /// Writes one after the other; what was written is news no more.
    async fn write_all(&self) -> Result<bool, RedisError> {
        loop {
            let Some(item) = self.news().next() else { return Ok(true) };
            match &item {
                Item::Key(digest, entry) => self.set(&key_name(digest), entry, entry.routing_version).await?,
                Item::Model(id, version, listing) => self.write_model(id, *version, listing.as_ref()).await?,
            }
            self.news().written(&item);
        }
    }

    async fn write_model(&self, id: &str, version: u64, listing: Option<&Listing>) -> Result<(), RedisError> {
        self.set(&metadata_name(id), &Item::metadata(version, listing), version).await?;
        let Some(Listing { model, servers }) = listing else { return Ok(()) };
        for named in &model.versions {
            let mut command = Cmd::new();
            command.arg("SET").arg(version_name(id, &named.version)).arg(json(named));
            self.client.query::<()>(command.arg("EX").arg(RECORD_TTL.as_secs())).await?;
        }
        let mut arguments = vec![SERVERS_TTL.as_secs().to_string()];
        arguments.extend(servers.iter().map(json));
        self.client.run::<()>(&self.set_list, &[&servers_name(id)], &arguments).await
    }

    async fn set(&self, name: &str, entry: &impl Serialize, version: u64) -> Result<(), RedisError> {
        let arguments = [json(entry), version.to_string(), RECORD_TTL.as_secs().to_string()];
        self.client.run::<()>(&self.set_newer, &[name], &arguments).await
    }
}

fn json<T: Serialize>(record: &T) -> String {
    // Records are plain data: nothing in them cannot be written as JSON.
    serde_json::to_string(record).unwrap_or_default()
}
