use crate::harness::{Node, chat_body, refusal};
use reqwest::Client;
use serde_json::json;
use turnpike_config::link::Role;

/// A client that shows the certificate of `name` and expects the node's.
fn client(node: &Node, role: Role, name: &str, alpn: &[&[u8]]) -> Client {
    let tls = node.authority.identity(role, name).client_config(alpn).unwrap();
    Client::builder()
        .no_proxy()
        .tls_backend_preconfigured(tls)
        .resolve("n1.node.turnpike.internal", node.http)
        .build()
        .unwrap()
}

async fn ask(node: &Node, client: &Client) -> reqwest::Result<reqwest::Response> {
    let url = format!("https://n1.node.turnpike.internal:{}/v1/chat/completions", node.http.port());
    client.post(url).body(chat_body("hi", &json!({})).to_string()).send().await
}

#[tokio::test]
async fn edges_are_served_over_either_http() {
    let node = Node::start_as("https", "engine.kind = \"echo\"").await.ready().await;
    for (alpn, version) in [(b"h2".as_slice(), http::Version::HTTP_2), (b"http/1.1", http::Version::HTTP_11)] {
        let response = ask(&node, &client(&node, Role::Edge, "e1", &[alpn])).await.unwrap();
        assert_eq!((response.status().as_u16(), response.version()), (200, version));
    }
}

#[tokio::test]
async fn a_peer_that_is_no_edge_is_refused() {
    let node = Node::start_as("https", "engine.kind = \"echo\"").await.ready().await;
    for role in [Role::Node, Role::Control] {
        let response = ask(&node, &client(&node, role, "n2", &[b"http/1.1"])).await.unwrap();
        assert_eq!(refusal(response).await, (403, "peer_not_edge".to_owned(), false));
    }
}

#[tokio::test]
async fn a_stranger_gets_no_connection() {
    let node = Node::start_as("https", "engine.kind = \"echo\"").await.ready().await;
    // Signed by another deployment's authority, though it trusts ours.
    let other = crate::harness::Authority::new();
    std::fs::copy(node.authority.path().join("ca.pem"), other.path().join("ca.pem")).unwrap();
    let tls = other.identity(Role::Edge, "e1").client_config(&[b"http/1.1"]).unwrap();
    let client = Client::builder()
        .no_proxy()
        .tls_backend_preconfigured(tls)
        .resolve("n1.node.turnpike.internal", node.http)
        .build()
        .unwrap();
    assert!(ask(&node, &client).await.is_err());
    assert_eq!(ask(&node, &self::client(&node, Role::Edge, "e1", &[b"http/1.1"])).await.unwrap().status(), 200);
}
