//! Every token is billed once, whatever dies in between: what clients were served, what nodes counted, the usage ledger and
//! the daily sums agree to the token and the pico-dollar.
//!
//! `TURNPIKE_CHAOS_ROUNDS` repeats each case, dying a little later each time (once if it is not set).

mod edge;
mod surroundings;

use crate::harness::{Fleet, MODEL, Reply, eventually, send};
use reqwest::Method;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;
use tokio::time::sleep;

/// Requests of one case, and how many at once.
const REQUESTS: usize = 24;
const AT_ONCE: usize = 4;

fn rounds() -> usize {
    std::env::var("TURNPIKE_CHAOS_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(1)
}

/// What a client was told that a request used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Used {
    prompt: u64,
    completion: u64,
}

impl Used {
    fn read(usage: &Value) -> Self {
        let number = |name: &str| usage[name].as_u64().unwrap_or_else(|| panic!("no {name} in {usage}"));
        Self { prompt: number("prompt_tokens"), completion: number("completion_tokens") }
    }
}

/// Requests that were answered to the end, by the id of their event.
type Served = BTreeMap<String, Used>;

/// The event's id inside the request id that an edge makes.
fn event_id(request_id: &str) -> String {
    let hex = request_id.strip_prefix("req_").unwrap();
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

/// A request of so many words, streamed or not; what it used if it was answered to its end.
async fn ask(url: &str, key: &str, number: usize) -> Option<(String, Used)> {
    let words = vec!["word"; 1 + number % 7].join(" ");
    let streamed = number % 2 == 1;
    let mut body = json!({"model": MODEL, "messages": [{"role": "user", "content": words}], "stream": streamed});
    if streamed {
        body["stream_options"] = json!({"include_usage": true});
    }
    let response = send(Method::POST, url, key, Some(body.to_string())).await.ok()?;
    let id = event_id(response.headers().get("x-request-id")?.to_str().unwrap());
    let reply = Reply::read(response).await.ok().filter(|reply| reply.status == 200)?;
    if !streamed {
        return Some((id, Used::read(&reply.json()["usage"])));
    }
    let complete = reply.text.contains("data: [DONE]");
    let usage = reply.text.lines().filter_map(|line| line.strip_prefix("data: {"));
    let usage = usage.filter_map(|rest| serde_json::from_str::<Value>(&format!("{{{rest}")).ok());
    let usage = usage.map(|chunk| chunk["usage"].clone()).find(|usage| usage.is_object());
    usage.filter(|_| complete).map(|usage| (id, Used::read(&usage)))
}

/// Clients that go on until stopped and at least [`REQUESTS`] were answered.
struct Clients {
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicUsize>,
    tasks: Vec<tokio::task::JoinHandle<Served>>,
}

impl Clients {
    fn start(fleet: &Fleet) -> Self {
        Self::start_at(fleet, &fleet.edge_url)
    }

    fn start_at(fleet: &Fleet, edge_url: &str) -> Self {
        let (stop, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let url = format!("{edge_url}/v1/chat/completions");
        let client = |client: usize| {
            let (url, key) = (url.clone(), fleet.key.clone());
            let (stop, answered) = (Arc::clone(&stop), Arc::clone(&answered));
            tokio::spawn(async move {
                let mut served = Served::new();
                for number in client.. {
                    if stop.load(Ordering::Relaxed) && answered.load(Ordering::Relaxed) >= REQUESTS {
                        break;
                    }
                    match ask(&url, &key, number).await {
                        Some((id, used)) => {
                            answered.fetch_add(1, Ordering::Relaxed);
                            served.insert(id, used);
                        }
                        // The edge is away.
                        None => sleep(Duration::from_millis(20)).await,
                    }
                }
                served
            })
        };
        let tasks = (0..AT_ONCE).map(client).collect();
        Self { stop, answered, tasks }
    }

    /// Waits until so many more requests were answered.
    async fn answer(&self, more: usize) {
        let wanted = self.answered.load(Ordering::Relaxed) + more;
        eventually("requests are answered", async || match self.answered.load(Ordering::Relaxed) {
            enough if enough >= wanted => Ok(()),
            few => Err(format!("{few} of {wanted}")),
        })
        .await;
    }

    async fn finish(self) -> Served {
        self.stop.store(true, Ordering::Relaxed);
        let mut served = Served::new();
        for task in self.tasks {
            served.extend(task.await.unwrap());
        }
        served
    }
}

/// Waits until usage of everything that has ended by now is stored.
async fn until_complete(fleet: &Fleet) {
    let now = fleet.sql("SELECT now()");
    eventually("the edges' usage is complete", async || {
        let behind = format!("SELECT name, complete_to FROM edges WHERE complete_to < '{now}'");
        let behind = fleet.sql(&behind);
        if behind.is_empty() { Ok(()) } else { Err(format!("{behind} is behind {now}\n{}", fleet.log("edge"))) }
    })
    .await;
}

/// What was served is in the books once, to the token, and the books agree with each other.
async fn books_agree(fleet: &Fleet, served: &Served, what: &str) {
    until_complete(fleet).await;
    let rows = fleet.sql("SELECT id, prompt_tokens, completion_tokens FROM inference_requests");
    let mut booked = BTreeMap::new();
    for row in rows.lines() {
        let [id, prompt, completion] = row.split('|').collect::<Vec<_>>().try_into().unwrap();
        let used = Used { prompt: prompt.parse().unwrap(), completion: completion.parse().unwrap() };
        assert_eq!(booked.insert(id.to_owned(), used), None, "{what}: {id} is there twice");
    }
    for (id, used) in served {
        assert_eq!(booked.get(id), Some(used), "{what}: {id} was served otherwise than it was booked");
    }
    // What would be invoiced of the month so far is what its events cost, to the pico-dollar.
    let body = fleet.sql(
        "SELECT json_build_object('month', to_char(now() AT TIME ZONE 'UTC', 'YYYY-MM'), 'dry_run', true,
             'organization_id', (SELECT id FROM organizations))",
    );
    let costs = "SELECT trim_scale(coalesce(sum(cost_usd), 0)) FROM inference_requests
        WHERE date_trunc('month', created_at AT TIME ZONE 'UTC') = date_trunc('month', now() AT TIME ZONE 'UTC')";
    let invoiced = fleet.admin.post("/invoices/close", serde_json::from_str(&body).unwrap()).await;
    assert_eq!(invoiced["data"][0]["invoice"]["exact_total"], fleet.sql(costs), "{what}: {invoiced}");
    // What edges and nodes counted, the usage ledger, the daily sums.
    let days = fleet.sql("SELECT DISTINCT (created_at AT TIME ZONE 'UTC')::date FROM inference_requests");
    for day in days.lines() {
        eventually(&format!("{what}: the books of {day} are equal"), async || {
            let report = fleet.admin.get(&format!("/reconcile?day={day}")).await;
            if report["equal"] == true { Ok(()) } else { Err(report.to_string()) }
        })
        .await;
    }
}
