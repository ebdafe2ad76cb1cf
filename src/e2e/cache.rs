//! Answers that are given again: to whom, for how long, at what price, and made once however many ask.

use crate::faults::busy_node;
use crate::harness::{Fleet, MODEL, Reply, eventually, get, python, send_with};
use bytes::Bytes;
use futures::StreamExt as _;
use futures::future::join_all;
use reqwest::Method;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;
use turnpike_parts::redis::Redis;

const WORDS: &str = "one two three four five six seven eight";
/// Before each word: an answer takes long enough for others to come while it is made, also on a busy machine.
const SLOW: &str = "300ms";

/// A fleet whose model's answers are cached.
async fn start(token_delay: &str, edge_settings: &str) -> Fleet {
    start_nodes(&["n1"], token_delay, edge_settings).await
}

async fn start_nodes(nodes: &[&str], token_delay: &str, edge_settings: &str) -> Fleet {
    let fleet = Fleet::start_with(nodes, token_delay, edge_settings).await;
    set_policy(&fleet, json!({"enabled": true})).await;
    fleet
}

async fn set_policy(fleet: &Fleet, policy: Value) {
    fleet.admin.patch(&format!("/models/{MODEL}"), json!({"cache": policy})).await;
    fleet.until_pushed().await;
}

fn body(text: &str) -> Value {
    json!({"model": MODEL, "messages": [{"role": "user", "content": text}], "temperature": 0})
}

async fn ask(edge: &str, key: &str, headers: &[(&str, &str)], body: &Value) -> Reply {
    let url = format!("{edge}/v1/chat/completions");
    let reply = Reply::read(send_with(Method::POST, &url, key, headers, Some(body.to_string())).await.unwrap()).await;
    let reply = reply.unwrap();
    assert_eq!(reply.status, 200, "{}", reply.text);
    reply
}

/// What the cache did, without the age.
fn status(reply: &Reply) -> String {
    let header = reply.headers.get("x-turnpike-cache").map_or("", |value| value.to_str().unwrap());
    header.split(';').next().unwrap().to_owned()
}

/// What the cache did for a question of the fleet's own key to its first edge.
async fn asked(fleet: &Fleet, headers: &[(&str, &str)], text: &str) -> String {
    status(&ask(&fleet.edge_url, &fleet.key, headers, &body(text)).await)
}

