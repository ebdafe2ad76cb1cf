//! Budgets: what operators set, what edges are told, and what usage does to both.

use crate::log::append_by_hand;
use crate::peers::{Edge, Kind, Meter};
use crate::plane::{Plane, Tenant, eventually, fields};
use crate::usage::event;
use chrono::{DateTime, Datelike as _, Utc};
use reqwest::Method;
use serde_json::{Value, json};
use std::sync::Arc;
use turnpike_config::wire::Watermark;
use turnpike_config::{Budget, OrgId, Routing, UsageEvent, Usd};

fn usd(text: &str) -> Usd {
    text.parse().unwrap()
}

fn spending(tenant: &Tenant, cost: &str) -> UsageEvent {
    UsageEvent { cost: usd(cost), ..event(tenant, Some("m"), Utc::now(), 1, 1) }
}

fn budget_of(routing: &Routing, tenant: &Tenant) -> Option<Budget> {
    routing.orgs.get(&OrgId(tenant.organization.parse().unwrap()))?.budget
}

fn has_spent(routing: &Routing, tenant: &Tenant, spent: &str) -> bool {
    budget_of(routing, tenant).is_some_and(|budget| budget.spent == usd(spent))
}

fn path(tenant: &Tenant) -> String {
    format!("/organizations/{}/billing", tenant.organization)
}

async fn set(plane: &Plane, tenant: &Tenant, body: Value) -> Value {
    plane.call(Method::PATCH, &path(tenant), Some(body)).await
}

fn figures(billing: &Value) -> [Option<&str>; 5] {
    ["monthly_budget", "prepaid_balance", "spent_this_month", "allowance", "remaining"]
        .map(|name| billing[name].as_str())
}

#[tokio::test]
async fn a_budget_reaches_the_edges_and_follows_what_is_spent() {
    let mut plane = Plane::start().await;
    let (tenant, unbound) = (plane.tenant("acme").await, plane.tenant("unbound").await);
    plane.model("m").await;
    let mut edge = Edge::connect(&plane, "e1", Routing::default()).await;
    let billing = plane.get(&path(&tenant)).await;
    assert_eq!(figures(&billing), [None, None, Some("0"), None, None]);
    let now = Utc::now();
    assert_eq!((&billing["currency"], &billing["month"]), (&json!("USD"), &json!(now.format("%Y-%m").to_string())));

    let billing = set(&plane, &tenant, json!({"monthly_budget": "10.00", "billing_email": "pay@acme.example"})).await;
    assert_eq!(figures(&billing), [Some("10"), None, Some("0"), Some("10"), Some("10")]);
    assert_eq!(billing["billing_email"], "pay@acme.example");
    edge.until("the budget", |routing| has_spent(routing, &tenant, "0")).await;
    let told = budget_of(&edge.routing, &tenant).unwrap();
    assert_eq!((told.monthly, told.month), (usd("10"), now.year().unsigned_abs() * 100 + now.month()));
    let age = u64::try_from(Utc::now().timestamp_millis()).unwrap() - told.as_of_ms;
    assert!(age < 60_000, "complete up to {age} ms ago");

    // Less than a thousandth of the allowance is not worth telling; what adds up to one is, exactly.
    let mut meter = Meter::connect(&plane, "e1").await;
    meter.ship(1, 0, &[spending(&tenant, "0.004"), spending(&unbound, "5")]).await;
    plane.call(Method::PATCH, &format!("/organizations/{}", tenant.organization), Some(json!({"slug": "a"}))).await;
    edge.until("the slug", |routing| routing.orgs.values().any(|org| org.slug == "a")).await;
    assert!(has_spent(&edge.routing, &tenant, "0"), "other changes repeat what was told");
    let version = edge.routing.version;
    meter.ship(1, 2, &[spending(&tenant, "0.006000000001")]).await;
    edge.until("the spending", |routing| has_spent(routing, &tenant, "0.010000000001")).await;
    assert_eq!(edge.routing.version, version + 1, "nothing is told of who has no budget");
    assert_eq!(budget_of(&edge.routing, &unbound), None);

    meter.ship(1, 3, &[spending(&tenant, "9.989999999998")]).await;
    edge.until("almost all", |routing| has_spent(routing, &tenant, "9.999999999999")).await;
    meter.ship(1, 4, &[spending(&tenant, "0.000000000001")]).await;
    edge.until("the crossing", |routing| has_spent(routing, &tenant, "10")).await;
    meter.ship(1, 5, &[spending(&tenant, "1")]).await;
    edge.until("the excess", |routing| has_spent(routing, &tenant, "11")).await;
    let billing = plane.get(&path(&tenant)).await;
    assert_eq!(figures(&billing), [Some("10"), None, Some("11"), Some("10"), Some("-1")]);

    plane.restart().await;
    let mut fresh = Edge::connect(&plane, "e2", Routing::default()).await;
    fresh.next().await;
    assert_eq!(fresh.routing, edge.routing);
    set(&plane, &tenant, json!({"monthly_budget": null})).await;
    fresh.until("the end of the budget", |routing| budget_of(routing, &tenant).is_none()).await;
}

