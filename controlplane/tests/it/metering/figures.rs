//! How fast usage is taken in and added up, with both ledgers:
//! `TURNPIKE_EVENTS=5000000 cargo test --release -p turnpike-controlplane --test it figures -- --nocapture --test-threads 1`
//!
//! Without the variable it is a small run that only shows that all is counted.

use super::*;
use crate::plane::{Kept, clickhouse_settings};
use std::sync::Arc;
use std::time::{Duration, Instant};
use turnpike_parts::clickhouse::ClickHouse;
use turnpike_parts::postgres::Postgres;

const SIZE: &str = "TURNPIKE_EVENTS";
const SMALL: usize = 20_000;
/// Edges that ship at the same time.
const EDGES: usize = 4;
const BATCH: usize = 4096;
const TENANTS: usize = 20;
const MODELS: [&str; 3] = ["m", "n", "o"];

/// Processor seconds of a process and its children that still run.
fn cpu_seconds(id: u32) -> f64 {
    let stat = |id: u32| std::fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
    let fields = |text: &str| -> Vec<u64> {
        let rest = text.rsplit_once(") ").map_or("", |(_, rest)| rest);
        rest.split(' ').skip(1).map(|field| field.parse().unwrap_or(0)).collect()
    };
    // The parent's id, then … utime, stime, and those of children that were waited for.
    let ticks = |fields: &[u64]| fields.get(10..14).map_or(0, |times| times.iter().sum::<u64>());
    let own = ticks(&fields(&stat(id)));
    let others =
        std::fs::read_dir("/proc").unwrap().filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok());
    let children = others.map(stat).map(|text| fields(&text)).filter(|fields| fields.first() == Some(&u64::from(id)));
    (own + children.map(|fields| ticks(&fields)).sum::<u64>()) as f64 / 100.0
}

struct Servers {
    postgres: Postgres,
    clickhouse: Option<ClickHouse>,
}

