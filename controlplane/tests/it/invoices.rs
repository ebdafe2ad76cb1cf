//! From a month's usage to an invoice that nobody can change.

use crate::peers::Meter;
use crate::plane::{OWNER, Plane, Tenant, eventually, id};
use crate::usage::event;
use chrono::{DateTime, Datelike as _, Days, Months, NaiveDate, NaiveTime, Utc};
use reqwest::Method;
use serde_json::{Value, json};
use std::sync::Arc;
use turnpike_config::{UsageEvent, Usd};

/// The first day of the month that was `back` months ago.
pub(crate) fn first_of(back: u32) -> NaiveDate {
    (Utc::now().date_naive() - Months::new(back)).with_day(1).unwrap()
}

pub(crate) fn month_of(day: NaiveDate) -> String {
    day.format("%Y-%m").to_string()
}

/// A moment within that month.
fn within(back: u32) -> DateTime<Utc> {
    (first_of(back) + Days::new(9)).and_time(NaiveTime::MIN).and_utc()
}

pub(crate) fn spending(tenant: &Tenant, model: &str, at: DateTime<Utc>, cost: &str) -> UsageEvent {
    UsageEvent { cost: cost.parse().unwrap(), ..event(tenant, Some(model), at, 100, 10) }
}

/// An organization that used something last month.
async fn with_usage(plane: &Plane, slug: &str, costs: &[&str]) -> Tenant {
    let tenant = plane.tenant(slug).await;
    let events: Vec<_> = costs.iter().map(|cost| spending(&tenant, "m", within(1), cost)).collect();
    Meter::connect(plane, slug).await.ship(1, 0, &events).await;
    // Added up, so that a test may meddle with the sums.
    plane.get("/usage").await;
    tenant
}

async fn terms(plane: &Plane, tenant: &Tenant, body: Value) {
    plane.call(Method::PATCH, &format!("/organizations/{}/billing", tenant.organization), Some(body)).await;
}

/// Closes a tenant's month that was `back` months ago; gives what came of it.
pub(crate) async fn close(plane: &Plane, tenant: &Tenant, back: u32) -> Value {
    let body = json!({"month": month_of(first_of(back)), "organization_id": tenant.organization});
    plane.post("/invoices/close", body).await["data"][0].clone()
}

async fn count(plane: &Plane, sql: &'static str) -> i64 {
    sqlx::query_scalar(sql).fetch_one(&plane.pool).await.unwrap()
}

fn figures(invoice: &Value) -> [&str; 8] {
    [
        "exact_total",
        "lines_total",
        "discount_amount",
        "subtotal",
        "tax_amount",
        "total_amount",
        "credit_applied",
        "amount_due",
    ]
    .map(|name| invoice[name].as_str().unwrap())
}

