//! What the edges of a region tell each other by Redis when one of them hears nothing from the control plane.

use crate::harness::{Fleet, MODEL, Reply, chat_body, eventually, get, post};
use serde_json::json;
use turnpike_parts::redis::Redis;

struct Region {
    fleet: Fleet,
    redis: Redis,
    /// Base URL of the edge that is cut off.
    cut_off: String,
}

impl Region {
    async fn start() -> Self {
        let redis = tokio::task::spawn_blocking(|| Redis::start_temporary().unwrap()).await.unwrap();
        let settings = format!("redis.url = \"{}\"", redis.url());
        let mut fleet = Fleet::start_with(&["n1"], "0ms", &settings).await;
        let cut_off = fleet.add_edge("edge-2", &settings).await;
        fleet.until_pushed().await;
        fleet.cut_off("edge-2").await;
        Self { fleet, redis, cut_off }
    }

    async fn chat(&self, key: &str, model: &str) -> Reply {
        post(&format!("{}/v1/chat/completions", self.cut_off), key, chat_body(model, "word", false)).await.unwrap()
    }

    async fn until_chats(&self, what: &str, key: &str, model: &str, status: u16) {
        eventually(what, async || match self.chat(key, model).await {
            reply if reply.status == status => Ok(()),
            reply => Err(format!("{} {}", reply.status, reply.text)),
        })
        .await;
    }

    async fn lookups(&self) -> u64 {
        let metrics = get(&format!("{}/metrics", self.fleet.metrics["edge-2"]), "").await.unwrap().text;
        let line = metrics.lines().find_map(|line| line.strip_prefix("turnpike_edge_region_lookups_total "));
        line.unwrap().parse().unwrap()
    }

    fn redis(&self, command: &str) -> String {
        self.redis.command(&command.split(' ').collect::<Vec<_>>()).unwrap().trim().to_owned()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_edge_without_its_link_learns_of_keys_and_models_from_its_neighbours() {
    let mut region = Region::start().await;
    let (id, key) = region.fleet.make_key(json!({"permissions": ["inference"]})).await;
    region.until_chats("a new key works", &key, MODEL, 200).await;
    region.fleet.admin.delete(&format!("/api_keys/{id}")).await;
    region.until_chats("a revoked key does not", &key, MODEL, 401).await;

    region.fleet.add_model("newer").await;
    region.fleet.add_node("n2", "newer", "engine.kind = \"echo\"\n").await;
    let key = region.fleet.key.clone();
    region.until_chats("a new model is served", &key, "newer", 200).await;
    for (name, longest) in
        [("model:newer:metadata", 3_600), ("model:newer:version:1", 3_600), ("model_servers:newer", 300)]
    {
        let left: i64 = region.redis(&format!("TTL {name}")).parse().unwrap();
        assert!((1..=longest).contains(&left), "{name} is kept for {left} s");
    }
    region.fleet.admin.patch("/models/newer", json!({"is_active": false})).await;
    region.until_chats("a model that was switched off is not", &key, "newer", 404).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_wrong_keys_costs_redis_next_to_nothing() {
    let region = Region::start().await;
    let before = region.lookups().await;
    for _ in 0..200 {
        assert_eq!(region.chat("sk-tp-there-is-no-such-key", MODEL).await.status, 401);
    }
    let lookups = region.lookups().await - before;
    println!("200 requests with one wrong key: {lookups} lookups");
    assert!(lookups <= 2, "{lookups} lookups");
}
