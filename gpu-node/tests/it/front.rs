use crate::harness::{Node, eventually, refusal};
use serde_json::{Value, json};
use turnpike_config::NodeState;

#[tokio::test]
async fn a_request_is_answered_counted_and_reported() {
    let node = Node::start("engine.kind = \"echo\"").await.ready().await;
    let response = node
        .chat("one two", &json!({}))
        .header("x-request-id", "r-1")
        .header("x-turnpike-model", "m")
        .header("x-turnpike-model-version", "1")
        .send()
        .await
        .unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["x-request-id"], "r-1");
    let body: Value = response.json().await.unwrap();
    assert_eq!(body["choices"][0]["message"]["content"], "one two");

    let (peer, hello) = node.control.hellos().remove(0);
    assert_eq!((peer.name.as_str(), hello.engine.as_str(), hello.slots), ("n1", "echo", 4));
    eventually("the report counts it", async || {
        node.control.reports().last().is_some_and(|r| r.completed == 1 && r.generated_tokens == 2 && r.running == 0)
    })
    .await;
    assert_eq!(node.control.states().last(), Some(&NodeState::Ready));
    assert_eq!(node.metric("turnpike_node_requests_completed_total").await, Some(1.0));
    let line = "turnpike_node_requests_total{endpoint=\"chat\",outcome=\"answered\"}";
    assert_eq!(node.metric(line).await, Some(1.0));
}

#[tokio::test]
async fn what_cannot_be_served_is_refused_in_openais_shape() {
    let node = Node::start("engine.kind = \"echo\"\nhttp.max_body_bytes = 1000").await;
    let chat = |text: &str| node.chat(text, &json!({}));
    let unknown = chat("x").header("x-turnpike-model", "other").send().await.unwrap();
    assert_eq!(refusal(unknown).await, (404, "model_not_found".to_owned(), true));
    let version = chat("x").header("x-turnpike-model-version", "2").send().await.unwrap();
    assert_eq!(refusal(version).await, (404, "model_not_found".to_owned(), true));
    let long = chat(&"x".repeat(1000)).send().await.unwrap();
    assert_eq!(refusal(long).await, (413, "request_too_large".to_owned(), false));
    let nowhere = node.post("/v1/images", &json!({})).send().await.unwrap();
    assert_eq!(refusal(nowhere).await, (404, "unknown_url".to_owned(), false));
    let url = format!("http://{}/v1/chat/completions", node.http);
    let get = node.client.get(url).send().await.unwrap();
    assert_eq!(refusal(get).await, (405, "method_not_allowed".to_owned(), false));
    let no_json = node.post("/v1/chat/completions", &json!("no object")).send().await.unwrap();
    assert_eq!(refusal(no_json).await, (400, "invalid_json".to_owned(), false));
    let unsupported = node.chat("x", &json!({"n": 2})).send().await.unwrap();
    assert_eq!(refusal(unsupported).await, (400, "unsupported_parameter".to_owned(), false));
    assert_eq!(node.client.get(format!("http://{}/livez", node.http)).send().await.unwrap().status(), 200);
}

#[tokio::test]
async fn a_full_queue_refuses_and_a_client_that_leaves_makes_room() {
    let settings = "engine.kind = \"echo\"\nengine.token_delay = \"20ms\"\nqueue = { slots = 1, max_waiting = 1 }";
    let node = Node::start(settings).await.ready().await;
    let long = "word ".repeat(10_000);
    let mut running = node.chat(&long, &json!({"stream": true})).send().await.unwrap();
    assert!(running.chunk().await.unwrap().is_some());
    let waiting = tokio::spawn(node.chat("short", &json!({})).send());
    eventually("one runs and one waits", async || {
        node.metric("turnpike_node_requests_running").await == Some(1.0)
            && node.metric("turnpike_node_requests_waiting").await == Some(1.0)
    })
    .await;

    let refused = node.chat("third", &json!({})).send().await.unwrap();
    assert!(refused.headers().contains_key("retry-after"));
    assert_eq!(refusal(refused).await, (503, "node_overloaded".to_owned(), true));

    // The stream would go on for minutes: that the second is answered shows that it was given up.
    drop(running);
    assert_eq!(waiting.await.unwrap().unwrap().status(), 200);
    let line = "turnpike_node_requests_total{endpoint=\"chat\",outcome=\"broken_off\"}";
    eventually("the abort is counted", async || node.metric(line).await == Some(1.0)).await;
}

#[tokio::test]
async fn nobody_waits_longer_than_the_deadline() {
    let settings = "engine.kind = \"echo\"\nengine.token_delay = \"20ms\"\n\
                    queue = { slots = 1, max_waiting = 1, deadline = \"50ms\" }";
    let node = Node::start(settings).await.ready().await;
    let mut running = node.chat(&"word ".repeat(10_000), &json!({"stream": true})).send().await.unwrap();
    assert!(running.chunk().await.unwrap().is_some());
    let late = node.chat("short", &json!({})).send().await.unwrap();
    assert_eq!(refusal(late).await, (503, "node_overloaded".to_owned(), true));
}
