//! Requests that are also sent elsewhere: clients never notice, and nobody pays.

use crate::harness::{Fleet, MODEL, chat_body, eventually, get, post};
use serde_json::json;
use std::time::{Duration, Instant};

const WORDS: &str = "one two three four five six seven eight";

async fn metric(fleet: &Fleet, name: &str) -> u64 {
    let text = get(&format!("{}/metrics", fleet.metrics["edge"]), "").await.unwrap().text;
    let lines = text.lines().filter(|line| line.starts_with(name));
    lines.filter_map(|line| line.rsplit_once(' ')?.1.parse::<u64>().ok()).sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn shadows_are_metered_apart_and_their_death_is_not_felt() {
    const REQUESTS: usize = 20;
    let mut fleet = Fleet::start(&["n1"], "0ms").await;
    fleet.add_model("next").await;
    fleet.add_node("n2", "next", "engine.kind = \"echo\"\nengine.token_delay = \"100ms\"\n").await;
    let shadow = json!({"to": {"model": "next"}, "permille": 1000});
    fleet.add_route("chat", json!({"targets": [{"model": MODEL, "weight": 1}], "shadow": shadow})).await;
    let ask = async |stream: bool| {
        let began = Instant::now();
        let url = format!("{}/v1/chat/completions", fleet.edge_url);
        let reply = post(&url, &fleet.key, chat_body("chat", WORDS, stream)).await.unwrap();
        assert_eq!(
            (reply.status, reply.headers["x-turnpike-model"].as_bytes()),
            (200, &b"echo@1"[..]),
            "{}",
            reply.text
        );
        began.elapsed()
    };
    let mut slowest = Duration::ZERO;
    for number in 0..REQUESTS {
        slowest = slowest.max(ask(number % 2 == 0).await);
    }
    println!("{REQUESTS} requests beside a shadow that takes 800 ms: the slowest took {slowest:?}");
    let sums = "SELECT shadow, model_id, count(*), sum(prompt_tokens), sum(completion_tokens), sum(cost_usd) > 0
                FROM inference_requests WHERE status = 'success' GROUP BY 1, 2 ORDER BY 1";
    let expected = format!("f|echo|{REQUESTS}|{0}|{0}|t\nt|next|{REQUESTS}|{0}|{0}|f", REQUESTS * 8);
    eventually("requests and shadows are on record", async || match fleet.sql(sums) {
        found if found == expected => Ok(()),
        found => Err(found),
    })
    .await;
    assert_eq!(metric(&fleet, "turnpike_edge_shadow_requests_total").await, REQUESTS as u64);
    let listed = fleet.admin.get("/requests?limit=1").await;
    assert!(listed["data"][0]["shadow"].is_boolean(), "{listed}");

    // In no sum, and the books agree.
    let booked = "SELECT string_agg(model_id || ' ' || requests, ',') FROM usage_records";
    eventually("sums are made", async || match fleet.sql(booked) {
        found if found == format!("echo {REQUESTS}") => Ok(()),
        found => Err(found),
    })
    .await;
    let day = fleet.sql("SELECT (now() AT TIME ZONE 'UTC')::date");
    eventually("the books agree", async || match fleet.admin.get(&format!("/reconcile?day={day}")).await {
        found if found["equal"] == true => Ok(()),
        found => Err(found.to_string()),
    })
    .await;

    // The shadow's node dies while it works on some.
    let fleet_ask = async || {
        let url = format!("{}/v1/chat/completions", fleet.edge_url);
        post(&url, &fleet.key, chat_body("chat", WORDS, false)).await.unwrap().status
    };
    assert_eq!(fleet_ask().await, 200);
    fleet.kill("n2");
    for _ in 0..5 {
        let url = format!("{}/v1/chat/completions", fleet.edge_url);
        assert_eq!(post(&url, &fleet.key, chat_body("chat", WORDS, false)).await.unwrap().status, 200);
    }
    eventually("failed shadows are on record, or were not sent", async || {
        let failed: u64 =
            fleet.sql("SELECT count(*) FROM inference_requests WHERE shadow AND status <> 'success'").parse().unwrap();
        let skipped = metric(&fleet, "turnpike_edge_shadow_requests_skipped_total").await;
        if failed >= 1 && failed + skipped == 6 { Ok(()) } else { Err(format!("{failed} and {skipped}")) }
    })
    .await;
    assert_eq!(fleet.sql("SELECT count(*) FROM inference_requests WHERE NOT shadow AND status <> 'success'"), "0");
}