#[tokio::test]
async fn money_paid_ahead_bounds_the_month_and_is_debited_once() {
    let plane = Arc::new(Plane::start().await);
    let tenant = plane.tenant("acme").await;
    plane.model("m").await;
    let mut edge = Edge::connect(&plane, "e1", Routing::default()).await;
    let mut meter = Meter::connect(&plane, "e1").await;
    meter.ship(1, 0, &[spending(&tenant, "1")]).await;
    let billing = set(&plane, &tenant, json!({"prepaid_balance": "4", "monthly_budget": "100"})).await;
    assert_eq!(figures(&billing), [Some("100"), Some("4"), Some("1"), Some("5"), Some("4")]);
    edge.until("the allowance", |r| budget_of(r, &tenant).is_some_and(|b| b.monthly == usd("5"))).await;

    // Delivered twice, from another position, and by two edges at once.
    let events: Vec<UsageEvent> = (0..5).map(|_| spending(&tenant, "0.300000000001")).collect();
    meter.ship(1, 1, &events).await;
    meter.ship(1, 1, &events).await;
    let racing: Vec<_> = (0..4)
        .map(|racer| {
            let (plane, mut events) = (Arc::clone(&plane), events.clone());
            events.rotate_left(racer);
            events.push(spending(&tenant, "0.1"));
            tokio::spawn(async move {
                Meter::connect(&plane, &format!("r{racer}")).await.ship(9, 0, &events).await;
            })
        })
        .collect();
    for racer in racing {
        racer.await.unwrap();
    }
    edge.until("the spending", |routing| has_spent(routing, &tenant, "2.900000000005")).await;
    assert_eq!(budget_of(&edge.routing, &tenant).unwrap().monthly, usd("5"), "usage does not move the allowance");
    let billing = plane.get(&path(&tenant)).await;
    let expected = [Some("100"), Some("2.099999999995"), Some("2.900000000005"), Some("5"), Some("2.099999999995")];
    assert_eq!(figures(&billing), expected);

    // Over what was paid: nothing is left, and no more is lent. Paying again opens it.
    meter.ship(1, 6, &[spending(&tenant, "3")]).await;
    edge.until("the excess", |routing| has_spent(routing, &tenant, "5.900000000005")).await;
    let told = budget_of(&edge.routing, &tenant).unwrap();
    assert_eq!(told.monthly, told.spent);
    let billing = plane.get(&path(&tenant)).await;
    assert_eq!(
        (billing["prepaid_balance"].as_str(), billing["remaining"].as_str()),
        (Some("-0.900000000005"), Some("0"))
    );
    set(&plane, &tenant, json!({"prepaid_balance": "20.5"})).await;
    edge.until("the payment", |r| budget_of(r, &tenant).is_some_and(|b| b.monthly == usd("26.400000000005"))).await;
    // A smaller budget bounds it again, and an untouched balance stays as it is.
    let billing = set(&plane, &tenant, json!({"monthly_budget": "6"})).await;
    assert_eq!(figures(&billing)[1..4], [Some("20.5"), Some("5.900000000005"), Some("6")]);
    set(&plane, &tenant, json!({"prepaid_balance": null})).await;
    meter.ship(1, 7, &[spending(&tenant, "0.05")]).await;
    assert_eq!(plane.get(&path(&tenant)).await["prepaid_balance"], Value::Null);
    let audit: Vec<Value> =
        sqlx::query_scalar("SELECT details FROM audit_log WHERE action = 'billing.update' ORDER BY id")
            .fetch_all(&plane.pool)
            .await
            .unwrap();
    assert_eq!((audit.len(), &audit[0]["after"]["prepaid_balance"]), (4, &json!("4")));
}

