//! Starting, stopping, and living through an outage of PostgreSQL.

use crate::peers::{Edge, Kind, Meter, Node};
use crate::plane::{OWNER, Plane, eventually};
use chrono::{Datelike as _, Utc};
use reqwest::Method;
use serde_json::json;
use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;
use tokio::time::{sleep, timeout};
use turnpike_config::{Endpoint, EventId, KeyId, NodeState, OrgId, RequestStatus, Routing, UsageEvent, Usd};
use turnpike_parts::postgres::Postgres;
use uuid::Uuid;

#[tokio::test]
async fn it_tells_how_it_is() {
    let plane = Plane::start().await;
    for path in ["/livez", "/readyz"] {
        assert_eq!(plane.raw(Method::GET, path, None, None).await.status, 200, "{path}");
    }
    plane.organization("acme").await;
    let metrics = plane.raw(Method::GET, "/metrics", None, None).await;
    assert!(metrics.content_type.is_some_and(|t| t.starts_with("application/openmetrics-text")));
    assert!(metrics.text.contains("turnpike_controlplane_admin_requests_total{status=\"ok\"} 1"), "{}", metrics.text);
    assert!(metrics.text.ends_with("# EOF\n"));
}

#[tokio::test]
async fn months_are_made_ahead_and_old_requests_are_retired() {
    let mut plane = Plane::start().await;
    let pool = plane.pool.clone();
    let partitions = |table: &'static str| {
        let pool = pool.clone();
        async move {
            let names: Vec<String> = sqlx::query_scalar(
                "SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = $1::text::regclass ORDER BY 1",
            )
            .bind(table)
            .fetch_all(&pool)
            .await
            .unwrap();
            names
        }
    };
    assert_eq!(partitions("inference_requests").await.len(), 4);
    assert_eq!(partitions("usage_records").await.len(), 4);
    let today = Utc::now();
    let this_month = format!("inference_requests_y{:04}m{:02}", today.year(), today.month());
    assert!(partitions("inference_requests").await.contains(&this_month));

    for table in ["inference_requests", "usage_records"] {
        let sql = format!(
            "CREATE TABLE {table}_y2024m01 PARTITION OF {table} FOR VALUES FROM ('2024-01-01') TO ('2024-02-01')"
        );
        sqlx::query(sqlx::AssertSqlSafe(sql)).execute(&plane.pool).await.unwrap();
    }
    plane.restart().await;
    assert_eq!(partitions("inference_requests").await.len(), 4, "the request log is retired");
    assert_eq!(partitions("usage_records").await.len(), 5, "sums are kept");
}

#[tokio::test]
async fn it_stops_in_good_order_with_peers_connected() {
    let mut plane = Plane::start().await;
    let mut edge = Edge::connect(&plane, "e1", Routing::default()).await;
    edge.next().await;
    let mut node = Node::connect(&plane, "n1").await;
    node.report(NodeState::Ready, 0).await;
    let _meter = Meter::connect(&plane, "e1").await;
    timeout(Duration::from_secs(9), plane.stop()).await.expect("before the drain's deadline");
    timeout(Duration::from_secs(5), edge.link.connection.closed()).await.expect("peers are told at once");
}

#[tokio::test]
async fn without_postgresql_links_stay_nothing_is_acked_and_the_api_says_503() {
    // A lasting one, because it is to come back with its data. Its own user must be able to enter the folder.
    let home = tempfile::TempDir::new().unwrap();
    std::fs::set_permissions(home.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let directory = home.path().to_owned();
    let started = tokio::task::spawn_blocking(move || Postgres::start_persistent(&directory).unwrap());
    let mut postgres = started.await.unwrap();
    let url = postgres.fresh_database().unwrap();
    let plane = Plane::start_on(url, "").await;
    let tenant = plane.tenant("acme").await;
    plane.model("m").await;
    let mut edge = Edge::connect(&plane, "e1", Routing::default()).await;
    edge.until("the model", |routing| routing.models.contains_key("m")).await;
    let mut meter = Meter::connect(&plane, "e1").await;

    assert!(postgres.stop());
    plane.raw(Method::GET, "/readyz", None, None).await.problem(503);
    assert_eq!(plane.raw(Method::GET, "/livez", None, None).await.status, 200);
    plane.raw(Method::GET, "/admin/v1/organizations", Some(OWNER), None).await.problem(503);
    let body = json!({"name": "b", "slug": "b"}).to_string();
    plane.raw(Method::POST, "/admin/v1/organizations", Some(OWNER), Some(body)).await.problem(503);
    let event = UsageEvent {
        id: EventId(Uuid::now_v7()),
        organization: OrgId(tenant.organization.parse().unwrap()),
        api_key: KeyId(tenant.key_id.parse().unwrap()),
        model: Some("m".to_owned()),
        model_version: None,
        endpoint: Endpoint::Embedding,
        status: RequestStatus::Success,
        http_status: 200,
        error_code: None,
        error_message: None,
        prompt_tokens: 3,
        completion_tokens: 0,
        estimated: false,
        cost: Usd { pico: 30_000_000 },
        request_bytes: 1,
        response_bytes: 1,
        processing_ms: 1,
        queue_ms: 1,
        total_ms: 1,
        first_byte_ms: None,
        region: "eu".to_owned(),
        edge: "e1".to_owned(),
        node: None,
        user_agent: None,
        client_ip: None,
        streamed: false,
        retries: 0,
        cache: None,
        price_version: 0,
        cached_tokens: 0,
        shadow: false,
    };
    meter.send(1, 0, &[event]).await;
    eventually("a failed attempt", || async {
        plane.metric("turnpike_controlplane_usage_ingest_failures_total").await.filter(|failures| *failures >= 1.0)
    })
    .await;
    // An edge that comes meanwhile is still given what is known.
    let mut late = Edge::connect(&plane, "e2", Routing::default()).await;
    assert_eq!(late.next().await, Kind::Snapshot);
    assert_eq!(late.routing, edge.routing);

    postgres.restart().unwrap();
    assert_eq!(meter.ack().await.end_seq, 1);
    eventually("readiness", || async {
        (plane.raw(Method::GET, "/readyz", None, None).await.status == 200).then_some(())
    })
    .await;
    let usage = plane.get("/usage").await;
    assert_eq!((&usage["data"][0]["prompt_tokens"], &usage["data"][0]["cost_usd"]), (&json!(3), &json!("0.00003")));
    // The links are the same ones, and changes flow again.
    plane.organization("after").await;
    edge.until("the change", |routing| routing.orgs.size() == 2).await;
}

#[tokio::test]
async fn migrations_may_wait_longer_than_any_other_statement() {
    let mut plane = Plane::start().await;
    plane.stop().await;
    let mut other = plane.pool.begin().await.unwrap();
    sqlx::query("LOCK TABLE _sqlx_migrations").execute(&mut *other).await.unwrap();
    let held = async {
        // Longer than the 10 s that any other statement waits for a lock.
        sleep(Duration::from_secs(12)).await;
        other.commit().await.unwrap();
    };
    tokio::join!(plane.restart_stopped(), held);
    plane.get("/organizations").await;
}