#[tokio::test]
async fn a_month_becomes_an_invoice_that_says_how_it_was_reckoned() {
    let plane = Plane::start_with(
        "billing.seller_name = \"Turnpike & Sons\"\nbilling.seller_address = \"1 Road\\nTown\"\nbilling.due_days = 30",
    )
    .await;
    plane.model("m").await;
    plane.model("n").await;
    let tenant = plane.tenant("acme").await;
    let events = [
        spending(&tenant, "m", within(1), "10.004999999999"),
        spending(&tenant, "m", within(1) + Days::new(1), "0.000000000001"),
        spending(&tenant, "n", within(1), "3.015"),
        spending(&tenant, "n", within(0), "99"),
    ];
    Meter::connect(&plane, "e1").await.ship(1, 0, &events).await;
    terms(&plane, &tenant, json!({"discount_permille": 100, "tax_rate": "19", "tax_id": "X1"})).await;
    let month = month_of(first_of(1));

    let dry = plane.post("/invoices/close", json!({"month": month, "dry_run": true})).await;
    assert_eq!((&dry["data"][0]["outcome"], count(&plane, "SELECT count(*) FROM invoices").await), (&json!("made"), 0));
    let closed = close(&plane, &tenant, 1).await;
    let invoice = &closed["invoice"];
    let today = Utc::now().date_naive();
    assert_eq!(invoice["invoice_number"], format!("TP-{}-000001", today.year()));
    assert_eq!((&invoice["status"], &invoice["checksum_valid"]), (&json!("open"), &json!(true)));
    // 10.005 → 10.00 and 3.015 → 3.02 (half to even); 10 % of 13.02 is 1.302; 19 % of 11.72 is 2.2268.
    let expected = ["13.02", "13.02", "1.3", "11.72", "2.23", "13.95", "0", "13.95"];
    assert_eq!(figures(invoice), expected);
    assert_eq!(invoice["due_date"], (today + Days::new(30)).to_string());
    assert_eq!(invoice["period_end"], (first_of(0) - Days::new(1)).to_string());
    let lines = invoice["line_items"].as_array().unwrap();
    assert_eq!((lines.len(), &lines[0]["exact_amount"], &lines[0]["amount"]), (2, &json!("10.005"), &json!("10")));
    assert_eq!((&lines[0]["requests"], &lines[0]["prompt_tokens"]), (&json!(2), &json!(200)));
    assert_eq!((&invoice["seller"]["address"][1], &invoice["buyer"]["tax_id"]), (&json!("Town"), &json!("X1")));

    assert_eq!(close(&plane, &tenant, 1).await["outcome"], "already");
    assert_eq!(plane.post("/invoices/close", json!({"month": month})).await["data"], json!([]));
    let read = plane.get(&format!("/invoices/{}", id(invoice))).await;
    assert_eq!(&read, invoice);
    let page = async |kind: &str| {
        let path = format!("/admin/v1/invoices/{}.{kind}", id(invoice));
        plane.raw(Method::GET, &path, Some(OWNER), None).await
    };
    let html = page("html").await;
    assert!(html.content_type.unwrap().starts_with("text/html") && html.text.contains("Turnpike &amp; Sons"));
    let csv = page("csv").await;
    assert_eq!((csv.content_type.unwrap().starts_with("text/csv"), csv.text.lines().count()), (true, 3));
    let listed = plane.raw(Method::GET, "/admin/v1/invoices?format=csv", Some(OWNER), None).await;
    assert!(listed.text.contains(",open,") && listed.text.contains(",13.95,USD"), "{}", listed.text);
    for (filter, found) in
        [("status=open", 1), ("status=paid", 0), (&format!("month={month}"), 1), ("month=2020-01", 0)]
    {
        let list = plane.get(&format!("/invoices?{filter}")).await;
        assert_eq!(list["data"].as_array().unwrap().len(), found, "{filter}");
    }
    for (path, status) in [("/invoices?status=gone", 422), ("/invoices?month=2020-1", 422), ("/invoices/x.pdf", 422)] {
        plane.refused(Method::GET, path, "", status).await;
    }
    let running = json!({"month": month_of(first_of(0))}).to_string();
    plane.refused(Method::POST, "/invoices/close", &running, 409).await;
    let actions: Vec<String> =
        sqlx::query_scalar("SELECT action FROM audit_log WHERE resource_type = 'invoice' ORDER BY id")
            .fetch_all(&plane.pool)
            .await
            .unwrap();
    assert_eq!(actions, ["invoice.open"]);
}

#[tokio::test]
async fn an_opened_invoice_is_frozen_and_a_forced_change_is_seen() {
    let plane = Plane::start().await;
    plane.model("m").await;
    let tenant = with_usage(&plane, "acme", &["5"]).await;
    let invoice = close(&plane, &tenant, 1).await["invoice"].clone();
    let changes = [
        "UPDATE invoices SET total_amount = total_amount + 1, subtotal = subtotal + 1, lines_total = lines_total + 1, \
         amount_due = amount_due + 1",
        "UPDATE invoices SET line_items = '[]'",
        "UPDATE invoices SET due_date = due_date + 1",
        "UPDATE invoices SET checksum = repeat('0', 64)",
        "UPDATE invoices SET status = 'draft', invoice_number = 'draft-1'",
        "DELETE FROM invoices",
        "TRUNCATE invoices CASCADE",
    ];
    for sql in changes {
        assert!(sqlx::query(sql).execute(&plane.pool).await.is_err(), "{sql}");
    }
    let path = format!("/invoices/{}", id(&invoice));
    assert_eq!(plane.get(&path).await, invoice);
    for change in [
        "line_items = jsonb_set(line_items, '{0,exact_amount}', '\"4\"')",
        "line_items = line_items || '[{\"free\": true}]'",
        "buyer = jsonb_set(buyer, '{name}', '\"Other\"')",
        "due_date = due_date + 1",
    ] {
        let sql = format!(
            "ALTER TABLE invoices DISABLE TRIGGER USER; CREATE TABLE kept AS SELECT * FROM invoices; \
             UPDATE invoices SET {change};"
        );
        sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).execute(&plane.pool).await.unwrap();
        assert_eq!(plane.get(&path).await["checksum_valid"], false, "{change}");
        let html = plane.raw(Method::GET, &format!("/admin/v1{path}.html"), Some(OWNER), None).await;
        assert!(html.text.contains("tampered"), "{change}");
        let back = "DELETE FROM invoices; INSERT INTO invoices SELECT * FROM kept; DROP TABLE kept; \
                    ALTER TABLE invoices ENABLE TRIGGER USER;";
        sqlx::raw_sql(back).execute(&plane.pool).await.unwrap();
        assert_eq!(plane.get(&path).await["checksum_valid"], true, "{change}");
    }
    assert_eq!(plane.metric("turnpike_controlplane_invoice_checksum_failures_total").await, Some(8.0));
}

