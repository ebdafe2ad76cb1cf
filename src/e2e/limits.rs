//! Limits that several edges keep together, by way of a real Redis that fails.

use crate::harness::{Fleet, MODEL, Reply, chat_body, eventually, post};
use serde_json::json;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use turnpike_parts::redis::{Redis, RedisCluster};

/// Requests per minute that the key under test may make; as many are its burst.
const LIMIT: u32 = 1_200;
/// How long the load lasts.
const LOAD: Duration = Duration::from_secs(16);
/// Clients, and how long each waits between two requests: together about ten times the limit.
const CLIENTS: usize = 8;
const PACE: Duration = Duration::from_millis(40);

/// Three edges that share a limit, and a key that has it.
struct Region {
    fleet: Fleet,
    edges: Vec<String>,
    key_id: String,
    key: String,
}

impl Region {
    async fn start(redis: &str) -> Self {
        Self::start_edges(&["edge", "edge-2", "edge-3"], redis, "0ms").await
    }

    /// The nodes take so long for each word.
    async fn start_edges(names: &[&str], redis: &str, token_delay: &str) -> Self {
        let mut fleet = Fleet::start_with(&["n1"], token_delay, redis).await;
        let mut edges = vec![fleet.edge_url.clone()];
        for name in &names[1..] {
            edges.push(fleet.add_edge(name, redis).await);
        }
        let (key_id, key) = fleet.make_key(json!({"rate_limits": {"requests_per_minute": LIMIT}})).await;
        fleet.until_pushed().await;
        Self { fleet, edges, key_id, key }
    }

    async fn ask(&self, edge: usize) -> Reply {
        ask(&self.edges[edge], &self.key).await
    }

    /// Waits until the bucket, which begins empty, holds a burst worth testing with; returns how much it can hold.
    async fn until_filled(&self) -> u32 {
        let left = eventually("the bucket fills", async || match remaining(&self.ask(0).await) {
            Some(left) if left >= LIMIT / 6 => Ok(left),
            left => {
                tokio::time::sleep(Duration::from_millis(500)).await;
                Err(format!("{left:?} of {LIMIT}"))
            }
        });
        // An answer tells of the bucket as the edge last saw it, at most two seconds ago.
        left.await + LIMIT / 30
    }

    /// Sends more than the limit to all edges for this long; the number of requests that were answered, and refused.
    fn load(&self, during: Duration) -> tokio::task::JoinHandle<(usize, usize)> {
        let until = Instant::now() + during;
        let clients: Vec<_> = (0..CLIENTS)
            .map(|client| {
                let (edges, key) = (self.edges.clone(), self.key.clone());
                tokio::spawn(async move {
                    let (mut answered, mut refused) = (0, 0);
                    for turn in client.. {
                        if Instant::now() > until {
                            break;
                        }
                        let reply = ask(&edges[turn % edges.len()], &key).await;
                        match reply.status {
                            200 => answered += 1,
                            429 => refused += 1,
                            _ => panic!("{} {}", reply.status, reply.text),
                        }
                        tokio::time::sleep(PACE).await;
                    }
                    (answered, refused)
                })
            })
            .collect();
        tokio::spawn(async move {
            let mut sum = (0, 0);
            for client in clients {
                let (answered, refused) = client.await.unwrap();
                sum = (sum.0 + answered, sum.1 + refused);
            }
            sum
        })
    }

    /// What the edges have logged of the key's requests that passed: when each arrived and ended, Unix milliseconds.
    async fn passed(&self, count: usize) -> Vec<(i64, i64)> {
        let rows = format!("FROM inference_requests WHERE api_key_id = '{}' AND status = 'success'", self.key_id);
        eventually("all usage has arrived", async || {
            let found: usize = self.fleet.sql(&format!("SELECT count(*) {rows}")).parse().unwrap();
            if found >= count { Ok(()) } else { Err(format!("{found} of {count}")) }
        })
        .await;
        let times = format!("(extract(epoch FROM created_at) * 1000)::bigint AS arrived, total_time_ms {rows}");
        let text =
            self.fleet.sql(&format!("SELECT arrived || ' ' || arrived + total_time_ms + 1 FROM (SELECT {times}) t"));
        let mut spans = numbers(&text, ' ');
        spans.sort_unstable();
        spans
    }
}

async fn ask(edge: &str, key: &str) -> Reply {
    post(&format!("{edge}/v1/chat/completions"), key, chat_body(MODEL, "word", false)).await.unwrap()
}

/// Lines of two numbers.
fn numbers(text: &str, between: char) -> Vec<(i64, i64)> {
    let pairs = text.lines().map(|line| line.split_once(between).unwrap());
    pairs.map(|(one, other)| (one.parse().unwrap(), other.parse().unwrap())).collect()
}

fn remaining(reply: &Reply) -> Option<u32> {
    reply.headers.get("x-ratelimit-remaining-requests")?.to_str().ok()?.parse().ok()
}

/// Requests that passed beyond `burst + rate · window`, in the worst of all windows. Each was admitted somewhere between
/// its arrival and its end, so that a window has admitted at least those that lie in it whole. Under more load than the
/// limit, the burst of every window is at most what the bucket held when the load began.
fn worst_excess(spans: &[(i64, i64)], burst: u32) -> f64 {
    let per_ms = f64::from(LIMIT) / 60_000.0;
    let mut worst = f64::MIN;
    for (first, &(from, _)) in spans.iter().enumerate() {
        let mut ends: Vec<i64> = spans[first..].iter().map(|&(_, ended)| ended).collect();
        ends.sort_unstable();
        for (count, &to) in (1_u32..).zip(&ends) {
            let allowed = f64::from(burst) + per_ms * f64::from(i32::try_from(to - from).unwrap());
            worst = worst.max(f64::from(count) - allowed);
        }
    }
    worst
}

