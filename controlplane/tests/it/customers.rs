//! What customers read with a key of theirs: their own books, and nothing else.

use crate::invoices::{close, first_of, month_of, spending};
use crate::peers::Meter;
use crate::plane::{Answer, Kept, OWNER, Plane, Tenant, id};
use chrono::{Days, NaiveTime, TimeDelta, Utc};
use reqwest::Method;
use serde_json::{Value, json};
use uuid::Uuid;

/// All that an API key opens.
const OPEN: [&str; 8] = [
    "/admin/v1/invoices",
    "/admin/v1/invoices/{id}",
    "/admin/v1/invoices/{id}/credit_notes",
    "/admin/v1/invoices/{id}/credit_notes/{note}",
    "/admin/v1/organizations/{id}/billing",
    "/admin/v1/organizations/{id}/prepaid_entries",
    "/admin/v1/requests",
    "/admin/v1/usage",
];

/// An organization with usage last month and today, an invoice, a credit note, and money paid ahead.
struct Customer {
    tenant: Tenant,
    invoice: String,
    note: String,
}

async fn customer(plane: &Plane, slug: &str, cost: &str) -> Customer {
    let tenant = plane.tenant(slug).await;
    let before = (first_of(1) + Days::new(9)).and_time(NaiveTime::MIN).and_utc();
    let events = [spending(&tenant, "m", before, cost), spending(&tenant, "m", Utc::now(), cost)];
    Meter::connect(plane, slug).await.ship(1, 0, &events).await;
    crate::prepaid::top_up(plane, &tenant, cost, &format!("wire-{slug}")).await;
    let invoice = id(&close(plane, &tenant, 1).await["invoice"]);
    let note = json!({"amount": "1", "reason": format!("sorry, {slug}"), "idempotency_key": "k"});
    let note = id(&plane.post(&format!("/invoices/{invoice}/credit_notes"), note).await);
    Customer { tenant, invoice, note }
}

async fn read(plane: &Plane, who: &Customer, path: &str) -> Answer {
    plane.raw(Method::GET, &format!("/admin/v1{path}"), Some(&who.tenant.key), None).await
}

/// What a customer reads; every path with what is its own in it.
fn paths(of: &Customer) -> Vec<String> {
    let Customer { tenant: Tenant { organization, .. }, invoice, note } = of;
    let mut paths = Vec::new();
    for grouping in ["", "organization", "model,day", "hour", "price_version", "key", "organization,key,day"] {
        for format in ["json", "csv"] {
            paths.push(format!("/usage?organization={organization}&group_by={grouping}&format={format}"));
        }
    }
    paths.extend([
        format!("/requests?organization={organization}"),
        format!("/invoices?organization={organization}"),
        format!("/invoices?organization={organization}&format=csv"),
        format!("/invoices/{invoice}"),
        format!("/invoices/{invoice}.html"),
        format!("/invoices/{invoice}.csv"),
        format!("/invoices/{invoice}/credit_notes"),
        format!("/invoices/{invoice}/credit_notes/{note}.html"),
        format!("/organizations/{organization}/billing"),
        format!("/organizations/{organization}/prepaid_entries"),
    ]);
    paths
}