#[tokio::test]
async fn racing_closers_make_one_invoice_each_and_numbers_without_a_gap() {
    let plane = Arc::new(Plane::start().await);
    plane.model("m").await;
    let mut tenants = Vec::new();
    for n in 0..6 {
        tenants.push(with_usage(&plane, &format!("org-{n}"), &["1.5", "0.000000000001"]).await);
    }
    // One whose hours and days do not agree: it takes no number, and does not keep the others from theirs.
    sqlx::query("UPDATE usage_hours SET price_version = 1, cost_usd = 1.500000000002 WHERE organization_id = $1")
        .bind(tenants[3].organization.parse::<uuid::Uuid>().unwrap())
        .execute(&plane.pool)
        .await
        .unwrap();
    let racers: Vec<_> = (0..5)
        .map(|_| {
            let plane = Arc::clone(&plane);
            let body = json!({"month": month_of(first_of(1))});
            tokio::spawn(async move { plane.post("/invoices/close", body).await })
        })
        .collect();
    let mut refused = 0;
    for racer in racers {
        let closings = racer.await.unwrap();
        let data = closings["data"].as_array().unwrap().clone();
        let reasons: Vec<_> = data.iter().filter(|closing| closing["outcome"] == "refused").collect();
        refused += reasons.len();
        assert!(reasons.iter().all(|r| r["reason"].as_str().unwrap().contains("1.500000000002")), "{reasons:?}");
    }
    assert!(refused >= 1, "the mismatch is reported");
    let seen = plane.metric("turnpike_controlplane_closing_mismatches_total").await;
    assert!(seen.is_some_and(|count| count >= 1.0), "{seen:?}");
    let numbers: Vec<String> =
        sqlx::query_scalar("SELECT invoice_number FROM invoices ORDER BY 1").fetch_all(&plane.pool).await.unwrap();
    let year = Utc::now().year();
    let expected: Vec<_> = (1..=5).map(|n| format!("TP-{year}-{n:06}")).collect();
    assert_eq!(numbers, expected);

    sqlx::query("UPDATE usage_hours SET cost_usd = 1.500000000001").execute(&plane.pool).await.unwrap();
    let invoice = close(&plane, &tenants[3], 1).await["invoice"].clone();
    assert_eq!(invoice["invoice_number"], format!("TP-{year}-000006"));
    let line = &invoice["line_items"][0];
    assert_eq!(line["unit_prices"]["input_token"], "0.00001");
    assert_eq!((&line["price_version"], &line["exact_amount"]), (&json!(1), &json!("1.500000000001")));
}

#[tokio::test]
async fn a_closer_that_is_killed_leaves_nothing() {
    let plane = Arc::new(Plane::start().await);
    plane.model("m").await;
    let (first, second) = (with_usage(&plane, "first", &["1"]).await, with_usage(&plane, "second", &["2"]).await);
    close(&plane, &first, 1).await;
    // It has written its draft and waits for its number.
    let mut holding = plane.pool.begin().await.unwrap();
    sqlx::query("SELECT 1 FROM document_numbers FOR UPDATE").execute(&mut *holding).await.unwrap();
    let closing = {
        let (plane, second) = (Arc::clone(&plane), second.clone());
        tokio::spawn(async move {
            let body = json!({"month": month_of(first_of(1)), "organization_id": second.organization}).to_string();
            plane.raw(Method::POST, "/admin/v1/invoices/close", Some(OWNER), Some(body)).await.status
        })
    };
    eventually("the closer waits and is killed", || async {
        let killed = count(
            &plane,
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
             WHERE datname = current_database() AND wait_event_type = 'Lock' AND query LIKE '%document_numbers%'",
        );
        (killed.await == 1).then_some(())
    })
    .await;
    holding.rollback().await.unwrap();
    assert!(closing.await.unwrap().is_server_error());
    assert_eq!(count(&plane, "SELECT count(*) FROM invoices").await, 1);
    let invoice = close(&plane, &second, 1).await["invoice"].clone();
    assert!(invoice["invoice_number"].as_str().unwrap().ends_with("-000002"), "{invoice}");
}

