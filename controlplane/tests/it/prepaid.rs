//! Money paid ahead: a ledger that only grows, and a balance that is exact at every moment.

use crate::peers::{Edge, Meter};
use crate::plane::{Plane, Tenant, eventually, fields};
use crate::usage::event;
use chrono::{DateTime, Days, Utc};
use reqwest::Method;
use serde_json::{Value, json};
use sqlx::migrate::Migrator;
use std::path::Path;
use turnpike_config::push::PushReply;
use turnpike_config::wire::Watermark;
use turnpike_config::{OrgId, Prepaid, Routing, UsageEvent, Usd};
use turnpike_parts::postgres::Postgres;

fn spending(tenant: &Tenant, at: DateTime<Utc>, cost: &str) -> UsageEvent {
    UsageEvent { cost: cost.parse().unwrap(), ..event(tenant, Some("m"), at, 1, 1) }
}

fn ledger(tenant: &Tenant) -> String {
    format!("/organizations/{}/prepaid_entries", tenant.organization)
}

pub(crate) async fn top_up(plane: &Plane, tenant: &Tenant, amount: &str, key: &str) -> Value {
    plane.post(&ledger(tenant), json!({"kind": "top_up", "amount": amount, "idempotency_key": key})).await
}

pub(crate) async fn balance(plane: &Plane, tenant: &Tenant) -> Value {
    plane.get(&format!("/organizations/{}/billing", tenant.organization)).await["prepaid_balance"].clone()
}

async fn entries(plane: &Plane, tenant: &Tenant) -> Vec<(String, String)> {
    let page = plane.get(&ledger(tenant)).await;
    let text = |entry: &Value, name: &str| entry[name].as_str().unwrap().to_owned();
    page["data"].as_array().unwrap().iter().map(|entry| (text(entry, "kind"), text(entry, "amount"))).collect()
}

async fn posted(plane: &Plane, tenant: &Tenant, what: &str, expected: &[&str]) {
    eventually(what, || async {
        let entries = entries(plane, tenant).await;
        let usage: Vec<_> = entries.into_iter().filter(|(kind, _)| kind == "usage").map(|(_, cost)| cost).collect();
        (usage == expected).then_some(())
    })
    .await;
}

#[tokio::test]
async fn the_same_key_is_the_same_money() {
    let plane = Plane::start().await;
    let tenant = plane.tenant("acme").await;
    let mut edge = Edge::connect(&plane, "e1", Routing::default()).await;
    let first = top_up(&plane, &tenant, "50.00", "wire-1").await;
    assert_eq!((&first["amount"], &first["idempotency_key"]), (&json!("50"), &json!("wire-1")));
    assert_eq!(top_up(&plane, &tenant, "50", "wire-1").await["id"], first["id"]);
    let other = json!({"kind": "top_up", "amount": "51", "idempotency_key": "wire-1"}).to_string();
    plane.refused(Method::POST, &ledger(&tenant), &other, 409).await;
    let organization = OrgId(tenant.organization.parse().unwrap());
    let told = |routing: &Routing| routing.orgs.get(&organization).and_then(|org| org.budget);
    edge.until("the money", |routing| told(routing).is_some_and(|b| b.monthly == "50".parse().unwrap())).await;

    let racing = (0..8).map(|_| top_up(&plane, &tenant, "0.000000000001", "wire-2"));
    let ids: std::collections::BTreeSet<i64> =
        futures::future::join_all(racing).await.iter().map(|entry| entry["id"].as_i64().unwrap()).collect();
    assert_eq!(ids.len(), 1);
    let back = json!({"kind": "refund", "amount": "-20", "idempotency_key": "operator:operator:back"});
    assert_eq!(plane.post(&ledger(&tenant), back).await["idempotency_key"], "operator:operator:back");
    assert_eq!(balance(&plane, &tenant).await, "30.000000000001");
    let shown = entries(&plane, &tenant).await;
    let kinds: Vec<_> = shown.iter().map(|(kind, _)| kind.as_str()).collect();
    assert_eq!(kinds, ["refund", "top_up", "top_up", "opening"]);
    let page = plane.get(&format!("{}?limit=3", ledger(&tenant))).await;
    let cursor = page["next_cursor"].as_str().unwrap();
    let rest = plane.get(&format!("{}?limit=3&cursor={cursor}", ledger(&tenant))).await;
    assert_eq!((rest["data"].as_array().unwrap().len(), &rest["next_cursor"]), (1, &Value::Null));
}