#[test]
fn an_excess_is_seen() {
    let spans = |count: i64| (0..count).map(|n| (n, n + 1)).collect::<Vec<_>>();
    assert!(worst_excess(&spans(100), 100) < 0.0);
    assert!(worst_excess(&spans(200), 100) > 0.0);
}

/// Loads the region while `faults` happen; nothing may pass too much, and something must.
async fn judge<T: Send + 'static>(region: &Region, faults: impl FnOnce() -> T + Send + 'static) {
    let burst = region.until_filled().await;
    let began = i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis()).unwrap();
    let load = region.load(LOAD);
    tokio::time::sleep(LOAD / 8).await;
    let servers = blocking(faults).await;
    let (answered, refused) = load.await.unwrap();
    drop(servers);

    let mut spans = region.passed(answered).await;
    spans.retain(|&(arrived, _)| arrived >= began);
    let excess = worst_excess(&spans, burst);
    println!("{answered} answered and {refused} refused, {:.1} below what was allowed in the worst window", -excess);
    assert!(excess <= 0.0, "{excess} requests too many");
    assert!(refused > answered, "the load did not reach the limit: {answered} answered, {refused} refused");
    assert!(answered > LIMIT as usize / 6, "only {answered} answered");
}

#[tokio::test(flavor = "multi_thread")]
async fn three_edges_stay_within_one_limit_while_redis_is_killed_and_comes_back() {
    let mut redis = blocking(|| Redis::start_temporary().unwrap()).await;
    let region = Region::start(&format!("redis.url = \"{}\"", redis.url())).await;
    judge(&region, move || {
        redis.kill();
        std::thread::sleep(LOAD / 4);
        redis.restart().unwrap();
        redis
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn three_edges_stay_within_one_limit_in_a_cluster_whose_nodes_are_killed_in_turn() {
    let mut cluster = blocking(|| RedisCluster::start_temporary().unwrap()).await;
    let urls: Vec<_> = cluster.urls().iter().map(|url| format!("\"{url}\"")).collect();
    let region = Region::start(&format!("redis.url = [{}]\nredis.cluster = true", urls.join(", "))).await;
    judge(&region, move || {
        for node in cluster.nodes_mut() {
            node.kill();
            std::thread::sleep(LOAD / 16);
            node.restart().unwrap();
        }
        cluster.wait_until_ok().unwrap();
        cluster
    })
    .await;
}

/// Most of the spans that have a moment in common.
fn most_at_once(spans: &[(i64, i64)]) -> usize {
    spans
        .iter()
        .map(|&(moment, _)| spans.iter().filter(|&&(from, to)| from <= moment && moment < to).count())
        .max()
        .unwrap_or(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn three_edges_run_no_more_requests_at_once_than_one_limit_allows() {
    const AT_ONCE: usize = 4;
    let redis = blocking(|| Redis::start_temporary().unwrap()).await;
    let mut region =
        Region::start_edges(&["edge", "edge-2", "edge-3"], &format!("redis.url = \"{}\"", redis.url()), "100ms").await;
    (region.key_id, region.key) = region.fleet.make_key(json!({"rate_limits": {"concurrent_requests": AT_ONCE}})).await;
    region.fleet.until_pushed().await;
    // In a Redis that has just begun, what runs is counted for three seconds before anything is admitted.
    eventually("something is admitted", async || match region.ask(0).await.status {
        200 => Ok(()),
        status => Err(status.to_string()),
    })
    .await;
    let (answered, refused) = region.load(LOAD / 2).await.unwrap();
    region.passed(answered + 1).await;
    let columns = "(extract(epoch FROM created_at) * 1000)::bigint + queue_time_ms, processing_time_ms";
    let rows = format!("FROM inference_requests WHERE api_key_id = '{}' AND status = 'success'", region.key_id);
    let spans = numbers(&region.fleet.sql(&format!("SELECT {columns} {rows}")), '|');
    // A beginning is the sum of two times that are cut to whole milliseconds, and may seem so much earlier than it was.
    let spans: Vec<_> = spans.into_iter().map(|(from, length)| (from + 2, from + length)).collect();
    let most = most_at_once(&spans);
    println!("{answered} answered and {refused} refused, at most {most} at once of {AT_ONCE}");
    assert!(most <= AT_ONCE, "{most} at once");
    assert!(most + 1 >= AT_ONCE && refused > 0, "{most} at once, {refused} refused");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_edge_that_starts_again_does_not_start_limits_again() {
    let redis = blocking(|| Redis::start_temporary().unwrap()).await;
    // Where there are others, they vouch for the clock meanwhile; one that is alone goes by what it has kept.
    let mut region = Region::start_edges(&["edge"], &format!("redis.url = \"{}\"", redis.url()), "0ms").await;
    let burst = region.until_filled().await;
    // Nobody has used this key: there is no bucket, only the time for which the region's clock is vouched for.
    let (_, unused) = region.fleet.make_key(json!({"rate_limits": {"requests_per_minute": LIMIT}})).await;
    region.fleet.until_pushed().await;
    region.fleet.kill("edge");
    region.fleet.start_plane("edge").await;
    let reply = ask(&region.edges[0], &unused).await;
    assert_eq!(reply.status, 200, "{}", reply.text);
    let left = remaining(&reply).unwrap();
    println!("{left} requests at once after a restart, {burst} before it");
    assert!(left > burst / 2, "{left} of {burst}");
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.unwrap()
}