#[tokio::test]
async fn only_legal_steps_are_taken() {
    let plane = Plane::start().await;
    plane.model("m").await;
    let tenant = with_usage(&plane, "acme", &["5"]).await;
    let body = json!({"month": month_of(first_of(1)), "draft": true});
    let draft = plane.post("/invoices/close", body.clone()).await["data"][0]["invoice"].clone();
    assert!(draft["invoice_number"].as_str().unwrap().starts_with("draft-"), "{draft}");
    let path = format!("/invoices/{}", id(&draft));
    for step in ["pay", "void", "mark_uncollectible"] {
        plane.refused(Method::POST, &format!("{path}/{step}"), "", 409).await;
    }
    // Usage that comes meanwhile is not opened unseen.
    Meter::connect(&plane, "late").await.ship(1, 0, &[spending(&tenant, "m", within(1), "1")]).await;
    plane.refused(Method::POST, &format!("{path}/open"), "", 409).await;
    assert_eq!(plane.get(&path).await["exact_total"], "6");
    // Nor is that which may still come, unless it is wanted so.
    sqlx::query("INSERT INTO edges (name, region, build, began_to) VALUES ('behind', 'eu', 'b', $1)")
        .bind(within(1))
        .execute(&plane.pool)
        .await
        .unwrap();
    let behind = plane.refused(Method::POST, &format!("{path}/open"), "", 409).await;
    assert!(behind["detail"].as_str().unwrap().contains("edges behind may still ship"), "{behind}");
    let open = plane.call(Method::POST, &format!("{path}/open?force=true"), None).await;
    sqlx::query("DELETE FROM edges WHERE name = 'behind'").execute(&plane.pool).await.unwrap();
    assert_eq!((&open["status"], &open["id"]), (&json!("open"), &draft["id"]));
    plane.refused(Method::POST, &format!("{path}/open"), "", 409).await;

    let step = async |step: &str| plane.call(Method::POST, &format!("{path}/{step}"), None).await["status"].clone();
    assert_eq!(step("mark_uncollectible").await, "uncollectible");
    assert_eq!(step("pay").await, "paid", "who was given up may pay after all");
    assert_eq!(step("pay").await, "paid", "twice is no mistake");
    for refused in ["void", "mark_uncollectible"] {
        plane.refused(Method::POST, &format!("{path}/{refused}"), "", 409).await;
    }
    let nobody = format!("/invoices/{}/pay", uuid::Uuid::new_v4());
    plane.refused(Method::POST, &nobody, "", 404).await;

    // A void invoice keeps its number; the month can be closed again.
    let other = with_usage(&plane, "other", &["7"]).await;
    let first = close(&plane, &other, 1).await["invoice"].clone();
    plane.call(Method::POST, &format!("/invoices/{}/void", id(&first)), None).await;
    assert_eq!(plane.get(&format!("/invoices/{}", id(&first))).await["status"], "void");
    let second = close(&plane, &other, 1).await["invoice"].clone();
    let number = |invoice: &Value| invoice["invoice_number"].as_str().unwrap()[8..].to_owned();
    assert_eq!((number(&first).as_str(), number(&second).as_str()), ("000002", "000003"));
}

