//! Limits, from what an operator writes to what edges hold.

use crate::peers::Edge;
use crate::plane::{Plane, fields, id};
use reqwest::Method;
use serde_json::{Value, json};
use turnpike_config::{RateLimits, Routing};

fn requests(per_minute: u32) -> RateLimits {
    RateLimits { requests_per_minute: Some(per_minute), ..RateLimits::default() }
}

#[tokio::test]
async fn limits_of_keys_and_organizations_reach_the_edges() {
    let mut plane = Plane::start().await;
    let tenant = plane.tenant("acme").await;
    plane.model("m").await;
    let mut edge = Edge::connect(&plane, "e1", Routing::default()).await;

    let limits =
        json!({"requests_per_minute": 60, "concurrent_requests": 4, "models": {"m": {"tokens_per_minute": 9}}});
    let body =
        json!({"organization_id": tenant.organization, "user_id": tenant.user, "name": "k", "rate_limits": limits});
    let key = plane.post("/api_keys", body).await;
    assert_eq!(key["rate_limits"], limits);
    let path = format!("/organizations/{}", tenant.organization);
    let limits = json!({"requests_per_minute": 7, "models": {"m": {"requests_per_minute": 3}}});
    let settings = json!({"theme": "dark", "rate_limits": limits});
    assert_eq!(plane.call(Method::PATCH, &path, Some(json!({"settings": settings}))).await["settings"], settings);
    edge.until("the organization's limits", |r| r.orgs.values().any(|org| org.limits == requests(7))).await;
    assert_eq!(edge.routing.orgs.values().next().unwrap().model_limits["m"], requests(3));
    let pushed = edge.routing.keys.values().find(|record| record.id.to_string() == id(&key)).unwrap();
    assert_eq!(pushed.limits, RateLimits { concurrent_requests: Some(4), ..requests(60) });
    assert_eq!(pushed.model_limits["m"].tokens_per_minute, Some(9));

    // A setting that edges need not know publishes nothing; one that they do need, does.
    let version = plane.get("/config").await["version"].clone();
    let quiet = json!({"settings": {"theme": "light", "rate_limits": settings["rate_limits"]}});
    plane.call(Method::PATCH, &path, Some(quiet)).await;
    assert_eq!(plane.get("/config").await["version"], version);
    plane.call(Method::PATCH, &path, Some(json!({"settings": {}}))).await;
    edge.until("the end of the limits", |r| r.orgs.values().all(|org| org.limits.is_unlimited())).await;

    plane.restart().await;
    let mut fresh = Edge::connect(&plane, "e2", Routing::default()).await;
    fresh.next().await;
    assert_eq!(fresh.routing, edge.routing);
}

#[tokio::test]
async fn limits_that_cannot_hold_are_refused_by_their_path() {
    let plane = Plane::start().await;
    let tenant = plane.tenant("acme").await;
    plane.model("m").await;
    let key = format!("/api_keys/{}", tenant.key_id);
    let organization = format!("/organizations/{}", tenant.organization);
    let cases = [
        (
            json!({"requests_per_minute": 0, "concurrent_requests": 0}),
            vec!["requests_per_minute", "concurrent_requests"],
        ),
        (json!({"models": {"m": {"tokens_per_minute": 0}}}), vec!["models.m.tokens_per_minute"]),
        (json!({"models": {"gpt-x": {"tokens_per_minute": 5}}}), vec!["models.gpt-x"]),
        (json!({"models": {"m": {"tokens_per_minute": "many"}}}), vec!["models.m.tokens_per_minute"]),
        (json!({"models": {"m": {"tokens_per_day": 5}}}), vec!["models.m.tokens_per_day"]),
        (json!({"requests_per_second": 5}), vec!["requests_per_second"]),
        (json!({"tokens_per_minute": 4_294_967_296_u64}), vec!["tokens_per_minute"]),
    ];
    for (limits, expected) in cases {
        for (path, prefix, body) in [
            (&key, "rate_limits", json!({"rate_limits": limits})),
            (&organization, "settings.rate_limits", json!({"settings": {"rate_limits": limits}})),
        ] {
            let problem = plane.refused(Method::PATCH, path, &body.to_string(), 422).await;
            let expected: Vec<String> = expected.iter().map(|field| format!("{prefix}.{field}")).collect();
            assert_eq!(fields(&problem), expected, "{problem}");
        }
    }
    let new = json!({"name": "b", "slug": "b", "settings": {"rate_limits": 5}}).to_string();
    assert_eq!(fields(&plane.refused(Method::POST, "/organizations", &new, 422).await), ["settings.rate_limits"]);
    assert_eq!(plane.get(&key).await["rate_limits"], json!({}));
    assert_eq!(plane.get(&organization).await["settings"], json!({}));
}

#[tokio::test]
async fn the_openapi_document_knows_limits() {
    let plane = Plane::start().await;
    let document = plane.raw(Method::GET, "/openapi.json", None, None).await.json;
    let properties = |schema: &str| document["components"]["schemas"][schema]["properties"].clone();
    for field in ["requests_per_minute", "tokens_per_minute", "concurrent_requests"] {
        assert_eq!(properties("Limits")[field]["minimum"], 1, "{field}");
        assert_eq!(properties("LimitsWithin")[field]["minimum"], 1, "{field}");
    }
    assert!(
        properties("Limits")["models"] != Value::Null
            && properties("OrganizationSettings")["rate_limits"] != Value::Null
    );
}