async fn own_books(kept: Kept) {
    let plane = Plane::start_with(&kept.settings().await).await;
    plane.model("m").await;
    let (acme, other) = (customer(&plane, "acme", "7.25").await, customer(&plane, "rival", "3.125").await);
    // What an operator is shown of the organization is what it is shown itself, and says nothing of the other.
    let strange = [&other.tenant.organization, &other.tenant.key_id, &other.invoice, &other.note];
    for path in paths(&acme) {
        let found = read(&plane, &acme, &path).await;
        assert_eq!(found.status, 200, "{path}: {}", found.text);
        let asked = plane.raw(Method::GET, &format!("/admin/v1{path}"), Some(OWNER), None).await;
        assert_eq!((&found.content_type, &found.text), (&asked.content_type, &asked.text), "{path}");
        // Without an organization it is its own.
        let own = path.replace(&format!("organization={}", acme.tenant.organization), "");
        let own = read(&plane, &acme, &own.replace("?&", "?")).await;
        assert_eq!((own.status.as_u16(), own.text), (200, found.text), "{path}");
        for text in strange.iter().map(|text| text.as_str()).chain(["rival", "3.125"]) {
            assert!(!asked.text.contains(text), "{path} says {text}: {}", asked.text);
        }
    }
    let figures = read(&plane, &acme, "/usage?group_by=organization").await.json;
    assert_eq!(figures["data"][0]["organization_id"], json!(acme.tenant.organization));
    assert_eq!(figures["data"].as_array().unwrap().len(), 1);
    let billing = read(&plane, &acme, &format!("/organizations/{}/billing", acme.tenant.organization)).await.json;
    assert_eq!(billing["prepaid_balance"], "7.25");

    // What is the other's does not exist, as what does not exist does not.
    let nobody = Customer {
        tenant: Tenant { organization: Uuid::new_v4().to_string(), ..acme.tenant.clone() },
        invoice: Uuid::new_v4().to_string(),
        note: Uuid::new_v4().to_string(),
    };
    for (theirs, nobodys) in paths(&other).iter().zip(paths(&nobody)) {
        let theirs = read(&plane, &acme, theirs).await.problem(404);
        let unknown = read(&plane, &acme, &nobodys).await.problem(404);
        let detail = |problem: &Value, of: &Customer| {
            let text = problem["detail"].as_str().unwrap().to_owned();
            text.replace(&of.tenant.organization, "ID").replace(&of.invoice, "ID")
        };
        assert_eq!(detail(&theirs, &other), detail(&unknown, &nobody));
    }
    // Another's note is not found by an own invoice either, nor another's requests by a key or an edge.
    let note = format!("/invoices/{}/credit_notes/{}", acme.invoice, other.note);
    read(&plane, &acme, &note).await.problem(404);
    for filter in [format!("key={}", other.tenant.key_id), "edge=rival".to_owned()] {
        let page = read(&plane, &acme, &format!("/requests?{filter}")).await.json;
        let mine = |request: &Value| request["organization_id"] == json!(acme.tenant.organization);
        assert!(page["data"].as_array().unwrap().iter().all(mine), "{filter}: {page}");
    }
}

#[tokio::test]
async fn a_customer_reads_its_own_books_with_the_ledger_in_postgresql() {
    own_books(Kept::Postgres).await;
}

#[tokio::test]
async fn a_customer_reads_its_own_books_with_the_ledger_in_clickhouse() {
    own_books(Kept::ClickHouse).await;
}

#[tokio::test]
async fn an_api_key_opens_nothing_else() {
    let plane = Plane::start().await;
    let tenant = plane.tenant("acme").await;
    let document = plane.raw(Method::GET, "/openapi.json", None, None).await.json;
    assert!(document["components"]["securitySchemes"]["api_key"].is_object());
    let (mut open, mut refused) = (Vec::new(), 0);
    for (path, operations) in document["paths"].as_object().unwrap() {
        let place = path.replace("{id}", &tenant.organization).replace(['{', '}'], "");
        for (method, operation) in operations.as_object().unwrap() {
            let method: Method = method.to_uppercase().parse().unwrap();
            if operation["security"].as_array().is_some_and(|ways| ways.contains(&json!({"api_key": []}))) {
                assert_eq!(method, Method::GET, "{path}");
                open.push(path.clone());
                continue;
            }
            let problem =
                plane.raw(method.clone(), &place, Some(&tenant.key), Some("{}".to_owned())).await.problem(403);
            let detail = problem["detail"].as_str().unwrap();
            assert!(detail.contains("API key") && detail.contains("operator's token"), "{method} {path}: {detail}");
            refused += 1;
        }
    }
    assert_eq!(open, OPEN);
    assert!(refused > 40, "{refused}");
    for path in OPEN {
        let place = path.replace("{id}", &tenant.organization).replace("{note}", &tenant.organization);
        for method in [Method::POST, Method::PUT, Method::PATCH, Method::DELETE] {
            plane.raw(method, &place, Some(&tenant.key), Some("{}".to_owned())).await.problem(403);
        }
    }
    let written: i64 = sqlx::query_scalar("SELECT count(*) FROM audit_log WHERE actor NOT LIKE 'token:owner'")
        .fetch_one(&plane.pool)
        .await
        .unwrap();
    assert_eq!(written, 0);
}

