//! The response cache: policies, purges, and what requests made of it.

use crate::peers::{Edge, Meter};
use crate::plane::{Plane, fields};
use crate::usage::event;
use chrono::Utc;
use reqwest::Method;
use serde_json::{Value, json};
use turnpike_config::routing::MAX_PURGED;
use turnpike_config::{CacheKey, CachePolicy, CacheStatus, Routing, UsageEvent};

#[tokio::test]
async fn a_models_cache_policy_reaches_the_edges() {
    let mut plane = Plane::start().await;
    let model = plane.model("m").await;
    let off = json!({"enabled": false, "ttl_s": 3600, "public": false, "price_permille": 0});
    assert_eq!((&model["cache"], &model["cache_generation"]), (&off, &json!(0)));
    let mut edge = Edge::connect(&plane, "e1", Routing::default()).await;
    edge.until_version(1).await;
    assert_eq!(edge.routing.models["m"].cache, CachePolicy::default());

    let on = json!({"enabled": true, "ttl_s": 60, "public": true, "price_permille": 250});
    assert_eq!(plane.call(Method::PATCH, "/models/m", Some(json!({"cache": on}))).await["cache"], on);
    let expected = CachePolicy { enabled: true, ttl_s: 60, public: true, price_permille: 250, generation: 0 };
    edge.until("the policy", |r| r.models["m"].cache == expected).await;
    // A patch of something else leaves it; a patch of it replaces all of it.
    plane.call(Method::PATCH, "/models/m", Some(json!({"name": "M"}))).await;
    assert_eq!(plane.get("/models/m").await["cache"], on);
    let model = plane.call(Method::PATCH, "/models/m", Some(json!({"cache": {"enabled": true}}))).await;
    assert_eq!(model["cache"], json!({"enabled": true, "ttl_s": 3600, "public": false, "price_permille": 0}));
    edge.until("the defaults", |r| r.models["m"].cache == CachePolicy { enabled: true, ..CachePolicy::default() })
        .await;

    plane.restart().await;
    let mut fresh = Edge::connect(&plane, "e2", Routing::default()).await;
    fresh.next().await;
    assert_eq!(fresh.routing, edge.routing);
}

#[tokio::test]
async fn a_policy_that_cannot_hold_is_refused_by_its_path() {
    let plane = Plane::start().await;
    plane.model("m").await;
    let cases = [
        (json!({"ttl_s": 0, "price_permille": 1001}), vec!["cache.ttl_s", "cache.price_permille"]),
        (json!({"ttl_s": 30 * 24 * 3600 + 1}), vec!["cache.ttl_s"]),
        (json!({"generation": 5}), vec!["cache.generation"]),
        (json!({"enabled": "yes"}), vec!["cache.enabled"]),
        (json!({"ttl": 5}), vec!["cache.ttl"]),
    ];
    for (cache, expected) in cases {
        let problem = plane.refused(Method::PATCH, "/models/m", &json!({"cache": cache}).to_string(), 422).await;
        assert_eq!(fields(&problem), expected, "{problem}");
    }
    assert_eq!(plane.get("/models/m").await["cache"]["ttl_s"], 3600);
}

#[tokio::test]
async fn what_is_purged_stays_purged() {
    let mut plane = Plane::start().await;
    let tenant = plane.tenant("acme").await;
    plane.organization("other").await;
    plane.model("m").await;
    plane.model("n").await;
    let mut edge = Edge::connect(&plane, "e1", Routing::default()).await;

    let purge = |body: Value| plane.post("/cache/purge", body);
    let done = purge(json!({"organization_id": tenant.organization})).await;
    assert_eq!((&done["organization_id"], &done["generation"]), (&json!(tenant.organization), &json!(1)));
    assert_eq!(done["version"], plane.get("/config").await["version"]);
    assert_eq!(purge(json!({"model_id": "m"})).await["generation"], 1);
    assert_eq!(purge(json!({"model_id": "m"})).await["generation"], 2);
    let key = "0123456789abcdef".repeat(4);
    let first = purge(json!({"key": key.to_uppercase()})).await;
    assert_eq!((&first["key"], first.get("generation")), (&json!(key), None));
    let again = purge(json!({"key": key})).await;
    let at = |done: &Value| serde_json::from_value::<chrono::DateTime<Utc>>(done["purged_at"].clone()).unwrap();
    assert!(at(&again) >= at(&first), "{first} {again}");

    edge.until_version(again["version"].as_u64().unwrap()).await;
    let generations = |routing: &Routing| -> Vec<u32> {
        let organizations = routing.orgs.values().map(|org| org.cache_generation);
        organizations.chain(routing.models.values().map(|model| model.cache.generation)).collect()
    };
    assert_eq!(generations(&edge.routing), [1, 0, 2, 0]);
    let purged: Vec<(String, u64)> = edge.routing.purged.iter().map(|(key, at)| (key.to_string(), *at)).collect();
    assert_eq!(purged, [(key.clone(), u64::try_from(at(&again).timestamp_millis()).unwrap())]);

    // Later changes repeat the generation, and so does a start from the tables; what no answer outlives is forgotten.
    plane.call(Method::PATCH, "/models/m", Some(json!({"cache": {"enabled": true}}))).await;
    plane
        .call(Method::PATCH, &format!("/organizations/{}", tenant.organization), Some(json!({"slug": "acme-2"})))
        .await;
    edge.until("both changes", |r| r.orgs.values().any(|org| org.slug == "acme-2")).await;
    assert_eq!(generations(&edge.routing), [1, 0, 2, 0]);
    sqlx::query("INSERT INTO purged_answers VALUES (repeat('f', 64), now() - interval '31 days')")
        .execute(&plane.pool)
        .await
        .unwrap();
    plane.restart().await;
    let mut fresh = Edge::connect(&plane, "e2", Routing::default()).await;
    fresh.next().await;
    assert_eq!(fresh.routing, edge.routing);
    plane.post("/cache/purge", json!({"key": key})).await;
    let kept: i64 = sqlx::query_scalar("SELECT count(*) FROM purged_answers").fetch_one(&plane.pool).await.unwrap();
    assert_eq!(kept, 1);
    let audit: Vec<(String, String)> = sqlx::query_as(
        "SELECT resource_type, resource_id FROM audit_log WHERE action = 'cache.purge' ORDER BY id LIMIT 4",
    )
    .fetch_all(&plane.pool)
    .await
    .unwrap();
    let kinds: Vec<&str> = audit.iter().map(|(kind, _)| kind.as_str()).collect();
    assert_eq!(kinds, ["organization", "model", "model", "cached_answer"]);
    assert_eq!(audit[3].1, key);
}

