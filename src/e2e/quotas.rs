//! Limits as clients meet them: whose they are, what they count, what is said of them.

use crate::faults::busy_node;
use crate::harness::{Fleet, MODEL, Reply, chat_body, eventually, post};
use serde_json::{Value, json};

async fn ask(fleet: &Fleet, key: &str, body: &Value) -> Reply {
    post(&format!("{}/v1/chat/completions", fleet.edge_url), key, body).await.unwrap()
}

async fn chat(fleet: &Fleet, key: &str) -> Reply {
    ask(fleet, key, &chat_body(MODEL, "word", false)).await
}

async fn key_with(fleet: &Fleet, limits: Value) -> (String, String) {
    let made = fleet.make_key(json!({"rate_limits": limits})).await;
    fleet.until_pushed().await;
    made
}

fn header(reply: &Reply, name: &str) -> String {
    reply.headers.get(name).unwrap_or_else(|| panic!("no {name} in {:?}", reply.headers)).to_str().unwrap().to_owned()
}

/// Refused with this code, for a reason that says all of this.
fn assert_refused(reply: &Reply, code: &str, says: &[&str]) {
    assert_eq!((reply.status, reply.code().as_str()), (429, code), "{}", reply.text);
    for part in says {
        assert!(reply.text.contains(part), "«{part}» is not in {}", reply.text);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_are_limited_and_clients_are_told_as_openai_tells_them() {
    let fleet = Fleet::start(&["n1"], "0ms").await;
    let (id, key) = key_with(&fleet, json!({"requests_per_minute": 2, "tokens_per_minute": 100_000})).await;
    let first = chat(&fleet, &key).await;
    assert_eq!(first.status, 200, "{}", first.text);
    assert_eq!(header(&first, "x-ratelimit-limit-requests"), "2");
    assert_eq!(header(&first, "x-ratelimit-remaining-requests"), "1");
    assert_eq!(header(&first, "x-ratelimit-limit-tokens"), "100000");
    assert!(header(&first, "x-ratelimit-reset-requests").ends_with('s'));
    assert_eq!(header(&first, "ratelimit-policy"), "\"requests\";q=2;w=60, \"tokens\";q=100000;w=60");
    assert!(header(&first, "ratelimit").starts_with("\"requests\";r=1;t="), "{:?}", first.headers);
    assert_eq!(chat(&fleet, &key).await.status, 200);
    let third = chat(&fleet, &key).await;
    assert_refused(&third, "rate_limit_exceeded", &[&id, "requests per min (RPM)", "Limit 2"]);
    assert_eq!(header(&third, "x-ratelimit-remaining-requests"), "0");
    let seconds: u32 = header(&third, "retry-after").parse().unwrap();
    assert!((1..=30).contains(&seconds), "{seconds}");
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_within_models_and_of_organizations_hold_beside_those_of_keys() {
    let fleet = Fleet::start(&["n1"], "0ms").await;
    let within = json!({"requests_per_minute": 100, "models": {MODEL: {"requests_per_minute": 1}}});
    let (id, key) = key_with(&fleet, within).await;
    assert_eq!(chat(&fleet, &key).await.status, 200);
    assert_refused(&chat(&fleet, &key).await, "rate_limit_exceeded", &[&id, &format!("model {MODEL}")]);

    let organization = &fleet.organization;
    let limits = json!({"settings": {"rate_limits": {"requests_per_minute": 3}}});
    fleet.admin.patch(&format!("/organizations/{organization}"), limits).await;
    let (_, one) = key_with(&fleet, json!({})).await;
    let (_, other) = key_with(&fleet, json!({})).await;
    for key in [&one, &other, &one] {
        assert_eq!(chat(&fleet, key).await.status, 200);
    }
    assert_refused(&chat(&fleet, &other).await, "rate_limit_exceeded", &[organization, "Limit 3"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_are_reserved_settled_and_never_exceeded_by_the_answer() {
    let fleet = Fleet::start(&["n1"], "0ms").await;
    let (id, key) = key_with(&fleet, json!({"tokens_per_minute": 300})).await;
    let long = "word ".repeat(200);
    // The answer would be as long as the question, which is more than is left beside it.
    let reply = ask(&fleet, &key, &chat_body(MODEL, &long, false)).await;
    assert_eq!(reply.status, 200, "{}", reply.text);
    let usage = &reply.json()["usage"];
    assert!(usage["total_tokens"].as_u64().unwrap() <= 300, "{usage}");
    assert_eq!(reply.json()["choices"][0]["finish_reason"], "length");

    let (_, fresh) = key_with(&fleet, json!({"tokens_per_minute": 300})).await;
    for _ in 0..5 {
        // Each reserves most of the limit and uses hardly any of it.
        let reply = ask(&fleet, &fresh, &chat_body(MODEL, "word", false)).await;
        assert_eq!(reply.status, 200, "{}", reply.text);
    }
    let mut large = chat_body(MODEL, "word", false);
    large["max_tokens"] = json!(1_000);
    let refused = ask(&fleet, &key, &large).await;
    assert_refused(&refused, "rate_limit_exceeded", &[&id, "Request too large", "limit is 300"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_more_requests_run_at_once_than_allowed_and_each_makes_room_for_the_next() {
    let fleet = Fleet::start(&["n1"], "400ms").await;
    let (id, key) = key_with(&fleet, json!({"concurrent_requests": 3})).await;
    let body = chat_body(MODEL, "one two three", false);
    let crowd = (0..12).map(|_| ask(&fleet, &key, &body));
    let replies = futures::future::join_all(crowd).await;
    let answered = replies.iter().filter(|reply| reply.status == 200).count();
    let refused: Vec<_> = replies.iter().filter(|reply| reply.status == 429).collect();
    assert_eq!((answered, refused.len()), (3, 9));
    assert_refused(refused[0], "rate_limit_exceeded", &[&id, "concurrent requests", "Limit 3"]);
    for _ in 0..2 {
        assert_eq!(ask(&fleet, &key, &body).await.status, 200);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_request_has_taken_comes_back_however_it_ends() {
    const LONG: &str = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen";
    let mut fleet = Fleet::start(&["n1"], "100ms").await;
    let (_, key) = key_with(&fleet, json!({"concurrent_requests": 1, "tokens_per_minute": 1_000})).await;
    let url = format!("{}/v1/chat/completions", fleet.edge_url);
    let begin = |stream| {
        let mut body = chat_body(MODEL, LONG, stream);
        body["max_tokens"] = json!(500);
        let (url, key) = (url.clone(), key.clone());
        tokio::spawn(async move { post(&url, &key, body).await })
    };
    let is_free = async |fleet: &Fleet, what: &str| {
        eventually(what, async || match chat(fleet, &key).await {
            reply if reply.status == 200 => Ok(()),
            reply => Err(reply.text),
        })
        .await;
    };
    for stream in [false, true] {
        let left = begin(stream);
        busy_node(&fleet, &["n1"]).await;
        assert_refused(&chat(&fleet, &key).await, "rate_limit_exceeded", &["concurrent requests"]);
        left.abort();
        is_free(&fleet, "a client that left makes room").await;
    }
    let cut = begin(true);
    busy_node(&fleet, &["n1"]).await;
    fleet.kill("n1");
    cut.await.unwrap().unwrap();
    fleet.start_plane("n1").await;
    is_free(&fleet, "a node that died makes room").await;
    let mut short = chat_body(MODEL, "word", false);
    short["max_tokens"] = json!(1);
    let reply = ask(&fleet, &key, &short).await;
    // Three times 500 tokens were reserved, and hardly any used.
    let left: u32 = header(&reply, "x-ratelimit-remaining-tokens").parse().unwrap();
    assert!(left > 600, "{left} tokens left");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_budget_is_not_overspent_and_more_money_opens_it_again() {
    let fleet = Fleet::start(&["n1"], "0ms").await;
    let billing = format!("/organizations/{}/billing", fleet.organization);
    let (_, key) = key_with(&fleet, json!({})).await;
    let body = {
        // 500 words cost 500 × $0.00001 + 500 × $0.00003 = $0.02.
        let mut body = chat_body(MODEL, &"word ".repeat(500), false);
        body["max_tokens"] = json!(500);
        body
    };
    fleet.admin.patch(&billing, json!({"monthly_budget": "0.10"})).await;
    fleet.until_pushed().await;
    // An edge that has just started is told what was spent before it admits anything.
    let mut answered = 0_u32;
    let refused = eventually("the budget is used up", async || {
        let reply = ask(&fleet, &key, &body).await;
        match (reply.status, reply.text.contains("insufficient_quota")) {
            (429, true) => return Ok(reply),
            (200, _) => answered += 1,
            _ => tokio::time::sleep(std::time::Duration::from_millis(500)).await,
        }
        Err(format!("{answered} answered, then {} {}", reply.status, reply.text))
    })
    .await;
    assert_refused(&refused, "insufficient_quota", &["monthly budget", &fleet.organization]);
    println!("{answered} requests of $0.02 for a budget of $0.10");
    assert!((1..=5).contains(&answered), "{answered} requests of $0.02 for $0.10");

    fleet.admin.patch(&billing, json!({"monthly_budget": "50", "prepaid_balance": "5"})).await;
    eventually("more money opens it", async || match ask(&fleet, &key, &body).await {
        reply if reply.status == 200 => Ok(()),
        reply => Err(reply.text),
    })
    .await;
    let told = fleet.admin.get(&billing).await;
    assert_eq!(told["monthly_budget"], "50", "{told}");
}