#[tokio::test]
async fn edges_of_all_regions_are_told_at_once_that_a_budget_is_used_up() {
    // The regular look is a minute away: it is the spending itself that tells.
    let plane = Plane::start_with("billing.reconcile_every = \"60s\"").await;
    let tenant = plane.tenant("acme").await;
    plane.model("m").await;
    let mut edges =
        [Edge::connect(&plane, "e1", Routing::default()).await, Edge::connect(&plane, "e2", Routing::default()).await];
    set(&plane, &tenant, json!({"monthly_budget": "10"})).await;
    for edge in &mut edges {
        edge.until("the budget", |routing| has_spent(routing, &tenant, "0")).await;
    }
    let mut meter = Meter::connect(&plane, "e1").await;
    meter.ship(1, 0, &[spending(&tenant, "10")]).await;
    let acknowledged = std::time::Instant::now();
    for edge in &mut edges {
        edge.until("the end of the budget", |routing| has_spent(routing, &tenant, "10")).await;
    }
    let took = acknowledged.elapsed();
    println!("both edges knew {took:?} after the usage was acknowledged");
    // A second on a machine of its own; the regular look would take a minute.
    assert!(took < std::time::Duration::from_secs(10), "{took:?}");
}

#[tokio::test]
async fn amounts_that_cannot_hold_are_refused() {
    let plane = Plane::start().await;
    let tenant = plane.tenant("acme").await;
    let cases = [
        (json!({"monthly_budget": "-1", "prepaid_balance": "-0.5"}), vec!["monthly_budget", "prepaid_balance"]),
        (json!({"monthly_budget": "1.001"}), vec!["monthly_budget"]),
        (json!({"monthly_budget": "1000000000000"}), vec!["monthly_budget"]),
        (json!({"monthly_budget": 5}), vec!["monthly_budget"]),
        (json!({"prepaid_balance": "much"}), vec!["prepaid_balance"]),
        (json!({"currency": "EUR", "billing_email": ""}), vec!["currency", "billing_email"]),
        (json!({"budget": "5"}), vec!["budget"]),
        (json!({"discount_permille": 1001, "tax_rate": "100.001"}), vec!["tax_rate", "discount_permille"]),
        (json!({"tax_rate": "8.8755"}), vec!["tax_rate"]),
        (
            json!({"auto_recharge_enabled": true, "auto_recharge_amount": "0"}),
            vec!["auto_recharge_amount", "auto_recharge_enabled"],
        ),
        (
            json!({"auto_recharge_enabled": true, "auto_recharge_amount": "5", "auto_recharge_threshold": "1"}),
            vec!["auto_recharge_enabled"],
        ),
    ];
    for (body, expected) in cases {
        let problem = plane.refused(Method::PATCH, &path(&tenant), &body.to_string(), 422).await;
        assert_eq!(fields(&problem), expected, "{problem}");
    }
    assert_eq!(figures(&plane.get(&path(&tenant)).await), [None, None, Some("0"), None, None]);
    let nobody = format!("/organizations/{}/billing", uuid::Uuid::new_v4());
    plane.refused(Method::GET, &nobody, "", 404).await;
    plane.refused(Method::PATCH, &nobody, "{}", 404).await;

    // An organization without an account, from before there were any, is given one.
    sqlx::query("DELETE FROM billing_accounts").execute(&plane.pool).await.unwrap();
    assert_eq!(figures(&plane.get(&path(&tenant)).await), [None, None, Some("0"), None, None]);
    let billing = set(&plane, &tenant, json!({"monthly_budget": "0", "currency": "USD"})).await;
    assert_eq!(figures(&billing), [Some("0"), None, Some("0"), Some("0"), Some("0")]);
}

