//! The node's own ledger, as edges and the control plane see it.

use crate::harness::{Authority, Control, Node, PATIENCE, eventually, refusal, settings_text};
use serde_json::{Value, json};
use std::path::Path;
use turnpike_config::EventId;
use turnpike_config::wire::{LedgerEntry, LedgerState};
use turnpike_gpu_node::{Agent, Settings};
use uuid::Uuid;

const ECHO: &str = "engine.kind = \"echo\"";

pub(crate) fn event() -> EventId {
    EventId(Uuid::now_v7())
}

/// A chat that an edge sends for an event; it judges the prompt to be 40 tokens.
pub(crate) fn chat(node: &Node, event: EventId, text: &str, extra: &Value) -> reqwest::RequestBuilder {
    node.chat(text, extra).header("x-turnpike-event", event.to_string()).header("x-turnpike-prompt-estimate", "40")
}

/// What the node says of an event: its status, and the entry if there is one.
pub(crate) async fn ask(node: &Node, event: EventId) -> (u16, Value) {
    let url = format!("http://{}/turnpike/ledger/{event}", node.http);
    let response = node.client.get(url).send().await.unwrap();
    (response.status().as_u16(), response.json().await.unwrap())
}

fn entry(state: &str, prompt: u32, completion: u32) -> (u16, Value) {
    (200, json!({"state": state, "tokens": {"prompt": prompt, "cached": 0, "completion": completion}}))
}

#[tokio::test]
async fn what_the_engine_counted_is_known_as_soon_as_the_answer_is_over() {
    let node = Node::start(ECHO).await.ready().await;
    let (whole, stream) = (event(), event());
    for _ in 0..20 {
        let body = chat(&node, whole, "one two three", &json!({})).send().await.unwrap().bytes().await.unwrap();
        let plain = node.chat("one two three", &json!({})).send().await.unwrap().bytes().await.unwrap();
        let choices = |body: &[u8]| serde_json::from_slice::<Value>(body).unwrap()["choices"].clone();
        assert_eq!(choices(&body), choices(&plain));
        assert_eq!(ask(&node, whole).await, entry("counted", 3, 3));
    }
    let extra = json!({"stream": true, "stream_options": {"include_usage": true}});
    let text = chat(&node, stream, "one two", &extra).send().await.unwrap().text().await.unwrap();
    assert!(text.contains("\"completion_tokens\":2") && text.ends_with("data: [DONE]\n\n"), "{text}");
    assert_eq!(ask(&node, stream).await, entry("counted", 2, 2));
}

#[tokio::test]
async fn what_broke_off_is_what_was_seen_to_pass() {
    let node = Node::start("engine.kind = \"echo\"\nengine.token_delay = \"20ms\"").await.ready().await;
    let cut = event();
    let extra = json!({"stream": true, "stream_options": {"include_usage": true}});
    let mut stream = chat(&node, cut, &"word ".repeat(10_000), &extra).send().await.unwrap();
    let mut seen = String::new();
    while seen.matches("word").count() < 5 {
        seen.push_str(std::str::from_utf8(&stream.chunk().await.unwrap().unwrap()).unwrap());
    }
    assert_eq!(ask(&node, cut).await, entry("begun", 0, 0));
    drop(stream);
    eventually("its end is known", async || ask(&node, cut).await.1["state"] == "seen").await;
    let tokens = &ask(&node, cut).await.1["tokens"];
    // The echo engine counts the prompt before it begins, and a few more words may have been on their way.
    assert_eq!(tokens["prompt"], 10_000);
    assert!((5..200).contains(&tokens["completion"].as_u64().unwrap()), "{tokens}");
}

