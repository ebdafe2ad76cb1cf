//! A deployment that kept usage in PostgreSQL gets a ClickHouse: what it has goes there, exactly, while it serves.

use super::proxy::Proxy;
use super::*;
use crate::invoices::{close, first_of};
use crate::plane::clickhouse_settings;
use chrono::{Days, NaiveTime};
use reqwest::Method;
use turnpike_parts::clickhouse::ClickHouse;

/// Requests of one insert, and more.
const MANY: u32 = 12_500;
const REFUSED: &str = "turnpike_controlplane_rollup_hours_refused";

async fn server() -> &'static ClickHouse {
    tokio::task::spawn_blocking(|| ClickHouse::shared_temporary().unwrap()).await.unwrap()
}

fn database_of(settings: &str) -> String {
    settings.split('"').find(|text| text.starts_with("t_")).unwrap().to_owned()
}

async fn ask(sql: String) -> String {
    let server = server().await;
    tokio::task::spawn_blocking(move || server.query(&sql).unwrap()).await.unwrap()
}

async fn copied(plane: &Plane) {
    eventually("everything is copied", || async {
        let left = "SELECT count(*) FROM usage_ledger WHERE copied_from IS NOT NULL OR clickhouse IS NULL";
        (count(plane, left).await == 0).then_some(())
    })
    .await;
}

/// Usage over two months and today, some of it without a model or a key, last month on an invoice.
async fn with_history(plane: &Plane, tenant: &Tenant) -> Vec<UsageEvent> {
    plane.model("m").await;
    plane.model("n").await;
    let month = (first_of(1) + Days::new(3)).and_time(NaiveTime::MIN).and_utc();
    let nobody = Tenant { key_id: uuid::Uuid::new_v4().to_string(), ..tenant.clone() };
    let mut events: Vec<UsageEvent> = (0..60)
        .map(|number| {
            let time = if number % 2 == 0 { month + TimeDelta::hours(number.into()) } else { Utc::now() };
            let tenant = if number % 7 == 0 { &nobody } else { tenant };
            distinct(tenant, if number % 3 == 0 { "m" } else { "n" }, time, number)
        })
        .collect();
    let refused = UsageEvent { model: None, model_version: None, cost: Usd::ZERO, ..distinct(tenant, "m", month, 99) };
    events.push(UsageEvent { prompt_tokens: 0, completion_tokens: 0, cached_tokens: 0, ..refused });
    ship_in(plane, "e1", 1, &events, &[17]).await;
    events.pop();
    events
}

/// As [`assert_sums`], of events some of whose keys do not exist.
async fn same_sums(plane: &Plane, before: &[(String, Value)]) {
    for (path, answer) in before {
        assert_eq!(&plane.get(path).await, answer, "{path}");
    }
}

/// What is shown of all usage in every grouping.
async fn shown(plane: &Plane) -> Vec<(String, Value)> {
    let from = first_of(1);
    let mut answers = Vec::new();
    for (grouping, _) in groupings() {
        let path = format!("/usage?from={from}&group_by={grouping}");
        answers.push((path.clone(), plane.get(&path).await));
    }
    answers
}

