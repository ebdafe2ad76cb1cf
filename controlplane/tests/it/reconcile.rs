//! The books of a day, equal and tampered with.

use crate::invoices::{close, first_of, spending};
use crate::node_ledger::Shipper;
use crate::peers::Meter;
use crate::plane::{Kept, Plane, Tenant, eventually};
use crate::usage::event;
use chrono::{DateTime, Days, NaiveDate, NaiveTime, Utc};
use serde_json::{Value, json};
use sqlx::AssertSqlSafe;
use turnpike_config::wire::{DayCount, LedgerEntry, LedgerState};
use turnpike_config::{CacheStatus, Tokens, UsageEvent};

/// An invoiced day.
fn day() -> NaiveDate {
    first_of(1) + Days::new(9)
}

fn noon(day: NaiveDate) -> DateTime<Utc> {
    day.and_time(NaiveTime::from_hms_opt(12, 0, 0).unwrap()).and_utc()
}

/// Usage of a day: two that a node worked on, one from the cache, one that an edge estimated, and one without a model.
fn usage(tenant: &Tenant, day: NaiveDate) -> [UsageEvent; 5] {
    let at = noon(day);
    let mut events = [
        event(tenant, Some("m"), at, 100, 10),
        event(tenant, Some("m"), day.and_time(NaiveTime::MIN).and_utc(), 7, 3),
        spending(tenant, "m", at, "0.000000000001"),
        spending(tenant, "m", at, "0.5"),
        event(tenant, None, at, 0, 0),
    ];
    events[2].cache = Some(CacheStatus::Hit);
    events[3].estimated = true;
    events[4].node = None;
    events
}

fn counts(events: &[UsageEvent], day: NaiveDate) -> DayCount {
    let number = day.signed_duration_since(NaiveDate::default()).num_days();
    let mut count = DayCount { day: u32::try_from(number).unwrap(), ..DayCount::default() };
    events.iter().filter(|event| event.model.is_some()).for_each(|event| count.add(event));
    count
}

fn entry(event: &UsageEvent) -> LedgerEntry {
    let tokens = Tokens { prompt: event.prompt_tokens, cached: 0, completion: event.completion_tokens };
    LedgerEntry { event: event.id, tokens, state: LedgerState::Counted }
}

/// Ships a day's usage from everywhere.
async fn ship(plane: &Plane, tenant: &Tenant, day: NaiveDate) -> [UsageEvent; 5] {
    let events = usage(tenant, day);
    let mut meter = Meter::connect(plane, "e1").await;
    meter.ship(7, 0, &events).await;
    meter.count(7, 5, vec![counts(&events, day)]).await;
    // An older word that comes late, and what another journal of the edge has counted of another day.
    meter.count(7, 4, vec![DayCount { requests: 1, ..counts(&events, day) }]).await;
    meter.count(8, 0, vec![DayCount::default()]).await;
    let entries = [entry(&events[0]), entry(&events[1])];
    Shipper::connect(plane, "n1").await.ship(0, &entries).await;
    events
}

async fn report(plane: &Plane, day: NaiveDate) -> Value {
    plane.get(&format!("/reconcile?day={day}")).await
}

async fn run(plane: &Plane, sql: &str) {
    let done = sqlx::query(AssertSqlSafe(sql.to_owned())).execute(&plane.pool).await.unwrap();
    assert!(done.rows_affected() > 0 || sql.starts_with("ALTER"), "{sql} changed nothing");
}

#[tokio::test]
async fn books_that_are_equal_say_so_by_the_ledger_in_postgresql() {
    equal_books(Kept::Postgres).await;
}

#[tokio::test]
async fn books_that_are_equal_say_so_by_the_ledger_in_clickhouse() {
    equal_books(Kept::ClickHouse).await;
}

