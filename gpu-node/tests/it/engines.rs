use crate::harness::{Node, eventually, refusal};
use serde_json::json;
use turnpike_config::NodeState;

/// An agent behind an agent: the inner one is an OpenAI-compatible engine to the outer one.
#[tokio::test]
async fn any_openai_server_can_be_the_engine() {
    let inner = Node::start("engine.kind = \"echo\"\nengine.token_delay = \"5ms\"").await.ready().await;
    // The inner one has no /v1/models, so it cannot pass for healthy; what it answers passes through all the same.
    let settings = format!("engine.kind = \"openai\"\nengine.url = \"http://{}\"", inner.http);
    let outer = Node::start(&settings).await;
    let whole = outer.chat("one two", &json!({})).send().await.unwrap();
    assert_eq!(whole.headers()["content-type"], "application/json");
    let whole: serde_json::Value = whole.json().await.unwrap();
    assert_eq!(whole["choices"][0]["message"]["content"], "one two");
    let stream = outer.chat("one two", &json!({"stream": true})).send().await.unwrap();
    assert!(stream.headers()["content-type"].to_str().unwrap().starts_with("text/event-stream"));
    assert!(stream.text().await.unwrap().ends_with("data: [DONE]\n\n"));
    // The engine's own errors are the client's to read.
    let refused = outer.chat("x", &json!({"n": 2})).send().await.unwrap();
    assert_eq!(refusal(refused).await, (400, "unsupported_parameter".to_owned(), false));

    // A client that leaves ends the work in the engine too.
    let mut long = outer.chat(&"word ".repeat(100_000), &json!({"stream": true})).send().await.unwrap();
    assert!(long.chunk().await.unwrap().is_some());
    assert_eq!(inner.metric("turnpike_node_requests_running").await, Some(1.0));
    drop(long);
    eventually("the engine is idle", async || inner.metric("turnpike_node_requests_running").await == Some(0.0)).await;
}

#[tokio::test]
async fn the_engines_own_name_for_the_model_can_differ() {
    let inner = Node::start("engine.kind = \"echo\"").await.ready().await;
    let settings =
        format!("engine.kind = \"openai\"\nengine.url = \"http://{}\"\nengine.model = \"theirs\"", inner.http);
    let outer = Node::start(&settings).await;
    let unknown = outer.chat("x", &json!({})).send().await.unwrap();
    let body = unknown.text().await.unwrap();
    assert!(body.contains("«theirs»"), "{body}");
}

#[tokio::test]
async fn an_engine_that_is_not_there_is_unhealthy_and_its_work_goes_elsewhere() {
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let node = Node::start(&format!("engine.kind = \"vllm\"\nengine.url = \"http://{nobody}\"")).await;
    let refused = node.chat("x", &json!({})).send().await.unwrap();
    assert_eq!(refusal(refused).await, (503, "engine_unavailable".to_owned(), true));
    eventually("the control plane hears of it", async || node.control.states() == [NodeState::Unhealthy]).await;
    assert_eq!(node.operator("/readyz").await.status(), 503);
}