#[tokio::test]
async fn credit_notes_are_never_more_than_their_invoice() {
    let plane = Arc::new(Plane::start().await);
    plane.model("m").await;
    let tenant = with_usage(&plane, "acme", &["10"]).await;
    terms(&plane, &tenant, json!({"tax_rate": "20"})).await;
    let invoice = close(&plane, &tenant, 1).await["invoice"].clone();
    let path = format!("/invoices/{}/credit_notes", id(&invoice));
    let note = json!({"amount": "3.00", "reason": "an outage", "idempotency_key": "a"});
    let first = plane.post(&path, note.clone()).await;
    assert_eq!((&first["amount"], &first["tax_amount"]), (&json!("3"), &json!("0.5")));
    assert_eq!(first["credit_note_number"], format!("TP-CN-{}-000001", Utc::now().year()));
    assert_eq!(plane.post(&path, note).await["id"], first["id"]);
    let other = json!({"amount": "4", "reason": "r", "idempotency_key": "a"}).to_string();
    plane.refused(Method::POST, &path, &other, 409).await;
    // 12.00 − 3.00 leaves room for three of the four.
    let racers: Vec<_> = (0..4)
        .map(|n| {
            let (plane, path) = (Arc::clone(&plane), path.clone());
            let body =
                json!({"amount": "3", "reason": "r", "idempotency_key": format!("racer-{n}"), "to_prepaid": true});
            tokio::spawn(async move {
                let path = format!("/admin/v1{path}");
                plane.raw(Method::POST, &path, Some(OWNER), Some(body.to_string())).await.status.as_u16()
            })
        })
        .collect();
    let mut statuses = Vec::new();
    for racer in racers {
        statuses.push(racer.await.unwrap());
    }
    statuses.sort_unstable();
    assert_eq!(statuses, [201, 201, 201, 409]);
    let notes = plane.get(&path).await["data"].as_array().unwrap().clone();
    let numbers: Vec<_> = notes.iter().map(|note| note["credit_note_number"].as_str().unwrap()).collect();
    let year = Utc::now().year();
    assert_eq!(numbers, [1, 2, 3, 4].map(|n| format!("TP-CN-{year}-{n:06}")), "what was refused leaves no gap");
    assert_eq!(crate::prepaid::balance(&plane, &tenant).await, "9");
    let after = plane.get(&format!("/invoices/{}", id(&invoice))).await;
    assert_eq!((figures(&after), &after["checksum"]), (figures(&invoice), &invoice["checksum"]), "it stays as it was");
    assert_eq!((&after["credited_amount"], &after["remaining_due"]), (&json!("12"), &json!("9")));
    let page = format!("/admin/v1{path}/{}.html", id(&first));
    let page = plane.raw(Method::GET, &page, Some(OWNER), None).await;
    assert!(page.text.contains("an outage") && page.text.contains("2.50"), "{}", page.text);
    plane.refused(Method::GET, &format!("{path}/{}", uuid::Uuid::new_v4()), "", 404).await;
    for sql in ["UPDATE credit_notes SET amount = 1", "DELETE FROM credit_notes"] {
        assert!(sqlx::query(sql).execute(&plane.pool).await.is_err(), "{sql}");
    }
    for body in [json!({"amount": "0.001", "reason": "r", "idempotency_key": "k"}), json!({"amount": "1"})] {
        plane.refused(Method::POST, &path, &body.to_string(), 422).await;
    }
}

#[tokio::test]
async fn late_usage_goes_on_the_next_invoice_and_comes_back_from_a_void_one() {
    let plane = Plane::start().await;
    plane.model("m").await;
    let tenant = plane.tenant("acme").await;
    let events = [spending(&tenant, "m", within(2), "4"), spending(&tenant, "m", within(1), "5")];
    Meter::connect(&plane, "e1").await.ship(1, 0, &events).await;
    assert_eq!(figures(&close(&plane, &tenant, 2).await["invoice"])[0], "4");
    let late = [spending(&tenant, "m", within(2), "0.250000000001")];
    Meter::connect(&plane, "e1").await.ship(1, 2, &late).await;
    let next = close(&plane, &tenant, 1).await["invoice"].clone();
    assert_eq!(figures(&next)[0], "5.250000000001");
    let line = &next["line_items"][1];
    let month = month_of(first_of(2));
    assert_eq!((&line["kind"], &line["month"], &line["amount"]), (&json!("late_usage"), &json!(month), &json!("0.25")));
    let open = "SELECT count(*) FROM usage_adjustments WHERE invoice_id IS NULL";
    assert_eq!(count(&plane, open).await, 0);
    plane.call(Method::POST, &format!("/invoices/{}/void", id(&next)), None).await;
    assert_eq!(count(&plane, open).await, 1);
    assert_eq!(figures(&close(&plane, &tenant, 1).await["invoice"])[0], "5.250000000001");

    // The first month's invoice was a mistake: what came late is on another one already, and is not charged twice.
    let first = plane.get(&format!("/invoices?month={month}")).await["data"][0].clone();
    plane.call(Method::POST, &format!("/invoices/{}/void", id(&first)), None).await;
    let again = close(&plane, &tenant, 2).await["invoice"].clone();
    assert_eq!(figures(&again)[0], "4");
    assert_eq!(again["line_items"][1]["kind"], "charged_before");
}

