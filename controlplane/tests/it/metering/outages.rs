//! What happens when a database fails at the worst moment: nothing is lost, nothing is counted twice.

use super::proxy::Proxy;
use super::*;
use crate::peers::Edge;
use crate::plane::{Kept, clickhouse_settings};
use std::process::Command;
use std::sync::Arc;
use turnpike_config::Routing;
use turnpike_parts::clickhouse::ClickHouse;
use turnpike_parts::postgres::Postgres;

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.unwrap()
}

/// A ClickHouse of the test's own.
async fn clickhouse() -> ClickHouse {
    blocking(|| ClickHouse::start_temporary().unwrap()).await
}

async fn with(mut server: ClickHouse, work: impl FnOnce(&mut ClickHouse) + Send + 'static) -> ClickHouse {
    blocking(move || {
        work(&mut server);
        server
    })
    .await
}

async fn prepared(extras: &str) -> (Plane, Vec<UsageEvent>) {
    let plane = Plane::start_with(extras).await;
    let tenant = plane.tenant("acme").await;
    plane.model("m").await;
    let now = Utc::now();
    let events = (0..40).map(|number| distinct(&tenant, "m", now - TimeDelta::hours(number.into()), number)).collect();
    (plane, events)
}

/// Waits until so many rows are stored, whether or not anybody was told.
async fn holds(server: &Arc<ClickHouse>, database: &str, rows: usize) {
    let sql = format!("SELECT count() FROM {database}.request_analytics");
    eventually("the insert", || async {
        let (server, sql) = (Arc::clone(server), sql.clone());
        let stored = blocking(move || server.query(&sql).unwrap()).await;
        (stored == rows.to_string()).then_some(())
    })
    .await;
}

async fn failures(plane: &Plane) -> f64 {
    plane.metric("turnpike_controlplane_usage_ingest_failures_total").await.unwrap()
}

#[tokio::test]
async fn clickhouse_may_be_down_paused_or_read_only_and_nothing_is_lost() {
    let server = clickhouse().await;
    let (plane, events) = prepared(&clickhouse_settings(&server.url())).await;
    let mut meter = Meter::connect(&plane, "e1").await;
    meter.ship(1, 0, &events[..10]).await;

    let server = with(server, ClickHouse::kill).await;
    meter.send(1, 10, &events[10..20]).await;
    eventually("a failed attempt", || async { (failures(&plane).await > 0.0).then_some(()) }).await;
    let stored = count(&plane, "SELECT through_seq::bigint FROM usage_ingest").await;
    assert_eq!(stored, 9, "what is not in the ledger is not taken in");
    // Sums are there all the while, as they were.
    plane.get("/usage?group_by=day").await;
    plane.refused(reqwest::Method::GET, "/usage?group_by=key", "", 503).await;
    let server = with(server, |server| server.restart().unwrap()).await;
    assert_eq!(meter.ack().await.end_seq, 20);
    assert_sums(&plane, &events[..20]).await;

    let server = with(server, |server| server.restart_read_only().unwrap()).await;
    let before = failures(&plane).await;
    meter.send(1, 20, &events[20..30]).await;
    eventually("a refusal", || async { (failures(&plane).await > before).then_some(()) }).await;
    let server = with(server, |server| server.restart().unwrap()).await;
    assert_eq!(meter.ack().await.end_seq, 30);
    assert_sums(&plane, &events[..30]).await;

    let server = with(server, |server| server.pause().unwrap()).await;
    let before = failures(&plane).await;
    meter.send(1, 30, &events[30..]).await;
    eventually("a timeout", || async { (failures(&plane).await > before).then_some(()) }).await;
    let server = with(server, |server| server.resume().unwrap()).await;
    assert_eq!(meter.ack().await.end_seq, 40);
    assert_sums(&plane, &events).await;
    drop(server);
}

#[tokio::test]
async fn a_days_books_are_compared_however_long_their_sums_take() {
    let server = clickhouse().await;
    let settings = clickhouse_settings(&server.url()).replace("\"2s\"", "\"300ms\"");
    let (plane, events) = prepared(&(settings + "billing.reconcile_every = \"60s\"")).await;
    Meter::connect(&plane, "e1").await.ship(1, 0, &events).await;
    assert_sums(&plane, &events).await;
    let server = with(server, |server| server.pause().unwrap()).await;
    let day = time_of(events.last().unwrap()).date_naive();
    let path = format!("/reconcile?day={day}");
    let (report, _server) = tokio::join!(biased; plane.get(&path), async {
        // Longer than an insert or any other query may take.
        tokio::time::sleep(std::time::Duration::from_millis(900)).await;
        with(server, |server| server.resume().unwrap()).await
    });
    assert!(report["ledger"]["requests"].as_i64().unwrap() > 0, "{report}");
}