#[tokio::test]
async fn days_that_are_over_are_posted_and_what_comes_late_is_too() {
    let mut plane = Plane::start().await;
    let tenant = plane.tenant("acme").await;
    plane.model("m").await;
    let now = Utc::now();
    let yesterday = now - Days::new(1);
    let mut meter = Meter::connect(&plane, "e1").await;
    meter.ship(1, 0, &[spending(&tenant, now, "3"), spending(&tenant, yesterday, "5")]).await;
    top_up(&plane, &tenant, "10", "first").await;
    assert_eq!(balance(&plane, &tenant).await, "10", "what was used before is not debited");
    // As if it had begun to pay ahead yesterday, before anything was used.
    sqlx::raw_sql(
        "ALTER TABLE prepaid_entries DISABLE TRIGGER USER;
         UPDATE prepaid_entries SET day = day - 1, used = 0 WHERE kind = 'opening';
         ALTER TABLE prepaid_entries ENABLE TRIGGER USER;
         UPDATE billing_accounts SET prepaid_since = prepaid_since - 1;",
    )
    .execute(&plane.pool)
    .await
    .unwrap();
    assert_eq!(balance(&plane, &tenant).await, "2");
    plane.restart().await;
    posted(&plane, &tenant, "yesterday's usage is posted", &["-5"]).await;
    assert_eq!(balance(&plane, &tenant).await, "2", "posting does not move the balance");
    Meter::connect(&plane, "e1").await.ship(1, 2, &[spending(&tenant, yesterday, "0.25")]).await;
    assert_eq!(balance(&plane, &tenant).await, "1.75", "nor does it wait for the posting");
    plane.restart().await;
    posted(&plane, &tenant, "late usage is posted", &["-0.25", "-5"]).await;
    assert_eq!(balance(&plane, &tenant).await, "1.75");
    plane.restart().await;
    plane
        .call(
            Method::PATCH,
            &format!("/organizations/{}/billing", tenant.organization),
            Some(json!({"prepaid_balance": null})),
        )
        .await;
    let sum: String = sqlx::query_scalar("SELECT trim_scale(sum(amount))::text FROM prepaid_entries")
        .fetch_one(&plane.pool)
        .await
        .unwrap();
    assert_eq!(sum, "0", "a ledger that is closed adds up to nothing");
    // Usage meanwhile is not debited when it pays ahead again.
    Meter::connect(&plane, "e1").await.ship(1, 3, &[spending(&tenant, now, "7")]).await;
    top_up(&plane, &tenant, "1", "again").await;
    assert_eq!(balance(&plane, &tenant).await, "1");
}

#[tokio::test]
async fn what_comes_long_afterwards_is_posted_with_the_next_day() {
    let mut plane = Plane::start().await;
    plane.model("m").await;
    let (tenant, other) = (plane.tenant("acme").await, plane.tenant("other").await);
    for tenant in [&tenant, &other] {
        top_up(&plane, tenant, "50", "first").await;
    }
    sqlx::raw_sql(
        "ALTER TABLE prepaid_entries DISABLE TRIGGER USER;
         UPDATE prepaid_entries SET day = day - 25 WHERE kind = 'opening';
         ALTER TABLE prepaid_entries ENABLE TRIGGER USER;
         UPDATE billing_accounts SET prepaid_since = prepaid_since - 25;",
    )
    .execute(&plane.pool)
    .await
    .unwrap();
    let ago = |days: u64| Utc::now() - Days::new(days);
    let mut meter = Meter::connect(&plane, "e1").await;
    // Never posted before: it is, however long ago.
    meter.ship(1, 0, &[spending(&tenant, ago(24), "1"), spending(&tenant, ago(22), "2")]).await;
    assert_eq!(balance(&plane, &tenant).await, "47");
    plane.restart().await;
    posted(&plane, &tenant, "the first days", &["-2", "-1"]).await;
    let mut meter = Meter::connect(&plane, "e1").await;
    meter.ship(1, 2, &[spending(&tenant, ago(23), "4"), spending(&other, ago(1), "8")]).await;
    assert_eq!(balance(&plane, &tenant).await, "43");
    plane.restart().await;
    posted(&plane, &other, "a run", &["-8"]).await;
    posted(&plane, &tenant, "what is that old does not make a run by itself", &["-2", "-1"]).await;
    Meter::connect(&plane, "e1").await.ship(1, 4, &[spending(&tenant, ago(1), "16")]).await;
    assert_eq!(balance(&plane, &tenant).await, "27");
    plane.restart().await;
    posted(&plane, &tenant, "both", &["-16", "-4", "-2", "-1"]).await;
    assert_eq!(balance(&plane, &tenant).await, "27");
}