#[tokio::test]
async fn an_invoice_is_paid_from_what_was_paid_ahead() {
    let plane = Plane::start().await;
    plane.model("m").await;
    let tenant = plane.tenant("acme").await;
    terms(&plane, &tenant, json!({"discount_permille": 100, "tax_rate": "10"})).await;
    crate::prepaid::top_up(&plane, &tenant, "30", "first").await;
    let gone = plane.tenant("gone").await;
    crate::prepaid::top_up(&plane, &gone, "4.005", "first").await;
    // As if it had paid ahead before last month began.
    sqlx::raw_sql(
        "ALTER TABLE prepaid_entries DISABLE TRIGGER USER;
         UPDATE prepaid_entries SET day = day - 62 WHERE kind = 'opening';
         ALTER TABLE prepaid_entries ENABLE TRIGGER USER;
         UPDATE billing_accounts SET prepaid_since = prepaid_since - 62;",
    )
    .execute(&plane.pool)
    .await
    .unwrap();
    let used = [spending(&tenant, "m", within(1), "10.001"), spending(&tenant, "m", within(0), "2")];
    Meter::connect(&plane, "e1").await.ship(1, 0, &used).await;
    let balance = async || crate::prepaid::balance(&plane, &tenant).await.as_str().unwrap().parse::<Usd>().unwrap();
    let usd = |text: &str| text.parse::<Usd>().unwrap();
    assert_eq!(balance().await, usd("17.999"));
    let invoice = close(&plane, &tenant, 1).await["invoice"].clone();
    // 10.00 − 1.00 + 0.90: what was debited for usage comes back, and the invoice's total goes.
    assert_eq!(figures(&invoice)[5..], ["9.9", "9.9", "0"]);
    assert_eq!(invoice["status"], "paid");
    assert_eq!(balance().await, usd("18.1"), "30 − 2 − 9.90");
    // What is not covered is due: more was used than was there.
    Meter::connect(&plane, "e1").await.ship(1, 2, &[spending(&gone, "m", within(1), "10")]).await;
    let left = async |tenant| crate::prepaid::balance(&plane, tenant).await;
    assert_eq!(left(&gone).await, "-5.995");
    let invoice = close(&plane, &gone, 1).await["invoice"].clone();
    assert_eq!(figures(&invoice)[5..], ["10", "4", "6"]);
    assert_eq!((invoice["status"].as_str(), left(&gone).await), (Some("open"), json!("0.005")));
    plane.call(Method::POST, &format!("/invoices/{}/void", id(&invoice)), None).await;
    assert_eq!(left(&gone).await, "-5.995");
    let again = close(&plane, &gone, 1).await["invoice"].clone();
    assert_eq!(figures(&again)[5..], ["10", "4", "6"]);
    assert_eq!(left(&gone).await, "0.005");
}

#[tokio::test]
async fn no_cent_is_due_because_lines_are_whole_cents() {
    let plane = Plane::start().await;
    for model in ["m", "n", "o"] {
        plane.model(model).await;
    }
    let (plain, taxed) = (plane.tenant("plain").await, plane.tenant("taxed").await);
    terms(&plane, &taxed, json!({"tax_rate": "20"})).await;
    for tenant in [&plain, &taxed] {
        crate::prepaid::top_up(&plane, tenant, "0.018", "first").await;
    }
    sqlx::raw_sql(
        "ALTER TABLE prepaid_entries DISABLE TRIGGER USER;
         UPDATE prepaid_entries SET day = day - 62 WHERE kind = 'opening';
         ALTER TABLE prepaid_entries ENABLE TRIGGER USER;
         UPDATE billing_accounts SET prepaid_since = prepaid_since - 62;",
    )
    .execute(&plane.pool)
    .await
    .unwrap();
    let used = |tenant: &Tenant| ["m", "n", "o"].map(|model| spending(tenant, model, within(1), "0.006"));
    Meter::connect(&plane, "e1").await.ship(1, 0, &[used(&plain), used(&taxed)].concat()).await;
    let left = async |tenant: &Tenant| crate::prepaid::balance(&plane, tenant).await;
    let entries = async |tenant: &Tenant| {
        let page = plane.get(&format!("/organizations/{}/prepaid_entries", tenant.organization)).await;
        let text = |entry: &Value, name: &str| entry[name].as_str().unwrap().to_owned();
        let entries = page["data"].as_array().unwrap().iter();
        entries.map(|entry| [text(entry, "kind"), text(entry, "amount")]).collect::<Vec<_>>()
    };
    assert_eq!(left(&plain).await, "0");
    let invoice = close(&plane, &plain, 1).await["invoice"].clone();
    // 0.018 was debited: what three lines of a cent are more is waived, and the balance stays.
    assert_eq!(figures(&invoice)[5..], ["0.03", "0.03", "0"]);
    assert_eq!((invoice["status"].as_str(), left(&plain).await), (Some("paid"), json!("0")));
    assert_eq!(entries(&plain).await[..2], [["rounding", "0.012"], ["invoice", "-0.012"]]);

    // Tax is not debited with usage: it is due, and nothing else. A void invoice takes all of it back.
    for _ in 0..2 {
        let invoice = close(&plane, &taxed, 1).await["invoice"].clone();
        assert_eq!(figures(&invoice)[4..], ["0.01", "0.04", "0.03", "0.01"]);
        assert_eq!((invoice["status"].as_str(), left(&taxed).await), (Some("open"), json!("0")));
        plane.call(Method::POST, &format!("/invoices/{}/void", id(&invoice)), None).await;
        assert_eq!(left(&taxed).await, "0");
        let entries = entries(&taxed).await;
        let undone = [["rounding", "-0.012"], ["credit", "0.012"], ["rounding", "0.012"], ["invoice", "-0.012"]];
        assert_eq!(entries[..4], undone);
    }
}

