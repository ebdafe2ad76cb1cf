//! Registration, reports and loss of nodes.

use crate::peers::{Edge, Link, Node, node_hello};
use crate::plane::{PATIENCE, Plane, eventually};
use reqwest::Method;
use tokio::time::{Instant, timeout};
use turnpike_config::link::Role;
use turnpike_config::log::Position;
use turnpike_config::push::EdgeHello;
use turnpike_config::wire::{NodeReply, Open};
use turnpike_config::{NodeState, Routing};

#[tokio::test]
async fn a_node_registers_reports_and_is_switched() {
    let plane = Plane::start().await;
    let mut edge = Edge::connect(&plane, "e1", Routing::default()).await;
    let mut node = Node::connect(&plane, "n1").await;
    edge.until("the registration", |r| r.nodes.contains_key("n1")).await;
    assert_eq!(edge.node_state("n1"), Some(NodeState::Unhealthy), "not trusted before it has reported");
    node.report(NodeState::Ready, 0).await;
    edge.until("readiness", |r| r.nodes["n1"].state == NodeState::Ready).await;
    assert_eq!((edge.routing.nodes["n1"].slots, edge.routing.nodes["n1"].url.as_str()), (4, "https://10.0.0.1:9000"));

    // Reports without a change of state are shown, and make no version.
    let version = edge.routing.version;
    for running in 1..=3 {
        node.report(NodeState::Ready, running).await;
    }
    let shown = eventually("the report", || async {
        Some(plane.get("/nodes/n1").await).filter(|node| node["report"]["running"] == 3)
    })
    .await;
    assert_eq!((&shown["connected"], &shown["state"]), (&true.into(), &"ready".into()));
    assert_eq!(plane.metric("turnpike_controlplane_node_requests_running{node=\"n1\"}").await, Some(3.0));
    assert_eq!(plane.metric("turnpike_controlplane_config_version").await, Some(version as f64));

    plane.call(Method::POST, "/nodes/n1/disable", None).await;
    edge.until("the switch", |r| r.nodes["n1"].state == NodeState::Disabled).await;
    node.report(NodeState::Draining, 1).await;
    eventually("the state", || async { Some(plane.get("/nodes/n1").await).filter(|n| n["state"] == "draining") }).await;
    plane.call(Method::POST, "/nodes/n1/enable", None).await;
    edge.until("the switch back", |r| r.nodes["n1"].state == NodeState::Draining).await;
}

#[tokio::test]
async fn a_link_that_comes_back_soon_was_never_lost() {
    let plane = Plane::start().await;
    let mut edge = Edge::connect(&plane, "e1", Routing::default()).await;
    let mut node = Node::connect(&plane, "n1").await;
    node.report(NodeState::Ready, 0).await;
    edge.until("readiness", |r| r.nodes.get("n1").is_some_and(|n| n.state == NodeState::Ready)).await;
    let version = edge.routing.version;

    node.0.connection.close(0, "bye");
    let mut again = Node::connect(&plane, "n1").await;
    again.report(NodeState::Ready, 0).await;
    // A second link of the same name replaces the first.
    let mut third = Node::connect(&plane, "n1").await;
    timeout(PATIENCE, again.0.connection.closed()).await.expect("the older link is closed");
    third.report(NodeState::Ready, 0).await;
    // Longer than the grace: whatever was to be noted of the ended links has been.
    let since = Instant::now();
    eventually("the grace to pass", || async { (since.elapsed().as_millis() > 2_500).then_some(()) }).await;
    third.report(NodeState::Ready, 5).await;
    eventually("the report", || async {
        Some(plane.get("/nodes/n1").await).filter(|node| node["report"]["running"] == 5)
    })
    .await;
    assert_eq!(plane.metric("turnpike_controlplane_config_version").await, Some(version as f64), "no flapping");

    third.0.connection.close(0, "bye");
    edge.until("the loss", |r| r.nodes["n1"].state == NodeState::Lost).await;
    assert_eq!(plane.metric("turnpike_controlplane_node_requests_running{node=\"n1\"}").await, None);
}

#[tokio::test]
async fn a_node_that_is_not_back_after_a_restart_is_lost() {
    let mut plane = Plane::start().await;
    let mut edge = Edge::connect(&plane, "e1", Routing::default()).await;
    let mut node = Node::connect(&plane, "n1").await;
    node.report(NodeState::Ready, 0).await;
    edge.until("readiness", |r| r.nodes.get("n1").is_some_and(|n| n.state == NodeState::Ready)).await;
    plane.restart().await;
    let mut edge = Edge::connect(&plane, "e1", Routing::default()).await;
    edge.next().await;
    assert_eq!(edge.node_state("n1"), Some(NodeState::Ready), "it may come back");
    edge.until("the loss", |r| r.nodes["n1"].state == NodeState::Lost).await;
}

#[tokio::test]
async fn a_role_opens_only_its_own_streams() {
    let plane = Plane::start().await;
    let hello = EdgeHello { region: "eu".to_owned(), holds: Position::default(), build: "test".to_owned() };
    let strangers = [
        (Role::Edge, Open::Node(node_hello("https://10.0.0.1:9000"))),
        (Role::Node, Open::Push(hello)),
        (Role::Node, Open::Usage),
        (Role::Control, Open::Usage),
    ];
    for (role, open) in strangers {
        let link = Link::open(&plane, role, "x", open.clone()).await;
        let reason = timeout(PATIENCE, link.connection.closed()).await.expect("the link is closed");
        assert!(reason.contains("role may not"), "{role:?} {open:?}: {reason}");
    }
    assert!(plane.get("/nodes").await["data"].as_array().unwrap().is_empty());
}

#[tokio::test]
async fn a_registration_that_makes_no_sense_is_refused_with_the_reason() {
    let plane = Plane::start().await;
    let bad = [
        (node_hello("ftp://10.0.0.1:9000"), "url"),
        (turnpike_config::wire::NodeHello { slots: 0, ..node_hello("http://a:1") }, "slots"),
        (turnpike_config::wire::NodeHello { serves: Vec::new(), ..node_hello("http://a:1") }, "serves"),
    ];
    for (hello, word) in bad {
        let (_, reply) = Node::hello(&plane, "n1", hello).await;
        assert!(matches!(&reply, NodeReply::Refused(reason) if reason.contains(word)), "{reply:?}");
    }
}