#[tokio::test]
async fn what_cannot_be_posted_does_not_stand_in_the_way_of_others() {
    let mut plane = Plane::start().await;
    plane.model("m").await;
    let (first, second) = (plane.tenant("first").await, plane.tenant("second").await);
    let yesterday = Utc::now() - Days::new(1);
    let events = [spending(&first, yesterday, "5"), spending(&second, yesterday, "6")];
    Meter::connect(&plane, "e1").await.ship(1, 0, &events).await;
    for tenant in [&first, &second] {
        top_up(&plane, tenant, "10", "first").await;
    }
    let sql = format!(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'refused for a test'; END $$;
         CREATE TRIGGER refuse BEFORE INSERT ON prepaid_entries FOR EACH ROW
             WHEN (new.kind = 'usage' AND new.organization_id = '{}') EXECUTE FUNCTION refuse();
         UPDATE billing_accounts SET prepaid_since = prepaid_since - 1;",
        first.organization
    );
    sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).execute(&plane.pool).await.unwrap();
    assert_eq!(balance(&plane, &second).await, "4");
    plane.restart().await;
    posted(&plane, &second, "the other's usage is posted", &["-6"]).await;
    eventually("the refusal is counted", || async {
        let failures = plane.metric("turnpike_controlplane_prepaid_posting_failures_total").await;
        failures.filter(|count| *count > 0.0)
    })
    .await;
    posted(&plane, &first, "nothing is posted", &[]).await;
}

#[tokio::test]
async fn entries_stay_as_they_were_written() {
    let plane = Plane::start().await;
    let tenant = plane.tenant("acme").await;
    top_up(&plane, &tenant, "1", "first").await;
    for sql in ["UPDATE prepaid_entries SET amount = 2", "DELETE FROM prepaid_entries", "TRUNCATE prepaid_entries"] {
        let refused = sqlx::query(sql).execute(&plane.pool).await.unwrap_err().to_string();
        assert!(refused.contains("is refused"), "{sql}: {refused}");
    }
    let cases = [
        (json!({"kind": "top_up", "amount": "-1", "idempotency_key": "k"}), vec!["amount"]),
        (json!({"kind": "refund", "amount": "1", "idempotency_key": "k"}), vec!["amount"]),
        (json!({"kind": "adjustment", "amount": "0", "idempotency_key": ""}), vec!["idempotency_key", "amount"]),
        (json!({"kind": "usage", "amount": "1", "idempotency_key": "k"}), vec!["kind"]),
    ];
    for (body, expected) in cases {
        let problem = plane.refused(Method::POST, &ledger(&tenant), &body.to_string(), 422).await;
        assert_eq!(fields(&problem), expected, "{problem}");
    }
    let nobody = format!("/organizations/{}/prepaid_entries", uuid::Uuid::new_v4());
    plane.refused(Method::GET, &nobody, "", 404).await;
    let body = json!({"kind": "top_up", "amount": "1", "idempotency_key": "k"}).to_string();
    plane.refused(Method::POST, &nobody, &body, 404).await;
}

