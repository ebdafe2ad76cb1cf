//! Books that nobody makes from each other, and that say the same.

use crate::harness::{Fleet, MODEL, chat_body, eventually, post, send, turnpike};
use futures::StreamExt as _;
use reqwest::Method;
use std::process::Output;

/// Runs `turnpike reconcile` for a day of the fleet.
fn reconcile(fleet: &Fleet, day: &str) -> Output {
    let mut command = turnpike();
    command.args(["reconcile", "--admin-url", &fleet.admin.base, "--admin-token", &fleet.admin.token, "--day", day]);
    command.output().unwrap()
}

/// Waits until the nodes have told of so many ends, in the order of the events.
async fn until_told(fleet: &Fleet, states: &str) {
    eventually(states, async || match fleet.sql("SELECT string_agg(state, ' ' ORDER BY event_id) FROM node_ledger") {
        told if told == states => Ok(()),
        told => Err(told),
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_books_are_equal_after_a_node_was_killed_in_mid_stream() {
    let mut fleet = Fleet::start(&["n1"], "20ms").await;
    let url = format!("{}/v1/chat/completions", fleet.edge_url);
    for stream in [false, true] {
        let reply = post(&url, &fleet.key, chat_body(MODEL, "one two three", stream)).await.unwrap();
        assert_eq!(reply.status, 200, "{}", reply.text);
    }
    let body = chat_body(MODEL, &"word ".repeat(1_000), true).to_string();
    let response = send(Method::POST, &url, &fleet.key, Some(body)).await.unwrap();
    let mut stream = response.bytes_stream();
    assert!(stream.next().await.unwrap().is_ok());
    fleet.kill("n1");
    while let Some(Ok(_)) = stream.next().await {}
    // The next life finds what the last one had begun, and tells.
    fleet.start_plane("n1").await;
    until_told(&fleet, "counted counted lost").await;

    let day = fleet.sql("SELECT min(day) FROM node_ledger");
    let found = eventually("the books are equal", async || match reconcile(&fleet, &day) {
        found if found.status.success() => Ok(found),
        found => Err(format!("{found:?}")),
    })
    .await;
    let text = String::from_utf8(found.stdout).unwrap();
    assert!(text.lines().any(|line| line.starts_with("usage ledger") && line.contains(" 3 ")), "{text}");
    assert!(text.lines().any(|line| line.starts_with("nodes") && line.contains(" 2 ")), "{text}");

    fleet.sql("UPDATE usage_records SET cost_usd = cost_usd + 0.000000000001");
    let found = reconcile(&fleet, &day);
    let text = String::from_utf8(found.stdout).unwrap();
    assert_eq!(found.status.code(), Some(1));
    assert!(text.contains("0.000000000001") && text.contains("daily sums: 1 rows differ"), "{text}");
}