#[tokio::test]
async fn a_request_that_the_engine_does_not_answer_takes_nothing() {
    let node = Node::start(ECHO).await.ready().await;
    let (bad, unserved, no_usage) = (event(), event(), event());
    let refused = chat(&node, bad, "x", &json!({"n": 2})).send().await.unwrap();
    assert_eq!(refusal(refused).await, (400, "unsupported_parameter".to_owned(), false));
    assert_eq!(ask(&node, bad).await, entry("refused", 0, 0));
    // It never reached the engine.
    let refused = chat(&node, unserved, "x", &json!({})).header("x-turnpike-model", "other").send().await.unwrap();
    assert_eq!(refused.status(), 404);
    let (status, body) = ask(&node, unserved).await;
    assert_eq!((status, &body["error"]["code"]), (404, &json!("unknown_event")));
    // Answered without a count: what the edge judged.
    let body = json!({"model": "m", "input": "fine words"});
    let post = node.post("/v1/moderations", &body).header("x-turnpike-event", no_usage.to_string());
    post.header("x-turnpike-prompt-estimate", "40").send().await.unwrap().bytes().await.unwrap();
    assert_eq!(ask(&node, no_usage).await, entry("seen", 40, 0));
    // The same event once more on this node: the answer that took tokens counts, however it began.
    chat(&node, bad, "a b", &json!({})).send().await.unwrap().bytes().await.unwrap();
    let refused = chat(&node, bad, "x", &json!({"n": 2})).send().await.unwrap();
    assert_eq!(refused.status(), 400);
    assert_eq!(ask(&node, bad).await, entry("counted", 2, 2));
}

#[tokio::test]
async fn an_engines_own_error_and_its_end_are_told_apart() {
    let inner = Node::start("engine.kind = \"echo\"\nengine.token_delay = \"20ms\"\ndrain.timeout = \"0s\"").await;
    let inner = inner.ready().await;
    let node = Node::start(&format!("engine.kind = \"openai\"\nengine.url = \"http://{}\"", inner.http)).await;
    let (refused, cut, nobody) = (event(), event(), event());
    assert_eq!(chat(&node, refused, "x", &json!({"n": 2})).send().await.unwrap().status(), 400);
    assert_eq!(ask(&node, refused).await, entry("refused", 0, 0));

    let mut stream = chat(&node, cut, &"word ".repeat(10_000), &json!({"stream": true})).send().await.unwrap();
    assert!(stream.chunk().await.unwrap().is_some());
    inner.shutdown.cancel();
    inner.ended().await;
    while let Ok(Some(_)) = stream.chunk().await {}
    // Known at once: the break was held until it was written.
    assert_eq!(ask(&node, cut).await.1["state"], "seen");

    let gone = chat(&node, nobody, "x", &json!({})).send().await.unwrap();
    assert_eq!(refusal(gone).await, (503, "engine_unavailable".to_owned(), true));
    assert_eq!(ask(&node, nobody).await, entry("refused", 0, 0));
}

#[tokio::test]
async fn only_events_are_recorded_and_only_uuids_are_events() {
    let node = Node::start(ECHO).await.ready().await;
    let plain = node.chat("x", &json!({})).send().await.unwrap();
    assert_eq!(plain.status(), 200);
    let bad = node.chat("x", &json!({})).header("x-turnpike-event", "7").send().await.unwrap();
    assert_eq!(refusal(bad).await, (400, "invalid_event".to_owned(), false));
    let url = |end: &str| format!("http://{}/turnpike/ledger/{end}", node.http);
    let bad = node.client.get(url("7")).send().await.unwrap();
    assert_eq!(refusal(bad).await, (400, "invalid_event".to_owned(), false));
    let posted = node.client.post(url(&event().to_string())).send().await.unwrap();
    assert_eq!(refusal(posted).await, (405, "method_not_allowed".to_owned(), false));
    assert_eq!(std::fs::read_dir(ledger_of(&node.authority)).unwrap().count(), 1, "nothing but the lock");
}

fn ledger_of(authority: &Authority) -> std::path::PathBuf {
    authority.path().join("data/ledger")
}

