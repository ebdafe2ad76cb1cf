//! The admin API.

use crate::plane::{ADMIN, OWNER, Plane, VIEWER, fields, id};
use reqwest::Method;
use serde_json::{Value, json};
use sqlx::Row as _;
use turnpike_config::KeyDigest;

#[tokio::test]
async fn a_key_is_shown_once_and_only_its_digest_is_stored() {
    let plane = Plane::start().await;
    let tenant = plane.tenant("acme").await;
    assert!(tenant.key.starts_with("sk-tp-") && tenant.key.len() == 6 + 43, "{}", tenant.key);

    let shown = plane.get(&format!("/api_keys/{}", tenant.key_id)).await;
    assert_eq!(shown.get("key"), None);
    assert_eq!(shown.get("key_hash"), None);
    assert!(tenant.key.starts_with(shown["key_prefix"].as_str().unwrap()));
    let row = sqlx::query("SELECT * FROM api_keys").fetch_one(&plane.pool).await.unwrap();
    assert_eq!(row.get::<String, _>("key_hash"), KeyDigest::of(&tenant.key).to_string());
    let everything: Vec<String> = sqlx::query_scalar(
        "SELECT row_to_json(k)::text FROM api_keys k UNION ALL SELECT row_to_json(c)::text FROM config_log c
         UNION ALL SELECT row_to_json(a)::text FROM audit_log a",
    )
    .fetch_all(&plane.pool)
    .await
    .unwrap();
    assert!(everything.len() >= 5, "{everything:?}");
    assert!(everything.iter().all(|row| !row.contains(&tenant.key[12..])), "the key itself was stored");

    let accounts: i64 =
        sqlx::query_scalar("SELECT count(*) FROM billing_accounts").fetch_one(&plane.pool).await.unwrap();
    assert_eq!(accounts, 1);
}