#[tokio::test]
async fn keys_that_are_not_alive_open_nothing() {
    let plane = Plane::start().await;
    let tenant = plane.tenant("acme").await;
    let read = async |key: &str| plane.raw(Method::GET, "/admin/v1/usage", Some(key), None).await;
    let key = |name: &str, more: Value| {
        let mut body = json!({"organization_id": tenant.organization, "user_id": tenant.user, "name": name});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        body
    };
    assert_eq!(read(&tenant.key).await.status, 200);
    plane.call(Method::PATCH, &format!("/api_keys/{}", tenant.key_id), Some(json!({"is_active": false}))).await;
    read(&tenant.key).await.problem(401);
    plane.call(Method::PATCH, &format!("/api_keys/{}", tenant.key_id), Some(json!({"is_active": true}))).await;
    assert_eq!(read(&tenant.key).await.status, 200);
    plane.call(Method::DELETE, &format!("/api_keys/{}", tenant.key_id), None).await;
    let problem = read(&tenant.key).await.problem(401);
    assert!(problem["detail"].as_str().unwrap().contains("revoked, expired or switched off"), "{problem}");

    let soon = plane.post("/api_keys", key("soon", json!({"expires_at": Utc::now() + TimeDelta::hours(1)}))).await;
    assert_eq!(read(soon["key"].as_str().unwrap()).await.status, 200);
    sqlx::query("UPDATE api_keys SET expires_at = now() WHERE name = 'soon'").execute(&plane.pool).await.unwrap();
    read(soon["key"].as_str().unwrap()).await.problem(401);

    let rotated = plane.post("/api_keys", key("rotated", json!({}))).await;
    let next = plane.post(&format!("/api_keys/{}/rotate", id(&rotated)), json!({"overlap_seconds": 0})).await;
    read(rotated["key"].as_str().unwrap()).await.problem(401);
    assert_eq!(read(next["key"].as_str().unwrap()).await.status, 200);
    for wrong in ["sk-tp-", "sk-tp-AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA", "sk-none", &"sk-tp-x".repeat(900)] {
        read(wrong).await.problem(401);
    }
}

#[tokio::test]
async fn a_draft_is_no_invoice_yet_for_who_would_have_to_pay_it() {
    let plane = Plane::start().await;
    plane.model("m").await;
    let tenant = plane.tenant("acme").await;
    let before = (first_of(1) + Days::new(9)).and_time(NaiveTime::MIN).and_utc();
    Meter::connect(&plane, "e1").await.ship(1, 0, &[spending(&tenant, "m", before, "5")]).await;
    let draft = json!({"month": month_of(first_of(1)), "organization_id": tenant.organization, "draft": true});
    let invoice = id(&plane.post("/invoices/close", draft).await["data"][0]["invoice"]);
    let read = async |path: &str| plane.raw(Method::GET, &format!("/admin/v1{path}"), Some(&tenant.key), None).await;
    assert_eq!(plane.get("/invoices").await["data"].as_array().unwrap().len(), 1);
    for path in ["/invoices", "/invoices?status=draft"] {
        assert_eq!(read(path).await.json["data"], json!([]), "{path}");
    }
    for path in [format!("/invoices/{invoice}"), format!("/invoices/{invoice}/credit_notes")] {
        read(&path).await.problem(404);
    }
    plane.call(Method::POST, &format!("/invoices/{invoice}/open"), None).await;
    assert_eq!(read("/invoices").await.json["data"][0]["id"], json!(invoice));
}
