//! What holds whichever ledger it is.

use super::*;
use crate::invoices;
use crate::peers::Edge;
use crate::plane::{Kept, fresh_database};
use chrono::Datelike as _;
use std::sync::Arc;
use uuid::Uuid;

/// Runs each of these with both ledgers.
macro_rules! on_both_ledgers {
    ($($name:ident),+ $(,)?) => {
        mod on_postgres {
            $(#[tokio::test]
            async fn $name() {
                super::$name(super::Kept::Postgres).await;
            })+
        }
        mod on_clickhouse {
            $(#[tokio::test]
            async fn $name() {
                super::$name(super::Kept::ClickHouse).await;
            })+
        }
    };
}

on_both_ledgers! {
    an_event_counts_once_however_it_is_shipped,
    what_cannot_be_counted_does_not_hold_up_its_neighbours,
    days_and_months_end_where_they_end,
    sums_are_set_and_not_added_to,
    what_was_counted_stays_counted,
    books_are_not_complete_up_to_what_an_edge_with_a_fast_clock_says,
    two_control_planes_come_to_the_same_sums,
    a_late_event_of_an_invoiced_day_becomes_an_adjustment,
    a_gap_in_a_journal_is_noticed,
    shadows_are_on_record_and_in_no_sum,
}

async fn start(kept: Kept) -> Plane {
    Plane::start_with(&kept.settings().await).await
}

/// Two models, two tenants, four days, hours in between.
async fn mixed_events(plane: &Plane, count: u32) -> Vec<UsageEvent> {
    let tenants = [plane.tenant("acme").await, plane.tenant("other").await];
    plane.model("m").await;
    plane.model("n").await;
    let start = Utc::now() - TimeDelta::days(4);
    let event = |number: u32| {
        let time = start + TimeDelta::minutes(i64::from(number) * 4 * 24 * 60 / i64::from(count));
        distinct(&tenants[number as usize % 2], ["m", "n"][number as usize / 2 % 2], time, number)
    };
    (0..count).map(event).collect()
}

async fn an_event_counts_once_however_it_is_shipped(kept: Kept) {
    let plane = Arc::new(start(kept).await);
    let events = mixed_events(&plane, 400).await;
    let mut backwards = events.clone();
    backwards.reverse();
    let mut shuffled = events.clone();
    shuffled.sort_by_key(|event| event.cost.pico.wrapping_mul(0x9e37_79b9) % 1009);
    // In order, twice; backwards and shuffled in other cuts; by several at once.
    let ways = [
        ("e1", events.clone(), vec![37, 5, 1]),
        ("e1", events.clone(), vec![64]),
        ("e2", backwards, vec![100, 3]),
        ("e3", shuffled, vec![11, 200]),
    ];
    let racing: Vec<_> = ways
        .into_iter()
        .map(|(edge, events, sizes)| {
            let plane = Arc::clone(&plane);
            tokio::spawn(async move { ship_in(&plane, edge, 7, &events, &sizes).await })
        })
        .collect();
    for racer in racing {
        racer.await.unwrap();
    }
    assert_sums(&plane, &events).await;
    // A whole batch twice in one.
    let twice: Vec<UsageEvent> = events[..50].iter().chain(&events[..50]).cloned().collect();
    ship_in(&plane, "e4", 1, &twice, &[100]).await;
    assert_sums(&plane, &events).await;
    rolled_up(&plane).await;
    let key = events[0].api_key;
    assert!(plane.get(&format!("/api_keys/{key}")).await["last_used_at"].is_string());
    let stored = plane.metric("turnpike_controlplane_usage_events_total{fate=\"stored\"}").await.unwrap();
    if kept == Kept::Postgres {
        assert!((stored - 400.0).abs() < 0.5, "{stored}");
    }
    assert_eq!(plane.metric("turnpike_controlplane_usage_events_waiting").await, Some(0.0));
    assert_eq!(plane.metric("turnpike_controlplane_usage_journal_gaps_total").await, Some(0.0));
}