#[tokio::test]
async fn every_refusal_is_a_problem_document() {
    let plane = Plane::start().await;
    let raw = |method, path: &'static str, token| plane.raw(method, path, token, None);
    raw(Method::GET, "/admin/v1/organizations", None).await.problem(401);
    raw(Method::GET, "/admin/v1/organizations", Some("not-a-token")).await.problem(401);
    raw(Method::GET, "/admin/v1/nothing", Some(OWNER)).await.problem(404);
    raw(Method::GET, "/nothing", None).await.problem(404);
    raw(Method::PUT, "/admin/v1/organizations", Some(OWNER)).await.problem(405);
    raw(Method::POST, "/admin/v1/organizations", Some(OWNER)).await.problem(415);
    raw(Method::GET, "/admin/v1/organizations/not-a-uuid", Some(OWNER)).await.problem(422);
    raw(Method::GET, "/admin/v1/organizations?limit=0", Some(OWNER)).await.problem(422);
    raw(Method::GET, "/admin/v1/organizations?cursor=x", Some(OWNER)).await.problem(422);
    raw(Method::GET, "/admin/v1/organizations?colour=x", Some(OWNER)).await.problem(422);
    let missing = format!("/organizations/{}", uuid::Uuid::nil());
    plane.refused(Method::GET, &missing, "", 404).await;
    plane.refused(Method::POST, "/organizations", "{\"name\":", 400).await;
    plane.refused(Method::POST, "/organizations", &format!("\"{}\"", "x".repeat(2 << 20)), 413).await;

    let problem = plane.refused(Method::POST, "/organizations", r#"{"name": 5, "slug": "a"}"#, 422).await;
    assert_eq!(fields(&problem), ["name"]);
    let problem =
        plane.refused(Method::POST, "/organizations", r#"{"name": "a", "slug": "a", "colour": 1}"#, 422).await;
    assert_eq!(fields(&problem), ["colour"]);
    let body = r#"{"name": "", "slug": "Not a slug", "plan_type": "gold"}"#;
    let problem = plane.refused(Method::POST, "/organizations", body, 422).await;
    assert_eq!(fields(&problem), ["name", "slug", "plan_type"]);

    let tenant = plane.tenant("acme").await;
    plane.refused(Method::POST, "/organizations", r#"{"name": "b", "slug": "acme"}"#, 409).await;
    let key = |extra: Value| {
        let mut key = json!({"organization_id": tenant.organization, "user_id": tenant.user, "name": "k"});
        key.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        key.to_string()
    };
    let bad = key(json!({"rate_limits": {"requests_per_minute": "many"}}));
    assert_eq!(fields(&plane.refused(Method::POST, "/api_keys", &bad, 422).await), ["rate_limits.requests_per_minute"]);
    let bad =
        key(json!({"permissions": ["root"], "rate_limits": {"tokens_per_minute": 0}, "allowed_models": ["none"]}));
    let expected = ["permissions", "rate_limits.tokens_per_minute", "allowed_models"];
    assert_eq!(fields(&plane.refused(Method::POST, "/api_keys", &bad, 422).await), expected);
    let model =
        json!({"id": "m", "provider": "p", "category": "chat", "context_length": 0, "pricing": {"input_tokens": 1}});
    let problem = plane.refused(Method::POST, "/models", &model.to_string(), 422).await;
    assert_eq!(fields(&problem), ["context_length", "pricing"]);
}

#[tokio::test]
async fn roles_bound_what_a_token_may_do() {
    let plane = Plane::start().await;
    let organization = plane.organization("acme").await;
    let path = format!("/admin/v1/organizations/{organization}");
    let call = |method, token| plane.raw(method, &path, Some(token), Some("{\"name\": \"Acme\"}".to_owned()));
    assert_eq!(call(Method::GET, VIEWER).await.status, 200);
    call(Method::PATCH, VIEWER).await.problem(403);
    assert_eq!(call(Method::PATCH, ADMIN).await.json["name"], "Acme");
    call(Method::DELETE, ADMIN).await.problem(403);
    assert_eq!(call(Method::DELETE, OWNER).await.status, 204);
    call(Method::GET, OWNER).await.problem(404);
    let audit: Vec<(String, String)> =
        sqlx::query_as("SELECT role, action FROM audit_log ORDER BY id").fetch_all(&plane.pool).await.unwrap();
    let audit: Vec<_> = audit.iter().map(|(role, action)| (role.as_str(), action.as_str())).collect();
    let expected =
        [("owner", "organization.create"), ("admin", "organization.update"), ("owner", "organization.delete")];
    assert_eq!(audit, expected);
}

#[tokio::test]
async fn pages_hold_every_entry_once_in_a_stable_order() {
    let plane = Plane::start().await;
    let mut made = Vec::new();
    for n in 0..5 {
        made.push(plane.organization(&format!("org-{n}")).await);
    }
    let (mut found, mut cursor) = (Vec::new(), String::new());
    loop {
        let page = plane.get(&format!("/organizations?limit=2{cursor}")).await;
        found.extend(page["data"].as_array().unwrap().iter().map(id));
        // What is made meanwhile comes later and disturbs nothing.
        made.push(plane.organization(&format!("late-{}", found.len())).await);
        match page["next_cursor"].as_str() {
            Some(next) if found.len() < 6 => cursor = format!("&cursor={next}"),
            _ => break,
        }
    }
    assert_eq!(found.len(), 6);
    assert_eq!(found, made[..6]);
    let all = plane.get("/organizations?limit=500").await;
    assert_eq!((all["data"].as_array().unwrap().len(), &all["next_cursor"]), (made.len(), &Value::Null));
}

#[tokio::test]
async fn keys_are_changed_rotated_and_revoked() {
    let plane = Plane::start().await;
    let tenant = plane.tenant("acme").await;
    plane.model("m").await;
    let path = format!("/api_keys/{}", tenant.key_id);
    let patch = json!({"rate_limits": {"requests_per_minute": 60}, "allowed_models": ["m"], "name": "renamed"});
    let key = plane.call(Method::PATCH, &path, Some(patch)).await;
    assert_eq!((&key["name"], &key["allowed_models"]), (&json!("renamed"), &json!(["m"])));
    let key = plane.call(Method::PATCH, &path, Some(json!({"allowed_models": null}))).await;
    assert_eq!((&key["allowed_models"], &key["rate_limits"]), (&Value::Null, &json!({"requests_per_minute": 60})));
    assert_eq!(plane.call(Method::POST, &format!("{path}/disable"), None).await["is_active"], false);
    plane.refused(Method::POST, &format!("{path}/rotate"), "{}", 409).await;
    assert_eq!(plane.call(Method::POST, &format!("{path}/enable"), None).await["is_active"], true);

    let before = chrono::Utc::now();
    let new = plane.post(&format!("{path}/rotate"), json!({"overlap_seconds": 3600})).await;
    assert_ne!(new["key"], json!(tenant.key));
    assert_eq!((&new["rotated_from"], &new["expires_at"]), (&json!(tenant.key_id), &Value::Null));
    assert_eq!(new["rate_limits"], json!({"requests_per_minute": 60}));
    let end: chrono::DateTime<chrono::Utc> =
        serde_json::from_value(plane.get(&path).await["expires_at"].clone()).unwrap();
    let overlap = (end - before).num_seconds();
    assert!((3600..3700).contains(&overlap), "{overlap}");

    let answer = plane.raw(Method::DELETE, &format!("/admin/v1{path}"), Some(OWNER), None).await;
    assert_eq!(answer.status, 204);
    assert!(plane.get(&path).await["revoked_at"].is_string());
    plane.refused(Method::POST, &format!("{path}/enable"), "", 409).await;
    plane.refused(Method::DELETE, &path, "", 409).await;
}

#[tokio::test]
async fn a_model_has_one_default_version() {
    let plane = Plane::start().await;
    plane.model("m").await;
    let version = |name: &str, default: bool| {
        plane.post("/models/m/versions", json!({"version": name, "model_artifact_path": "/w", "make_default": default}))
    };
    assert_eq!(version("v1", true).await["deployment_status"], "active");
    assert_eq!(version("v2", false).await["deployment_status"], "pending");
    plane.refused(Method::POST, "/models/m/versions", r#"{"version": "v1", "model_artifact_path": "/w"}"#, 409).await;
    plane.refused(Method::POST, "/models/m/versions/v1/deprecate", "", 409).await;
    assert_eq!(
        plane.call(Method::POST, "/models/m/versions/v2/make_default", None).await["deployment_status"],
        "active"
    );
    let old = plane.call(Method::POST, "/models/m/versions/v1/deprecate", None).await;
    assert_eq!((&old["is_default"], &old["deployment_status"]), (&json!(false), &json!("deprecated")));
    let versions = plane.get("/models/m/versions").await;
    let defaults = versions["data"].as_array().unwrap().iter().filter(|v| v["is_default"] == true).count();
    assert_eq!(defaults, 1);
    plane.refused(Method::GET, "/models/m/versions/v9", "", 404).await;
}

#[tokio::test]
async fn the_openapi_document_describes_what_is_served() {
    let plane = Plane::start().await;
    let document = plane.raw(Method::GET, "/openapi.json", None, None).await.json;
    let paths = document["paths"].as_object().unwrap();
    assert!(paths.len() >= 20, "{paths:?}");
    for (path, operations) in paths {
        let concrete = path.replace("{id}", "none").replace("{name}", "none").replace("{version}", "none");
        for method in operations.as_object().unwrap().keys() {
            let method: Method = method.to_uppercase().parse().unwrap();
            // Without a token every described operation answers 401; what is not served would answer 404 or 405.
            let answer = plane.raw(method.clone(), &concrete, None, None).await;
            assert_eq!(answer.status, 401, "{method} {path}");
        }
    }
    assert!(document["components"]["schemas"]["Problem"].is_object());
}
