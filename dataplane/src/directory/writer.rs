//! Writes what is new in the routing.

use super::records::{KeyEntry, Listing, RECORD_TTL, SERVERS_TTL, key_name, metadata_name, servers_name, version_name};
use crate::redis_client::{RedisClient, Script};
use redis::{Cmd, RedisError};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use turnpike_config::{KeyDigest, Routing};

/// What is written lives a few times as long.
const REFRESH_EVERY: Duration = Duration::from_secs(100);
/// After a failure.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// Replaces a list in one step.
const SET_LIST: &str = "redis.call('DEL', KEYS[1])
if #ARGV > 1 then
  redis.call('RPUSH', KEYS[1], unpack(ARGV, 2))
  redis.call('EXPIRE', KEYS[1], ARGV[1])
end
return 1";

/// Tells the region.
pub(crate) struct Writer {
    client: RedisClient,
    set_list: Script,
    news: Mutex<News>,
    came: Notify,
}

/// What is still to be written.
#[derive(Default)]
struct News {
    /// New entries of keys as JSON; `None` takes one away.
    keys: BTreeMap<KeyDigest, Option<String>>,
    /// All models by id, as the routing has them now.
    listings: BTreeMap<String, Listing>,
    /// Those that are not yet written as they are, or not yet taken away.
    unwritten: BTreeSet<String>,
}

impl Writer {
    pub(crate) fn new(client: RedisClient) -> Self {
        Self { client, set_list: Script::new(SET_LIST), news: Mutex::default(), came: Notify::new() }
    }

    /// Takes in a routing that the control plane has just pushed. Of keys only the changes are written: all of them may be
    /// a million.
    pub(crate) fn take(&self, before: &Routing, now: &Routing) {
        let mut news = self.news();
        if before.version > 0 {
            news.keys.extend(changed_keys(before, now));
        }
        let listings = listings(now);
        let ids: BTreeSet<_> = listings.keys().chain(news.listings.keys()).cloned().collect();
        let changed = ids.into_iter().filter(|id| news.listings.get(id) != listings.get(id));
        let changed: Vec<_> = changed.collect();
        news.unwritten.extend(changed);
        news.listings = listings;
        drop(news);
        self.came.notify_one();
    }

    fn news(&self) -> MutexGuard<'_, News> {
        self.news.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes until stopped. `is_current` says whether the routing is kept current: an edge that lost its link must not
    /// keep old news alive.
    pub(crate) async fn run(&self, is_current: impl Fn() -> bool, stop: CancellationToken) {
        let mut refresh = tokio::time::interval(REFRESH_EVERY);
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.came.notified() => {}
                _ = refresh.tick() => {
                    if is_current() {
                        let mut news = self.news();
                        news.unwritten = news.listings.keys().cloned().collect();
                    }
                }
            }
            while let Err(error) = self.write_all().await {
                tracing::debug!(%error, "the region cannot be told what is new; trying again");
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = tokio::time::sleep(RETRY_AFTER) => {}
                }
            }
        }
    }

    /// Writes one after the other; what was written is news no more.
    async fn write_all(&self) -> Result<(), RedisError> {
        loop {
            let key = self.news().keys.first_key_value().map(|(digest, entry)| (*digest, entry.clone()));
            let Some((digest, entry)) = key else { break };
            self.write_key(&digest, entry.as_deref()).await?;
            let mut news = self.news();
            if news.keys.get(&digest) == Some(&entry) {
                news.keys.remove(&digest);
            }
        }
        loop {
            let listing = {
                let news = self.news();
                let Some(id) = news.unwritten.last() else { return Ok(()) };
                (id.clone(), news.listings.get(id).cloned())
            };
            let (id, listing) = listing;
            match &listing {
                Some(listing) => self.write_listing(listing).await?,
                None => self.client.query(&delete(&metadata_name(&id))).await?,
            }
            let mut news = self.news();
            if news.listings.get(&id) == listing.as_ref() {
                news.unwritten.remove(&id);
            }
        }
    }

    async fn write_key(&self, digest: &KeyDigest, entry: Option<&str>) -> Result<(), RedisError> {
        let command = match entry {
            Some(entry) => set(&key_name(digest), entry),
            None => delete(&key_name(digest)),
        };
        self.client.query(&command).await
    }

    async fn write_listing(&self, listing: &Listing) -> Result<(), RedisError> {
        let Listing { model, servers } = listing;
        self.client.query::<()>(&set(&metadata_name(&model.id), &json(model))).await?;
        for version in &model.versions {
            self.client.query::<()>(&set(&version_name(&model.id, &version.version), &json(version))).await?;
        }
        let mut arguments = vec![SERVERS_TTL.as_secs().to_string()];
        arguments.extend(servers.iter().map(json));
        self.client.run::<()>(&self.set_list, &[&servers_name(&model.id)], &arguments).await
    }
}

fn set(name: &str, value: &str) -> Cmd {
    let mut command = redis::cmd("SET");
    command.arg(name).arg(value).arg("EX").arg(RECORD_TTL.as_secs());
    command
}

fn delete(name: &str) -> Cmd {
    let mut command = redis::cmd("DEL");
    command.arg(name);
    command
}

fn json<T: serde::Serialize>(record: &T) -> String {
    // Records are plain data: nothing in them cannot be written as JSON.
    serde_json::to_string(record).unwrap_or_default()
}

fn changed_keys<'a>(before: &'a Routing, now: &'a Routing) -> impl Iterator<Item = (KeyDigest, Option<String>)> + 'a {
    let gone = before.keys.values().filter(|key| now.keys.get(&key.id).is_none_or(|kept| kept.digest != key.digest));
    let changed = now.keys.values().filter(|key| before.keys.get(&key.id) != Some(key));
    let entry = |key: &turnpike_config::KeyRecord| {
        let organization = now.orgs.get(&key.organization)?.clone();
        Some(json(&KeyEntry { key: key.clone(), organization }))
    };
    gone.map(|key| (key.digest, None)).chain(changed.map(move |key| (key.digest, entry(key))))
}

fn listings(routing: &Routing) -> BTreeMap<String, Listing> {
    let servers = |id: &str| {
        let serves = |node: &&turnpike_config::NodeRecord| node.serves.iter().any(|served| served.model == id);
        routing.nodes.values().filter(serves).cloned().collect()
    };
    let active = routing.models.values().filter(|model| model.active);
    active.map(|model| (model.id.clone(), Listing { model: model.clone(), servers: servers(&model.id) })).collect()
}