async fn shadows_are_on_record_and_in_no_sum(kept: Kept) {
    let plane = start(kept).await;
    let mut events = mixed_events(&plane, 80).await;
    for shadow in events.iter_mut().skip(40) {
        shadow.shadow = true;
    }
    ship_in(&plane, "e1", 7, &events, &[13]).await;
    let (counted, shadows) = events.split_at(40);
    assert_sums(&plane, counted).await;
    let listed = async |query: &str| plane.get(&format!("/requests?limit=500{query}")).await["data"].clone();
    for (query, expected) in [("", 80), ("&shadow=true", shadows.len()), ("&shadow=false", 40)] {
        assert_eq!(listed(query).await.as_array().unwrap().len(), expected, "{query}");
    }
}

async fn what_cannot_be_counted_does_not_hold_up_its_neighbours(kept: Kept) {
    let plane = start(kept).await;
    let tenant = plane.tenant("acme").await;
    plane.model("m").await;
    let now = Utc::now();
    let good: Vec<UsageEvent> = (0..3).map(|number| distinct(&tenant, "m", now, number)).collect();
    let stranger = Tenant { organization: Uuid::new_v4().to_string(), ..tenant.clone() };
    let no_org = event(&stranger, Some("m"), now, 1, 1);
    let no_model = event(&tenant, Some("unheard-of"), now, 3, 3);
    let nul = event(&tenant, Some("a\0b"), now, 3, 3);
    let too_old = event(&tenant, Some("m"), now - TimeDelta::days(500), 1, 1);
    let too_new = event(&tenant, Some("m"), now + TimeDelta::days(200), 1, 1);
    let odd = UsageEvent { user_agent: Some("a\0b".repeat(500)), client_ip: Some("?".to_owned()), ..good[0].clone() };
    let batch = [no_org, no_model, nul, too_old, odd, good[1].clone(), too_new, good[2].clone()];
    let mut meter = Meter::connect(&plane, "e1").await;
    meter.ship(1, 0, &batch).await;
    assert_sums(&plane, &good).await;
    // What was no model then is none for ever, however often it comes.
    plane.model("unheard-of").await;
    meter.ship(1, 0, &batch).await;
    assert_sums(&plane, &good).await;
    for (fate, count) in [("unknown_organization", 2.0), ("bad_time", 4.0)] {
        let name = format!("turnpike_controlplane_usage_events_total{{fate=\"{fate}\"}}");
        assert_eq!(plane.metric(&name).await, Some(count), "{fate}");
    }
    // A key that is gone: counted, without a key.
    let no_key = event(&Tenant { key_id: Uuid::new_v4().to_string(), ..tenant.clone() }, Some("m"), now, 1, 1);
    meter.ship(1, 8, &[no_key]).await;
    let by_key = plane.get("/usage?group_by=key").await;
    let keys: Vec<_> = by_key["data"].as_array().unwrap().iter().map(|row| row["api_key_id"].is_null()).collect();
    assert_eq!(keys, [false, true]);
}

async fn days_and_months_end_where_they_end(kept: Kept) {
    let extras = kept.settings().await + "usage.keep_months = 48";
    let settings = extras.replace("timeout =", "keep_days = 1500, timeout =");
    let plane = Plane::start_with(&settings).await;
    let tenant = plane.tenant("acme").await;
    plane.model("m").await;
    let borders = [
        "2024-02-28T23:59:59Z",
        "2024-02-29T00:00:00Z",
        "2024-02-29T23:59:59Z",
        "2024-03-01T00:00:00Z",
        "2024-12-31T23:59:59Z",
        "2025-01-01T00:00:00Z",
        "2025-03-30T00:59:59Z",
        "2025-03-30T01:00:00Z",
        "2025-10-26T00:30:00Z",
        "2025-10-26T01:30:00Z",
    ];
    let events: Vec<UsageEvent> =
        borders.iter().zip(1..).map(|(time, number)| distinct(&tenant, "m", at(time), number)).collect();
    // One batch over all borders, then its parts again in another order: late events of months long past.
    let mut meter = Meter::connect(&plane, "e1").await;
    meter.ship(1, 0, &events).await;
    assert_sums(&plane, &events).await;
    for (event, seq) in events.iter().rev().zip(10..) {
        meter.ship(1, seq, std::slice::from_ref(event)).await;
    }
    assert_sums(&plane, &events).await;
    let day = plane.get("/usage?from=2024-02-29&to=2024-03-01&group_by=day").await;
    assert_eq!((day["data"][0]["date"].as_str(), day["data"][0]["requests"].as_i64()), (Some("2024-02-29"), Some(2)));
    // And one more for each day that was summed already.
    let late: Vec<UsageEvent> =
        borders.iter().zip(100..).map(|(time, number)| distinct(&tenant, "m", at(time), number)).collect();
    meter.ship(1, 20, &late).await;
    assert_sums(&plane, &[events, late].concat()).await;
}

