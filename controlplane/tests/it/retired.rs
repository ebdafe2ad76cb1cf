//! Edges that are retired, and months that waited for one too long.

use crate::invoices::{close, first_of, spending};
use crate::peers::{Edge, Meter};
use crate::plane::{ADMIN, Plane, eventually};
use chrono::NaiveTime;
use reqwest::Method;
use turnpike_config::Routing;

async fn is_connected(plane: &Plane, connected: bool) {
    eventually("the edge's link", || async {
        let edges = plane.get("/edges").await;
        (edges["data"][0]["connected"] == connected).then_some(())
    })
    .await;
}

#[tokio::test]
async fn an_edge_is_removed_by_an_owner_once_it_is_not_connected() {
    let plane = Plane::start().await;
    let edge = Edge::connect(&plane, "e1", Routing::default()).await;
    is_connected(&plane, true).await;
    let problem = plane.refused(Method::DELETE, "/edges/e1", "", 409).await;
    assert!(problem["detail"].as_str().unwrap().contains("connected"), "{problem}");
    drop(edge);
    is_connected(&plane, false).await;
    plane.raw(Method::DELETE, "/admin/v1/edges/e1", Some(ADMIN), None).await.problem(403);
    plane.call(Method::DELETE, "/edges/e1", None).await;
    assert_eq!(plane.get("/edges").await["data"].as_array().unwrap().len(), 0);
    plane.refused(Method::DELETE, "/edges/e1", "", 404).await;
    let audited: i64 = sqlx::query_scalar(
        "SELECT count(*) FROM audit_log WHERE action = 'edge.delete' AND resource_type = 'edge' AND resource_id = 'e1'",
    )
    .fetch_one(&plane.pool)
    .await
    .unwrap();
    assert_eq!(audited, 1);
    // It may come back.
    let _edge = Edge::connect(&plane, "e1", Routing::default()).await;
    is_connected(&plane, true).await;
}

#[tokio::test]
async fn months_that_are_too_old_to_be_closed_by_themselves_are_not_forgotten() {
    let plane = Plane::start_with("billing.close_every = \"100ms\"").await;
    let tenant = plane.tenant("acme").await;
    plane.model("m").await;
    let forgotten = async |months: f64| {
        eventually("the gauge", || async {
            (plane.metric("turnpike_controlplane_closing_forgotten").await == Some(months)).then_some(())
        })
        .await;
    };
    let at = first_of(6).and_time(NaiveTime::MIN).and_utc();
    let mut meter = Meter::connect(&plane, "e1").await;
    meter.ship(1, 0, &[spending(&tenant, "m", at, "2"), spending(&tenant, "m", at, "0.5")]).await;
    forgotten(1.0).await;
    close(&plane, &tenant, 6).await;
    forgotten(0.0).await;
}
