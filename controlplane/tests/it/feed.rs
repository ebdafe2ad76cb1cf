//! From a change to the edges.

use crate::log::append_by_hand;
use crate::peers::{Edge, Held, Kind};
use crate::plane::{OWNER, Plane, eventually};
use reqwest::Method;
use serde_json::json;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use turnpike_config::log::{Hash, Position};
use turnpike_config::push::PushReply;
use turnpike_config::{KeyDigest, Routing};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn racing_writers_leave_no_gap_that_a_reader_could_see() {
    const WRITERS: usize = 8;
    const EACH: usize = 6;
    let plane = Arc::new(Plane::start().await);
    let mut edge = Edge::connect(&plane, "e1", Routing::default()).await;
    let done = Arc::new(AtomicBool::new(false));
    let reader = tokio::spawn({
        let (pool, done) = (plane.pool.clone(), Arc::clone(&done));
        async move {
            let (mut reads, mut seen) = (0, 0);
            while !done.load(Ordering::Relaxed) {
                let versions: Vec<i64> = sqlx::query_scalar("SELECT version FROM config_log ORDER BY version")
                    .fetch_all(&pool)
                    .await
                    .unwrap();
                let expected: Vec<i64> = (1..=versions.len() as i64).collect();
                assert_eq!(versions, expected, "a reader saw a gap");
                assert!(versions.len() >= seen, "a row vanished");
                seen = versions.len();
                reads += 1;
            }
            reads
        }
    });
    let writers: Vec<_> = (0..WRITERS)
        .map(|writer| {
            let plane = Arc::clone(&plane);
            tokio::spawn(async move {
                for n in 0..EACH {
                    plane.organization(&format!("w{writer}-{n}")).await;
                }
            })
        })
        .collect();
    edge.until_version((WRITERS * EACH) as u64).await;
    for writer in writers {
        writer.await.unwrap();
    }
    done.store(true, Ordering::Relaxed);
    assert!(reader.await.unwrap() > 1);
    assert_eq!(edge.routing.orgs.size(), WRITERS * EACH);
}

#[tokio::test]
async fn a_snapshot_at_first_and_deltas_after() {
    let mut plane = Plane::start().await;
    let mut edge = Edge::connect(&plane, "e1", Routing::default()).await;
    assert_eq!(edge.next().await, Kind::Snapshot);
    let tenant = plane.tenant("acme").await;
    edge.until("the key", |routing| !routing.keys.is_empty()).await;
    let early = edge.held();
    plane.model("m").await;
    plane.post("/models/m/versions", json!({"version": "v1", "model_artifact_path": "/w", "make_default": true})).await;
    edge.until("the version", |routing| routing.models.get("m").is_some_and(|m| m.versions.len() == 1)).await;
    let key = edge.routing.keys.values().next().unwrap();
    assert_eq!(key.digest, KeyDigest::of(&tenant.key));
    assert!(key.active);

    // Away for a while: what was missed comes as a delta.
    let held = edge.held();
    drop(edge);
    plane.call(Method::POST, &format!("/api_keys/{}/disable", tenant.key_id), None).await;
    plane.call(Method::DELETE, &format!("/api_keys/{}", tenant.key_id), None).await;
    let mut edge = Edge::come_back(&plane, "e1", held).await;
    assert_eq!(edge.next().await, Kind::Delta);
    edge.until("the revocation", |routing| routing.keys.is_empty()).await;

    // What the log adds up to is what the tables say.
    plane.restart().await;
    let mut fresh = Edge::connect(&plane, "e2", Routing::default()).await;
    assert_eq!(fresh.next().await, Kind::Snapshot);
    assert_eq!(fresh.routing, edge.routing);
    // A delta also across the restart, now out of the log.
    let mut early = Edge::come_back(&plane, "e3", early).await;
    assert_eq!(early.next().await, Kind::Delta);
    assert_eq!(early.routing, fresh.routing);
}