#[tokio::test]
async fn usage_from_before_clickhouse_was_set_is_copied_to_the_pico_dollar() {
    let mut plane = Plane::start().await;
    let tenant = plane.tenant("acme").await;
    let events = with_history(&plane, &tenant).await;
    let invoice = close(&plane, &tenant, 1).await["invoice"].clone();
    let before = shown(&plane).await;

    plane.more = clickhouse_settings(&server().await.url());
    plane.restart().await;
    copied(&plane).await;
    same_sums(&plane, &before).await;
    let database = database_of(&plane.more);
    let cost = Usd { pico: events.iter().map(|event| event.cost.pico).sum() };
    let exact = format!("SELECT count(), sum(cost), uniqExact(event_id) FROM {database}.request_analytics FINAL");
    assert_eq!(ask(exact.clone()).await, format!("61\t{cost}\t61"));
    // What edges ship once more is known, and what is late makes its hours more and none of them less.
    ship_in(&plane, "e2", 1, &events, &[25]).await;
    same_sums(&plane, &before).await;
    let times = [time_of(&events[0]), time_of(&events[1])];
    let late: Vec<_> = times.iter().zip(500..).map(|(at, number)| distinct(&tenant, "m", *at, number)).collect();
    ship_in(&plane, "e1", 1, &[&events[..], &late].concat()[60..], &[2]).await;
    let total = plane.get(&format!("/usage?from={}", first_of(1))).await;
    let more: i128 = late.iter().map(|event| event.cost.pico).sum();
    assert_eq!(sum_of(&total["data"][0]).3, cost.pico + more);
    rolled_up(&plane).await;
    assert_eq!(plane.metric(REFUSED).await, Some(0.0));
    assert_eq!(plane.get(&format!("/invoices/{}", invoice["id"].as_str().unwrap())).await["checksum_valid"], true);
    // Nothing is copied again, and into a database that was made anew all of the log is.
    let raw = format!("SELECT count() FROM {database}.request_analytics");
    let rows = ask(raw.clone()).await;
    plane.restart().await;
    copied(&plane).await;
    assert_eq!(ask(raw).await, rows);
    let anew = clickhouse_settings(&server().await.url());
    plane.more = anew.clone();
    plane.restart().await;
    copied(&plane).await;
    let exact = exact.replace(&database, &database_of(&anew));
    assert_eq!(ask(exact).await, format!("63\t{}\t63", Usd { pico: cost.pico + more }));
}

#[tokio::test]
async fn copying_goes_on_where_it_was_broken_off_and_hours_wait_for_it() {
    let mut plane = Plane::start().await;
    let tenant = plane.tenant("acme").await;
    plane.model("m").await;
    // One each eight seconds: the first insert ends in the middle of a day.
    let now = Utc::now();
    let event = |number: u32| distinct(&tenant, "m", now - TimeDelta::seconds(8 * i64::from(number)), number);
    let events: Vec<UsageEvent> = (0..MANY).map(event).collect();
    ship_in(&plane, "e1", 1, &events, &[4_000]).await;
    assert_sums(&plane, &events).await;

    // The second insert is stored, and it dies before that is noted.
    sqlx::raw_sql(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'refused for a test'; END $$;
         CREATE TRIGGER refuse BEFORE UPDATE ON usage_ledger FOR EACH ROW
             WHEN (old.copied_from < now()) EXECUTE FUNCTION refuse();",
    )
    .execute(&plane.pool)
    .await
    .unwrap();
    let settings = clickhouse_settings(&server().await.url());
    let raw = format!("SELECT count() FROM {}.request_analytics", database_of(&settings));
    plane.more = settings;
    plane.restart().await;
    eventually("the second insert", || async { (ask(raw.clone()).await == MANY.to_string()).then_some(()) }).await;
    let reached: DateTime<Utc> =
        sqlx::query_scalar("SELECT copied_from FROM usage_ledger").fetch_one(&plane.pool).await.unwrap();
    assert_eq!(reached.timestamp_millis(), time_of(&events[9_999]).timestamp_millis());
    // An edge is served all the while. What comes for hours that are there is added up, and other hours wait.
    let late = [distinct(&tenant, "m", now, MANY), distinct(&tenant, "m", time_of(&events[12_000]), MANY + 1)];
    Meter::connect(&plane, "e2").await.ship(1, 0, &late).await;
    let total = |events: &[UsageEvent]| i64::try_from(events.len()).unwrap();
    let from = time_of(&events[12_499]).date_naive();
    let path = format!("/usage?from={from}");
    let requests = async |plane: &Plane| sum_of(&plane.get(&path).await["data"][0]).0;
    assert_eq!(requests(&plane).await, total(&events) + 1);
    assert_eq!(count(&plane, "SELECT count(DISTINCT hour) FROM usage_dirty_hours").await, 1);
    assert_eq!(plane.metric(REFUSED).await, Some(0.0));
    let by_key = format!("/usage?from={from}&group_by=key");
    let problem = plane.refused(Method::GET, &by_key, "", 503).await;
    assert!(problem["detail"].as_str().unwrap().contains("still being copied"), "{problem}");

    plane.stop().await;
    sqlx::raw_sql("DROP TRIGGER refuse ON usage_ledger").execute(&plane.pool).await.unwrap();
    plane.restart_stopped().await;
    copied(&plane).await;
    rolled_up(&plane).await;
    assert_sums(&plane, &[&events[..], &late].concat()).await;
    let rows: u32 = ask(raw).await.parse().unwrap();
    assert!(rows < MANY + 9_999, "{rows}: what was copied and noted is not copied again");
}

