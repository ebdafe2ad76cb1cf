//! Links that find another way: by TCP where UDP is blocked, to another control plane where one dies.

use crate::harness::{Fleet, MODEL, chat_body, eventually, free_port, get, post};
use serde_json::json;
use std::net::UdpSocket;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tokio::net::{TcpListener, TcpStream};

/// Forwards TCP to a port of this machine.
fn forward(listener: TcpListener, to: u16) {
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut server = TcpStream::connect(("127.0.0.1", to)).await.unwrap();
                let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
            });
        }
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn an_edge_and_a_node_behind_blocked_udp_do_everything_by_tcp() {
    let mut fleet = Fleet::start(&["n1"], "1ms").await;
    let port = free_port();
    // Takes datagrams and never answers, as a firewall does that drops them.
    let _silence = UdpSocket::bind(("127.0.0.1", port)).unwrap();
    forward(TcpListener::bind(("127.0.0.1", port)).await.unwrap(), fleet.link_port());
    fleet.control_address = format!("\"127.0.0.1:{port}\"");
    fleet.edge_url = fleet.add_edge("edge-far", "").await;
    fleet.until_known(&fleet.key).await;
    fleet.add_node("n2", MODEL, "engine.kind = \"echo\"\n").await;

    let url = format!("{}/v1/chat/completions", fleet.edge_url);
    for _ in 0..5 {
        let reply = post(&url, &fleet.key, chat_body(MODEL, "one two", false)).await.unwrap();
        assert_eq!(reply.status, 200, "{}", reply.text);
    }
    eventually("the usage is shipped", async || match fleet.sql("SELECT count(*) FROM inference_requests") {
        count if count == "5" => Ok(()),
        count => Err(count),
    })
    .await;

    let (id, key) = fleet.make_key(json!({"permissions": ["inference", "models.read"]})).await;
    fleet.until_known(&key).await;
    fleet.admin.delete(&format!("/api_keys/{id}")).await;
    eventually("the revocation arrives", async || match get(&format!("{}/v1/models", fleet.edge_url), &key).await? {
        reply if reply.status == 401 => Ok(()),
        reply => Err(reply.text),
    })
    .await;

    let edges = fleet.admin.get("/edges").await;
    let carried = |name: &str| {
        let edge = edges["data"].as_array().unwrap().iter().find(|edge| edge["name"] == name);
        edge.unwrap_or_else(|| panic!("{edges}"))["transport"].clone()
    };
    assert_eq!((carried("edge"), carried("edge-far")), (json!("quic"), json!("tcp")));
    let metrics = get(&format!("{}/metrics", fleet.metrics["edge-far"]), "").await.unwrap().text;
    assert!(metrics.contains("turnpike_edge_control_link_by_tcp 1"), "{metrics}");
    assert_eq!(fleet.log("edge-far").matches("nobody answers by UDP").count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_control_plane_that_dies_beside_another_is_missed_by_nobody() {
    let mut fleet = Fleet::start_pair(&["n1"], "1ms").await;
    let other = fleet.admin_of("control2");
    let (asked, stop) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
    let requests = tokio::spawn({
        let (url, key) = (format!("{}/v1/chat/completions", fleet.edge_url), fleet.key.clone());
        let (asked, stop) = (Arc::clone(&asked), Arc::clone(&stop));
        async move {
            while !stop.load(Ordering::Relaxed) {
                let reply = post(&url, &key, chat_body(MODEL, "one two three", false)).await.unwrap();
                assert_eq!(reply.status, 200, "{}", reply.text);
                asked.fetch_add(1, Ordering::Relaxed);
            }
        }
    });
    let rollout = json!({
        "documents": {"route": [{"name": "chat", "policy": {"targets": [{"model": MODEL, "weight": 1}]}}]},
        "stages": [{"edges": ["edge"], "hold_s": 3}],
        "reason": "a new name",
    });
    let rollout = fleet.admin.post("/rollouts", rollout).await;
    let rollout = format!("/rollouts/{}", rollout["id"].as_str().unwrap());
    eventually("some are asked", async || match asked.load(Ordering::Relaxed) {
        count if count > 10 => Ok(()),
        count => Err(format!("{count} requests")),
    })
    .await;

    fleet.kill("control");
    let killed = Instant::now();
    fleet.admin = other;
    let key = fleet.make_key(json!({"permissions": ["inference", "models.read"]})).await.1;
    fleet.until_known(&key).await;
    assert!(killed.elapsed() < Duration::from_secs(6), "the change took {:?}", killed.elapsed());
    eventually("the node is with the other", async || match fleet.admin.get("/nodes/n1").await {
        node if node["state"] == "ready" && node["connected"] == true => Ok(()),
        node => Err(node.to_string()),
    })
    .await;
    eventually("the rollout goes on", async || match fleet.admin.get(&rollout).await {
        found if found["state"] == "done" => Ok(()),
        found => Err(found.to_string()),
    })
    .await;

    stop.store(true, Ordering::Relaxed);
    requests.await.unwrap();
    let asked = asked.load(Ordering::Relaxed);
    eventually("all usage arrives", async || match fleet.sql("SELECT count(*) FROM inference_requests") {
        count if count == asked.to_string() => Ok(()),
        count => Err(format!("{count} of {asked}")),
    })
    .await;
    assert_eq!(fleet.sql("SELECT string_agg(state, ',') FROM nodes"), "ready");
}
