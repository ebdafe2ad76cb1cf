//! What clients notice when a part dies under load: nothing, or the truth.

use crate::harness::{Fleet, MODEL, chat_body, eventually, get, post, send};
use futures::StreamExt as _;
use reqwest::Method;
use std::time::{Duration, Instant};

const WORDS: &str = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen";

/// The node that works on a request right now, by its own account.
pub(crate) async fn busy_node(fleet: &Fleet, nodes: &[&str]) -> String {
    eventually("a node works on the request", async || {
        let mut texts = String::new();
        for node in nodes {
            let text = get(&format!("{}/metrics", fleet.metrics[*node]), "").await?.text;
            let running = text.lines().find(|line| line.starts_with("turnpike_node_requests_running "));
            if running.is_some_and(|line| !line.ends_with(" 0")) {
                return Ok((*node).to_owned());
            }
            texts += &text;
        }
        Err(texts)
    })
    .await
}

/// Chunks that carry text; the first one of a stream only says who speaks.
fn words(stream: &str) -> usize {
    stream.matches("\"content\":\"").count() - stream.matches("\"content\":\"\"").count()
}

/// Columns of the only event there is, once it has arrived.
async fn the_event(fleet: &Fleet, columns: &str) -> String {
    eventually("the usage event arrives", async || {
        let row = fleet.sql(&format!("SELECT {columns} FROM inference_requests"));
        if row.is_empty() { Err("no row".to_owned()) } else { Ok(row) }
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_dies_before_its_first_byte_costs_the_client_nothing() {
    let nodes = ["n1", "n2"];
    let mut fleet = Fleet::start(&nodes, "100ms").await;
    let url = format!("{}/v1/chat/completions", fleet.edge_url);
    // Not streamed: sixteen words take the node 1.6 s, and nothing is sent before the last.
    let (url, key) = (url.clone(), fleet.key.clone());
    let request = tokio::spawn(async move { post(&url, &key, chat_body(MODEL, WORDS, false)).await });
    let busy = busy_node(&fleet, &nodes).await;
    fleet.kill(&busy);
    let reply = request.await.unwrap().unwrap();
    assert_eq!(reply.status, 200, "{}", reply.text);
    assert_eq!(reply.json()["choices"][0]["message"]["content"], WORDS);
    let other = nodes.into_iter().find(|node| **node != busy).unwrap();
    let event = the_event(&fleet, "status, retries, node, prompt_tokens, completion_tokens").await;
    assert_eq!(event, format!("success|1|{other}|16|16"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_dies_in_mid_stream_is_reported_in_the_stream_and_in_the_bill() {
    let mut fleet = Fleet::start(&["n1"], "100ms").await;
    let url = format!("{}/v1/chat/completions", fleet.edge_url);
    let body = chat_body(MODEL, WORDS, true).to_string();
    let response = send(Method::POST, &url, &fleet.key, Some(body)).await.unwrap();
    assert_eq!(response.status(), 200);
    let mut stream = response.bytes_stream();
    let mut text = String::new();
    while words(&text) < 3 {
        text += std::str::from_utf8(&stream.next().await.unwrap().unwrap()).unwrap();
    }
    fleet.kill("n1");
    while let Some(chunk) = stream.next().await {
        text += std::str::from_utf8(&chunk.unwrap()).unwrap();
    }
    let last = text.trim_end().rsplit("\n\n").next().unwrap();
    let error: serde_json::Value = serde_json::from_str(last.strip_prefix("data: ").unwrap()).unwrap();
    assert_eq!(error["error"]["code"], "node_failed", "{text}");
    assert!(!text.contains("[DONE]"), "a stream that broke off says it is complete: {text}");

    let event = the_event(&fleet, "status, error_code, http_status, estimated, node, completion_tokens").await;
    let (head, tokens) = event.rsplit_once('|').unwrap();
    assert_eq!(head, "error|node_failed|200|t|n1");
    assert_eq!(tokens.parse::<usize>().unwrap(), words(&text), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_node_dead_is_a_clear_503_and_a_new_one_is_found() {
    let mut fleet = Fleet::start(&["n1"], "0ms").await;
    let url = format!("{}/v1/chat/completions", fleet.edge_url);
    fleet.kill("n1");
    eventually("the edge says there is no node", async || {
        let reply = post(&url, &fleet.key, chat_body(MODEL, WORDS, false)).await?;
        if reply.status == 503 && reply.code() == "no_available_node" {
            assert!(reply.headers.contains_key("retry-after"), "{:?}", reply.headers);
            return Ok(());
        }
        assert!(reply.status == 502 || reply.status == 503, "{} {}", reply.status, reply.text);
        Err(reply.text)
    })
    .await;
    fleet.start_plane("n1").await;
    eventually("the edge sends requests again", async || {
        let reply = post(&url, &fleet.key, chat_body(MODEL, WORDS, false)).await?;
        if reply.status == 200 { Ok(()) } else { Err(reply.text) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_control_plane_a_thousand_requests_go_on_and_their_usage_arrives_later() {
    const REQUESTS: usize = 1000;
    const AT_ONCE: usize = 8;
    let mut fleet = Fleet::start(&["n1", "n2"], "0ms").await;
    let url = format!("{}/v1/chat/completions", fleet.edge_url);
    fleet.kill("control");

    let ask = async |number: usize| {
        let reply = post(&url, &fleet.key, chat_body(MODEL, WORDS, number.is_multiple_of(2))).await;
        reply.is_ok_and(|reply| reply.status == 200 && (number % 2 == 1 || reply.text.contains("[DONE]")))
    };
    let answers: Vec<bool> = futures::stream::iter(0..REQUESTS).map(ask).buffer_unordered(AT_ONCE).collect().await;
    let failed = answers.iter().filter(|ok| !**ok).count();
    assert_eq!((answers.len(), failed), (REQUESTS, 0), "{}", fleet.log("edge"));

    // Every answer's usage was written before the answer ended.
    // An edge that starts now has only its own disk to go by.
    fleet.kill("edge");
    let began = Instant::now();
    fleet.start_plane("edge").await;
    eventually("the edge serves", async || {
        let reply = post(&url, &fleet.key, chat_body(MODEL, WORDS, false)).await?;
        if reply.status == 200 { Ok(()) } else { Err(format!("{} {}", reply.status, reply.text)) }
    })
    .await;
    assert!(began.elapsed() < Duration::from_secs(10), "it took {:?}", began.elapsed());

    fleet.start_plane("control").await;
    let expected = format!("{0}|{1}|{1}", REQUESTS + 1, (REQUESTS + 1) * 16);
    let sums =
        "SELECT count(*), sum(prompt_tokens), sum(completion_tokens) FROM inference_requests WHERE status = 'success'";
    let daily = "SELECT sum(requests), sum(prompt_tokens), sum(completion_tokens) FROM usage_records";
    for sql in [sums, daily] {
        eventually("all usage has arrived", async || {
            let found = fleet.sql(sql);
            if found == expected { Ok(()) } else { Err(format!("{found} instead of {expected}")) }
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_before_the_first_byte_pays_for_what_the_node_worked_on() {
    let fleet = Fleet::start(&["n1"], "100ms").await;
    let url = format!("{}/v1/chat/completions", fleet.edge_url);
    let (key, body) = (fleet.key.clone(), chat_body(MODEL, WORDS, false));
    let request = tokio::spawn(async move { post(&url, &key, body).await });
    busy_node(&fleet, &["n1"]).await;
    request.abort();
    let event = the_event(&fleet, "status, prompt_tokens > 0, completion_tokens, estimated").await;
    assert_eq!(event, "client_gone|t|0|t");
}
