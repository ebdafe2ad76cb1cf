//! From usage events to exact sums: one contract, which the ledger in PostgreSQL and the one in ClickHouse both keep.

mod contract;
mod copying;
mod figures;
mod outages;
mod proxy;
mod schema;

use crate::peers::Meter;
use crate::plane::{Plane, Tenant, eventually};
use crate::usage::event;
use chrono::{DateTime, DurationRound as _, TimeDelta, TimeZone as _, Utc};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use turnpike_config::{UsageEvent, Usd};

/// Requests, prompt tokens, generated tokens, pico-dollars.
type Sum = (i64, i64, i64, i128);

fn at(text: &str) -> DateTime<Utc> {
    text.parse().unwrap()
}

fn time_of(event: &UsageEvent) -> DateTime<Utc> {
    Utc.timestamp_millis_opt(i64::try_from(event.id.unix_ms()).unwrap()).unwrap()
}

/// An event whose figures are its own, so that no two are mistaken for each other: its cost ends in single pico-dollars.
fn distinct(tenant: &Tenant, model: &str, time: DateTime<Utc>, number: u32) -> UsageEvent {
    UsageEvent {
        cost: Usd { pico: i128::from(number) * 1_000_003 + 7 },
        price_version: number % 3,
        cached_tokens: number % 5,
        shadow: false,
        ..event(tenant, Some(model), time, number % 97 + 5, number % 31)
    }
}

/// What an event counts as in one kind of sum.
type Group = Box<dyn Fn(&UsageEvent) -> String>;

/// The ways in which usage can be asked for, and what a row of the answer is called by.
fn groupings() -> Vec<(&'static str, Group)> {
    let day = |event: &UsageEvent| time_of(event).date_naive().to_string();
    let hour = |event: &UsageEvent| time_of(event).duration_trunc(TimeDelta::hours(1)).unwrap();
    let model = |event: &UsageEvent| event.model.clone().unwrap();
    let hour_text = move |event: &UsageEvent| hour(event).to_rfc3339_opts(chrono::SecondsFormat::Secs, true);
    vec![
        ("", Box::new(|_| String::new())),
        ("organization", Box::new(|event| event.organization.to_string())),
        ("organization,model,day", Box::new(move |e| format!("{}/{}/{}", e.organization, model(e), day(e)))),
        ("hour", Box::new(move |event| hour_text(event))),
        ("model,hour,price_version", Box::new(move |e| format!("{}/{}/{}", model(e), hour_text(e), e.price_version))),
        ("price_version", Box::new(|event| event.price_version.to_string())),
        ("key", Box::new(|event| event.api_key.to_string())),
        ("model,day,key", Box::new(move |e| format!("{}/{}/{}", model(e), day(e), e.api_key))),
    ]
}

fn name_of(row: &Value) -> String {
    let fields = ["organization_id", "model_id", "date", "hour", "price_version", "api_key_id"];
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    fields.iter().map(|field| &row[field]).filter(|value| !value.is_null()).map(text).collect::<Vec<_>>().join("/")
}

fn sum_of(row: &Value) -> Sum {
    let figure = |name: &str| row[name].as_i64().unwrap();
    assert_eq!(figure("total_tokens"), figure("prompt_tokens") + figure("completion_tokens"));
    let cost: Usd = row["cost_usd"].as_str().unwrap().parse().unwrap();
    (figure("requests"), figure("prompt_tokens"), figure("completion_tokens"), cost.pico)
}

/// Every way of asking gives exactly what these events add up to, each counted once.
async fn assert_sums(plane: &Plane, events: &[UsageEvent]) {
    let mut seen = BTreeSet::new();
    let unique: Vec<&UsageEvent> = events.iter().filter(|event| seen.insert(event.id)).collect();
    let first = unique.iter().map(|event| time_of(event)).min().unwrap().date_naive();
    let last = unique.iter().map(|event| time_of(event)).max().unwrap().date_naive() + TimeDelta::days(1);
    for (grouping, group) in groupings() {
        let mut expected: BTreeMap<String, Sum> = BTreeMap::new();
        for event in &unique {
            let sum = expected.entry(group(event)).or_default();
            sum.0 += 1;
            sum.1 += i64::from(event.prompt_tokens);
            sum.2 += i64::from(event.completion_tokens);
            sum.3 += event.cost.pico;
        }
        let answer = plane.get(&format!("/usage?from={first}&to={last}&group_by={grouping}")).await;
        let rows = answer["data"].as_array().unwrap();
        let found: BTreeMap<String, Sum> = rows.iter().map(|row| (name_of(row), sum_of(row))).collect();
        assert_eq!(found.len(), rows.len(), "a group twice, by «{grouping}»: {answer}");
        assert_eq!(found, expected, "by «{grouping}»");
    }
}

/// Ships events in batches of the given sizes, over and over, each stretch once.
async fn ship_in(plane: &Plane, edge: &str, epoch: u64, events: &[UsageEvent], sizes: &[usize]) {
    let mut meter = Meter::connect(plane, edge).await;
    let (mut seq, mut rest, mut sizes) = (0, events, sizes.iter().cycle());
    while !rest.is_empty() {
        let (batch, later) = rest.split_at((*sizes.next().unwrap()).min(rest.len()));
        meter.ship(epoch, seq, batch).await;
        seq += batch.len() as u64;
        rest = later;
    }
}

async fn count(plane: &Plane, sql: &str) -> i64 {
    sqlx::query_scalar(sqlx::AssertSqlSafe(sql.to_owned())).fetch_one(&plane.pool).await.unwrap()
}

/// Waits until no hour is to be summed anew.
async fn rolled_up(plane: &Plane) {
    eventually("the rollup", || async {
        (count(plane, "SELECT count(*) FROM usage_dirty_hours").await == 0).then_some(())
    })
    .await;
}
