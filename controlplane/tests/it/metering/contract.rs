//! What holds whichever ledger it is.

use super::*;
use crate::plane::{Extras, Kept, fresh_database};
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
    two_control_planes_come_to_the_same_sums,
    a_late_event_of_an_invoiced_day_becomes_an_adjustment,
    a_gap_in_a_journal_is_noticed,
}

async fn start(kept: Kept) -> Plane {
    Plane::start_with(kept.extras().await).await
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
    let extras = kept.extras().await.and("usage.keep_months = 48");
    let settings = extras.settings.replace("timeout =", "keep_days = 1500, timeout =");
    let plane = Plane::start_with(Extras { settings }).await;
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
    let mark = "INSERT INTO usage_dirty_hours (hour, ended_from) SELECT DISTINCT hour, now() FROM usage_hours";
    sqlx::query("UPDATE usage_hours SET requests = requests + 5, cost_usd = 0 WHERE price_version = 1")
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
    // An hour that somebody made up.
    sqlx::query(
        "INSERT INTO usage_hours SELECT organization_id, model_id, 77, hour, 1, 1, 1, 1, 1 FROM usage_hours LIMIT 1",
    )
    .execute(&plane.pool)
    .await
    .unwrap();
    sqlx::query(mark).execute(&plane.pool).await.unwrap();
    assert_sums(&plane, &events).await;
}

async fn two_control_planes_come_to_the_same_sums(kept: Kept) {
    let extras = kept.extras().await;
    let database = fresh_database().await;
    let first = Arc::new(Plane::start_on(database.clone(), extras.clone()).await);
    let second = Arc::new(Plane::start_on(database, extras).await);
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
    let day = (Utc::now() - TimeDelta::days(40)).duration_trunc(TimeDelta::days(1)).unwrap();
    let time = |minutes: i64| day + TimeDelta::minutes(minutes);
    let early = [distinct(&tenant, "m", time(10), 1), distinct(&tenant, "m", time(70), 2)];
    let mut meter = Meter::connect(&plane, "e1").await;
    meter.ship(1, 0, &early).await;
    plane.get("/usage").await;
    sqlx::query(
        "INSERT INTO invoices (organization_id, billing_account_id, invoice_number, period_start, period_end, exact_total,
             lines_total, discount_permille, discount_amount, subtotal, tax_rate, total_amount, credit_applied,
             amount_due, status)
         SELECT organization_id, id, 'draft-1', $2::date, $2::date, 1, 1, 0, 0, 1, 0, 1, 0, 1, 'draft'
         FROM billing_accounts WHERE organization_id = $1::text::uuid",
    )
    .bind(&tenant.organization)
    .bind(day.date_naive())
    .execute(&plane.pool)
    .await
    .unwrap();

    sqlx::query(
        "UPDATE invoices SET status = 'open', invoice_number = 'T-1', issued_on = period_end, due_date = period_end,
             checksum = repeat('0', 64)",
    )
    .execute(&plane.pool)
    .await
    .unwrap();

    let late = [distinct(&tenant, "m", time(71), 3), distinct(&tenant, "m", time(1000), 4)];
    // Another's day is not invoiced, nor is the next one.
    let open = [distinct(&other, "m", time(20), 5), distinct(&tenant, "m", time(1440), 6)];
    meter.ship(1, 2, &[&late[..], &open[..]].concat()).await;
    meter.ship(1, 2, &late).await;
    meter.ship(1, 4, &[&late[..], &early[..]].concat()).await;
    let on = |day: DateTime<Utc>| format!("from={}&to={}", day.date_naive(), day.date_naive() + TimeDelta::days(1));
    let of = format!("organization={}", tenant.organization);
    let frozen = plane.get(&format!("/usage?{of}&{}", on(day))).await;
    let sum = |events: &[UsageEvent]| events.iter().map(|event| event.cost.pico).sum::<i128>();
    assert_eq!(sum_of(&frozen["data"][0]).3, sum(&early), "the invoiced day stays as it was");
    assert_eq!(sum_of(&plane.get(&format!("/usage?{of}&{}", on(time(1440)))).await["data"][0]).3, sum(&open[1..]));
    let adjusted = "SELECT (sum(cost_usd) * 1000000000000)::bigint FROM usage_adjustments
                    WHERE invoice_id IS NULL AND date = (now() AT TIME ZONE 'UTC')::date - 40";
    assert_eq!(i128::from(count(&plane, adjusted).await), sum(&late), "and the difference waits for the next one");
    assert_eq!(count(&plane, "SELECT sum(requests)::bigint FROM usage_adjustments").await, 2);
    // Hours are always what the ledger says.
    let hours = plane.get(&format!("/usage?{of}&{}&group_by=hour", on(day))).await;
    let total: i128 = hours["data"].as_array().unwrap().iter().map(|row| sum_of(row).3).sum();
    assert_eq!(total, sum(&early) + sum(&late));

    // The invoice is void: the day is open again, and takes back what had been set aside.
    sqlx::query("UPDATE invoices SET status = 'void'").execute(&plane.pool).await.unwrap();
    let last = [distinct(&tenant, "m", time(72), 8)];
    meter.ship(1, 8, &last).await;
    let day_again = plane.get(&format!("/usage?{of}&{}", on(day))).await;
    assert_eq!(sum_of(&day_again["data"][0]).3, sum(&early) + sum(&late) + sum(&last));
    assert_eq!(count(&plane, "SELECT count(*) FROM usage_adjustments").await, 0);
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
