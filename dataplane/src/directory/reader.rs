//! Looks up what the own routing does not have.

use super::records::{Entry, KeyEntry, ModelEntry, key_name, metadata_name, servers_name, version_name};
use crate::bucket::Bucket;
use crate::clock::Clock;
use crate::live::{Key, Model, Snapshot, resolve};
use crate::metrics::Metrics;
use crate::redis_client::RedisClient;
use moka::sync::Cache;
use redis::RedisError;
use std::sync::Arc;
use std::time::Duration;
use turnpike_config::records::VersionRecord;
use turnpike_config::{KeyDigest, ModelRecord, NodeRecord};

/// What is looked up is believed for so long, and so is that there is nothing: a flood of wrong keys costs Redis little.
const BELIEVED: Duration = Duration::from_secs(10);
/// Things remembered of each kind.
const REMEMBERED: u64 = 50_000;
/// Lookups per minute. A flood of wrong keys that are all different is refused without asking.
const LOOKUPS_PER_MINUTE: u64 = 12_000;
/// A lookup that takes longer has found nothing.
const PATIENCE: Duration = Duration::from_millis(100);
/// The names of a model's hosts are to be resolved in this time.
const RESOLVED_IN: Duration = Duration::from_secs(2);
/// Nodes of a model that are of interest.
const MOST_SERVERS: isize = 256;

/// Asks the region.
pub(crate) struct Reader {
    client: RedisClient,
    clock: Clock,
    metrics: Arc<Metrics>,
    lookups: Bucket,
    /// With the version of the routing that they are of.
    keys: Cache<KeyDigest, (u64, Option<Arc<Key>>)>,
    models: Cache<String, (u64, Option<Arc<Model>>)>,
}

fn remembered<K: std::hash::Hash + Eq + Send + Sync + 'static, V: Clone + Send + Sync + 'static>() -> Cache<K, V> {
    Cache::builder().max_capacity(REMEMBERED).time_to_live(BELIEVED).build()
}

impl Reader {
    pub(crate) fn new(client: RedisClient, clock: Clock, metrics: Arc<Metrics>) -> Self {
        let lookups = Bucket::new(LOOKUPS_PER_MINUTE);
        Self { client, clock, metrics, lookups, keys: remembered(), models: remembered() }
    }

    /// A key that another edge has been told of, if that is newer than the own routing.
    pub(crate) async fn key(&self, snapshot: &Snapshot, digest: KeyDigest) -> Option<Arc<Key>> {
        let newer = |(version, key): (u64, Option<Arc<Key>>)| key.filter(|_| version > snapshot.at.version);
        if let Some(known) = self.keys.get(&digest) {
            return newer(known);
        }
        let text = self.look_up(self.text(key_name(&digest))).await?;
        let entry = text.and_then(|text| serde_json::from_str::<Entry<KeyEntry>>(&text).ok());
        let version = entry.as_ref().map_or(0, |entry| entry.routing_version);
        // Who can write here could otherwise hang a key under another's name.
        let record = entry.and_then(|entry| entry.record);
        let record = record.filter(|it| it.key.digest == digest && it.key.organization == it.organization.id);
        let key = record.map(|record| snapshot.adopt_key(&record.key, &record.organization));
        self.keys.insert(digest, (version, key.clone()));
        newer((version, key))
    }

    /// A model that another edge has been told of, if that is newer than the own routing.
    pub(crate) async fn model(&self, snapshot: &Arc<Snapshot>, id: &str) -> Option<Arc<Model>> {
        let newer = |(version, model): (u64, Option<Arc<Model>>)| model.filter(|_| version > snapshot.at.version);
        if let Some(known) = self.models.get(id) {
            return newer(known);
        }
        let (version, found) = self.look_up(self.listing(id)).await?;
        let model = match found.filter(|(record, _)| record.id == id && record.active) {
            Some((record, servers)) => {
                let snapshot = Arc::clone(snapshot);
                // Names of hosts may have to be resolved.
                let adopt = tokio::task::spawn_blocking(move || snapshot.adopt_model(&record, servers, &resolve));
                Some(tokio::time::timeout(RESOLVED_IN, adopt).await.ok()?.ok()?)
            }
            None => None,
        };
        self.models.insert(id.to_owned(), (version, model.clone()));
        newer((version, model))
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

    async fn listing(&self, id: &str) -> Result<(u64, Option<(ModelRecord, Vec<NodeRecord>)>), RedisError> {
        let text = self.text(metadata_name(id)).await?;
        let entry = text.and_then(|text| serde_json::from_str::<Entry<ModelEntry>>(&text).ok());
        let Some(Entry { routing_version, record }) = entry else { return Ok((0, None)) };
        let Some(ModelEntry { model: mut record }) = record else { return Ok((routing_version, None)) };
        let named = std::mem::take(&mut record.versions);
        for version in named.iter().filter(|version| version.is_default) {
            let text = self.text(version_name(id, &version.version)).await?;
            record.versions.extend(text.and_then(|text| serde_json::from_str::<VersionRecord>(&text).ok()));
        }
        let mut command = redis::cmd("LRANGE");
        command.arg(servers_name(id)).arg(0).arg(MOST_SERVERS - 1);
        let servers: Vec<String> = self.client.query(&command).await?;
        let servers = servers.iter().filter_map(|text| serde_json::from_str(text).ok()).collect();
        Ok((routing_version, Some((record, servers))))
    }

    async fn text(&self, name: String) -> Result<Option<String>, RedisError> {
        let mut command = redis::cmd("GET");
        command.arg(name);
        self.client.query(&command).await
    }
}