#[tokio::test]
async fn acks_and_refusals_are_shown_and_a_slow_edge_holds_up_nobody() {
    let plane = Plane::start().await;
    let mut slow = Edge::connect(&plane, "slow", Routing::default()).await;
    slow.take().await;
    let mut edge = Edge::connect(&plane, "e1", Routing::default()).await;
    edge.next().await;
    for n in 0..20 {
        plane.organization(&format!("org-{n}")).await;
    }
    edge.until_version(20).await;
    let shown = |name: &'static str| {
        let plane = &plane;
        async move {
            let edges = plane.get("/edges").await;
            edges["data"].as_array().unwrap().iter().find(|edge| edge["name"] == name).cloned()
        }
    };
    let acked = |e: &serde_json::Value| e["holds"] == 20 && e["health"] == "healthy" && e["lag_versions"] == 0;
    eventually("the ack", || async { shown("e1").await.filter(acked) }).await;
    assert_eq!(shown("slow").await.unwrap()["lag_versions"], 20);

    // The slow one wakes up: everything that it missed comes at once.
    slow.reply(PushReply::Ack(slow.follower.held())).await;
    slow.take().await;
    assert_eq!((slow.routing.version, slow.routing.orgs.size()), (20, 20));
    // A refused delta is followed by a snapshot, a refused snapshot by nothing until there is something new.
    slow.reply(PushReply::Nack { version: 20, reason: "out of memory".to_owned() }).await;
    assert_eq!(slow.take().await, Kind::Snapshot);
    slow.reply(PushReply::Nack { version: 20, reason: "still".to_owned() }).await;
    let refusing = |e: &serde_json::Value| e["last_nack"] == "still" && e["health"] == "refusing";
    eventually("the refusal", || async { shown("slow").await.filter(refusing) }).await;
    plane.organization("org-20").await;
    assert_eq!(slow.next().await, Kind::Snapshot);
    eventually("the ack", || async { shown("slow").await.filter(|e| e["last_nack"].is_null() && e["holds"] == 21) })
        .await;

    slow.link.connection.close(0, "bye");
    eventually("the end", || async { shown("slow").await.filter(|e| e["health"] == "away") }).await;
    assert_eq!(plane.metric("turnpike_controlplane_push_refusals_total").await, Some(2.0));
}

#[tokio::test]
async fn a_bad_state_reaches_nobody_and_can_be_repaired() {
    let plane = Plane::start().await;
    plane.organization("acme").await;
    let mut edge = Edge::connect(&plane, "e1", Routing::default()).await;
    edge.until_version(1).await;
    let node = json!({"name": "n", "region": "eu", "url": "nowhere", "state": "ready", "serves": [], "slots": 1});
    append_by_hand(&plane, "by hand", vec![json!({"put_node": node})]).await;
    eventually("the fault is noticed", || async {
        plane.metric("turnpike_controlplane_config_faults").await.filter(|faults| *faults == 1.0)
    })
    .await;
    assert_eq!(plane.metric("turnpike_controlplane_config_version").await, Some(1.0));
    // A fault of the past does not stand in the way of other changes, nor of its repair.
    plane.organization("other").await;
    append_by_hand(&plane, "by hand", vec![json!({"drop_node": "n"})]).await;
    edge.until_version(4).await;
    assert_eq!((edge.routing.orgs.size(), edge.routing.nodes.size()), (2, 0));
    assert_eq!(plane.raw(Method::GET, "/readyz", Some(OWNER), None).await.status, 200);
}

#[tokio::test]
async fn a_database_that_was_set_back_reaches_edges_only_once_it_is_allowed_to() {
    let plane = Plane::start().await;
    let mut edge = Edge::connect(&plane, "e1", Routing::default()).await;
    edge.next().await;
    plane.organization("acme").await;
    edge.until_version(1).await;
    let elsewhere = Position { version: 1 << 40, chain: Hash::of(b"elsewhere") };
    let lost = Held { routing: edge.routing.clone(), at: elsewhere };
    let mut ahead = Edge::come_back(&plane, "e2", lost.clone()).await;
    // A state that was made before may be offered first, then the newest.
    loop {
        let refusal = ahead.refused().await;
        assert!(refusal.reason.contains("config rewind"), "{}", refusal.reason);
        let is_newest = refusal.version == 1;
        ahead.reply(refusal.into()).await;
        if is_newest {
            break;
        }
    }
    eventually("the refusal", || async {
        let edges = plane.get("/edges").await;
        let edge = edges["data"].as_array().unwrap().iter().find(|edge| edge["name"] == "e2").cloned();
        edge.filter(|edge| edge["last_nack"].as_str().is_some_and(|nack| nack.contains("config rewind")))
    })
    .await;
    // An operator has looked at it.
    plane.post("/config/rewind", json!({"from_version": elsewhere.version, "reason": "restored"})).await;
    assert_eq!(ahead.next().await, Kind::Snapshot);
    assert_eq!(ahead.routing, edge.routing);
}