#[tokio::test]
async fn what_was_not_debited_is_taken_from_money_paid_ahead_only_when_asked() {
    let plane = Plane::start().await;
    plane.model("m").await;
    let tenant = with_usage(&plane, "acme", &["10"]).await;
    crate::prepaid::top_up(&plane, &tenant, "7.5", "first").await;
    let left = async || crate::prepaid::balance(&plane, &tenant).await;
    let invoice = close(&plane, &tenant, 1).await["invoice"].clone();
    // Edges have told of 7.50, and may have lent it by now.
    assert_eq!(figures(&invoice)[5..], ["10", "0", "10"]);
    assert_eq!((invoice["status"].as_str(), left().await), (Some("open"), json!("7.5")));
    let path = format!("/invoices/{}/pay?from_prepaid=true", id(&invoice));
    let refused = plane.refused(Method::POST, &path, "", 409).await;
    assert!(refused["detail"].as_str().unwrap().contains("10 dollars are due and 7.5 are left"), "{refused}");
    crate::prepaid::top_up(&plane, &tenant, "3", "second").await;
    for _ in 0..2 {
        assert_eq!(plane.call(Method::POST, &path, None).await["status"], "paid");
        assert_eq!(left().await, "0.5");
    }
    plane.refused(Method::POST, &format!("/invoices/{}/void", id(&invoice)), "", 409).await;
}

#[tokio::test]
async fn corrections_wait_for_a_month_that_they_fit_into() {
    let plane = Plane::start().await;
    plane.model("m").await;
    let tenant = plane.tenant("acme").await;
    let used = [spending(&tenant, "m", within(2), "3"), spending(&tenant, "m", within(1), "10")];
    Meter::connect(&plane, "e1").await.ship(1, 0, &used).await;
    sqlx::query(
        "INSERT INTO usage_adjustments (organization_id, model_id, date, requests, prompt_tokens, completion_tokens,
             cost_usd) VALUES ($1::text::uuid, 'm', $2, -1, -100, -10, -5)",
    )
    .bind(&tenant.organization)
    .bind(first_of(3))
    .execute(&plane.pool)
    .await
    .unwrap();
    let body = json!({"month": month_of(first_of(2)), "organization_id": tenant.organization}).to_string();
    let refused = plane.refused(Method::POST, "/invoices/close", &body, 409).await;
    assert!(refused["detail"].as_str().unwrap().contains("come off the next month"), "{refused}");
    // As it says: nothing is taken off twice.
    for (back, total) in [(1, "5"), (2, "3")] {
        assert_eq!(figures(&close(&plane, &tenant, back).await["invoice"])[0], total);
    }
}