#[tokio::test]
async fn an_insert_whose_reply_is_lost_counts_once() {
    let server = clickhouse().await;
    let proxy = Proxy::start(server.port()).await;
    let url = server.url().replace(&server.port().to_string(), &proxy.port.to_string());
    let extras = clickhouse_settings(&url);
    let database = extras.split('"').find(|text| text.starts_with("t_")).unwrap().to_owned();
    let (plane, events) = prepared(&extras).await;
    let mut meter = Meter::connect(&plane, "e1").await;
    meter.ship(1, 0, &events[..10]).await;

    // Committed, and nobody heard: it is tried again, with the same token.
    proxy.lose_replies(true);
    meter.send(1, 10, &events[10..30]).await;
    let server = Arc::new(server);
    holds(&server, &database, 30).await;
    assert_eq!(count(&plane, "SELECT through_seq::bigint FROM usage_ingest").await, 9, "and not acknowledged");
    proxy.lose_replies(false);
    assert_eq!(meter.ack().await.end_seq, 30);
    assert_sums(&plane, &events[..30]).await;

    // The same, and the server crashes before it is asked again.
    proxy.lose_replies(true);
    meter.send(1, 30, &events[30..]).await;
    holds(&server, &database, 40).await;
    let server = Arc::into_inner(server).unwrap();
    let server = with(server, ClickHouse::kill).await;
    proxy.lose_replies(false);
    let server = with(server, |server| server.restart().unwrap()).await;
    assert_eq!(meter.ack().await.end_seq, 40);
    assert_sums(&plane, &events).await;
    // Shipped once more from elsewhere, as after an acknowledgement that was lost, in other cuts.
    ship_in(&plane, "e1", 2, &events, &[3, 13]).await;
    assert_sums(&plane, &events).await;
    let exact = format!("SELECT count(), sum(cost) FROM {database}.request_analytics FINAL");
    let found = blocking(move || server.query(&exact).unwrap()).await;
    let cost = Usd { pico: events.iter().map(|event| event.cost.pico).sum() };
    assert_eq!(found, format!("40\t{cost}"));
}

#[tokio::test]
async fn postgres_may_be_killed_in_the_middle_of_a_rollup() {
    for kept in [Kept::Postgres, Kept::ClickHouse] {
        let directory = tempfile::TempDir::new().unwrap();
        let path = directory.path().to_owned();
        let mut postgres = blocking(move || Postgres::start_persistent(&path).unwrap()).await;
        let url = postgres.fresh_database().unwrap();
        let plane = Plane::start_on(url, &kept.settings().await).await;
        let tenant = plane.tenant("acme").await;
        plane.model("m").await;
        let events: Vec<UsageEvent> = (0..30).map(|number| distinct(&tenant, "m", Utc::now(), number)).collect();
        let mut meter = Meter::connect(&plane, "e1").await;
        meter.ship(1, 0, &events[..10]).await;
        assert_sums(&plane, &events[..10]).await;

        // Hours are written, and the days are waited for when it dies.
        let mut locking = plane.pool.begin().await.unwrap();
        sqlx::query("LOCK TABLE usage_records IN EXCLUSIVE MODE").execute(&mut *locking).await.unwrap();
        meter.ship(1, 10, &events[10..20]).await;
        let waiting = "SELECT count(*) FROM pg_locks JOIN pg_class ON pg_class.oid = relation
                       WHERE relname = 'usage_records' AND NOT granted";
        eventually("a rollup that waits", || async { (count(&plane, waiting).await > 0).then_some(()) }).await;
        let id = postgres.id().unwrap().to_string();
        assert!(Command::new("kill").args(["-9", &id]).status().unwrap().success());
        drop(locking);
        meter.send(1, 20, &events[20..]).await;
        let postgres = blocking(move || {
            postgres.restart().unwrap();
            postgres
        })
        .await;
        assert_eq!(meter.ack().await.end_seq, 30, "{kept:?}");
        eventually("the rollup goes on", || async {
            let sum = "SELECT coalesce(sum(requests), 0)::bigint FROM usage_records";
            let sum: Result<i64, _> = sqlx::query_scalar(sum).fetch_one(&plane.pool).await;
            (sum.ok() == Some(30)).then_some(())
        })
        .await;
        assert_sums(&plane, &events).await;
        drop(plane);
        drop(postgres);
    }
}

/// An edge's region, what it holds, whether it is connected, complete to, linked at.
type Noted = (String, i64, bool, DateTime<Utc>, DateTime<Utc>);

