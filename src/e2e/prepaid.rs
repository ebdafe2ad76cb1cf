//! Money paid ahead that two regions spend at the same time, neither of which knows what the other lends.

use crate::harness::{Fleet, MODEL, chat_body, eventually, post};
use futures::StreamExt as _;
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// An edge in each of two regions, and a cent. A word costs $0.00004.
struct Regions {
    fleet: Fleet,
    edges: [String; 2],
}

impl Regions {
    async fn start() -> Self {
        let mut fleet = Fleet::start(&["n1"], "0ms").await;
        let there = fleet.add_edge_in("there", "edge-2", "").await;
        fleet.until_pushed().await;
        let entries = format!("/organizations/{}/prepaid_entries", fleet.organization);
        fleet.admin.post(&entries, json!({"kind": "top_up", "amount": "0.01", "idempotency_key": "a cent"})).await;
        fleet.until_pushed().await;
        let regions = Self { edges: [fleet.edge_url.clone(), there], fleet };
        for edge in [0, 1] {
            eventually("the edge knows what was spent before", async || match regions.ask(edge).await {
                200 => Ok(()),
                other => Err(other.to_string()),
            })
            .await;
        }
        regions
    }

    async fn ask(&self, edge: usize) -> u16 {
        let mut body = chat_body(MODEL, "word", false);
        body["max_tokens"] = json!(1);
        let url = format!("{}/v1/chat/completions", self.edges[edge]);
        let status = post(&url, &self.fleet.key, body).await.unwrap().status;
        assert!([200, 429].contains(&status), "{status}");
        status
    }

    /// So many requests at once, to each of these edges in turn; how many were answered by each.
    async fn crowd(&self, count: usize, edges: &[usize]) -> [usize; 2] {
        let ask = async |number: usize| {
            let edge = edges[number % edges.len()];
            (edge, self.ask(edge).await)
        };
        let answers: Vec<_> = futures::stream::iter(0..count).map(ask).buffer_unordered(count).collect().await;
        [0, 1].map(|edge| answers.iter().filter(|answer| **answer == (edge, 200)).count())
    }

    async fn left(&self) -> f64 {
        let billing = self.fleet.admin.get(&format!("/organizations/{}/billing", self.fleet.organization)).await;
        let left = |billing: &Value| billing["prepaid_balance"].as_str().unwrap().parse::<f64>().unwrap();
        left(&billing)
    }

    /// All that was answered is in the books, and was paid for.
    async fn settled(&self, answered: usize) {
        eventually("all is booked", async || {
            let booked = self.fleet.sql("SELECT count(*) FROM inference_requests WHERE status = 'success'");
            if booked == answered.to_string() { Ok(()) } else { Err(format!("{booked} of {answered}")) }
        })
        .await;
        let left = self.left().await;
        println!("{answered} answered, {left} dollars of 0.01 left");
        assert!(left >= 0.0, "{left}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn crowds_in_two_regions_spend_the_cent_that_was_paid_and_no_more() {
    let regions = Regions::start().await;
    let mut answered = [1, 1];
    // Shares are moved back and forth meanwhile, until there is not enough for a crowd.
    eventually("most of the cent is spent", async || {
        let more = regions.crowd(200, &[0, 1]).await;
        answered = [answered[0] + more[0], answered[1] + more[1]];
        match regions.left().await {
            left if left < 0.002 => Ok(()),
            left => Err(format!("{answered:?} answered, {left} left {}", regions.fleet.sql("TABLE prepaid_shares"))),
        }
    })
    .await;
    println!("{answered:?} answered by the regions");
    assert!(answered.iter().all(|answered| *answered > 10), "{answered:?}");
    let more = regions.crowd(1_000, &[0, 1]).await;
    regions.settled(answered.into_iter().chain(more).sum()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_region_that_has_spent_its_part_gets_that_of_an_idle_one_and_gives_it_back_when_asked() {
    let regions = Regions::start().await;
    let mut answered = 2;
    // It has spent what it had.
    let mut refused = eventually("a refusal", async || {
        let [_, more] = regions.crowd(20, &[1]).await;
        answered += more;
        if more == 0 { Ok(Instant::now()) } else { Err(answered.to_string()) }
    })
    .await;
    println!("{answered} answered by its own part");
    let before = answered;
    let took = eventually("it gets more", async || {
        let [_, more] = regions.crowd(5, &[1]).await;
        answered += more;
        if more > 0 { Ok(refused.elapsed()) } else { Err(regions.fleet.sql("TABLE prepaid_shares")) }
    })
    .await;
    println!("more came after {took:?}");
    assert!(took < Duration::from_secs(40), "{took:?}");
    assert!(before < 125, "{before} are more than its half");
    // The other one has little or nothing now, and is asked.
    refused = Instant::now();
    eventually("the idle one is asked", async || match regions.crowd(5, &[0]).await[0] {
        0 => Err(regions.fleet.sql("TABLE prepaid_shares")),
        more => {
            answered += more;
            Ok(())
        }
    })
    .await;
    println!("and goes back after {:?}", refused.elapsed());
    regions.settled(answered).await;
}