#[tokio::test]
async fn what_edges_are_told_says_how_far_it_is_complete() {
    let plane = Plane::start().await;
    let tenant = plane.tenant("acme").await;
    set(&plane, &tenant, json!({"monthly_budget": "10"})).await;
    let mut edge = Edge::connect(&plane, "e1", Routing::default()).await;
    edge.until("the budget", |routing| budget_of(routing, &tenant).is_some()).await;

    // What was told is made old: it is told anew without anything having been spent. So is the budget of another month.
    let told = async |change: &'static str| {
        let sql = format!("UPDATE organizations SET budget = budget || '{change}'");
        sqlx::query(sqlx::AssertSqlSafe(sql)).execute(&plane.pool).await.unwrap();
    };
    let before = edge.routing.version;
    told(r#"{"as_of_ms": 5}"#).await;
    edge.until_version(before + 1).await;
    let age = |edge: &Edge| {
        let as_of = i64::try_from(budget_of(&edge.routing, &tenant).unwrap().as_of_ms).unwrap();
        (Utc::now() - DateTime::from_timestamp_millis(as_of).unwrap()).num_seconds()
    };
    assert!((0..60).contains(&age(&edge)), "{}", age(&edge));
    told(r#"{"month": 202501}"#).await;
    edge.until_version(before + 2).await;
    assert!(budget_of(&edge.routing, &tenant).unwrap().month > 202_501);

    // An edge that is away may have spent what nobody knows; one that was retired long ago has not.
    for (name, ago) in [("retired", "2 hours"), ("away", "10 minutes")] {
        sqlx::query(
            "INSERT INTO edges (name, region, build, last_seen_at, complete_to)
             VALUES ($1, 'eu', 'b', now() - $2::text::interval, now() - $2::text::interval)",
        )
        .bind(name)
        .bind(ago)
        .execute(&plane.pool)
        .await
        .unwrap();
    }
    told(r#"{"as_of_ms": 5}"#).await;
    edge.until_version(before + 3).await;
    assert!((600..660).contains(&age(&edge)), "{}", age(&edge));
}

#[tokio::test]
async fn the_books_of_an_edge_are_complete_as_far_as_it_says_once_its_usage_is_stored() {
    let plane = Plane::start().await;
    let tenant = plane.tenant("acme").await;
    plane.model("m").await;
    let mut edge = Edge::connect(&plane, "e1", Routing::default()).await;
    edge.next().await;
    let books = || async {
        let sql = "SELECT complete_to, began_to, last_seen_at FROM edges";
        type Row = (DateTime<Utc>, Option<DateTime<Utc>>, DateTime<Utc>);
        sqlx::query_as::<_, Row>(sql).fetch_one(&plane.pool).await.unwrap()
    };
    let (first, began, _) = books().await;
    assert_eq!(began, None);
    let ms = |at: DateTime<Utc>| u64::try_from(at.timestamp_millis()).unwrap();
    let time = |ms: u64| DateTime::from_timestamp_millis(i64::try_from(ms).unwrap()).unwrap();

    // What it ships is an hour old and not all: the books stay as they are, whatever is stored.
    let hour_old = || event(&tenant, Some("m"), Utc::now() - chrono::Duration::hours(1), 1, 1);
    let mut meter = Meter::connect(&plane, "e1").await;
    meter.ship(1, 0, &[hour_old()]).await;
    let stamped = books().await.2;
    eventually("another stamp", || async { Some(books().await.2).filter(|at| *at > stamped) }).await;
    assert_eq!(books().await.0, first);

    // It says how far it has come: at once without events, with events once they are stored.
    let said = Watermark { ended_to_ms: ms(first) + 40, began_to_ms: ms(first) - 3_600_000, ..Watermark::default() };
    meter.say(1, 1, said).await;
    let (complete, began, _) =
        eventually("the books go on", || async { Some(books().await).filter(|b| b.0 > first) }).await;
    assert_eq!((complete, began), (time(said.ended_to_ms), Some(time(said.began_to_ms))));
    let mut locking = plane.pool.begin().await.unwrap();
    sqlx::query("LOCK TABLE inference_requests IN EXCLUSIVE MODE").execute(&mut *locking).await.unwrap();
    let further =
        Watermark { ended_to_ms: said.ended_to_ms + 7, began_to_ms: said.began_to_ms - 5, ..Watermark::default() };
    meter.send_with(1, 1, &[hour_old()], further).await;
    let stamped = books().await.2;
    eventually("another stamp", || async { Some(books().await.2).filter(|at| *at > stamped) }).await;
    assert_eq!(books().await.0, complete, "a batch that waits holds the books back");
    locking.rollback().await.unwrap();
    assert_eq!(meter.ack().await.end_seq, 2);
    // An edge's own clock may go back; books that were complete stay so.
    eventually("both marks", || async {
        let (complete, began, _) = books().await;
        Some(()).filter(|()| (complete, began) == (time(further.ended_to_ms), Some(time(further.began_to_ms))))
    })
    .await;
    // Nor is a mark believed that lies ahead of time.
    meter.say(1, 2, Watermark { ended_to_ms: u64::MAX / 4_000_000, began_to_ms: 0, ..Watermark::default() }).await;
    let (complete, _, seen) =
        eventually("the mark", || async { Some(books().await).filter(|b| b.0 > time(further.ended_to_ms)) }).await;
    assert!(complete <= seen, "{complete} {seen}");
    let shown = plane.get("/edges").await;
    assert!(shown["data"][0]["complete_to"].is_string() && shown["data"][0]["began_to"].is_string(), "{shown}");
}

#[tokio::test]
async fn what_was_told_of_budgets_does_not_fill_the_log() {
    let plane = Plane::start().await;
    let tenant = plane.tenant("acme").await;
    set(&plane, &tenant, json!({"monthly_budget": "10"})).await;
    let mut edge = Edge::connect(&plane, "e1", Routing::default()).await;
    edge.until("the budget", |routing| budget_of(routing, &tenant).is_some()).await;
    let held = edge.held();
    append_by_hand(&plane, "node:none", vec![json!({"drop_node": "none"}); 10]).await;
    append_by_hand(&plane, "billing", vec![json!({"drop_node": "none"}); 4990]).await;
    edge.until_version(held.at.version + 5000).await;
    plane.model("m").await;
    Meter::connect(&plane, "e1").await.ship(1, 0, &[spending(&tenant, "1")]).await;
    edge.until("the spending", |routing| has_spent(routing, &tenant, "1")).await;
    let (all, first): (i64, i64) =
        sqlx::query_as("SELECT count(*) FILTER (WHERE author NOT LIKE 'token:%'), min(version) FROM config_log")
            .fetch_one(&plane.pool)
            .await
            .unwrap();
    assert!(all <= 4096 + 1, "{all} are kept");
    assert_eq!(first, 1, "operators' changes are all kept");
    let mut far_behind = Edge::come_back(&plane, "e2", held).await;
    assert_eq!(far_behind.next().await, Kind::Snapshot);
    // One that was made for another edge may be some versions old.
    far_behind.until_version(edge.routing.version).await;
    assert_eq!(far_behind.routing, edge.routing);
}