async fn sums_are_set_and_not_added_to(kept: Kept) {
    let mut plane = start(kept).await;
    let events = mixed_events(&plane, 60).await;
    ship_in(&plane, "e1", 1, &events, &[60]).await;
    assert_sums(&plane, &events).await;
    rolled_up(&plane).await;
    // Hours that are marked again, sums that somebody meddled with, and a restart in between.
    let mark = "INSERT INTO usage_dirty_hours (hour, ended_from, began_from) SELECT DISTINCT hour, now(), now() FROM usage_hours";
    sqlx::query("UPDATE usage_hours SET requests = requests - 1, prompt_tokens = prompt_tokens + 5, cost_usd = 0 WHERE price_version = 1")
        .execute(&plane.pool)
        .await
        .unwrap();
    sqlx::query("UPDATE usage_records SET requests = requests + 17").execute(&plane.pool).await.unwrap();
    for _ in 0..3 {
        sqlx::query(mark).execute(&plane.pool).await.unwrap();
        plane.restart().await;
        assert_sums(&plane, &events).await;
    }
    let before = count(&plane, "SELECT sum(requests)::bigint FROM usage_hours").await;
    assert_eq!(before, 60);
}

/// Hours of which the ledger is said to know less than was summed.
async fn refused(plane: &Plane, hours: f64) {
    eventually("so many hours are refused", || async {
        (plane.metric("turnpike_controlplane_rollup_hours_refused").await == Some(hours)).then_some(())
    })
    .await;
}

async fn what_was_counted_stays_counted(kept: Kept) {
    let plane = start(kept).await;
    let tenant = plane.tenant("acme").await;
    plane.model("m").await;
    let start = Utc::now();
    let hour = |back: i64| start - TimeDelta::hours(back);
    let events: Vec<UsageEvent> = (0..100).map(|n| distinct(&tenant, "m", hour(i64::from(n)), n)).collect();
    let mut meter = Meter::connect(&plane, "e1").await;
    meter.ship(1, 0, &events).await;
    rolled_up(&plane).await;
    // More hours than are summed at once, which the ledger says nothing of, in front of one that it knows more of.
    let made_up = "INSERT INTO usage_hours SELECT organization_id, model_id, 77, hour, 1, 1, 1, 1, 1 FROM usage_hours
                   WHERE hour < now() - interval '30 hours'";
    let made_up = sqlx::query(made_up).execute(&plane.pool).await.unwrap().rows_affected();
    sqlx::query("INSERT INTO usage_dirty_hours (hour, ended_from, began_from) SELECT DISTINCT hour, now(), now() FROM usage_hours")
        .execute(&plane.pool)
        .await
        .unwrap();
    let more = [distinct(&tenant, "m", hour(2), 200), distinct(&tenant, "m", hour(50), 201)];
    meter.ship(1, 100, &more).await;
    refused(&plane, made_up as f64).await;
    let requests = |back: i64| {
        let since = hour(back).to_rfc3339();
        let sql = format!("SELECT sum(requests)::bigint FROM usage_hours WHERE hour >= '{since}'");
        let plane = &plane;
        async move { count(plane, &sql).await }
    };
    assert_eq!(requests(10).await, 11, "and the others are summed");
    assert_eq!(requests(1000).await, 101 + i64::try_from(made_up).unwrap(), "nothing is lost");
    let marked = count(&plane, "SELECT count(DISTINCT hour) FROM usage_dirty_hours").await;
    assert_eq!(marked, i64::try_from(made_up).unwrap(), "they are not forgotten");
    sqlx::query("DELETE FROM usage_hours WHERE price_version = 77").execute(&plane.pool).await.unwrap();
    refused(&plane, 0.0).await;
    assert_sums(&plane, &[&events[..], &more].concat()).await;
}