#[tokio::test]
async fn the_newest_purges_are_kept_up_to_a_bound() {
    let mut plane = Plane::start().await;
    sqlx::query(
        "INSERT INTO purged_answers (cache_key, purged_at)
         SELECT lpad(to_hex(n), 64, '0'), now() - make_interval(mins => n) FROM generate_series(1, $1) AS n",
    )
    .bind(i32::try_from(MAX_PURGED).unwrap())
    .execute(&plane.pool)
    .await
    .unwrap();
    let key = "f".repeat(64);
    plane.post("/cache/purge", json!({"key": key})).await;
    plane.restart().await;
    let mut edge = Edge::connect(&plane, "e1", Routing::default()).await;
    edge.next().await;
    assert_eq!(edge.routing.purged.size(), MAX_PURGED);
    assert!(edge.routing.purged.contains_key(&CacheKey::from_hex(&key).unwrap()));
    let oldest = CacheKey::from_hex(&format!("{MAX_PURGED:064x}")).unwrap();
    assert!(!edge.routing.purged.contains_key(&oldest));
    let kept: i64 = sqlx::query_scalar("SELECT count(*) FROM purged_answers").fetch_one(&plane.pool).await.unwrap();
    assert_eq!(usize::try_from(kept).unwrap(), MAX_PURGED);
}

#[tokio::test]
async fn a_purge_of_nothing_or_of_too_much_is_refused() {
    let plane = Plane::start().await;
    let nobody = uuid::Uuid::new_v4();
    let path = "/cache/purge";
    let refused = async |body: Value, status| plane.refused(Method::POST, path, &body.to_string(), status).await;
    assert_eq!(fields(&refused(json!({}), 422).await), ["body"]);
    assert_eq!(fields(&refused(json!({"model_id": "m", "organization_id": nobody}), 422).await), ["body"]);
    assert_eq!(fields(&refused(json!({"key": "abc"}), 422).await), ["key"]);
    assert_eq!(fields(&refused(json!({"all": true}), 422).await), ["all"]);
    let problem = refused(json!({"model_id": "m"}), 404).await;
    assert_eq!(problem["detail"], "model m does not exist");
    refused(json!({"organization_id": nobody}), 404).await;
    assert_eq!(plane.get("/config").await["version"], 0);
}

#[tokio::test]
async fn the_request_log_tells_what_the_cache_did() {
    let plane = Plane::start().await;
    let tenant = plane.tenant("acme").await;
    plane.model("m").await;
    let statuses = CacheStatus::ALL.map(Some).into_iter().chain([None]);
    let events: Vec<UsageEvent> =
        statuses.map(|cache| UsageEvent { cache, ..event(&tenant, Some("m"), Utc::now(), 1, 1) }).collect();
    Meter::connect(&plane, "e1").await.ship(1, 0, &events).await;
    let log = plane.get("/requests").await;
    let mut shown: Vec<Option<&str>> =
        log["data"].as_array().unwrap().iter().map(|row| row["cache_status"].as_str()).collect();
    shown.sort_unstable();
    assert_eq!(shown, [None, Some("bypass"), Some("coalesced"), Some("hit"), Some("miss")]);
}