#[tokio::test]
async fn months_are_closed_by_themselves_once_every_edge_has_shipped() {
    let plane = Plane::start_with("billing.close_every = \"100ms\"\nbilling.close_after = \"0ms\"").await;
    sqlx::query("INSERT INTO edges (name, region, build, began_to) VALUES ('behind', 'eu', 'b', $1)")
        .bind(within(1))
        .execute(&plane.pool)
        .await
        .unwrap();
    plane.model("m").await;
    let tenant = with_usage(&plane, "acme", &["5"]).await;
    with_usage(&plane, "free", &["0"]).await;
    let waiting = async |wanted: f64| {
        eventually("the gauge", || async {
            (plane.metric("turnpike_controlplane_closing_waiting").await == Some(wanted)).then_some(())
        })
        .await;
    };
    waiting(1.0).await;
    let body = json!({"month": month_of(first_of(1)), "organization_id": tenant.organization});
    let problem = plane.refused(Method::POST, "/invoices/close", &body.to_string(), 409).await;
    assert!(problem["detail"].as_str().unwrap().contains("behind"), "{problem}");
    assert_eq!(count(&plane, "SELECT count(*) FROM invoices").await, 0);
    sqlx::query("UPDATE edges SET began_to = $1").bind(within(0)).execute(&plane.pool).await.unwrap();
    waiting(0.0).await;
    let invoices = plane.get("/invoices").await["data"].as_array().unwrap().clone();
    assert_eq!((invoices.len(), &invoices[0]["organization_id"]), (1, &json!(tenant.organization)));
}

#[tokio::test]
async fn two_control_planes_close_a_month_once() {
    let settings = "billing.close_every = \"100ms\"\nbilling.close_after = \"0ms\"";
    let first = Plane::start_with(settings).await;
    first.model("m").await;
    let mut events = Vec::new();
    for n in 0..8 {
        let tenant = first.tenant(&format!("org-{n}")).await;
        events.push(spending(&tenant, "m", within(1), "1.01"));
    }
    let second = Plane::start_on(first.database.clone(), settings).await;
    Meter::connect(&first, "e1").await.ship(1, 0, &events).await;
    // By hand at the same time as well.
    let body = json!({"month": month_of(first_of(1))});
    futures::future::join_all([first.post("/invoices/close", body.clone()), second.post("/invoices/close", body)])
        .await;
    eventually("every invoice", || async { (count(&first, "SELECT count(*) FROM invoices").await == 8).then_some(()) })
        .await;
    let numbers: Vec<String> = sqlx::query_scalar("SELECT right(invoice_number, 6) FROM invoices ORDER BY 1")
        .fetch_all(&first.pool)
        .await
        .unwrap();
    assert_eq!(numbers, (1..=8).map(|n| format!("{n:06}")).collect::<Vec<_>>());
    for plane in [&first, &second] {
        assert_eq!(plane.metric("turnpike_controlplane_closing_failures_total").await, Some(0.0));
    }
}

#[tokio::test]
async fn months_end_where_they_end() {
    let plane = Plane::start().await;
    plane.model("m").await;
    let tenant = plane.tenant("acme").await;
    let sql = format!(
        "CREATE TABLE usage_records_y2024m02 PARTITION OF usage_records FOR VALUES FROM ('2024-02-01') TO ('2024-03-01');
         CREATE TABLE usage_records_y2024m03 PARTITION OF usage_records FOR VALUES FROM ('2024-03-01') TO ('2024-04-01');
         INSERT INTO usage_hours (organization_id, model_id, price_version, hour, requests, prompt_tokens,
             cached_tokens, completion_tokens, cost_usd)
         SELECT '{0}', 'm', 1, hour::timestamptz, 1, 10, 4, 1, cost FROM (VALUES
             ('2024-02-01 00:00+00', 1), ('2024-02-29 23:00+00', 2), ('2024-03-01 00:00+00', 4),
             ('2024-03-31 23:00+00', 8)) AS hours (hour, cost);
         INSERT INTO usage_records (organization_id, model_id, date, requests, prompt_tokens, completion_tokens,
             total_tokens, cost_usd)
         SELECT organization_id, model_id, (hour AT TIME ZONE 'UTC')::date, requests, prompt_tokens, completion_tokens,
             prompt_tokens + completion_tokens, cost_usd FROM usage_hours;",
        tenant.organization
    );
    sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).execute(&plane.pool).await.unwrap();
    for (month, last, total) in [("2024-03", "2024-03-31", "12"), ("2024-02", "2024-02-29", "3")] {
        let closed = plane.post("/invoices/close", json!({"month": month})).await;
        let invoice = &closed["data"][0]["invoice"];
        assert_eq!((&invoice["exact_total"], &invoice["period_end"]), (&json!(total), &json!(last)), "{closed}");
        assert_eq!(invoice["line_items"][0]["cached_tokens"], 8);
    }
}
