//! Looks up what the own routing does not have.

use super::records::{KeyEntry, key_name, metadata_name, servers_name, version_name};
use crate::bucket::Bucket;
use crate::clock::Clock;
use crate::live::{Key, Model, Snapshot, resolve};
use crate::metrics::Metrics;
use crate::redis_client::RedisClient;
use moka::sync::Cache;
use redis::RedisError;
use std::sync::Arc;
use std::time::Duration;
use turnpike_config::{KeyDigest, ModelRecord, NodeRecord, routing::VersionRecord};

/// What is looked up is believed for so long, and so is that there is nothing: a flood of wrong keys costs Redis little.
const BELIEVED: Duration = Duration::from_secs(10);
/// Things remembered of each kind.
const REMEMBERED: u64 = 50_000;
/// Lookups per minute. A flood of wrong keys that are all different is refused without asking.
const LOOKUPS_PER_MINUTE: u64 = 12_000;
/// A lookup that takes longer has found nothing.
const PATIENCE: Duration = Duration::from_millis(100);
/// Nodes of a model that are of interest.
const MOST_SERVERS: isize = 256;

/// Asks the region.
pub(crate) struct Reader {
    client: RedisClient,
    clock: Clock,
    metrics: Arc<Metrics>,
    lookups: Bucket,
    keys: Cache<KeyDigest, Option<Arc<Key>>>,
    models: Cache<String, Option<Arc<Model>>>,
}

fn remembered<K: std::hash::Hash + Eq + Send + Sync + 'static, V: Clone + Send + Sync + 'static>() -> Cache<K, V> {
    Cache::builder().max_capacity(REMEMBERED).time_to_live(BELIEVED).build()
}

impl Reader {
    pub(crate) fn new(client: RedisClient, clock: Clock, metrics: Arc<Metrics>) -> Self {
        let lookups = Bucket::new(LOOKUPS_PER_MINUTE);
        Self { client, clock, metrics, lookups, keys: remembered(), models: remembered() }
    }

    /// A key that another edge has been told of.
    pub(crate) async fn key(&self, snapshot: &Snapshot, digest: KeyDigest) -> Option<Arc<Key>> {
        if let Some(known) = self.keys.get(&digest) {
            return known;
        }
        let entry = self.look_up(self.text(key_name(&digest))).await?;
        let found = entry.and_then(|text| serde_json::from_str::<KeyEntry>(&text).ok());
        // Who can write here could otherwise hang a key under another's name.
        let found = found.filter(|entry| entry.key.digest == digest && entry.key.organization == entry.organization.id);
        let key = found.map(|entry| snapshot.adopt_key(&entry.key, &entry.organization));
        self.keys.insert(digest, key.clone());
        key
    }

    /// A model that another edge has been told of.
    pub(crate) async fn model(&self, snapshot: &Arc<Snapshot>, id: &str) -> Option<Arc<Model>> {
        if let Some(known) = self.models.get(id) {
            return known;
        }
        let found = self.look_up(self.listing(id)).await?;
        let model = match found.filter(|(record, _)| record.id == id && record.active) {
            Some((record, servers)) => {
                let snapshot = Arc::clone(snapshot);
                // Names of hosts may have to be resolved.
                let adopt = move || snapshot.adopt_model(&record, servers, &resolve);
                tokio::task::spawn_blocking(adopt).await.ok().flatten()
            }
            None => None,
        };
        self.models.insert(id.to_owned(), model.clone());
        model
    }

    /// The outer `None` is "not asked, or not answered": nothing to remember.
    async fn look_up<T>(&self, lookup: impl Future<Output = Result<T, RedisError>>) -> Option<T> {
        self.lookups.take(1, 1, self.clock.now_ns()).ok()?;
        self.metrics.lookups.inc();
        match tokio::time::timeout(PATIENCE, lookup).await {
            Ok(Ok(found)) => Some(found),
            Ok(Err(error)) => {
                tracing::debug!(%error, "the region cannot be asked for what is not in the routing");
                None
            }
            Err(_) => None,
        }
    }

    async fn listing(&self, id: &str) -> Result<Option<(ModelRecord, Vec<NodeRecord>)>, RedisError> {
        let Some(text) = self.text(metadata_name(id)).await? else { return Ok(None) };
        let Ok(mut record) = serde_json::from_str::<ModelRecord>(&text) else { return Ok(None) };
        let named = std::mem::take(&mut record.versions);
        for version in named.iter().filter(|version| version.is_default) {
            let text = self.text(version_name(id, &version.version)).await?;
            record.versions.extend(text.and_then(|text| serde_json::from_str::<VersionRecord>(&text).ok()));
        }
        let mut command = redis::cmd("LRANGE");
        command.arg(servers_name(id)).arg(0).arg(MOST_SERVERS - 1);
        let servers: Vec<String> = self.client.query(&command).await?;
        Ok(Some((record, servers.iter().filter_map(|text| serde_json::from_str(text).ok()).collect())))
    }

    async fn text(&self, name: String) -> Result<Option<String>, RedisError> {
        let mut command = redis::cmd("GET");
        command.arg(name);
        self.client.query(&command).await
    }
}