async fn equal_books(kept: Kept) {
    let plane = Plane::start_with(&kept.settings().await).await;
    plane.model("m").await;
    let tenant = plane.tenant("acme").await;
    ship(&plane, &tenant, day()).await;
    close(&plane, &tenant, 1).await;
    let report = report(&plane, day()).await;
    assert_eq!((&report["equal"], &report["complete"]), (&json!(true), &json!(true)), "{report}");
    // 107 and 13 tokens at $0.01 and $0.03 per thousand, and two amounts of their own.
    let sums = json!({"requests": 4, "prompt_tokens": 307, "completion_tokens": 33, "cost_usd": "0.501460000001"});
    assert_eq!((&report["ledger"], &report["edges"]["sums"], &report["usage_records"]["sums"]), (&sums, &sums, &sums));
    assert_eq!(
        (&report["nodes"]["sums"]["requests"], &report["nodes"]["sums"]["prompt_tokens"]),
        (&json!(2), &json!(107))
    );
    let invoice = &report["invoices"][0];
    assert_eq!((&invoice["charged"], &invoice["difference"]), (&json!("0.501460000001"), &json!("0")));
    // Another day has no books at all.
    let empty = self::report(&plane, day() + Days::new(1)).await;
    assert_eq!((&empty["equal"], &empty["ledger"]["requests"]), (&json!(true), &json!(0)));

    // One that its edge has not counted, and no node has an entry of. Its day is invoiced: it becomes an adjustment.
    let more = event(&tenant, Some("m"), noon(day() + Days::new(1)), 5, 5);
    let more = UsageEvent { edge: "e2".to_owned(), ..more };
    Meter::connect(&plane, "e2").await.ship(1, 0, std::slice::from_ref(&more)).await;
    let report = self::report(&plane, day() + Days::new(1)).await;
    assert_eq!((&report["equal"], &report["ledger"]["requests"]), (&json!(false), &json!(1)));
    let (edge, model) = (&report["edges"]["first"][0], &report["usage_records"]["unequal"]);
    assert_eq!((&edge["of"], &edge["sums"]["requests"], model), (&json!("e2"), &json!(0), &json!(0)), "{report}");
    let unknown = &report["nodes"]["events_without_entry"]["first"][0];
    assert_eq!((&unknown["event_id"], &unknown["ledger"]), (&json!(more.id), &json!([5, 5])));
}

/// A change of one book, its opposite, and what then names it: a path into the report and the value there.
struct Tampering {
    change: String,
    undo: String,
    found: Vec<(&'static str, Value)>,
}

fn tamperings(tenant: &Tenant, events: &[UsageEvent]) -> Vec<Tampering> {
    let (first, day) = (events[0].id, day());
    let of_model = format!("{} m", tenant.organization);
    let case = |change: String, undo: String, found| Tampering { change, undo, found };
    let set = |table: &str, change: &str, undo: &str, found| {
        case(format!("UPDATE {table} SET {change}"), format!("UPDATE {table} SET {undo}"), found)
    };
    vec![
        // A row more, and one less, in the usage ledger.
        case(
            format!(
                "INSERT INTO inference_requests SELECT (jsonb_populate_record(r, jsonb_build_object('id',
                     'ffffffff-0000-4000-8000-000000000000'))).* FROM inference_requests r WHERE id = '{first}'"
            ),
            "DELETE FROM inference_requests WHERE id = 'ffffffff-0000-4000-8000-000000000000'".to_owned(),
            vec![
                ("/edges/difference/requests", json!(-1)),
                ("/edges/first/0/of", json!("e1")),
                ("/usage_records/first/0/of", json!(of_model)),
                ("/usage_records/difference/prompt_tokens", json!(-100)),
                ("/nodes/events_without_entry/first/0/event_id", json!("ffffffff-0000-4000-8000-000000000000")),
            ],
        ),
        set(
            "inference_requests",
            &format!("created_at = created_at + interval '1 day' WHERE id = '{first}'"),
            &format!("created_at = created_at - interval '1 day' WHERE id = '{first}'"),
            vec![
                ("/edges/difference/requests", json!(1)),
                ("/usage_records/difference/completion_tokens", json!(10)),
                ("/nodes/entries_without_event/first/0/event_id", json!(first)),
            ],
        ),
        // A token less, a pico-dollar more.
        set(
            "usage_records",
            "prompt_tokens = prompt_tokens - 1, total_tokens = total_tokens - 1",
            "prompt_tokens = prompt_tokens + 1, total_tokens = total_tokens + 1",
            vec![("/usage_records/difference/prompt_tokens", json!(-1)), ("/usage_records/unequal", json!(1))],
        ),
        set(
            "usage_records",
            "cost_usd = cost_usd + 0.000000000001",
            "cost_usd = cost_usd - 0.000000000001",
            vec![
                ("/usage_records/difference/cost_usd", json!("0.000000000001")),
                ("/invoices/0/difference", json!("-0.000000000001")),
            ],
        ),
        set(
            "edge_days",
            "cost_usd = cost_usd - 0.000000000001 WHERE requests > 0",
            "cost_usd = cost_usd + 0.000000000001 WHERE requests > 0",
            vec![("/edges/difference/cost_usd", json!("-0.000000000001")), ("/edges/first/0/of", json!("e1"))],
        ),
        // A missing entry, at an edge and at a node, and one with a token less.
        set(
            "edge_days",
            &format!("day = day + 1 WHERE day = '{day}'"),
            &format!("day = day - 1 WHERE day > '{day}'"),
            vec![("/edges/difference/requests", json!(-4)), ("/edges/sums/requests", json!(0))],
        ),
        set(
            "node_ledger",
            &format!("node = 'n9' WHERE event_id = '{first}'"),
            "node = 'n1'",
            vec![("/nodes/events_without_entry/first/0/event_id", json!(first)), ("/nodes/unlike/count", json!(0))],
        ),
        set(
            "node_ledger",
            &format!("completion_tokens = completion_tokens - 1 WHERE event_id = '{first}'"),
            &format!("completion_tokens = completion_tokens + 1 WHERE event_id = '{first}'"),
            vec![
                ("/nodes/unlike/first/0/event_id", json!(first)),
                ("/nodes/unlike/first/0/at_node", json!([100, 9])),
                ("/nodes/difference/completion_tokens", json!(-1)),
            ],
        ),
        // An invoice that charges a pico-dollar more than was used.
        set(
            "invoices",
            "exact_total = exact_total + 0.000000000001",
            "exact_total = exact_total - 0.000000000001",
            vec![("/invoices/0/difference", json!("0.000000000001")), ("/usage_records/unequal", json!(0))],
        ),
    ]
}

