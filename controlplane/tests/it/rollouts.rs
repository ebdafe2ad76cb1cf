//! Changes that reach some edges before they reach all.

use crate::invoices::spending;
use crate::peers::{Edge, Held, Meter};
use crate::plane::{Plane, Tenant, eventually};
use chrono::{TimeDelta, Utc};
use reqwest::Method;
use serde_json::{Value, json};
use turnpike_config::push::PushReply;
use turnpike_config::{RequestStatus, RouteId, Routing};

/// Two edges of one region and one of another, that follow by themselves.
struct Fleet {
    plane: Plane,
    tenant: Tenant,
    edges: Vec<Edge>,
}

const EDGES: [(&str, &str); 3] = [("e1", "eu"), ("e2", "eu"), ("e3", "us")];

impl Fleet {
    async fn start() -> Self {
        let plane = Plane::start().await;
        let tenant = plane.tenant("acme").await;
        plane.model("m").await;
        let mut edges = Vec::new();
        for (name, region) in EDGES {
            edges.push(Edge::come_back_in(&plane, name, region, Held::default()).await);
        }
        let mut fleet = Self { plane, tenant, edges };
        fleet.settle().await;
        eventually("the edges are known", || async {
            let edges = fleet.plane.get("/edges").await;
            let all = edges["data"].as_array().unwrap();
            (all.len() == 3 && all.iter().all(|edge| edge["connected"] == true)).then_some(())
        })
        .await;
        fleet
    }

    /// Every edge takes all there is.
    async fn settle(&mut self) {
        let version = self.plane.get("/config").await["version"].as_u64().unwrap();
        for edge in &mut self.edges {
            edge.until_version(version).await;
        }
    }

    async fn start_rollout(&self, more: Value) -> String {
        let mut body = json!({
            "documents": {"route": [{"name": "chat", "policy": {"targets": [{"model": "m", "weight": 1}]}}]},
            "stages": [{"edges": ["e1"], "hold_s": 0}, {"regions": ["eu"], "hold_s": 0}],
            "reason": "a new name",
        });
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        self.plane.post("/rollouts", body).await["id"].as_str().unwrap().to_owned()
    }

    async fn rollout(&self, id: &str) -> Value {
        self.plane.get(&format!("/rollouts/{id}")).await
    }

    async fn until_state(&self, id: &str, state: &str) -> Value {
        eventually(state, || async { Some(self.rollout(id).await).filter(|rollout| rollout["state"] == state) }).await
    }

    async fn until_stage(&self, id: &str, stage: i32) {
        eventually("the stage", || async { (self.rollout(id).await["stage"] == stage).then_some(()) }).await;
    }

    /// Which edges know the new name.
    fn knowing(&self) -> Vec<&'static str> {
        let knows = |edge: &Edge| edge.routing.routes.contains_key(&route());
        EDGES.iter().zip(&self.edges).filter(|(_, edge)| knows(edge)).map(|((name, _), _)| *name).collect()
    }
}

fn route() -> RouteId {
    RouteId { name: "chat".to_owned(), organization: None }
}

#[tokio::test]
async fn a_change_goes_from_one_edge_to_its_region_to_all() {
    let mut fleet = Fleet::start().await;
    let id = fleet.start_rollout(json!({"stages": null})).await;
    let stages = fleet.rollout(&id).await["stages"].clone();
    assert_eq!(
        stages,
        json!([{"edges": ["e1"], "regions": [], "hold_s": 30}, {"edges": [], "regions": ["eu"], "hold_s": 30}])
    );
    fleet.plane.post(&format!("/rollouts/{id}/abort"), json!({})).await;
    fleet.settle().await;

    let id = fleet.start_rollout(json!({})).await;
    let busy =
        json!({"documents": {"route": [{"name": "other", "policy": {"targets": [{"model": "m", "weight": 1}]}}]}});
    fleet.plane.refused(Method::POST, "/rollouts", &busy.to_string(), 409).await;
    fleet.settle().await;
    assert_eq!(fleet.knowing(), ["e1"]);
    assert_eq!(fleet.plane.get("/routes").await["data"], json!([]), "no table has it yet");
    fleet.until_stage(&id, 1).await;
    fleet.settle().await;
    assert_eq!(fleet.knowing(), ["e1", "e2"]);
    fleet.until_state(&id, "done").await;
    fleet.settle().await;
    assert_eq!(fleet.knowing(), ["e1", "e2", "e3"]);
    assert_eq!(fleet.plane.get("/routes").await["data"].as_array().unwrap().len(), 1);
    assert!(fleet.edges.iter().all(|edge| edge.routing.routes == fleet.edges[0].routing.routes));
    let log = fleet.plane.get("/config/log").await;
    assert!(log["data"].as_array().unwrap().iter().any(|version| version["audience"]["regions"] == json!(["eu"])));
}

#[tokio::test]
async fn an_edge_that_refuses_it_is_the_last_to_see_it() {
    let mut fleet = Fleet::start().await;
    let id = fleet.start_rollout(json!({})).await;
    let version = fleet.plane.get("/config").await["version"].as_u64().unwrap();
    let before = fleet.edges[0].held();
    // The first edge refuses the change, and the whole state with it.
    for _ in 0..2 {
        fleet.edges[0].take().await;
        let nack = PushReply::Nack { version, reason: "unknown variant".to_owned() };
        fleet.edges[0].reply(nack).await;
    }
    let halted = fleet.until_state(&id, "halted").await;
    assert!(halted["note"].as_str().unwrap().contains("e1 refused it: unknown variant"), "{halted}");
    // It starts over from what it had.
    fleet.edges[0] = Edge::come_back_in(&fleet.plane, "e1", "eu", before).await;
    fleet.settle().await;
    assert_eq!(fleet.knowing(), [""; 0]);
}

