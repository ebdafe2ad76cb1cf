//! From an edge's journal to sums.

use crate::peers::Meter;
use crate::plane::{Plane, Tenant};
use chrono::{DateTime, Datelike as _, Utc};
use serde_json::{Value, json};
use turnpike_config::{Endpoint, EventId, KeyId, OrgId, Price, RequestStatus, Tokens, UsageEvent};
use uuid::{NoContext, Timestamp, Uuid};

pub(crate) fn event(
    tenant: &Tenant,
    model: Option<&str>,
    at: DateTime<Utc>,
    prompt: u32,
    completion: u32,
) -> UsageEvent {
    let pricing = json!({"input_tokens": 0.01, "output_tokens": 0.03});
    let seconds = u64::try_from(at.timestamp()).unwrap();
    UsageEvent {
        id: EventId(Uuid::new_v7(Timestamp::from_unix(NoContext, seconds, 0))),
        organization: OrgId(tenant.organization.parse().unwrap()),
        api_key: KeyId(tenant.key_id.parse().unwrap()),
        model: model.map(str::to_owned),
        model_version: model.map(|_| "v1".to_owned()),
        endpoint: Endpoint::Chat,
        status: RequestStatus::Success,
        http_status: 200,
        error_code: None,
        error_message: None,
        prompt_tokens: prompt,
        completion_tokens: completion,
        estimated: false,
        cost: Price::from_pricing(&pricing).unwrap().cost(Tokens { prompt, cached: 0, completion }),
        request_bytes: 100,
        response_bytes: 200,
        processing_ms: 30,
        queue_ms: 5,
        total_ms: 35,
        first_byte_ms: Some(7),
        region: "eu".to_owned(),
        edge: "e1".to_owned(),
        node: Some("n1".to_owned()),
        user_agent: Some("test".to_owned()),
        client_ip: Some("10.1.2.3".to_owned()),
        streamed: true,
        retries: 0,
        cache: None,
        price_version: 0,
        cached_tokens: 0,
        shadow: false,
    }
}

async fn rows(plane: &Plane) -> i64 {
    sqlx::query_scalar("SELECT count(*) FROM inference_requests").fetch_one(&plane.pool).await.unwrap()
}

fn sum(row: &Value) -> (i64, i64, i64, i64, &str) {
    let figure = |name: &str| row[name].as_i64().unwrap();
    let cost = row["cost_usd"].as_str().unwrap();
    (figure("requests"), figure("prompt_tokens"), figure("completion_tokens"), figure("total_tokens"), cost)
}

#[tokio::test]
async fn a_batch_counts_once_however_often_it_is_delivered() {
    let plane = Plane::start().await;
    let tenant = plane.tenant("acme").await;
    plane.model("m").await;
    plane.model("n").await;
    let now = Utc::now();
    let events = [
        event(&tenant, Some("m"), now, 100, 10),
        event(&tenant, Some("m"), now, 1, 0),
        event(&tenant, Some("n"), now, 7, 7),
        event(&tenant, None, now, 0, 0),
    ];
    let mut meter = Meter::connect(&plane, "e1").await;
    meter.ship(u64::MAX, 0, &events).await;
    meter.ship(u64::MAX, 0, &events).await;
    // Again over another link and from another position, with one new event among the old ones.
    let mut again = Meter::connect(&plane, "e1").await;
    let mut more = events.to_vec();
    more.insert(2, event(&tenant, Some("m"), now, 10, 10));
    more.push(events[0].clone());
    again.ship(u64::MAX, 3, &more).await;
    assert_eq!(rows(&plane).await, 5);

    let usage = plane.get(&format!("/usage?organization={}&group_by=model", tenant.organization)).await;
    let data = usage["data"].as_array().unwrap();
    assert_eq!(data.len(), 2, "{usage}");
    // 111 prompt and 20 generated tokens at $0.01 and $0.03 per thousand.
    assert_eq!((data[0]["model_id"].as_str(), sum(&data[0])), (Some("m"), (3, 111, 20, 131, "0.00171")));
    assert_eq!((data[1]["model_id"].as_str(), sum(&data[1])), (Some("n"), (1, 7, 7, 14, "0.00028")));
    let total = plane.get("/usage").await;
    assert_eq!(sum(&total["data"][0]), (4, 118, 27, 145, "0.00199"));
    let by_key = plane.get("/usage?group_by=key,day").await;
    assert_eq!(by_key["data"][0]["api_key_id"], json!(tenant.key_id));
    assert_eq!(sum(&by_key["data"][0]), (4, 118, 27, 145, "0.00199"));
    assert!(plane.get(&format!("/api_keys/{}", tenant.key_id)).await["last_used_at"].is_string());

    let position: String = sqlx::query_scalar("SELECT epoch::text || '/' || through_seq::text FROM usage_ingest")
        .fetch_one(&plane.pool)
        .await
        .unwrap();
    assert_eq!(position, format!("{}/{}", u64::MAX, 8));
    assert_eq!(plane.metric("turnpike_controlplane_usage_events_total{fate=\"stored\"}").await, Some(5.0));
}

