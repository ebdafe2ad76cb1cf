//! What both ledgers say of how nodes do. That they count the same is tested from outside, in `tests/it/metering`.

use super::*;
use crate::metrics::Metrics;
use crate::partitions;
use crate::store::Store;
use chrono::{DurationRound as _, TimeDelta};
use rust_decimal::Decimal;
use std::sync::{Arc, Once};
use turnpike_config::{Endpoint, EventId, KeyId, OrgId, RequestStatus, UsageEvent, Usd};
use turnpike_parts::clickhouse::ClickHouse as Server;
use turnpike_parts::postgres::Postgres;
use uuid::{NoContext, Timestamp, Uuid};

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.unwrap()
}

async fn store() -> Store {
    let url = blocking(|| Postgres::shared_temporary().unwrap().fresh_database().unwrap()).await;
    let store = Store::open(&url, 5).await.unwrap();
    partitions::reconcile(&store, Utc::now(), 13).await.unwrap();
    store
}

async fn clickhouse() -> Ledger {
    static PROVIDER: Once = Once::new();
    PROVIDER.call_once(|| rustls::crypto::ring::default_provider().install_default().unwrap());
    let url = blocking(|| Server::shared_temporary().unwrap().url()).await;
    let (login, target) = url.trim_start_matches("http://").split_once('@').unwrap();
    let (user, password) = login.split_once(':').unwrap();
    let options = Options {
        url: format!("http://{target}"),
        user: Some(user.to_owned()),
        password: Some(password.to_owned()),
        database: format!("t_{}", Uuid::new_v4().simple()),
        ..Options::for_tests()
    };
    Ledger::ClickHouse(Box::new(ClickHouse::open(&options, Arc::new(Metrics::new())).await.unwrap()))
}

fn row(organization: Uuid, node: &str, at: DateTime<Utc>, total_ms: u32, status: RequestStatus) -> UsageRow {
    let seconds = u64::try_from(at.timestamp()).unwrap();
    let event = UsageEvent {
        id: EventId(Uuid::new_v7(Timestamp::from_unix(NoContext, seconds, 0))),
        organization: OrgId(organization),
        api_key: KeyId(Uuid::new_v4()),
        model: Some("m".to_owned()),
        model_version: Some("1".to_owned()),
        endpoint: Endpoint::Chat,
        status,
        http_status: 200,
        error_code: None,
        error_message: None,
        prompt_tokens: 1,
        completion_tokens: 10,
        estimated: false,
        cost: Usd::ZERO,
        request_bytes: 0,
        response_bytes: 0,
        processing_ms: 0,
        queue_ms: 0,
        total_ms,
        first_byte_ms: None,
        region: "eu".to_owned(),
        edge: "e".to_owned(),
        node: Some(node.to_owned()),
        user_agent: None,
        client_ip: None,
        streamed: false,
        retries: 0,
        cache: None,
        price_version: 0,
        cached_tokens: 0,
        shadow: false,
    };
    UsageRow { event, created_at: at, cost: Decimal::ZERO, ip: None }
}

fn minute(timestamp: DateTime<Utc>, node: &str, tokens_per_second: f64) -> Minute {
    Minute {
        timestamp,
        model_id: "m".to_owned(),
        model_version: "1".to_owned(),
        region: "eu".to_owned(),
        node: node.to_owned(),
        gpu_type: "H100".to_owned(),
        requests_per_second: 0.5,
        tokens_per_second,
        avg_latency_ms: 1.0,
        p95_latency_ms: 2.0,
        p99_latency_ms: 3.0,
        gpu_utilization: 0.25,
        memory_utilization: 0.75,
        error_rate: 0.125,
    }
}

async fn says_how_nodes_do(store: &Store, ledger: &Ledger) {
    let mut connection = store.read().await.unwrap();
    let organization = Uuid::new_v4();
    let tenant = format!(
        "INSERT INTO organizations (id, name, slug) VALUES ('{organization}', 'a', 'a');
         INSERT INTO models (id, name, provider, category, context_length, pricing)
         VALUES ('m', 'm', 'a', 'chat', 10, '{{}}')"
    );
    sqlx::raw_sql(sqlx::AssertSqlSafe(tenant)).execute(&mut *connection).await.unwrap();
    let start = (Utc::now() - TimeDelta::minutes(5)).duration_trunc(TimeDelta::minutes(1)).unwrap();
    let at = |seconds| start + TimeDelta::seconds(seconds);
    let mut rows: Vec<UsageRow> = (1..=20)
        .map(|n| row(organization, "n1", at(n), u32::try_from(n * 10).unwrap(), RequestStatus::Success))
        .collect();
    rows.push(row(organization, "n1", at(59), 1000, RequestStatus::Timeout));
    rows.push(row(organization, "n2", at(0), 70, RequestStatus::Error));
    rows.push(row(organization, "n1", at(60), 9999, RequestStatus::Success));
    rows.push(row(organization, "n1", at(-1), 9999, RequestStatus::Success));
    let known = usage::known(&mut connection, &rows).await.unwrap();
    if matches!(ledger, Ledger::Postgres) {
        usage::insert(&mut connection, &rows.iter().collect::<Vec<_>>()).await.unwrap();
    }
    for _ in 0..2 {
        ledger.write(&rows, &known).await.unwrap();
    }
    let found = ledger.latencies(&mut connection, start).await.unwrap();
    let n1 = &found[0];
    assert_eq!((found.len(), n1.node.as_str(), n1.requests, n1.tokens, n1.errors), (2, "n1", 21, 210, 1));
    // 10 to 200 in steps of 10, and 1000: the ranks 19 and 19.8 of 0 to 20.
    let near = |figure: f64, expected: f64| assert!((figure - expected).abs() < 1e-6, "{figure} is not {expected}");
    near(n1.avg_ms, 3100.0 / 21.0);
    near(n1.p95_ms, 200.0);
    near(n1.p99_ms, 840.0);
    assert_eq!((found[1].requests, found[1].errors), (1, 1));

    let (old, new) = (minute(start, "n1", 1.5), minute(at(60), "n1", 2.5));
    let first = [minute(start, "n1", 9.0), minute(start, "n2", 9.0)];
    for rows in [&first[..], &[old.clone(), new.clone()]] {
        ledger.put_performance(&mut connection, rows, at(-3600)).await.unwrap();
    }
    let all = ledger.performance(&mut connection, "m", start, 10).await.unwrap();
    assert_eq!(all, [new.clone(), old, first[1].clone()]);
    let new = std::slice::from_ref(&new);
    assert_eq!(ledger.performance(&mut connection, "m", at(60), 10).await.unwrap(), new);
    assert_eq!(ledger.performance(&mut connection, "m", start, 1).await.unwrap(), new);
    assert_eq!(ledger.performance(&mut connection, "n", start, 10).await.unwrap(), []);
}

#[tokio::test]
async fn both_ledgers_say_the_same_of_nodes() {
    says_how_nodes_do(&store().await, &Ledger::Postgres).await;
    says_how_nodes_do(&store().await, &clickhouse().await).await;
}