#[tokio::test]
async fn balances_and_prices_from_before_the_ledger_are_kept() {
    let url = tokio::task::spawn_blocking(|| Postgres::shared_temporary().unwrap().fresh_database().unwrap());
    let url = url.await.unwrap();
    let all = Migrator::new(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../migrations/postgres"))).await.unwrap();
    let before = all.iter().filter(|migration| migration.version < 9).cloned().collect();
    let pool = sqlx::PgPool::connect(&url).await.unwrap();
    Migrator::with_migrations(before).run(&pool).await.unwrap();
    let partition = Utc::now().date_naive().format("y%Ym%m");
    let month = Utc::now().date_naive().format("%Y-%m-01");
    let sql = format!(
        "CREATE TABLE usage_records_{partition} PARTITION OF usage_records
             FOR VALUES FROM ('{month}') TO (('{month}'::date + interval '1 month')::date);
         INSERT INTO organizations (id, name, slug) VALUES ('00000000-0000-7000-8000-000000000001', 'Acme', 'acme'),
             ('00000000-0000-7000-8000-000000000002', 'Later', 'later');
         INSERT INTO billing_accounts (organization_id, prepaid_balance) VALUES
             ('00000000-0000-7000-8000-000000000001', -0.000000000001), ('00000000-0000-7000-8000-000000000002', NULL);
         INSERT INTO models (id, name, provider, category, context_length, pricing) VALUES
             ('m', 'm', 'acme', 'chat', 2048, '{{\"input_tokens\": \"2e-6\", \"output_tokens\": 0.03, \"per_tokens\": 1}}'),
             ('n', 'n', 'acme', 'chat', 2048, '{{\"input_tokens\": 0.01, \"output_tokens\": \"0.03\"}}');
         INSERT INTO usage_records (organization_id, model_id, date, cost_usd)
             SELECT '00000000-0000-7000-8000-000000000001', 'm', (now() AT TIME ZONE 'UTC')::date, 5;"
    );
    sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).execute(&pool).await.unwrap();
    let plane = Plane::start_on(url, "").await;
    let billing = async |last: u8| {
        let path = format!("/organizations/00000000-0000-7000-8000-00000000000{last}/billing");
        plane.get(&path).await["prepaid_balance"].clone()
    };
    assert_eq!((billing(1).await, billing(2).await), (json!("-0.000000000001"), Value::Null));
    let prices: Vec<(String, String, String)> = sqlx::query_as(
        "SELECT model_id::text, trim_scale(input_token)::text, trim_scale(output_token)::text FROM model_prices
         ORDER BY 1",
    )
    .fetch_all(&pool)
    .await
    .unwrap();
    let expected = [("m", "0.000002", "0.03"), ("n", "0.00001", "0.00003")];
    assert_eq!(prices, expected.map(|(m, i, o)| (m.to_owned(), i.to_owned(), o.to_owned())));
    let mut edge = Edge::connect(&plane, "e1", Routing::default()).await;
    edge.until("the prices", |routing| routing.models.get("m").is_some_and(|model| model.prices.len() == 1)).await;
}

fn prepaid(edge: &Edge, tenant: &Tenant) -> Option<Prepaid> {
    edge.routing.orgs.get(&OrgId(tenant.organization.parse().unwrap()))?.prepaid.clone()
}

/// What a region may have spent in all, as an edge was told.
fn cap(edge: &Edge, tenant: &Tenant, region: &str) -> Option<Usd> {
    prepaid(edge, tenant)?.regions.get(region).map(|share| share.cap)
}

