//! An edge that dies, and clients that do not wait for the end.

use super::{Clients, Served, books_agree, event_id, rounds};
use crate::harness::{Fleet, MODEL, eventually, send};
use futures::StreamExt as _;
use reqwest::Method;
use serde_json::json;
use std::sync::atomic::Ordering;

/// Where an edge dies, and how often it passes there before: enough for some requests to be served.
const EDGE_POINTS: [(&str, usize); 8] = [
    ("edge.before_intent", 5),
    ("edge.after_intent", 5),
    ("edge.after_dispatch", 5),
    ("edge.mid_stream", 20),
    ("edge.after_final", 5),
    ("edge.mid_segment", 9),
    ("edge.before_advance", 2),
    ("edge.before_advance", 1),
];

#[tokio::test(flavor = "multi_thread")]
async fn an_edge_that_is_killed_anywhere_loses_nothing_and_counts_nothing_twice() {
    // It dies by us, not by its routing.
    let mut fleet = Fleet::start_with(&["n1", "n2"], "2ms", "routing.give_up_after = 0").await;
    let mut served = Served::new();
    for round in 0..rounds() {
        for (point, passes) in EDGE_POINTS {
            let point = format!("{point}#{}", passes + round);
            fleet.restart_to_crash("edge", &point).await;
            let clients = Clients::start(&fleet);
            eventually(&format!("the edge dies at {point}"), async || {
                if fleet.is_running("edge") {
                    Err(clients.answered.load(Ordering::Relaxed).to_string())
                } else {
                    Ok(())
                }
            })
            .await;
            fleet.start_plane("edge").await;
            served.extend(clients.finish().await);
            books_agree(&fleet, &served, &point).await;
        }
    }
    let lost = fleet.sql("SELECT error_code, count(*) FROM inference_requests WHERE status = 'error' GROUP BY 1");
    println!("{} requests served over {} deaths; ended by one: {lost}", served.len(), EDGE_POINTS.len() * rounds());
}

/// How far a client reads before it leaves: not at all, some words, everything but the end.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_pays_for_what_the_node_counted() {
    let fleet = Fleet::start(&["n1"], "20ms").await;
    let url = format!("{}/v1/chat/completions", fleet.edge_url);
    for (words_read, words) in [(0, 40), (3, 40), (39, 40)] {
        let body = json!({"model": MODEL, "stream": true,
            "messages": [{"role": "user", "content": vec!["word"; words].join(" ")}]});
        let response = send(Method::POST, &url, &fleet.key, Some(body.to_string())).await.unwrap();
        let id = event_id(response.headers()["x-request-id"].to_str().unwrap());
        let (mut stream, mut text) = (response.bytes_stream(), String::new());
        while text.matches("word").count() < words_read {
            text += std::str::from_utf8(&stream.next().await.unwrap().unwrap()).unwrap();
        }
        drop(stream);
        let columns = "status, prompt_tokens, completion_tokens";
        let row = eventually("the event", async || {
            let row = fleet.sql(&format!("SELECT {columns} FROM inference_requests WHERE id = '{id}'"));
            if row.is_empty() { Err(fleet.log("edge")) } else { Ok(row) }
        })
        .await;
        let [status, prompt, completion] = row.split('|').collect::<Vec<_>>().try_into().unwrap();
        let completion: usize = completion.parse().unwrap();
        assert_eq!((status, prompt), ("client_gone", "40"), "{row}");
        assert!((words_read..=words).contains(&completion), "{row} after {words_read} words");
    }
    books_agree(&fleet, &Served::new(), "clients that left").await;
}