async fn books_are_not_complete_up_to_what_an_edge_with_a_fast_clock_says(kept: Kept) {
    let plane = start(kept).await;
    let tenant = plane.tenant("acme").await;
    plane.model("m").await;
    let edge = Edge::connect(&plane, "e1", turnpike_config::Routing::default()).await;
    eventually("the edge", || async { (count(&plane, "SELECT count(*) FROM edges").await == 1).then_some(()) }).await;
    // Nothing is added up meanwhile.
    let mut adding = plane.pool.begin().await.unwrap();
    sqlx::query("SELECT pg_advisory_xact_lock(x'6d65746572696e67'::bigint)").execute(&mut *adding).await.unwrap();
    let fast = distinct(&tenant, "m", Utc::now() + TimeDelta::minutes(20), 1);
    Meter::connect(&plane, "e1").await.ship(1, 0, &[fast]).await;
    let early = "SELECT count(*) FROM usage_dirty_hours WHERE ended_from <= now()";
    assert_eq!(count(&plane, early).await, 1, "it had ended by now");
    drop((adding, edge));
}

#[tokio::test]
async fn a_ledger_that_begins_without_what_the_log_had_takes_nothing_away() {
    let mut plane = start(Kept::Postgres).await;
    let tenant = plane.tenant("acme").await;
    plane.model("m").await;
    let events: Vec<UsageEvent> = (0..3).map(|n| distinct(&tenant, "m", Utc::now(), n * 3)).collect();
    Meter::connect(&plane, "e1").await.ship(1, 0, &events[..2]).await;
    rolled_up(&plane).await;
    plane.stop().await;
    // As a month is whose partition was retired: it cannot be copied.
    sqlx::raw_sql("DELETE FROM inference_requests").execute(&plane.pool).await.unwrap();
    plane.more = Kept::ClickHouse.settings().await;
    plane.restart_stopped().await;
    Meter::connect(&plane, "e1").await.ship(1, 2, &events[2..]).await;
    refused(&plane, 1.0).await;
    assert_eq!(count(&plane, "SELECT sum(requests)::bigint FROM usage_records").await, 2);
    // What the log had is shipped again.
    Meter::connect(&plane, "e2").await.ship(1, 0, &events[..2]).await;
    refused(&plane, 0.0).await;
    assert_sums(&plane, &events).await;
}