#[tokio::test]
async fn every_tampering_is_found_and_named() {
    let plane = Plane::start().await;
    plane.model("m").await;
    let tenant = plane.tenant("acme").await;
    let events = ship(&plane, &tenant, day()).await;
    close(&plane, &tenant, 1).await;
    // Who tampers with an invoice has the means to.
    run(&plane, "ALTER TABLE invoices DISABLE TRIGGER USER").await;
    for Tampering { change, undo, found } in tamperings(&tenant, &events) {
        run(&plane, &change).await;
        let tampered = report(&plane, day()).await;
        assert_eq!(tampered["equal"], false, "{change}");
        for (path, expected) in found {
            assert_eq!(tampered.pointer(path), Some(&expected), "{change}: {path} in {tampered}");
        }
        run(&plane, &undo).await;
        let restored = report(&plane, day()).await;
        assert_eq!(restored["equal"], true, "{undo}: {restored}");
    }
}

#[tokio::test]
async fn yesterday_is_compared_by_itself_and_shown() {
    let mut plane = Plane::start().await;
    plane.model("m").await;
    let tenant = plane.tenant("acme").await;
    let yesterday = Utc::now().date_naive() - Days::new(1);
    ship(&plane, &tenant, yesterday).await;
    assert_eq!(report(&plane, yesterday).await["equal"], true);
    run(&plane, "UPDATE usage_records SET cost_usd = cost_usd + 0.000000000003").await;
    run(&plane, "UPDATE edge_days SET completion_tokens = completion_tokens + 2 WHERE requests > 0").await;
    // The first life compared them before there was anything in them.
    sqlx::query("DELETE FROM reconciliations").execute(&plane.pool).await.unwrap();
    plane.restart().await;
    let metric = async |name: &str| plane.metric(&format!("turnpike_controlplane_reconcile_{name}")).await;
    eventually("the comparison", || async { metric("last_run_seconds").await.filter(|at| *at > 0.0) }).await;
    assert_eq!(metric("difference_pico_dollars").await, Some(3.0));
    assert_eq!(metric("difference_tokens").await, Some(2.0));
    assert_eq!(metric("difference_events").await, Some(0.0));
    let noted: (NaiveDate, bool) =
        sqlx::query_as("SELECT day, complete FROM reconciliations").fetch_one(&plane.pool).await.unwrap();
    assert_eq!(noted, (yesterday, true));
}

#[tokio::test]
async fn a_day_is_asked_for_as_a_day() {
    let plane = Plane::start().await;
    plane.refused(reqwest::Method::GET, "/reconcile?day=yesterday", "", 422).await;
    let today = report(&plane, Utc::now().date_naive()).await;
    assert_eq!(today["complete"], false, "it is not over");
}

#[tokio::test]
async fn days_that_were_missed_are_made_up_for() {
    let mut plane = Plane::start().await;
    plane.model("m").await;
    let tenant = plane.tenant("acme").await;
    let missed = Utc::now().date_naive() - Days::new(5);
    ship(&plane, &tenant, missed).await;
    plane.restart().await;
    eventually("the comparison", || async {
        let noted: Option<bool> = sqlx::query_scalar("SELECT complete FROM reconciliations WHERE day = $1")
            .bind(missed)
            .fetch_optional(&plane.pool)
            .await
            .unwrap();
        (noted == Some(true)).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_day_is_complete_once_it_is_added_up() {
    let plane = Plane::start().await;
    plane.model("m").await;
    let tenant = plane.tenant("acme").await;
    // Nothing is added up meanwhile.
    let mut adding = plane.pool.begin().await.unwrap();
    sqlx::query("SELECT pg_advisory_xact_lock(x'6d65746572696e67'::bigint)").execute(&mut *adding).await.unwrap();
    ship(&plane, &tenant, day()).await;
    let before = report(&plane, day()).await;
    assert_eq!((&before["complete"], &before["equal"]), (&json!(false), &json!(false)), "{before}");
    adding.rollback().await.unwrap();
    let after = report(&plane, day()).await;
    assert_eq!((&after["complete"], &after["equal"]), (&json!(true), &json!(true)), "{after}");
}
