//! Declared configuration, and the log of what changed.

use crate::peers::Edge;
use crate::plane::{ADMIN, OWNER, Plane, VIEWER};
use reqwest::Method;
use serde_json::{Value, json};
use turnpike_config::{KeyDigest, Routing};

async fn apply(plane: &Plane, body: Value) -> Value {
    plane.call(Method::POST, "/config/documents", Some(body)).await
}

/// What does not fit: the fields that are named.
async fn refused(plane: &Plane, documents: Value) -> String {
    let answer = plane
        .raw(Method::POST, "/admin/v1/config/documents", Some(ADMIN), Some(json!({"documents": documents}).to_string()))
        .await;
    assert_eq!(answer.status, 422, "{}", answer.text);
    answer.json["errors"].to_string()
}

fn documents() -> Value {
    json!({
        "organization": [{"slug": "acme", "name": "Acme", "settings": {"rate_limits": {"requests_per_minute": 600}}}],
        "user": [{"email": "ci@acme.example", "organization": "acme"}],
        "model": [{
            "id": "large", "provider": "acme", "category": "chat", "context_length": 4096,
            "pricing": {"input_tokens": "0.01", "output_tokens": "0.03", "currency": "USD", "per_tokens": 1000}
        }],
        "version": [
            {"model": "large", "version": "v1", "model_artifact_path": "/w/1", "status": "active", "default": true},
            {"model": "large", "version": "v2", "model_artifact_path": "/w/2", "status": "active"}
        ],
        "route": [
            {"name": "chat", "policy": {"targets": [
                {"model": "large", "version": "v1", "weight": 99}, {"model": "large", "version": "v2", "weight": 1}
            ], "sticky": "key"}},
            {"name": "chat", "organization": "acme", "policy": {"targets": [{"model": "large", "weight": 1}]}}
        ],
        "key": [{
            "digest": KeyDigest::of("sk-tp-declared").to_string(), "organization": "acme", "user": "ci@acme.example",
            "name": "ci", "prefix": "sk-tp-decl", "allowed_models": ["chat"]
        }]
    })
}

#[tokio::test]
async fn what_is_declared_comes_about_once_and_is_written_down_again() {
    let plane = Plane::start().await;
    let mut edge = Edge::connect(&plane, "e1", Routing::default()).await;
    let dry = apply(&plane, json!({"documents": documents(), "dry_run": true})).await;
    assert_eq!((dry["version"].as_u64(), dry["steps"].as_array().unwrap().len()), (Some(0), 8));
    assert_eq!(plane.get("/models").await["data"], json!([]), "only said");

    let done = apply(&plane, json!({"documents": documents(), "reason": "first day"})).await;
    assert_eq!(done["steps"], dry["steps"]);
    edge.until_version(done["version"].as_u64().unwrap()).await;
    assert_eq!((edge.routing.routes.size(), edge.routing.keys.size(), edge.routing.models.size()), (2, 1, 1));
    assert!(edge.routing.faults().is_empty());

    let again = apply(&plane, json!({"documents": documents()})).await;
    assert_eq!((&again["steps"], &again["unchanged"]), (&json!([]), &json!(8)));
    assert_eq!(again["version"], done["version"]);
    let exported = plane.get("/config/documents").await;
    let round = apply(&plane, json!({"documents": exported, "prune": true})).await;
    assert_eq!(round["steps"], json!([]), "what is exported says what there is");

    // Who, why and what, in the log.
    let log = plane.get("/config/log?limit=1").await;
    let newest = &log["data"][0];
    assert_eq!((newest["author"].as_str(), newest["reason"].as_str()), (Some("token:owner"), Some("first day")));
    let mut changed = documents();
    changed["route"][0]["policy"]["targets"][1]["weight"] = json!(5);
    let step = apply(&plane, json!({"documents": changed, "reason": "more canary"})).await;
    assert_eq!(step["steps"].as_array().unwrap().len(), 1);
    assert_eq!(step["steps"][0]["action"], "update");
    let newest = &plane.get("/config/log").await["data"][0];
    assert_eq!(newest["diff"][0]["path"], "policy.targets");
    assert_eq!(newest["version"], step["version"]);
    let body = json!({"name": "Other", "slug": "other"});
    assert_eq!(plane.post_because("/organizations", body.clone(), &"x".repeat(501)).await, 422);
    assert_eq!(plane.post_because("/organizations", body, "ticket 4711").await, 201);
    assert_eq!(plane.get("/config/log").await["data"][0]["reason"], "ticket 4711");
}