#[tokio::test]
async fn errors_at_the_first_edge_take_it_back() {
    let mut fleet = Fleet::start().await;
    let stages = json!([{"edges": ["e1"], "hold_s": 600}]);
    let id = fleet.start_rollout(json!({"stages": stages, "rules": {"min_requests": 5}})).await;
    fleet.settle().await;
    eventually("the hold", || async { fleet.rollout(&id).await["held_since"].as_str().map(str::to_owned) }).await;
    let event = |edge: &str, http_status| {
        // Ids of these events are of whole seconds.
        let event = spending(&fleet.tenant, "m", Utc::now() + TimeDelta::seconds(1), "0.1");
        let status = if http_status < 500 { RequestStatus::Success } else { RequestStatus::Error };
        turnpike_config::UsageEvent { edge: edge.to_owned(), region: "eu".to_owned(), http_status, status, ..event }
    };
    let good: Vec<_> = (0..10).map(|_| event("e2", 200)).collect();
    Meter::connect(&fleet.plane, "e2").await.ship(1, 0, &good).await;
    let fine: Vec<_> = (0..10).map(|_| event("e1", 200)).collect();
    let mut meter = Meter::connect(&fleet.plane, "e1").await;
    meter.ship(1, 0, &fine).await;
    assert_eq!(fleet.rollout(&id).await["state"], "running");
    let bad: Vec<_> = (0..10).map(|_| event("e1", 502)).collect();
    meter.ship(1, 10, &bad).await;
    let halted = fleet.until_state(&id, "halted").await;
    assert!(halted["note"].as_str().unwrap().contains("of 1000 requests failed"), "{halted}");
    fleet.settle().await;
    assert_eq!(fleet.knowing(), [""; 0]);
}

#[tokio::test]
async fn it_is_paused_resumed_and_outlives_the_control_plane_and_others_keep_off() {
    let mut fleet = Fleet::start().await;
    let targets = json!({"targets": [{"model": "m", "weight": 1}]});
    let made = fleet.plane.post("/routes", json!({"name": "chat", "policy": targets})).await;
    fleet.settle().await;
    let changed = json!({"targets": [{"model": "m", "weight": 1}], "sticky": "key"});
    let documents = json!({"route": [{"name": "chat", "policy": changed}]});
    let id = fleet.start_rollout(json!({"documents": documents})).await;
    fleet.plane.post(&format!("/rollouts/{id}/pause"), json!({})).await;
    let path = format!("/routes/{}", made["id"].as_str().unwrap());
    let patch = json!({"policy": {"targets": [{"model": "m", "weight": 2}]}}).to_string();
    let problem = fleet.plane.refused(Method::PATCH, &path, &patch, 409).await;
    assert!(problem["detail"].as_str().unwrap().contains("route chat is part of a rollout"), "{problem}");
    // Others go on meanwhile.
    fleet.plane.organization("other").await;
    fleet.settle().await;
    eventually("the hold", || async { fleet.rollout(&id).await["held_since"].as_str().map(str::to_owned) }).await;

    // A control plane that starts anew tells the first edge the same, and the others nothing.
    fleet.plane.restart().await;
    let mut fresh = Edge::come_back_in(&fleet.plane, "e1", "eu", Held::default()).await;
    let mut other = Edge::come_back_in(&fleet.plane, "e3", "us", Held::default()).await;
    fresh.next().await;
    other.next().await;
    let sticky = |routing: &Routing| routing.routes.get(&route()).unwrap().policy.sticky.clone();
    assert_ne!(sticky(&fresh.routing), sticky(&other.routing));
    assert_eq!(fleet.rollout(&id).await["stage"], 0);

    // A kill switch waits for nothing, and ends it.
    let off = json!({"policy": {"targets": [{"model": "m", "weight": 1}], "maintenance": {"message": "soon back"}}});
    fleet.plane.call(Method::PATCH, &path, Some(off)).await;
    let halted = fleet.until_state(&id, "halted").await;
    assert!(halted["note"].as_str().unwrap().contains("route chat was changed for all edges"), "{halted}");
    let version = fleet.plane.get("/config").await["version"].as_u64().unwrap();
    fresh.until_version(version).await;
    assert!(fresh.routing.routes.get(&route()).unwrap().policy.maintenance.is_some());
    fleet.plane.refused(Method::POST, &format!("/rollouts/{id}/resume"), "{}", 409).await;
}

#[tokio::test]
async fn what_cannot_wait_is_not_staged() {
    let fleet = Fleet::start().await;
    let documents = json!({"model": [{"id": "m", "is_active": false}]});
    let problem =
        fleet.plane.refused(Method::POST, "/rollouts", &json!({"documents": documents}).to_string(), 422).await;
    assert!(problem["errors"][0]["detail"].as_str().unwrap().contains("waits for no stage"), "{problem}");
    let nothing = json!({"documents": {"model": [{"id": "m"}]}}).to_string();
    fleet.plane.refused(Method::POST, "/rollouts", &nothing, 409).await;
    let nobody = json!({"documents": {"model": [{"id": "m", "provider": "p"}]}, "stages": [{}]}).to_string();
    fleet.plane.refused(Method::POST, "/rollouts", &nobody, 422).await;
}
