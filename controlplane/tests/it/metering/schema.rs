//! The schema that the migrations make in ClickHouse.

use crate::plane::{Kept, Plane, eventually, fresh_database};
use std::path::Path;
use turnpike_parts::clickhouse::ClickHouse;

/// Set to write the golden file instead of comparing with it.
const BLESS: &str = "TURNPIKE_BLESS";

fn database(settings: &str) -> String {
    settings.split('"').find(|text| text.starts_with("t_")).unwrap().to_owned()
}

async fn ask(sql: String) -> String {
    tokio::task::spawn_blocking(move || ClickHouse::shared_temporary().unwrap().query(&sql).unwrap()).await.unwrap()
}

async fn schema(database: &str) -> String {
    let tables = ask(format!("SELECT name FROM system.tables WHERE database = '{database}' ORDER BY name")).await;
    let mut schema = String::new();
    for table in tables.lines() {
        let create = ask(format!("SHOW CREATE TABLE {database}.{table} FORMAT TSVRaw")).await;
        for line in create.replace(database, "turnpike").lines().filter(|line| !line.starts_with("DEFINER")) {
            schema.push_str(line);
            schema.push('\n');
        }
        schema.push('\n');
    }
    schema.truncate(schema.trim_end().len());
    schema.push('\n');
    schema
}

#[tokio::test]
async fn the_migrations_add_up_to_the_golden_schema() {
    let extras = Kept::ClickHouse.settings().await;
    let _plane = Plane::start_with(&extras).await;
    let actual = schema(&database(&extras)).await;
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../migrations/golden-clickhouse.sql");
    if std::env::var_os(BLESS).is_some() {
        std::fs::write(&golden, &actual).unwrap();
    }
    let expected = std::fs::read_to_string(&golden).unwrap_or_default();
    let differs = expected.lines().zip(actual.lines()).find(|(expected, actual)| expected != actual);
    assert!(
        expected == actual,
        "the schema differs at {differs:?}\nIf that is meant, run ./test --bless and commit {}",
        golden.display()
    );
}

#[tokio::test]
async fn migrations_are_applied_once_and_retention_follows_its_setting() {
    let extras = Kept::ClickHouse.settings().await;
    let mut plane = Plane::start_with(&extras).await;
    let own = database(&extras);
    let applied = format!("SELECT arraySort(groupArray((version, applied_at))) FROM {own}.schema_migrations");
    let first = ask(applied.clone()).await;
    plane.more = plane.more.replace("timeout =", "keep_days = 100, timeout =");
    plane.restart().await;
    assert_eq!(ask(applied).await, first);
    let table = ask(format!("SHOW CREATE TABLE {own}.request_analytics")).await;
    assert!(table.contains("TTL toStartOfDay(timestamp) + toIntervalDay(100)"), "{table}");

    // Two at once, on a database that is not there yet.
    let fresh = Kept::ClickHouse.settings().await;
    let url = fresh_database().await;
    let (one, other) = tokio::join!(Plane::start_on(url.clone(), &fresh), Plane::start_on(url, &fresh));
    drop((one, other));
    let count = ask(format!("SELECT count() FROM {}.schema_migrations", database(&fresh))).await;
    assert_eq!(count, "3", "each migration is applied once");
}

#[tokio::test]
async fn a_database_of_another_build_is_left_alone() {
    let extras = Kept::ClickHouse.settings().await;
    let mut plane = Plane::start_with(&extras).await;
    plane.stop().await;
    let own = database(&extras);
    ask(format!("INSERT INTO {own}.schema_migrations (version, name, checksum) VALUES (2, 'x', 'other')")).await;
    let message = plane.start_fails().await;
    assert!(message.contains("migration 2") && message.contains("clickhouse.database"), "{message}");
}

#[tokio::test]
async fn the_daily_summary_counts_events_and_not_deliveries() {
    let extras = Kept::ClickHouse.settings().await;
    let plane = Plane::start_with(&extras).await;
    let own = database(&extras);
    let tenant = plane.tenant("acme").await;
    plane.model("m").await;
    let now = chrono::Utc::now();
    let events: Vec<_> = (0..20).map(|number| super::distinct(&tenant, "m", now, number)).collect();
    for (edge, epoch) in [("e1", 1), ("e2", 2), ("e1", 3)] {
        super::ship_in(&plane, edge, epoch, &events, &[7]).await;
    }
    // Not waiting for the minute.
    let (own, tokens) =
        (own.as_str(), events.iter().map(|e| u64::from(e.prompt_tokens + e.completion_tokens)).sum::<u64>());
    let expected = format!("{}\t20\t{tokens}\t0", tenant.organization);
    ask(format!("SYSTEM REFRESH VIEW {own}.daily_usage_refresh")).await;
    let expected = expected.as_str();
    eventually("the summary", || async move {
        let columns = "organization_id, total_requests, total_tokens, error_rate";
        let row = ask(format!("SELECT {columns} FROM {own}.daily_usage_summary FINAL")).await;
        (row == expected).then_some(())
    })
    .await;
}