#[tokio::test]
async fn a_ledger_that_cannot_be_written_turns_requests_away_and_says_so() {
    let node = Node::start(&format!("{ECHO}\nledger.max_bytes = 1")).await.ready().await;
    // The first record finds an empty ledger.
    chat(&node, event(), "x", &json!({})).send().await.unwrap().bytes().await.unwrap();
    let refused = chat(&node, event(), "x", &json!({})).send().await.unwrap();
    assert!(refused.headers().contains_key("retry-after"));
    assert_eq!(refusal(refused).await, (503, "node_ledger_unwritable".to_owned(), true));
    eventually("it says so", async || node.metric("turnpike_node_ledger_writable").await == Some(0.0)).await;
    let readiness = node.operator("/readyz").await.text().await.unwrap();
    assert!(readiness.contains("ledger"), "{readiness}");
    let line = "turnpike_node_requests_total{endpoint=\"chat\",outcome=\"unrecorded\"}";
    assert_eq!(node.metric(line).await, Some(1.0));
}

#[tokio::test]
async fn it_is_shipped_in_order_and_again_after_a_lost_ack() {
    let node = Node::start(ECHO).await.ready().await;
    let events: Vec<EventId> = (0..3).map(|_| event()).collect();
    // Stored, and then the link is gone before the node hears of it.
    node.control.lose_acks(1);
    for event in &events {
        chat(&node, *event, "a b", &json!({})).send().await.unwrap().bytes().await.unwrap();
    }
    eventually("all were sent twice", async || {
        let sent: Vec<LedgerEntry> = node.control.entries();
        events.iter().all(|event| sent.iter().filter(|entry| entry.event == *event).count() >= 1)
            && sent.len() > events.len()
    })
    .await;
    let mut sent = node.control.entries();
    assert!(sent.iter().all(|entry| entry.state == LedgerState::Counted && entry.tokens.completion == 2));
    sent.drain(..sent.len() - events.len());
    assert_eq!(sent.iter().map(|entry| entry.event).collect::<Vec<_>>(), events);

    // What was handed over last goes before the node ends, and its next life does not send it again.
    let last = event();
    chat(&node, last, "a b", &json!({})).send().await.unwrap().bytes().await.unwrap();
    node.shutdown.cancel();
    let sent = node.end().await;
    assert_eq!(sent.last().map(|entry| entry.event), Some(last));
}

/// Copies the files of a ledger as they are at this moment, as a killed process would leave them.
fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for file in std::fs::read_dir(from).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), to.join(file.file_name())).unwrap();
    }
}

#[tokio::test]
async fn a_node_that_died_in_mid_stream_says_that_the_request_is_lost() {
    let node = Node::start("engine.kind = \"echo\"\nengine.token_delay = \"20ms\"").await.ready().await;
    let (done, cut) = (event(), event());
    chat(&node, done, "a b", &json!({})).send().await.unwrap().bytes().await.unwrap();
    let mut stream = chat(&node, cut, &"word ".repeat(10_000), &json!({"stream": true})).send().await.unwrap();
    assert!(stream.chunk().await.unwrap().is_some());

    let authority = Authority::new();
    copy(&ledger_of(&node.authority), &ledger_of(&authority));
    let control = Control::start(&authority, ([127, 0, 0, 1], 0).into());
    let text = settings_text(&authority, &control.address.to_string(), "http", ECHO);
    let agent = Agent::bind(Settings::load("node.toml", &text, &|_| None).unwrap()).await.unwrap();
    let (http, stop) = (agent.http_address(), tokio_util::sync::CancellationToken::new());
    let task = tokio::spawn(agent.serve(stop.clone()));
    for (event, expected) in [(done, entry("counted", 2, 2)), (cut, entry("lost", 0, 0))] {
        let url = format!("http://{http}/turnpike/ledger/{event}");
        let response = node.client.get(url).send().await.unwrap();
        assert_eq!((response.status().as_u16(), response.json().await.unwrap()), expected);
    }
    eventually("the control plane hears of it", async || {
        control.entries().iter().any(|entry| entry.event == cut && entry.state == LedgerState::Lost)
    })
    .await;
    stop.cancel();
    tokio::time::timeout(PATIENCE, task).await.unwrap().unwrap();
}