impl Servers {
    fn cpu(&self) -> (f64, f64) {
        let clickhouse = self.clickhouse.as_ref().map_or(0.0, |server| cpu_seconds(server.id().unwrap()));
        (cpu_seconds(self.postgres.id().unwrap()), clickhouse)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn figures_of_postgres() {
    let postgres = tokio::task::spawn_blocking(|| Postgres::start_temporary().unwrap()).await.unwrap();
    measure(Kept::Postgres, Servers { postgres, clickhouse: None }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn figures_of_clickhouse() {
    let postgres = tokio::task::spawn_blocking(|| Postgres::start_temporary().unwrap()).await.unwrap();
    let clickhouse = tokio::task::spawn_blocking(|| ClickHouse::start_temporary().unwrap()).await.unwrap();
    measure(Kept::ClickHouse, Servers { postgres, clickhouse: Some(clickhouse) }).await;
}

async fn measure(kept: Kept, servers: Servers) {
    let events: usize = std::env::var(SIZE).map_or(SMALL, |size| size.parse().unwrap());
    let extras = servers.clickhouse.as_ref().map_or_else(String::new, |server| {
        // As a large deployment would have it: the request log is a sample.
        clickhouse_settings(&server.url()).replace("\"2s\"", "\"60s\"") + "usage.log_sample = 0.01"
    });
    let plane = Arc::new(Plane::start_on(servers.postgres.fresh_database().unwrap(), &extras).await);
    let mut tenants = Vec::new();
    for number in 0..TENANTS {
        tenants.push(plane.tenant(&format!("t{number}")).await);
    }
    for model in MODELS {
        plane.model(model).await;
    }
    visible(&plane, kept, &tenants[0]).await;
    let cost = ingest(&plane, kept, &servers, &tenants, events).await;
    rollup(&plane, kept, &servers, events).await;
    let usage = plane.get("/usage").await;
    let (requests, _, _, found) = sum_of(&usage["data"][0]);
    let events = i64::try_from(events).unwrap();
    assert_eq!((requests, found), (events + i64::from(WAVES * WAVE), cost), "all are counted, to the pico-dollar");
}

/// Ships all events as fast as that goes; gives what all events so far cost.
async fn ingest(plane: &Arc<Plane>, kept: Kept, servers: &Servers, tenants: &[Tenant], events: usize) -> i128 {
    // Over the last day; what is shipped is made beforehand, a batch's worth over and over with ids of its own.
    let (began, cpu, own) = (Instant::now(), servers.cpu(), cpu_seconds(std::process::id()));
    let start = Utc::now() - TimeDelta::hours(24);
    let edges: Vec<_> = (0..EDGES)
        .map(|edge| {
            let (plane, tenants) = (Arc::clone(plane), tenants.to_vec());
            tokio::spawn(async move {
                let mut meter = Meter::connect(&plane, &format!("e{edge}")).await;
                let (mut seq, mut cost) = (0, 0);
                let mine: Vec<usize> = (edge..events).step_by(EDGES).collect();
                for numbers in mine.chunks(BATCH) {
                    let event = |number: &usize| {
                        let seconds = *number as u64 * 86_000 / events as u64;
                        let time = start + TimeDelta::seconds(i64::try_from(seconds).unwrap());
                        let number = u32::try_from(*number).unwrap();
                        let tenant = &tenants[number as usize % TENANTS];
                        distinct(tenant, MODELS[number as usize % MODELS.len()], time, number)
                    };
                    let batch: Vec<UsageEvent> = numbers.iter().map(event).collect();
                    cost += batch.iter().map(|event| event.cost.pico).sum::<i128>();
                    meter.ship(1, seq, &batch).await;
                    seq += batch.len() as u64;
                }
                cost
            })
        })
        .collect();
    let mut cost: i128 = (0..WAVES * WAVE).map(|number| i128::from(number) * 1_000_003 + 7).sum();
    for edge in edges {
        cost += edge.await.unwrap();
    }
    let seconds = began.elapsed().as_secs_f64();
    let (postgres, clickhouse) = servers.cpu();
    let (own, postgres, clickhouse) = (cpu_seconds(std::process::id()) - own, postgres - cpu.0, clickhouse - cpu.1);
    let rate = |seconds: f64| events as f64 / seconds;
    println!(
        "{kept:?}: {events} events in {seconds:.1} s: {:.0}/s. Processor: {own:.1} s here (edges' side included), \
         {postgres:.1} s PostgreSQL, {clickhouse:.1} s ClickHouse: {:.0} events/s per core",
        rate(seconds),
        rate(own + postgres + clickhouse)
    );
    cost
}

/// All hours anew.
async fn rollup(plane: &Plane, kept: Kept, servers: &Servers, events: usize) {
    rolled_up(plane).await;
    let spent = || plane.metric("turnpike_controlplane_rollup_duration_seconds_sum");
    let (before, cpu) = (spent().await.unwrap(), servers.cpu());
    let anew = "WITH gone AS (DELETE FROM usage_hours RETURNING hour)
                INSERT INTO usage_dirty_hours (hour, ended_from, began_from) SELECT DISTINCT hour, now(), now() FROM gone";
    sqlx::query(anew).execute(&plane.pool).await.unwrap();
    rolled_up(plane).await;
    let (postgres, clickhouse) = servers.cpu();
    let hours = count(plane, "SELECT count(*) FROM usage_hours").await;
    println!(
        "{kept:?}: rollup of {events} events into {hours} sums: {:.2} s (processor: {:.1} s PostgreSQL, {:.1} s ClickHouse)",
        spent().await.unwrap() - before,
        postgres - cpu.0,
        clickhouse - cpu.1
    );
}

const WAVES: u32 = 50;
const WAVE: u32 = 20;

/// A trickle, as edges ship it: how long after its end an event is durable and in every sum that is asked for.
async fn visible(plane: &Plane, kept: Kept, tenant: &Tenant) {
    let mut meter = Meter::connect(plane, "e0").await;
    let mut delays = Vec::new();
    for wave in 0..WAVES {
        let numbers = wave * WAVE..(wave + 1) * WAVE;
        let batch: Vec<UsageEvent> = numbers.map(|number| distinct(tenant, "m", Utc::now(), number)).collect();
        let ended = Instant::now();
        meter.ship(9, u64::from(wave * WAVE), &batch).await;
        delays.push(ended.elapsed());
    }
    delays.sort();
    let asked = Instant::now();
    let usage = plane.get("/usage").await;
    assert_eq!(sum_of(&usage["data"][0]).0, i64::from(WAVES * WAVE));
    println!(
        "{kept:?}: an event is durable {:.0?} after it came (p50), {:.0?} (p99); in a sum that is asked for, {:.0?} later",
        delays[delays.len() / 2],
        delays[delays.len() * 99 / 100],
        asked.elapsed()
    );
    assert!(delays[delays.len() / 2] < Duration::from_secs(5));
}
