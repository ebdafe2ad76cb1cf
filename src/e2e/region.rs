//! What the edges of a region tell each other by Redis when one of them hears nothing from the control plane.

use crate::harness::{Fleet, MODEL, Reply, Up, chat_body, eventually, get, post, turnpike};
use serde_json::json;
use std::time::{Duration, Instant};
use turnpike_parts::redis::{Options, Redis, Tls};

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
    assert!(lookups <= 5, "{lookups} lookups");
}

/// What an edge has to be allowed to.
const RULES: &str = "~rate_limit:* ~token_limit:* ~concurrency:* ~budget:* ~turnpike:* ~response:* ~api_key:* ~model:* \
                     ~model_servers:* +@all -@dangerous +info";

#[tokio::test(flavor = "multi_thread")]
async fn edges_speak_tls_to_redis_as_a_user_with_few_rights_and_tell_nobody_the_password() {
    const PASSWORD: &str = "p@ss:word/of-the-edges";
    let directory = tempfile::tempdir().unwrap();
    let tls = Tls::make(directory.path()).unwrap();
    let ca = tls.ca.display().to_string();
    let options = Options::default().tls(tls).user("edge", PASSWORD, RULES).maxmemory_policy("allkeys-lru");
    let redis = tokio::task::spawn_blocking(move || Redis::start_temporary_with(&options).unwrap()).await.unwrap();
    let settings = format!("redis.url = \"{}\"\nredis.ca = \"{ca}\"", redis.url());
    let mut fleet = Fleet::start_with(&["n1"], "0ms", &settings).await;
    let other = fleet.add_edge("edge-2", &settings).await;
    fleet.admin.patch(&format!("/models/{MODEL}"), json!({"cache": {"enabled": true}})).await;
    let (_, key) =
        fleet.make_key(json!({"rate_limits": {"requests_per_minute": 6_000, "concurrent_requests": 50}})).await;
    fleet.until_pushed().await;

    let asked = |edge: String, key: String| async move {
        let body = json!({"model": MODEL, "messages": [{"role": "user", "content": "word"}], "temperature": 0});
        post(&format!("{edge}/v1/chat/completions"), &key, body).await.unwrap()
    };
    // Concurrency is counted anew for three seconds in a Redis that has just begun.
    eventually("limits are lent", async || match asked(fleet.edge_url.clone(), key.clone()).await {
        reply if reply.status == 200 => Ok(()),
        reply => Err(reply.text),
    })
    .await;
    eventually("the other edge finds the answer", async || match asked(other.clone(), key.clone()).await {
        reply if reply.headers.get("x-turnpike-cache").is_some_and(|value| value.as_bytes().starts_with(b"hit")) => {
            Ok(())
        }
        reply => Err(format!("{:?} {}", reply.headers, reply.text)),
    })
    .await;
    let names = redis.command(&["--scan"]).unwrap();
    for kind in ["rate_limit:{", "concurrency:{", "response:{", "model:", "turnpike:edges"] {
        assert!(names.contains(kind), "no {kind} in {names}");
    }
    let log = fleet.log("edge");
    assert!(log.contains("set maxmemory-policy noeviction"), "{log}");
    for text in [&log, &fleet.log("edge-2")] {
        assert!(!text.contains(PASSWORD) && !text.contains("of-the-edges"), "{text}");
        assert!(!text.contains("NOPERM"), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_edge_that_redis_turns_away_says_so_and_serves_alone() {
    let options = Options::default().password("right");
    let redis = tokio::task::spawn_blocking(move || Redis::start_temporary_with(&options).unwrap()).await.unwrap();
    let settings = format!("redis.url = \"redis://:wrong@127.0.0.1:{}\"", redis.port());
    let fleet = Fleet::start_with(&["n1"], "0ms", &settings).await;
    let (_, key) = fleet.make_key(json!({"rate_limits": {"requests_per_minute": 60_000}})).await;
    fleet.until_pushed().await;
    let url = format!("{}/v1/chat/completions", fleet.edge_url);
    eventually("the edge serves by its own part of the limit", async || {
        match post(&url, &key, chat_body(MODEL, "word", false)).await? {
            reply if reply.status == 200 => Ok(()),
            reply => Err(reply.text),
        }
    })
    .await;
    let log = fleet.log("edge");
    assert!(log.contains("Redis does not answer"), "{log}");
    assert!(log.contains("AuthenticationFailed") || log.contains("WRONGPASS"), "{log}");
    assert!(!log.contains("wrong@"), "{log}");
}

/// Scripts that have been run, which is what edges ask for.
fn scripts_run(redis: &Redis) -> u64 {
    let stats = redis.command(&["INFO", "commandstats"]).unwrap();
    let calls = |name: &str| -> Option<u64> {
        let line = stats.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(":calls="))?;
        line.split(',').next()?.parse().ok()
    };
    calls("cmdstat_evalsha").unwrap_or(0) + calls("cmdstat_eval").unwrap_or(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn up_takes_a_redis_and_leaves_it_alone_while_nothing_happens() {
    let redis = tokio::task::spawn_blocking(|| Redis::start_temporary().unwrap()).await.unwrap();
    let directory = tempfile::tempdir().unwrap();
    let mut command = turnpike();
    command.env("TURNPIKE_REDIS_URL", redis.url());
    let up = Up::start_with(command, &directory.path().join("data"), "echo");
    eventually("the edge uses it", async || match redis.command(&["ZRANGE", "turnpike:edges", "0", "-1"]).unwrap() {
        edges if edges.contains("edge-1") => Ok(()),
        edges => Err(edges),
    })
    .await;
    let (before, began) = (scripts_run(&redis), Instant::now());
    tokio::time::sleep(Duration::from_secs(4)).await;
    let (asked, seconds) = (scripts_run(&redis) - before, began.elapsed().as_secs_f64());
    println!("{asked} scripts in {seconds:.1} s of an edge without requests");
    assert!(asked > 0 && asked as f64 <= 2.0 * seconds, "{asked} scripts in {seconds:.1} s");
    assert!(!std::fs::read_to_string(directory.path().join("data/logs/dataplane.log")).unwrap().contains("ERROR"));
    drop(up);
}