#[tokio::test]
async fn the_request_log_is_filtered_and_paged_from_the_newest_on() {
    let plane = Plane::start().await;
    let (tenant, other) = (plane.tenant("acme").await, plane.tenant("other").await);
    plane.model("m").await;
    let now = Utc::now();
    let ages = [50, 40, 30, 20, 10];
    let mut events: Vec<UsageEvent> =
        ages.iter().map(|age| event(&tenant, Some("m"), now - chrono::Duration::seconds(*age), 1, 1)).collect();
    events[1].status = RequestStatus::Error;
    events[1].error_code = Some("server_error".to_owned());
    events[2].cache = Some(turnpike_config::CacheStatus::Hit);
    events[3].node = Some("n2".to_owned());
    events[4].region = "us".to_owned();
    events.push(event(&other, Some("m"), now, 1, 1));
    Meter::connect(&plane, "e1").await.ship(1, 0, &events).await;

    let base = format!("/requests?organization={}&limit=2", tenant.organization);
    let (mut found, mut cursor) = (Vec::new(), String::new());
    loop {
        let page = plane.get(&format!("{base}{cursor}")).await;
        found.extend(page["data"].as_array().unwrap().iter().map(|r| r["id"].as_str().unwrap().to_owned()));
        match page["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
    }
    let expected: Vec<String> = events[..5].iter().rev().map(|event| event.id.to_string()).collect();
    assert_eq!(found, expected);
    let failed = plane.get("/requests?status=error&model=m").await;
    assert_eq!(failed["data"].as_array().unwrap().len(), 1);
    assert_eq!(failed["data"][0]["error_code"], "server_error");
    assert_eq!(failed["data"][0]["ip_address"], "10.1.2.3");
    let time = |age: i64| (now - chrono::Duration::seconds(age)).to_rfc3339_opts(chrono::SecondsFormat::Secs, true);
    let cases = [
        (format!("from={}", time(30)), 2..5),
        (format!("to={}", time(20)), 0..3),
        (format!("from={}&to={}", time(40), time(20)), 1..3),
        ("error_code=server_error".to_owned(), 1..2),
        ("cache_status=hit".to_owned(), 2..3),
        ("node=n2".to_owned(), 3..4),
        ("region=us&edge=e1".to_owned(), 4..5),
        ("edge=e2".to_owned(), 0..0),
    ];
    for (filter, expected) in cases {
        let page = plane.get(&format!("/requests?organization={}&{filter}", tenant.organization)).await;
        let found: Vec<_> = page["data"].as_array().unwrap().iter().map(|r| r["id"].as_str().unwrap()).collect();
        let expected: Vec<String> = events[expected].iter().rev().map(|event| event.id.to_string()).collect();
        assert_eq!(found, expected, "{filter}");
    }
    plane.refused(reqwest::Method::GET, "/requests?status=odd", "", 422).await;
    plane.refused(reqwest::Method::GET, "/requests?cache_status=odd", "", 422).await;
    plane.refused(reqwest::Method::GET, "/requests?from=yesterday", "", 422).await;
}

#[tokio::test]
async fn an_event_that_cannot_be_stored_does_not_hold_up_its_neighbours() {
    let plane = Plane::start().await;
    let tenant = plane.tenant("acme").await;
    plane.model("m").await;
    let now = Utc::now();
    let good = event(&tenant, Some("m"), now, 5, 5);
    let stranger = Tenant { organization: Uuid::new_v4().to_string(), ..tenant.clone() };
    let no_org = event(&stranger, Some("m"), now, 1, 1);
    let no_key = event(&Tenant { key_id: Uuid::new_v4().to_string(), ..tenant.clone() }, Some("m"), now, 1, 1);
    let no_time = UsageEvent { id: EventId(Uuid::new_v4()), ..good.clone() };
    let odd = UsageEvent {
        user_agent: Some("a\0b".repeat(500)),
        model: Some("never heard of".to_owned()),
        client_ip: Some("somewhere".to_owned()),
        ..event(&tenant, None, now, 2, 2)
    };
    let huge = UsageEvent { cost: turnpike_config::Usd { pico: i128::MAX }, ..event(&tenant, Some("m"), now, 1, 1) };
    Meter::connect(&plane, "e1").await.ship(1, 0, &[no_org, no_time, good, no_key, odd, huge]).await;

    assert_eq!(rows(&plane).await, 3);
    let usage = plane.get("/usage").await;
    assert_eq!(sum(&usage["data"][0]), (2, 6, 6, 12, "0.00024"));
    let orphans: i64 = sqlx::query_scalar("SELECT count(*) FROM inference_requests WHERE api_key_id IS NULL")
        .fetch_one(&plane.pool)
        .await
        .unwrap();
    assert_eq!(orphans, 1);
    for (fate, count) in [("unknown_organization", 1.0), ("bad_time", 1.0), ("bad_value", 1.0), ("stored", 3.0)] {
        let name = format!("turnpike_controlplane_usage_events_total{{fate=\"{fate}\"}}");
        assert_eq!(plane.metric(&name).await, Some(count), "{fate}");
    }
}

#[tokio::test]
async fn an_event_of_a_month_without_a_partition_makes_it() {
    let plane = Plane::start().await;
    let tenant = plane.tenant("acme").await;
    plane.model("m").await;
    let now = Utc::now();
    let past = now - chrono::Duration::days(100);
    let partition = |at: DateTime<Utc>| format!("inference_requests_y{:04}m{:02}", at.year(), at.month());
    let exists = |name: String| {
        let pool = plane.pool.clone();
        async move {
            let found: bool =
                sqlx::query_scalar("SELECT to_regclass($1) IS NOT NULL").bind(name).fetch_one(&pool).await.unwrap();
            found
        }
    };
    assert!(exists(partition(now)).await && !exists(partition(past)).await);
    let batch = [event(&tenant, Some("m"), past, 1, 1), event(&tenant, Some("m"), now, 1, 1)];
    Meter::connect(&plane, "e1").await.ship(1, 0, &batch).await;
    assert!(exists(partition(past)).await);
    assert_eq!(rows(&plane).await, 2);
    let from = past.date_naive();
    let usage = plane.get(&format!("/usage?from={from}&group_by=day")).await;
    let days: Vec<&str> = usage["data"].as_array().unwrap().iter().map(|row| row["date"].as_str().unwrap()).collect();
    assert_eq!(days, [from.to_string(), now.date_naive().to_string()]);
}

#[tokio::test]
async fn sums_are_given_as_csv_too() {
    let plane = Plane::start().await;
    let tenant = plane.tenant("acme").await;
    plane.model("m").await;
    let at: DateTime<Utc> = Utc::now() - chrono::Duration::days(1);
    Meter::connect(&plane, "e1").await.ship(1, 0, &[event(&tenant, Some("m"), at, 100, 10)]).await;
    let path = "/admin/v1/usage?group_by=model,hour&format=csv";
    let answer = plane.raw(reqwest::Method::GET, path, Some(crate::plane::VIEWER), None).await;
    assert!(answer.content_type.unwrap().starts_with("text/csv"));
    let lines: Vec<&str> = answer.text.split("\r\n").collect();
    let columns = "organization_id,model_id,date,hour,price_version,api_key_id,requests,prompt_tokens,\
                   completion_tokens,total_tokens,cost_usd";
    assert_eq!(lines, [columns, &format!(",m,,{},,,1,100,10,110,0.0013", at.format("%Y-%m-%dT%H:00:00Z")), ""]);
    plane.refused(reqwest::Method::GET, "/usage?format=xml", "", 422).await;
    plane.refused(reqwest::Method::GET, "/usage?group_by=key,hour", "", 422).await;
}