#[tokio::test]
async fn what_is_not_declared_stays_unless_it_is_pruned() {
    let plane = Plane::start().await;
    apply(&plane, json!({"documents": documents()})).await;
    let only = json!({"organization": [{"slug": "acme", "name": "Acme & Co"}]});
    let step = apply(&plane, json!({"documents": only})).await;
    assert_eq!(step["steps"].as_array().unwrap().len(), 1);
    assert_eq!(plane.get("/organizations").await["data"][0]["plan_type"], "free", "what is not named stays");
    let pruned = apply(&plane, json!({"documents": only, "prune": true})).await;
    let kinds: Vec<_> = pruned["steps"].as_array().unwrap().iter().map(|step| step["kind"].clone()).collect();
    assert_eq!(kinds, [json!("route"), json!("route"), json!("key"), json!("model")]);
    assert_eq!(plane.get("/routes").await["data"], json!([]));
    let revoked = documents()["key"].clone();
    assert!(refused(&plane, json!({"key": revoked})).await.contains("revoked for good"));
}

#[tokio::test]
async fn mistakes_are_named_with_their_document_and_nothing_is_done() {
    let plane = Plane::start().await;
    apply(&plane, json!({"documents": documents()})).await;
    let version = plane.get("/config").await["version"].clone();
    for (documents, named) in [
        (json!({"model": [{"id": "large", "contxt_length": 1}]}), "model[large]"),
        (
            json!({"organization": [{"slug": "new", "name": "N"}, {"slug": "bad slug", "name": "B"}]}),
            "organization[bad slug].slug",
        ),
        (
            json!({"route": [{"name": "r", "policy": {"targets": [{"model": "nope", "weight": 1}]}}]}),
            "route[r].policy.targets[0]",
        ),
        (
            json!({"route": [{"name": "r", "policy": {"targets": [{"model": "large", "version": "v9", "weight": 1}]}}]}),
            "no version v9",
        ),
        (
            json!({"version": [{"model": "large", "version": "v1", "model_artifact_path": "/elsewhere"}]}),
            "cannot be changed",
        ),
        (json!({"version": [{"model": "large", "version": "v1", "status": "pending"}]}), "version[large@v1].status"),
        (json!({"version": [{"model": "large", "version": "v1", "status": "actve"}]}), "expected active, deprecated"),
        (json!({"version": [{"model": "large", "version": "v1", "default": false}]}), "another version the default"),
        (json!({"version": [{"model": "large", "version": "v1", "default": "yes"}]}), "true or false"),
        (json!({"user": [{"email": "x@y.z", "organization": "acme", "is_active": "no"}]}), "user[x@y.z].is_active"),
        (json!({"key": [{"digest": "sk-tp-x", "name": "n"}]}), "never the key itself"),
        (json!({"key": [{"digest": KeyDigest::of("x").to_string().to_uppercase(), "name": "n"}]}), "lower case"),
        (json!({"node": [{"name": "n1", "enabled": false}]}), "made itself known"),
        (json!({"organization": [{"slug": "acme"}, {"slug": "acme"}]}), "declared twice"),
    ] {
        let errors = refused(&plane, documents).await;
        assert!(errors.contains(named), "{named}: {errors}");
    }
    assert_eq!(plane.get("/config").await["version"], version);
    assert_eq!(plane.get("/organizations").await["data"].as_array().unwrap().len(), 1);
    let answer = plane
        .raw(Method::POST, "/admin/v1/config/documents", Some(VIEWER), Some(json!({"documents": {}}).to_string()))
        .await;
    assert_eq!(answer.status, 403);
    let rewind = json!({"from_version": 5, "reason": "r"});
    assert_eq!(
        plane.raw(Method::POST, "/admin/v1/config/rewind", Some(ADMIN), Some(rewind.to_string())).await.status,
        403
    );
    assert_eq!(
        plane.raw(Method::POST, "/admin/v1/config/rewind", Some(OWNER), Some(rewind.to_string())).await.status,
        200
    );
}