#[tokio::test]
async fn a_copy_of_which_nobody_heard_counts_once() {
    let mut plane = Plane::start().await;
    let tenant = plane.tenant("acme").await;
    with_history(&plane, &tenant).await;
    let before = shown(&plane).await;
    let server = tokio::task::spawn_blocking(|| ClickHouse::start_temporary().unwrap()).await.unwrap();
    let proxy = Proxy::start(server.port()).await;
    plane.more = clickhouse_settings(&server.url().replace(&server.port().to_string(), &proxy.port.to_string()));
    // As if another control plane copied («copy_log» in ASCII), until ClickHouse's replies are lost.
    let mut copying = plane.pool.begin().await.unwrap();
    sqlx::query("SELECT pg_advisory_xact_lock($1)")
        .bind(0x636f_7079_5f6c_6f67_i64)
        .execute(&mut *copying)
        .await
        .unwrap();
    plane.restart().await;
    let refused = UsageEvent { model: None, ..distinct(&tenant, "m", Utc::now(), 100) };
    Meter::connect(&plane, "e1").await.ship(9, 0, &[refused]).await;
    proxy.lose_replies(true);
    copying.rollback().await.unwrap();
    let raw = format!("SELECT count() FROM {}.request_analytics", database_of(&plane.more));
    let server = std::sync::Arc::new(server);
    eventually("the insert", || async {
        let (server, raw) = (std::sync::Arc::clone(&server), raw.clone());
        let rows: u32 =
            tokio::task::spawn_blocking(move || server.query(&raw).unwrap()).await.unwrap().parse().unwrap();
        (rows > 60).then_some(())
    })
    .await;
    assert_eq!(count(&plane, "SELECT count(copied_from) FROM usage_ledger").await, 1);
    proxy.lose_replies(false);
    copied(&plane).await;
    same_sums(&plane, &before).await;
}

#[tokio::test]
async fn a_control_plane_that_was_not_told_of_clickhouse_takes_no_usage_in() {
    let mut old = Plane::start().await;
    let tenant = old.tenant("acme").await;
    old.model("m").await;
    let events: Vec<UsageEvent> = (0..4).map(|number| distinct(&tenant, "m", Utc::now(), number)).collect();
    let mut meter = Meter::connect(&old, "e1").await;
    meter.ship(1, 0, &events[..2]).await;
    let new = Plane::start_on(old.database.clone(), &clickhouse_settings(&server().await.url())).await;
    copied(&new).await;
    meter.send(1, 2, &events[2..]).await;
    let failures = "turnpike_controlplane_usage_ingest_failures_total";
    eventually("refusals", || async { (old.metric(failures).await? > 0.0).then_some(()) }).await;
    assert_eq!(count(&new, "SELECT count(*) FROM inference_requests").await, 2);
    old.stop().await;
    Meter::connect(&new, "e1").await.ship(1, 2, &events[2..]).await;
    assert_sums(&new, &events).await;
}
