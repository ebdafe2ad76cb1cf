//! What an edge stands on gives way: its disk, its nodes, the control plane, the database.

use super::{Clients, Served, books_agree, rounds, until_complete};
use crate::harness::{Fleet, MODEL, chat_body, eventually, get, post};
use futures::StreamExt as _;
use serde_json::json;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::process::Command;
use turnpike_parts::clickhouse::ClickHouse;

/// Segments of an edge's journal, the newest last.
fn segments(fleet: &Fleet, edge: &str) -> Vec<PathBuf> {
    let journal = fleet.path(&format!("{edge}-data/journal"));
    let files = std::fs::read_dir(journal).unwrap().map(|entry| entry.unwrap().path());
    let mut found: Vec<_> = files.filter(|path| path.extension().is_some_and(|end| end == "journal")).collect();
    found.sort();
    found
}

fn open(path: &PathBuf) -> std::fs::File {
    std::fs::File::options().read(true).write(true).open(path).unwrap()
}

/// Kills the control plane at each point of usage's way in.
async fn control_plane_dies(mut fleet: Fleet) {
    let mut served = Served::new();
    for round in 0..rounds() {
        for point in ["before_insert", "after_insert", "before_ack", "rollup"] {
            let point = format!("control.{point}#{}", 2 + round);
            fleet.restart_to_crash("control", &point).await;
            let clients = Clients::start(&fleet);
            eventually(&format!("the control plane dies at {point}"), async || {
                if fleet.is_running("control") { Err(fleet.log("control")) } else { Ok(()) }
            })
            .await;
            clients.answer(10).await;
            fleet.start_plane("control").await;
            served.extend(clients.finish().await);
            books_agree(&fleet, &served, &point).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_control_plane_that_is_killed_while_it_takes_usage_in_counts_it_once() {
    control_plane_dies(Fleet::start(&["n1"], "0ms").await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_clickhouse_too_and_one_that_is_killed_loses_nothing() {
    let server = tokio::task::spawn_blocking(|| ClickHouse::start_temporary().unwrap()).await.unwrap();
    let mut server = Some(server);
    let fleet = Fleet::start_on_clickhouse(&["n1"], "0ms", server.as_ref().unwrap()).await;
    let mut served = Served::new();
    for _ in 0..rounds() {
        let clients = Clients::start(&fleet);
        clients.answer(10).await;
        let mut dead = server.take().unwrap();
        dead.kill();
        clients.answer(30).await;
        let restarted = tokio::task::spawn_blocking(move || {
            dead.restart().unwrap();
            dead
        });
        server = Some(restarted.await.unwrap());
        clients.answer(10).await;
        served.extend(clients.finish().await);
        books_agree(&fleet, &served, "a dead ClickHouse").await;
    }
    control_plane_dies(fleet).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clickhouse_that_is_set_later_has_all_usage_also_if_its_copying_dies() {
    let mut fleet = Fleet::start(&["n1"], "0ms").await;
    let clients = Clients::start(&fleet);
    clients.answer(40).await;
    let mut served = clients.finish().await;
    books_agree(&fleet, &served, "usage in PostgreSQL").await;
    let server = tokio::task::spawn_blocking(|| ClickHouse::start_temporary().unwrap()).await.unwrap();
    fleet.kill("control");
    let clients = Clients::start(&fleet);
    clients.answer(10).await;
    // What it has copied is not noted when it dies.
    fleet.start_to_crash_with("control", &format!("clickhouse.url = \"{}\"", server.url()), "control.copy");
    eventually(
        "the control plane dies",
        async || {
            if fleet.is_running("control") { Err(fleet.log("control")) } else { Ok(()) }
        },
    )
    .await;
    clients.answer(10).await;
    fleet.start_plane("control").await;
    clients.answer(10).await;
    served.extend(clients.finish().await);
    eventually("all is copied", async || {
        let left = fleet.sql("SELECT count(copied_from) FROM usage_ledger");
        if left == "0" { Ok(()) } else { Err(fleet.log("control")) }
    })
    .await;
    books_agree(&fleet, &served, "usage copied into ClickHouse").await;
    let log = fleet.log("control");
    assert!(log.contains("usage is all in ClickHouse") && !log.contains("fewer requests"), "{log}");
    let found = server.query("SELECT uniqExact(event_id) >= 60 FROM turnpike.request_analytics FINAL").unwrap();
    assert_eq!(found, "1");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_crashes_under_load_and_a_node_that_dies_lose_nothing() {
    let mut fleet = Fleet::start(&["n1", "n2"], "2ms").await;
    // Databases of tests are usually spared the work of keeping what they confirm.
    fleet.sql("ALTER DATABASE turnpike SET synchronous_commit = on");
    fleet.kill("control");
    fleet.start_plane("control").await;
    let mut served = Served::new();
    for _ in 0..rounds() {
        let clients = Clients::start(&fleet);
        clients.answer(10).await;
        for _ in 0..3 {
            fleet.crash_database().await;
            clients.answer(20).await;
        }
        // What was on its way there is answered elsewhere or breaks off.
        fleet.kill("n1");
        clients.answer(20).await;
        fleet.start_plane("n1").await;
        served.extend(clients.finish().await);
        books_agree(&fleet, &served, "a dead database and a dead node").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_torn_and_a_damaged_journal_cost_nothing_that_a_node_remembers() {
    let mut fleet = Fleet::start(&["n1"], "0ms").await;
    // The control plane is away, so that the journal holds everything.
    fleet.kill("control");
    let clients = Clients::start(&fleet);
    clients.answer(30).await;
    let served = clients.finish().await;
    fleet.kill("edge");
    let newest = segments(&fleet, "edge").pop().unwrap();
    let file = open(&newest);
    let length = file.metadata().unwrap().len();
    // A bit in the middle, and the end torn off.
    let mut byte = [0];
    file.read_exact_at(&mut byte, length / 2).unwrap();
    file.write_all_at(&[byte[0] ^ 16], length / 2).unwrap();
    file.set_len(length - 11).unwrap();
    fleet.start_plane("control").await;
    fleet.start_plane("edge").await;
    books_agree(&fleet, &served, "a damaged journal").await;
    let log = fleet.log("edge");
    assert!(log.contains("damaged usage records") && log.contains("cut off a record"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_shipped_again_from_the_beginning_is_counted_once() {
    let mut fleet = Fleet::start(&["n1"], "0ms").await;
    let clients = Clients::start(&fleet);
    clients.answer(30).await;
    let served = clients.finish().await;
    until_complete(&fleet).await;
    fleet.kill("edge");
    // It has forgotten what it shipped, and another edge has a copy of its journal.
    let journal = fleet.path("edge-data/journal");
    std::fs::remove_file(journal.join("shipped")).unwrap();
    let copy = fleet.path("edge-2-data/journal");
    std::fs::create_dir_all(&copy).unwrap();
    for entry in std::fs::read_dir(&journal).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), copy.join(entry.file_name())).unwrap();
    }
    fleet.start_plane("edge").await;
    books_agree(&fleet, &served, "usage shipped twice").await;
    fleet.add_edge("edge-2", "").await;
    let duplicates = "turnpike_controlplane_usage_events_total{fate=\"duplicate\"}";
    eventually("the duplicates are noticed", async || {
        let text = get(&format!("{}/metrics", fleet.metrics["control"]), "").await?.text;
        let count = text.lines().find_map(|line| line.strip_prefix(duplicates)?.trim().parse::<f64>().ok());
        count.filter(|count| *count >= 2.0 * served.len() as f64).ok_or(text)
    })
    .await;
    // The copy is nobody's usage, and whoever compares the books is told whose word it is.
    let day = fleet.sql("SELECT (now() AT TIME ZONE 'UTC')::date");
    let report = fleet.admin.get(&format!("/reconcile?day={day}")).await;
    assert_eq!(report["ledger"]["requests"], served.len(), "{report}");
    assert_eq!((&report["equal"], &report["edges"]["first"][0]["of"]), (&json!(false), &json!("edge-2")), "{report}");
}

/// Sets the largest size that files of a process may have, bytes.
fn limit_files(id: u32, bytes: &str) {
    let arguments = [format!("--pid={id}"), format!("--fsize={bytes}:unlimited")];
    assert!(Command::new("prlimit").args(arguments).status().unwrap().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_refuses_requests_before_a_node_is_asked_and_loses_none_that_ran() {
    let fleet = Fleet::start(&["n1"], "0ms").await;
    let url = format!("{}/v1/chat/completions", fleet.edge_url);
    let clients = Clients::start(&fleet);
    clients.answer(10).await;
    // Nothing can be written any more from here on.
    limit_files(fleet.id("edge"), "1");
    let refused = eventually("requests are refused", async || {
        let reply = post(&url, &fleet.key, chat_body(MODEL, "word", false)).await?;
        if reply.status == 503 { Ok(reply) } else { Err(format!("{} {}", reply.status, reply.text)) }
    })
    .await;
    assert_eq!(refused.code(), "metering_unavailable", "{}", refused.text);
    assert!(refused.headers.contains_key("retry-after"), "{:?}", refused.headers);
    let ready = get(&format!("{}/readyz", fleet.metrics["edge"]), "").await.unwrap();
    assert!(ready.status == 503 && ready.text.contains("usage cannot be recorded"), "{}", ready.text);
    limit_files(fleet.id("edge"), "unlimited");
    clients.answer(10).await;
    let served = clients.finish().await;
    books_agree(&fleet, &served, "a full disk").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_requests_at_once_do_not_spend_more_than_the_cent_that_was_paid_ahead() {
    let fleet = Fleet::start(&["n1"], "0ms").await;
    let billing = format!("/organizations/{}/billing", fleet.organization);
    let entries = format!("/organizations/{}/prepaid_entries", fleet.organization);
    fleet.admin.post(&entries, json!({"kind": "top_up", "amount": "0.01", "idempotency_key": "a cent"})).await;
    fleet.until_pushed().await;
    let url = format!("{}/v1/chat/completions", fleet.edge_url);
    let mut body = chat_body(MODEL, "word", false);
    body["max_tokens"] = json!(1);
    // A word costs $0.00004: two hundred and fifty of them may be answered at most.
    let ask = async |_| post(&url, &fleet.key, body.clone()).await.map_or(0, |reply| reply.status);
    eventually("the edge knows what was spent before", async || match ask(0).await {
        200 => Ok(()),
        other => Err(other.to_string()),
    })
    .await;
    let answers: Vec<u16> = futures::stream::iter(0..1_000).map(ask).buffer_unordered(1_000).collect().await;
    let answered = answers.iter().filter(|status| **status == 200).count();
    assert!(answers.iter().all(|status| [200, 429].contains(status)), "{answers:?}");
    assert!((1..250).contains(&answered), "{answered} answered");
    until_complete(&fleet).await;
    let told = fleet.admin.get(&billing).await;
    let left: f64 = told["prepaid_balance"].as_str().unwrap().parse().unwrap();
    println!("{answered} of 1000 answered, {left} dollars of 0.01 left");
    assert!((0.0..0.01).contains(&left), "{told}");
    // One more was answered before the thousand.
    let booked = fleet.sql("SELECT count(*) FROM inference_requests WHERE status = 'success'");
    assert_eq!(booked, (answered + 1).to_string(), "answered and booked");
    books_agree(&fleet, &Served::new(), "a cent").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn edges_whose_clocks_are_a_day_off_are_booked_on_the_day_they_say() {
    let mut fleet = Fleet::start(&["n1"], "0ms").await;
    let mut served = Served::new();
    let first = fleet.edge_url.clone();
    let second = fleet.add_edge("edge-2", "").await;
    for (name, url, offset) in [("edge", first, "-1d"), ("edge-2", second, "+1d")] {
        fleet.restart_at(name, offset).await;
        let clients = Clients::start_at(&fleet, &url);
        clients.answer(20).await;
        served.extend(clients.finish().await);
    }
    books_agree(&fleet, &served, "clocks a day off").await;
    let days = "SELECT date - (now() AT TIME ZONE 'UTC')::date FROM usage_records ORDER BY date";
    assert_eq!(fleet.sql(days), "-1\n1");
    // Nobody may take yesterday for complete while an edge still lives in it.
    let open = "SELECT name FROM edges WHERE began_to < now() - interval '1 hour'";
    assert_eq!(fleet.sql(open), "edge");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_price_change_in_mid_request_is_for_the_next_one() {
    let fleet = Fleet::start(&["n1"], "150ms").await;
    let url = format!("{}/v1/chat/completions", fleet.edge_url);
    let cost = |words: usize| {
        let (url, key) = (url.clone(), fleet.key.clone());
        tokio::spawn(async move {
            let body = chat_body(MODEL, &vec!["word"; words].join(" "), false);
            let reply = post(&url, &key, body).await.unwrap();
            assert_eq!(reply.status, 200, "{}", reply.text);
        })
    };
    let slow = cost(10);
    crate::faults::busy_node(&fleet, &["n1"]).await;
    let price = json!({"input_tokens": 1, "output_tokens": 2, "per_request": "0.5", "per_tokens": 1000});
    fleet.admin.patch(&format!("/models/{MODEL}"), json!({"pricing": price})).await;
    fleet.until_pushed().await;
    cost(2).await.unwrap();
    slow.await.unwrap();
    let costs = "SELECT completion_tokens, price_version, trim_scale(cost_usd) FROM inference_requests ORDER BY id";
    eventually("both are booked", async || match fleet.sql(costs) {
        rows if rows == "10|1|0.0004\n2|2|0.506" => Ok(()),
        rows => Err(rows),
    })
    .await;
    books_agree(&fleet, &Served::new(), "a price change").await;
}
