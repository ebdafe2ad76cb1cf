use crate::harness::{Authority, Control, Node, PATIENCE, eventually, refusal, settings_text};
use serde_json::json;
use std::net::UdpSocket;
use std::time::Instant;
use tokio_util::sync::CancellationToken;
use turnpike_config::NodeState;
use turnpike_gpu_node::{Agent, Settings};

#[tokio::test]
async fn draining_finishes_streams_and_sends_new_work_elsewhere() {
    let node = Node::start("engine.kind = \"echo\"\ndrain.timeout = \"30s\"").await.ready().await;
    // More than the sockets hold: the stream cannot end before it is read below.
    let text = vec!["w".repeat(10_000); 3_000].join(" ");
    let mut stream = node.chat(&text, &json!({"stream": true})).send().await.unwrap();
    let mut seen = stream.chunk().await.unwrap().unwrap().to_vec();

    node.shutdown.cancel();
    eventually("the control plane hears of it", async || node.control.states().last() == Some(&NodeState::Draining))
        .await;
    let refused = node.chat("new", &json!({})).send().await.unwrap();
    assert!(refused.headers().contains_key("retry-after"));
    assert_eq!(refusal(refused).await, (503, "node_draining".to_owned(), true));
    assert_eq!(node.operator("/readyz").await.status(), 503);
    assert_eq!(node.operator("/livez").await.status(), 200);

    while let Some(chunk) = stream.chunk().await.unwrap() {
        seen.extend_from_slice(&chunk);
    }
    let seen = String::from_utf8(seen).unwrap();
    // The opening, the words and the end.
    assert_eq!(seen.matches("\"delta\"").count(), 3_002);
    assert!(seen.ends_with("data: [DONE]\n\n"));
    node.ended().await;
}

#[tokio::test]
async fn a_stream_longer_than_the_drain_timeout_is_cut() {
    let settings = "engine.kind = \"echo\"\nengine.token_delay = \"20ms\"\ndrain.timeout = \"100ms\"";
    let node = Node::start(settings).await.ready().await;
    let mut stream = node.chat(&"word ".repeat(100_000), &json!({"stream": true})).send().await.unwrap();
    assert!(stream.chunk().await.unwrap().is_some());
    let asked = Instant::now();
    node.shutdown.cancel();
    node.ended().await;
    assert!(asked.elapsed() < PATIENCE);
    let end = loop {
        match stream.chunk().await {
            Ok(Some(_)) => {}
            end => break end,
        }
    };
    assert!(end.is_err(), "a cut stream must not look like a whole one");
}

#[tokio::test]
async fn without_a_control_plane_it_serves_and_registers_later() {
    let authority = Authority::new();
    // A port that is free now and that nobody listens on.
    let address = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let text = settings_text(&authority, &address.to_string(), "http", "engine.kind = \"echo\"");
    let agent = Agent::bind(Settings::load("node.toml", &text, &|_| None).unwrap()).await.unwrap();
    let (http, metrics) = (agent.http_address(), agent.metrics_address());
    let shutdown = CancellationToken::new();
    let task = tokio::spawn(agent.serve(shutdown.clone()));

    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let body = json!({"model": "m", "prompt": "hello"}).to_string();
    let answer = client.post(format!("http://{http}/v1/completions")).body(body).send().await.unwrap();
    assert_eq!(answer.status(), 200);
    let ready = async || client.get(format!("http://{metrics}/readyz")).send().await.unwrap();
    eventually("the engine is known to be well", async || {
        ready().await.text().await.unwrap().contains("not registered")
    })
    .await;

    let control = Control::start(&authority, address);
    eventually("it is ready", async || ready().await.status() == 200).await;
    drop(control);
    assert_eq!(ready().await.status(), 200);

    shutdown.cancel();
    tokio::time::timeout(PATIENCE, task).await.unwrap().unwrap();
}