#[tokio::test]
async fn a_part_of_the_money_moves_to_another_region_once_nobody_there_can_spend_it_any_more() {
    let mut plane = Plane::start().await;
    let tenant = plane.tenant("acme").await;
    plane.model("m").await;
    let usd = |text: &str| -> Option<Usd> { Some(text.parse().unwrap()) };
    let there = |cost: &str| UsageEvent { region: "us".to_owned(), ..spending(&tenant, Utc::now(), cost) };
    let mut eu = Edge::connect(&plane, "e1", Routing::default()).await;
    let mut us = Edge::connect_in("us", &plane, "u1", Routing::default()).await;
    for edge in [&mut eu, &mut us] {
        edge.next().await;
    }
    eventually("the edges are known", || async {
        (plane.get("/edges").await["data"].as_array().unwrap().len() == 2).then_some(())
    })
    .await;
    top_up(&plane, &tenant, "10", "first").await;
    let organization = OrgId(tenant.organization.parse().unwrap());
    let told = |routing: &Routing| routing.orgs.get(&organization).and_then(|org| org.prepaid.clone());
    for edge in [&mut eu, &mut us] {
        edge.until("the money", |routing| told(routing).is_some()).await;
        assert_eq!(["eu", "us", "asia"].map(|region| cap(edge, &tenant, region)), [usd("5"), usd("5"), None]);
    }

    // One region spends most of its part: the other is told to keep a quarter of its own, and does not answer yet.
    let mut meter = Meter::connect(&plane, "u1").await;
    meter.ship(1, 0, &[there("1.25"), there("3.5")]).await;
    let quarter = |routing: &Routing| {
        told(routing).is_some_and(|it| it.regions.get("eu").map(|share| share.cap) == "1.25".parse().ok())
    };
    us.until("the smaller part of the other", quarter).await;
    while !quarter(&eu.routing) {
        if eu.routing.version > 0 && cap(&eu, &tenant, "eu") == usd("5") {
            eu.take().await;
        }
        if !quarter(&eu.routing) {
            eu.reply(PushReply::Ack(eu.follower.held())).await;
        }
    }
    assert_eq!(prepaid(&us, &tenant).unwrap().regions["us"].spent, "4.75".parse().unwrap());
    type Share = (String, String, Option<i64>, Option<DateTime<Utc>>);
    let share = async |plane: &Plane| -> Share {
        let sql = "SELECT trim_scale(cap)::text, trim_scale(bound)::text, lowered_version, acked_at FROM prepaid_shares
            WHERE region = 'eu'";
        sqlx::query_as(sql).fetch_one(&plane.pool).await.unwrap()
    };
    let waits = share(&plane).await;
    assert_eq!((waits.0.as_str(), waits.1.as_str(), waits.3), ("1.25", "5", None));
    // A control plane that starts anew knows what it waits for.
    let (holds_eu, holds_us) = (Routing::default(), us.held());
    drop((eu, us, meter));
    plane.restart().await;
    let mut us = Edge::come_back_in(&plane, "u1", "us", holds_us).await;
    Meter::connect(&plane, "u1").await.ship(1, 2, &[there("0.25")]).await;
    us.until("what was spent", |routing| told(routing).is_some_and(|it| it.left == "5".parse().unwrap())).await;
    assert_eq!((share(&plane).await, cap(&us, &tenant, "us")), (waits.clone(), usd("5")), "one edge may not know");

    let mut eu = Edge::connect(&plane, "e1", holds_eu).await;
    eu.until("the smaller part", quarter).await;
    let acked_at = eventually("all edges know", || async { share(&plane).await.3 }).await;
    // The books have all that began until a moment before the last lease ended: that is not enough.
    let mut meter = Meter::connect(&plane, "e1").await;
    let mark = |at: DateTime<Utc>| {
        let ms = u64::try_from(at.timestamp_millis()).unwrap();
        Watermark { ended_to_ms: ms, began_to_ms: ms, settled_to_ms: ms }
    };
    let settled = acked_at + chrono::Duration::seconds(7);
    meter.say(1, 0, mark(settled - chrono::Duration::milliseconds(10))).await;
    eventually("time goes on", || async { (Utc::now() > settled + chrono::Duration::seconds(2)).then_some(()) }).await;
    assert_eq!((share(&plane).await.1.as_str(), cap(&us, &tenant, "us")), ("5", usd("5")));
    meter.say(1, 0, mark(settled + chrono::Duration::milliseconds(1))).await;
    us.until("the money", |routing| told(routing).is_some_and(|it| it.regions["us"].cap > "5".parse().unwrap())).await;
    assert_eq!(["eu", "us"].map(|region| cap(&us, &tenant, region)), [usd("1.25"), usd("8.75")], "all of it, once");
}

#[tokio::test]
async fn what_regions_use_is_summed_by_region_when_it_comes_late_too() {
    let plane = Plane::start().await;
    let tenant = plane.tenant("acme").await;
    plane.model("m").await;
    let yesterday = Utc::now() - Days::new(1);
    let event = |region: &str, at, cost| UsageEvent { region: region.to_owned(), ..spending(&tenant, at, cost) };
    let mut meter = Meter::connect(&plane, "e1").await;
    let events = [event("eu", yesterday, "1"), event("us", yesterday, "2"), event("eu", Utc::now(), "4")];
    meter.ship(1, 0, &events).await;
    let sums = async || -> String {
        plane.get("/usage").await;
        let sql =
            "SELECT string_agg(format('%s:%s:%s', region, requests, trim_scale(cost_usd)), ' ' ORDER BY date, region)
            FROM usage_region_days";
        sqlx::query_scalar(sql).fetch_one(&plane.pool).await.unwrap()
    };
    assert_eq!(sums().await, "eu:1:1 us:1:2 eu:1:4");
    meter.ship(1, 3, &[event("us", yesterday, "8"), event("us", yesterday, "0")]).await;
    assert_eq!(sums().await, "eu:1:1 us:3:10 eu:1:4");
}