#[tokio::test]
async fn edges_that_first_come_while_postgres_is_away_are_known_once_it_is_back() {
    let directory = tempfile::TempDir::new().unwrap();
    let path = directory.path().to_owned();
    let mut postgres = blocking(move || Postgres::start_persistent(&path).unwrap()).await;
    let plane = Plane::start_on(postgres.fresh_database().unwrap(), "").await;
    let tenant = plane.tenant("acme").await;
    plane.model("m").await;
    let mut known = Edge::connect(&plane, "known", Routing::default()).await;
    known.until("the model", |routing| routing.models.contains_key("m")).await;
    let version = known.routing.version;
    drop(known);

    let mut postgres = blocking(move || {
        assert!(postgres.stop());
        postgres
    })
    .await;
    let before = Utc::now();
    // Each is served; one has nothing to ship, one has, and one has no other link than that for usage.
    let (mut idle, mut busy) = (
        Edge::connect(&plane, "idle", Routing::default()).await,
        Edge::connect(&plane, "busy", Routing::default()).await,
    );
    idle.until_version(version).await;
    busy.until_version(version).await;
    let event = |number| distinct(&tenant, "m", Utc::now(), number);
    let (mut meter, mut lone) = (Meter::connect(&plane, "busy").await, Meter::connect(&plane, "lone").await);
    meter.send(1, 0, &[event(1)]).await;
    lone.send(1, 0, &[event(2)]).await;
    eventually("attempts that fail", || async { (failures(&plane).await > 2.0).then_some(()) }).await;
    let after = Utc::now();
    let _postgres = blocking(move || {
        postgres.restart().unwrap();
        postgres
    })
    .await;

    assert_eq!((meter.ack().await.end_seq, lone.ack().await.end_seq), (1, 1));
    let names = "SELECT count(*) FROM edges WHERE name IN ('busy', 'lone')";
    assert_eq!(count(&plane, names).await, 2, "whoever's usage was taken in is known");
    let sql = "SELECT region, holds, connected, complete_to, linked_at FROM edges WHERE name = $1";
    for name in ["idle", "busy"] {
        let (region, holds, complete_to, linked_at) = eventually("the edge is noted", || async {
            let row: Option<Noted> = sqlx::query_as(sql).bind(name).fetch_optional(&plane.pool).await.unwrap();
            row.filter(|row| row.2)
                .map(|(region, holds, _, complete_to, linked_at)| (region, holds, complete_to, linked_at))
        })
        .await;
        assert_eq!((region.as_str(), u64::try_from(holds).unwrap()), ("eu", version), "{name}");
        assert!(linked_at >= before, "{name}");
        assert!((before..=after).contains(&complete_to), "{name}: {complete_to} is not when it came");
    }
    // A month that ended meanwhile waits for them.
    let began = "SELECT count(*) FROM edges WHERE name <> 'known' AND coalesce(began_to, complete_to) < now()";
    assert_eq!(count(&plane, began).await, 3);
}

/// Runs a statement as somebody with another connection.
async fn meddle(plane: &Plane, sql: &str) {
    sqlx::query(sqlx::AssertSqlSafe(sql.to_owned())).execute(&plane.pool).await.unwrap();
}

/// Ends the control plane's sessions, as a failover does: what is set for the database holds for those that follow.
async fn end_sessions(plane: &Plane) {
    meddle(
        plane,
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
         WHERE datname = current_database() AND application_name = 'turnpike-controlplane'",
    )
    .await;
}

#[tokio::test]
async fn events_wait_for_what_passes_and_are_not_dropped() {
    let (plane, events) = prepared(&Kept::Postgres.settings().await).await;
    let mut meter = Meter::connect(&plane, "e1").await;
    meter.ship(1, 0, &events[..10]).await;
    let database: String = sqlx::query_scalar("SELECT current_database()").fetch_one(&plane.pool).await.unwrap();
    let read_only = format!("ALTER DATABASE \"{database}\" SET default_transaction_read_only =");
    // A replica after a failover, a schema that somebody is still changing: a column that is missing, one that is needed.
    let troubles = [
        (format!("{read_only} on"), format!("{read_only} off")),
        (
            "ALTER TABLE inference_requests RENAME first_byte_ms TO hidden".to_owned(),
            "ALTER TABLE inference_requests RENAME hidden TO first_byte_ms".to_owned(),
        ),
        (
            "ALTER TABLE inference_requests ADD COLUMN needed text NOT NULL DEFAULT ''; \
             ALTER TABLE inference_requests ALTER needed DROP DEFAULT"
                .to_owned(),
            "ALTER TABLE inference_requests DROP COLUMN needed".to_owned(),
        ),
    ];
    for (number, (trouble, remedy)) in troubles.iter().enumerate() {
        let first = 10 + 10 * number;
        for statement in trouble.split("; ") {
            meddle(&plane, statement).await;
        }
        end_sessions(&plane).await;
        let before = failures(&plane).await;
        meter.send(1, first as u64, &events[first..first + 10]).await;
        eventually("refusals", || async { (failures(&plane).await > before + 2.0).then_some(()) }).await;
        meddle(&plane, remedy).await;
        end_sessions(&plane).await;
        assert_eq!(meter.ack().await.end_seq, first as u64 + 10, "{trouble}");
        assert_sums(&plane, &events[..first + 10]).await;
    }
    let dropped = "turnpike_controlplane_usage_events_total{fate=\"bad_value\"}";
    assert_eq!(plane.metric(dropped).await, None);
}