/// Requests that nodes worked on, once all `count` are in the log.
async fn worked_on(fleet: &Fleet, count: usize) -> usize {
    eventually("all usage has arrived", async || {
        let found: usize = fleet.sql("SELECT count(*) FROM inference_requests").parse().unwrap();
        if found >= count { Ok(()) } else { Err(format!("{found} of {count}")) }
    })
    .await;
    fleet.sql("SELECT count(*) FROM inference_requests WHERE node IS NOT NULL").parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_sdk_cannot_tell_a_cached_answer_from_a_made_one() {
    let fleet = start("0ms", "").await;
    let output = python()
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/src/e2e/cache.py"))
        .env("OPENAI_BASE_URL", format!("{}/v1", fleet.edge_url))
        .env("OPENAI_API_KEY", &fleet.key)
        .env("MODEL", MODEL)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[tokio::test(flavor = "multi_thread")]
async fn policies_headers_and_owners_decide_what_is_given_again() {
    let fleet = start("0ms", "").await;
    let on = [("x-turnpike-cache", "on")];
    assert_eq!(asked(&fleet, &[], "a").await, "miss");
    let hit = ask(&fleet.edge_url, &fleet.key, &[], &body("a")).await;
    assert!(hit.headers["x-turnpike-cache"].to_str().unwrap().starts_with("hit; age="), "{:?}", hit.headers);
    assert_eq!(hit.headers["x-turnpike-cache-key"].len(), 64);
    assert!(hit.headers.contains_key("x-request-id"));

    // Cache-Control and x-turnpike-cache.
    assert_eq!(asked(&fleet, &[("cache-control", "no-store")], "a").await, "bypass");
    assert_eq!(asked(&fleet, &[("x-turnpike-cache", "off")], "a").await, "bypass");
    assert_eq!(asked(&fleet, &[("cache-control", "max-age=60")], "a").await, "hit");
    assert_eq!(asked(&fleet, &[("cache-control", "no-cache")], "a").await, "miss");
    let mut warm = body("a");
    warm["temperature"] = json!(0.7);
    let warm_status = async |headers| status(&ask(&fleet.edge_url, &fleet.key, headers, &warm).await);
    assert_eq!(warm_status(&[]).await, "bypass");
    assert_eq!((warm_status(&on).await, warm_status(&on).await), ("miss".to_owned(), "hit".to_owned()));

    // Another organization asks the same.
    let (organization, stranger) = another_organization(&fleet).await;
    let stranger_asks = async |text| status(&ask(&fleet.edge_url, &stranger, &[], &body(text)).await);
    assert_eq!(stranger_asks("a").await, "miss");
    set_policy(&fleet, json!({"enabled": true, "public": true})).await;
    assert_eq!(asked(&fleet, &[], "shared").await, "miss");
    assert_eq!(stranger_asks("shared").await, "hit");

    // Purges: of one answer, of an organization, of a model.
    set_policy(&fleet, json!({"enabled": true})).await;
    let key = hit.headers["x-turnpike-cache-key"].to_str().unwrap();
    for (what, others) in [
        (json!({"key": key}), "hit"),
        (json!({"organization_id": fleet.organization}), "hit"),
        (json!({"model_id": MODEL}), "miss"),
    ] {
        assert_eq!((asked(&fleet, &[], "a").await, stranger_asks("a").await), ("hit".into(), "hit".into()), "{what}");
        fleet.admin.post("/cache/purge", what.clone()).await;
        fleet.until_pushed().await;
        assert_eq!((asked(&fleet, &[], "a").await, stranger_asks("a").await), ("miss".into(), others.into()), "{what}");
    }
    assert_ne!(organization, fleet.organization);

    // A policy that ends: nothing is given any more, and off is off unless a request says on.
    set_policy(&fleet, json!({"enabled": false})).await;
    assert_eq!(asked(&fleet, &[], "a").await, "");
    assert_eq!(asked(&fleet, &on, "a").await, "hit");
}

async fn another_organization(fleet: &Fleet) -> (String, String) {
    let organization =
        fleet.admin.post("/organizations", json!({"name": "Others", "slug": "others"})).await["id"].clone();
    let user = json!({"organization_id": organization, "email": "owner@others.example", "role": "owner"});
    let user = fleet.admin.post("/users", user).await["id"].clone();
    let fields = json!({"organization_id": organization, "user_id": user, "permissions": ["inference", "models.read"]});
    let (_, key) = fleet.make_key(fields).await;
    fleet.until_known(&key).await;
    (organization.as_str().unwrap().to_owned(), key)
}

#[tokio::test(flavor = "multi_thread")]
async fn cached_answers_are_metered_as_such() {
    let fleet = start("0ms", "").await;
    for _ in 0..2 {
        asked(&fleet, &[], WORDS).await;
    }
    set_policy(&fleet, json!({"enabled": true, "price_permille": 250})).await;
    asked(&fleet, &[], WORDS).await;
    worked_on(&fleet, 3).await;
    let rows = fleet.sql(
        "SELECT concat_ws(' ', cache_status, prompt_tokens, completion_tokens, node IS NULL,
                          cost_usd / max(cost_usd) OVER ())
         FROM inference_requests ORDER BY created_at",
    );
    let rows: Vec<_> = rows.lines().map(|row| row.trim_end_matches('0').to_owned()).collect();
    assert_eq!(rows, ["miss 8 8 f 1.", "hit 8 8 t 0.", "hit 8 8 t 0.25"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_equal_requests_at_once_are_one_for_the_node() {
    const CROWD: usize = 1_000;
    let fleet = start(SLOW, "").await;
    let replies = join_all((0..CROWD).map(|number| {
        let mut body = body(WORDS);
        body["stream"] = json!(number % 2 == 0);
        let fleet = &fleet;
        async move { (number % 2 == 0, ask(&fleet.edge_url, &fleet.key, &[], &body).await) }
    }))
    .await;
    let mut statuses = BTreeMap::new();
    for (streamed, reply) in &replies {
        *statuses.entry(status(reply)).or_insert(0) += 1;
        let words =
            if *streamed { words(&reply.text) } else { reply.json()["choices"][0]["message"]["content"].to_string() };
        assert_eq!(words.trim_matches('"'), WORDS, "{}", reply.text);
    }
    println!("{CROWD} equal requests at once: {statuses:?}");
    assert_eq!(statuses["miss"], 1);
    assert!(statuses.get("coalesced").is_some_and(|count| *count > CROWD / 10), "{statuses:?}");
    assert_eq!(worked_on(&fleet, CROWD).await, 1);
}

/// The text of a stream.
fn words(stream: &str) -> String {
    assert!(stream.ends_with("data: [DONE]\n\n"), "{stream}");
    let events =
        stream.split("\n\n").filter_map(|event| serde_json::from_str::<Value>(event.strip_prefix("data: ")?).ok());
    events.filter_map(|event| event["choices"][0]["delta"]["content"].as_str().map(str::to_owned)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn when_the_first_client_leaves_the_others_get_the_answer_all_the_same() {
    let fleet = start(SLOW, "").await;
    let url = format!("{}/v1/chat/completions", fleet.edge_url);
    let mut streamed = body(WORDS);
    streamed["stream"] = json!(true);
    let leader = send_with(Method::POST, &url, &fleet.key, &[], Some(streamed.to_string())).await.unwrap();
    let mut leader = leader.bytes_stream();
    leader.next().await.unwrap().unwrap();
    let plain = body(WORDS);
    let stream = ask(&fleet.edge_url, &fleet.key, &[], &streamed);
    let document = ask(&fleet.edge_url, &fleet.key, &[], &plain);
    let leave = async {
        until_in_flight(&fleet, 3).await;
        drop(leader);
    };
    let (stream, document, ()) = tokio::join!(stream, document, leave);
    assert_eq!((status(&stream), words(&stream.text)), ("coalesced".to_owned(), WORDS.to_owned()));
    assert_eq!(document.json()["choices"][0]["message"]["content"], WORDS);
    assert_eq!(asked(&fleet, &[], WORDS).await, "hit");
    assert_eq!(worked_on(&fleet, 4).await, 1);
    let ends = fleet.sql(
        "SELECT status || ' ' || cache_status || ' ' || completion_tokens || ' ' || estimated
         FROM inference_requests ORDER BY created_at LIMIT 1",
    );
    assert_eq!(ends, "client_gone miss 8 false");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_breaks_off_is_not_kept() {
    let mut fleet = start(SLOW, "").await;
    let url = format!("{}/v1/chat/completions", fleet.edge_url);
    let mut streamed = body(WORDS);
    streamed["stream"] = json!(true);
    // The only client leaves.
    let left = send_with(Method::POST, &url, &fleet.key, &[], Some(streamed.to_string())).await.unwrap();
    left.bytes_stream().next().await.unwrap().unwrap();
    worked_on(&fleet, 1).await;
    // The node dies; who waited is told, since half an answer is no answer.
    let first = send_with(Method::POST, &url, &fleet.key, &[], Some(streamed.to_string())).await.unwrap();
    assert_eq!(first.headers()["x-turnpike-cache"], "miss");
    let mut first = first.bytes_stream();
    first.next().await.unwrap().unwrap();
    let second = send_with(Method::POST, &url, &fleet.key, &[], Some(streamed.to_string())).await.unwrap();
    assert_eq!(second.headers()["x-turnpike-cache"], "coalesced");
    fleet.kill("n1");
    let rest = |bytes: Vec<Result<Bytes, _>>| -> String {
        bytes.into_iter().map(|piece| String::from_utf8(piece.unwrap().to_vec()).unwrap()).collect()
    };
    for told in [rest(first.collect().await), rest(second.bytes_stream().collect().await)] {
        assert!(told.contains("\"error\"") && !told.contains("[DONE]"), "{told}");
    }
    fleet.start_plane("n1").await;
    let back = eventually("the node is back", async || {
        let reply = send_with(Method::POST, &url, &fleet.key, &[], Some(body(WORDS).to_string())).await?;
        let reply = Reply::read(reply).await?;
        if reply.status == 200 { Ok(reply) } else { Err(reply.text) }
    })
    .await;
    assert_eq!(status(&back), "miss");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_dies_before_its_answer_costs_none_of_those_who_wait() {
    let mut fleet = start_nodes(&["n1", "n2"], SLOW, "").await;
    let (edge, key) = (fleet.edge_url.clone(), fleet.key.clone());
    let clients: Vec<_> = (0..3)
        .map(|_| {
            let (edge, key) = (edge.clone(), key.clone());
            tokio::spawn(async move { ask(&edge, &key, &[], &body(WORDS)).await })
        })
        .collect();
    until_in_flight(&fleet, 3).await;
    let busy = busy_node(&fleet, &["n1", "n2"]).await;
    fleet.kill(&busy);
    for client in clients {
        assert_eq!(client.await.unwrap().json()["choices"][0]["message"]["content"], WORDS);
    }
}

/// Waits until the edge works on so many requests.
async fn until_in_flight(fleet: &Fleet, count: usize) {
    eventually("the requests wait", async || {
        let metrics = get(&format!("{}/metrics", fleet.metrics["edge"]), "").await?.text;
        let running = metrics.lines().find_map(|line| line.strip_prefix("turnpike_edge_requests_in_flight "));
        if running == Some(&count.to_string()) { Ok(()) } else { Err(format!("{running:?} of {count}")) }
    })
    .await;
}

/// Sends a streaming request over a connection of its own, and reads the first bytes of the answer.
fn raw_stream(fleet: &Fleet, text: &str) -> TcpStream {
    let mut body = body(text);
    body["stream"] = json!(true);
    let body = body.to_string();
    let mut connection = TcpStream::connect(fleet.edge_url.strip_prefix("http://").unwrap()).unwrap();
    connection.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let (key, length) = (&fleet.key, body.len());
    let head = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\n\
         Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
    );
    connection.write_all((head + &body).as_bytes()).unwrap();
    let mut first = [0; 12];
    connection.read_exact(&mut first).unwrap();
    assert_eq!(&first, b"HTTP/1.1 200");
    connection
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_was_left_behind_is_not_told_that_it_has_everything() {
    let fleet = start(SLOW, "").await;
    let mut leader = raw_stream(&fleet, WORDS);
    let body = body(WORDS);
    let follower = ask(&fleet.edge_url, &fleet.key, &[], &body);
    let half_close = async {
        until_in_flight(&fleet, 2).await;
        leader.shutdown(std::net::Shutdown::Write).unwrap();
    };
    let (follower, ()) = tokio::join!(follower, half_close);
    assert_eq!(
        (status(&follower).as_str(), &follower.json()["choices"][0]["message"]["content"]),
        ("coalesced", &json!(WORDS))
    );
    let mut had = Vec::new();
    // Cut off in whatever way.
    let _ = leader.read_to_end(&mut had);
    let had = String::from_utf8_lossy(&had);
    assert!(!had.ends_with("0\r\n\r\n") && !had.contains("[DONE]"), "{had}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_does_not_read_holds_up_nobody_else() {
    // More than all buffers between the edge and a client hold.
    let text = "word ".repeat(60_000);
    let fleet = start("0ms", "").await;
    let leader = raw_stream(&fleet, &text);
    let follower = ask(&fleet.edge_url, &fleet.key, &[], &body(&text)).await;
    assert_eq!(status(&follower), "coalesced");
    assert_eq!(follower.json()["choices"][0]["message"]["content"].as_str().unwrap().trim(), text.trim());
    drop(leader);
}

#[tokio::test(flavor = "multi_thread")]
async fn edges_share_answers_by_redis_and_do_without_it() {
    let mut redis = tokio::task::spawn_blocking(|| Redis::start_temporary().unwrap()).await.unwrap();
    let settings = format!("redis.url = \"{}\"", redis.url());
    let mut fleet = start("50ms", &settings).await;
    let other = fleet.add_edge("edge-2", &settings).await;
    fleet.until_pushed().await;
    let elsewhere = async |text: &str| status(&ask(&other, &fleet.key, &[], &body(text)).await);

    assert_eq!(asked(&fleet, &[], "shared").await, "miss");
    let kept = || redis.command(&["--scan", "--pattern", "response:*"]).unwrap();
    eventually("the answer is in Redis", async || if kept().contains("response:{") { Ok(()) } else { Err(kept()) })
        .await;
    assert_eq!(elsewhere("shared").await, "hit");

    // Both edges at once: one of them asks the node. On a busy machine the other may not wait long enough, but not always.
    let misses = async |round: usize| {
        let body = body(&format!("{WORDS} {round}"));
        let crowd = (0..40).map(|n| ask(if n % 2 == 0 { &fleet.edge_url } else { &other }, &fleet.key, &[], &body));
        let statuses: Vec<_> = join_all(crowd).await.iter().map(status).collect();
        let misses = statuses.iter().filter(|status| *status == "miss").count();
        assert!((1..=2).contains(&misses), "{statuses:?}");
        misses
    };
    let mut rounds = 0;
    while misses(rounds).await > 1 {
        rounds += 1;
        assert!(rounds < 10, "both edges asked the node, {rounds} times");
    }

    let body = body(WORDS);
    // A purge reaches what is in Redis and in both edges.
    let key = ask(&other, &fleet.key, &[], &body).await.headers["x-turnpike-cache-key"].to_str().unwrap().to_owned();
    fleet.admin.post("/cache/purge", json!({"key": key})).await;
    fleet.until_pushed().await;
    assert_eq!(status(&ask(&other, &fleet.key, &[], &body).await), "miss");

    redis.kill();
    assert_eq!((asked(&fleet, &[], "shared").await, elsewhere("shared").await), ("hit".into(), "hit".into()));
    assert_eq!((asked(&fleet, &[], "alone").await, elsewhere("alone").await), ("miss".into(), "miss".into()));
    assert_eq!((asked(&fleet, &[], "alone").await, elsewhere("alone").await), ("hit".into(), "hit".into()));
}