async fn two_control_planes_come_to_the_same_sums(kept: Kept) {
    let extras = kept.settings().await;
    let database = fresh_database().await;
    let first = Arc::new(Plane::start_on(database.clone(), &extras).await);
    let second = Arc::new(Plane::start_on(database, &extras).await);
    let events = mixed_events(&first, 300).await;
    // Both take in the same and other events, both add up, and readers of both want sums all the while.
    let mut tasks = Vec::new();
    for (plane, part) in [(&first, 0..200), (&second, 100..300)] {
        let (plane, part) = (Arc::clone(plane), events[part].to_vec());
        tasks.push(tokio::spawn(async move { ship_in(&plane, "e1", 1, &part, &[7, 20]).await }));
    }
    for plane in [&first, &second] {
        let plane = Arc::clone(plane);
        tasks.push(tokio::spawn(async move {
            for _ in 0..20 {
                plane.get("/usage?group_by=day").await;
            }
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }
    assert_sums(&first, &events).await;
    assert_sums(&second, &events).await;
}

async fn a_late_event_of_an_invoiced_day_becomes_an_adjustment(kept: Kept) {
    let plane = start(kept).await;
    let (tenant, other) = (plane.tenant("acme").await, plane.tenant("other").await);
    plane.model("m").await;
    // The tenth of last month.
    let this_month = Utc::now().date_naive().with_day(1).unwrap();
    let day = (this_month - TimeDelta::days(1)).with_day(10).unwrap();
    let time = |minutes: i64| day.and_time(chrono::NaiveTime::MIN).and_utc() + TimeDelta::minutes(minutes);
    // In whole dollars, so that an invoice has something to say.
    let event = |tenant: &Tenant, minutes: i64, number: u32| {
        let cost = Usd { pico: i128::from(number) * 1_000_000_000_000 + 7 };
        UsageEvent { cost, ..distinct(tenant, "m", time(minutes), number) }
    };
    let early = [event(&tenant, 10, 1), event(&tenant, 70, 2)];
    let mut meter = Meter::connect(&plane, "e1").await;
    meter.ship(1, 0, &early).await;
    let invoice = invoices::close(&plane, &tenant, 1).await["invoice"].clone();
    assert_eq!(invoice["status"], "open", "{invoice}");

    // Of an hour that was summed already and of another one. Somebody else's day is not invoiced.
    let late = [event(&tenant, 71, 3), event(&tenant, 1000, 4)];
    let open = [event(&other, 20, 5)];
    meter.ship(1, 2, &[&late[..], &open[..]].concat()).await;
    meter.ship(1, 2, &late).await;
    meter.ship(1, 4, &[&late[..], &early[..]].concat()).await;
    let sum = |events: &[UsageEvent]| events.iter().map(|event| event.cost.pico).sum::<i128>();
    let of =
        |tenant: &Tenant| format!("organization={}&from={day}&to={}", tenant.organization, day + TimeDelta::days(1));
    let on_the_day = async |tenant: &Tenant| sum_of(&plane.get(&format!("/usage?{}", of(tenant))).await["data"][0]).3;
    assert_eq!(on_the_day(&tenant).await, sum(&early) + sum(&late), "by the day as by the hour");
    assert_eq!(on_the_day(&other).await, sum(&open));
    let recorded = format!(
        "SELECT (sum(cost_usd) * 1000000000000)::bigint FROM usage_records WHERE organization_id = '{}'",
        tenant.organization
    );
    assert_eq!(i128::from(count(&plane, &recorded).await), sum(&early), "the invoiced day stays as it was");
    let adjusted = async || {
        let sql =
            "SELECT coalesce(sum(cost_usd) * 1000000000000, 0)::bigint FROM usage_adjustments WHERE invoice_id IS NULL";
        i128::from(count(&plane, sql).await)
    };
    assert_eq!(adjusted().await, sum(&late), "and the difference waits for the next one");
    assert_eq!(count(&plane, "SELECT sum(requests)::bigint FROM usage_adjustments").await, 2);
    // Hours are always what the ledger says.
    let hours = plane.get(&format!("/usage?{}&group_by=hour", of(&tenant))).await;
    let total: i128 = hours["data"].as_array().unwrap().iter().map(|row| sum_of(row).3).sum();
    assert_eq!(total, sum(&early) + sum(&late));

    // The invoice is void: the day is open again, and takes back what had been set aside.
    plane.call(reqwest::Method::POST, &format!("/invoices/{}/void", crate::plane::id(&invoice)), None).await;
    let last = [event(&tenant, 72, 8)];
    meter.ship(1, 8, &last).await;
    assert_eq!(on_the_day(&tenant).await, sum(&early) + sum(&late) + sum(&last));
    assert_eq!(adjusted().await, 0);
    let again = invoices::close(&plane, &tenant, 1).await["invoice"].clone();
    let charged: Usd = again["exact_total"].as_str().unwrap().parse().unwrap();
    assert_eq!(charged.pico, sum(&early) + sum(&late) + sum(&last));

    // What an invoice has taken up stays taken up: a day's books are its hours, less what is charged elsewhere.
    let later = [event(&tenant, 90, 2)];
    meter.ship(1, 9, &later).await;
    plane.get("/usage").await;
    sqlx::query("UPDATE usage_adjustments SET invoice_id = $1::text::uuid")
        .bind(crate::plane::id(&invoice))
        .execute(&plane.pool)
        .await
        .unwrap();
    plane.call(reqwest::Method::POST, &format!("/invoices/{}/void", crate::plane::id(&again)), None).await;
    let very_last = [event(&tenant, 91, 1)];
    meter.ship(1, 10, &very_last).await;
    assert_eq!(on_the_day(&tenant).await, sum(&early) + sum(&late) + sum(&last) + sum(&later) + sum(&very_last));
    assert_eq!(count(&plane, "SELECT count(*) FROM usage_adjustments").await, 1);
}

async fn a_gap_in_a_journal_is_noticed(kept: Kept) {
    let plane = start(kept).await;
    let tenant = plane.tenant("acme").await;
    plane.model("m").await;
    let events: Vec<UsageEvent> = (0..6).map(|number| distinct(&tenant, "m", Utc::now(), number)).collect();
    let mut meter = Meter::connect(&plane, "e1").await;
    let gaps = || plane.metric("turnpike_controlplane_usage_journal_gaps_total");
    meter.ship(1, 0, &events[..2]).await;
    meter.ship(1, 1, &events[1..4]).await;
    assert_eq!(gaps().await, Some(0.0), "an overlap is none");
    meter.ship(1, 9, &events[4..5]).await;
    assert_eq!(gaps().await, Some(5.0));
    meter.ship(2, 0, &events[5..]).await;
    assert_eq!(gaps().await, Some(5.0), "another life of the journal begins anew");
    assert_sums(&plane, &events).await;
}

#[tokio::test]
async fn the_request_log_may_be_a_sample_and_sums_are_whole_all_the_same() {
    let settings = Kept::ClickHouse.settings().await + "usage.log_sample = 0.25\nusage.keep_months = 1";
    let plane = Plane::start_with(&settings).await;
    let events = mixed_events(&plane, 400).await;
    ship_in(&plane, "e1", 1, &events, &[100]).await;
    let logged = count(&plane, "SELECT count(*) FROM inference_requests").await;
    assert!((50..150).contains(&logged), "{logged} of 400");
    ship_in(&plane, "e2", 1, &events, &[33]).await;
    assert_eq!(count(&plane, "SELECT count(*) FROM inference_requests").await, logged, "the same ones again");
    assert_sums(&plane, &events).await;
    // From before the log begins: summed, and not logged.
    let tenant = Tenant { organization: events[0].organization.to_string(), ..plane.tenant("third").await };
    let old = [distinct(&tenant, "m", Utc::now() - TimeDelta::days(90), 999)];
    ship_in(&plane, "e3", 1, &old, &[1]).await;
    assert_sums(&plane, &[&events[..], &old].concat()).await;
    assert_eq!(count(&plane, "SELECT count(*) FROM inference_requests").await, logged);
}

#[tokio::test]
async fn the_sample_is_the_same_when_a_batch_has_to_be_stored_one_by_one() {
    let settings = Kept::ClickHouse.settings().await + "usage.log_sample = 0.25";
    let plane = Plane::start_with(&settings).await;
    let events = mixed_events(&plane, 100).await;
    // Whether an event is in the log is in its id.
    let random = |event: &UsageEvent| (event.id.0.as_u128() & 0xffff_ffff) as f64 / f64::from(u32::MAX);
    let sampled: Vec<_> = events.iter().filter(|event| random(event) < 0.25).map(|event| event.id.0).collect();
    let refused = sampled[0];
    let sql = format!("ALTER TABLE inference_requests ADD CONSTRAINT odd CHECK (id <> '{refused}')");
    sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).execute(&plane.pool).await.unwrap();
    ship_in(&plane, "e1", 1, &events, &[100]).await;
    let mut logged: Vec<uuid::Uuid> =
        sqlx::query_scalar("SELECT id FROM inference_requests").fetch_all(&plane.pool).await.unwrap();
    logged.sort_unstable();
    let mut expected = sampled[1..].to_vec();
    expected.sort_unstable();
    assert_eq!(logged, expected);
    assert_sums(&plane, &events).await;
}

#[tokio::test]
async fn hours_that_the_ledger_has_forgotten_are_left_as_they_were_summed() {
    let plane = start(Kept::Postgres).await;
    let tenant = plane.tenant("acme").await;
    plane.model("m").await;
    sqlx::query(
        "WITH old AS (SELECT date_trunc('hour', now() - interval '500 days', 'UTC') AS hour), hours AS (
             INSERT INTO usage_hours SELECT $1::text::uuid, 'm', 0, hour, 5, 5, 5, 5, 5 FROM old
         )
         INSERT INTO usage_dirty_hours (hour, ended_from, began_from) SELECT hour, now(), now() FROM old",
    )
    .bind(&tenant.organization)
    .execute(&plane.pool)
    .await
    .unwrap();
    rolled_up(&plane).await;
    assert_eq!(count(&plane, "SELECT sum(requests)::bigint FROM usage_hours").await, 5);
}
