//! Where requests for a name go: aliases, canaries, fallbacks, regions, timeouts, maintenance.

use crate::harness::{Fleet, MODEL, Reply, chat_body, eventually, get, python, send_with, turnpike};
use futures::StreamExt as _;
use reqwest::Method;
use serde_json::{Value, json};
use std::collections::BTreeMap;

const WORDS: &str = "one two three four five six seven eight";

async fn ask_with(fleet: &Fleet, key: &str, headers: &[(&str, &str)], body: &Value) -> Reply {
    let url = format!("{}/v1/chat/completions", fleet.edge_url);
    Reply::read(send_with(Method::POST, &url, key, headers, Some(body.to_string())).await.unwrap()).await.unwrap()
}

async fn ask(fleet: &Fleet, name: &str) -> Reply {
    ask_with(fleet, &fleet.key, &[], &chat_body(name, WORDS, false)).await
}

/// Which version answered.
fn by(reply: &Reply) -> String {
    assert_eq!(reply.status, 200, "{}", reply.text);
    reply.headers["x-turnpike-model"].to_str().unwrap().to_owned()
}

fn to(version: &str, weight: u32) -> Value {
    json!({"model": MODEL, "version": version, "weight": weight})
}

/// How many of `count` requests each version answered.
async fn spread(fleet: &Fleet, name: &str, count: usize, headers: impl Fn(usize) -> String) -> BTreeMap<String, usize> {
    let asked = (0..count).map(|number| {
        let user = headers(number);
        async move { by(&ask_with(fleet, &fleet.key, &[("x-user", &user)], &chat_body(name, "word", false)).await) }
    });
    let answers: Vec<String> = futures::stream::iter(asked).buffer_unordered(8).collect().await;
    answers.into_iter().fold(BTreeMap::new(), |mut counts, version| {
        *counts.entry(version).or_insert(0) += 1;
        counts
    })
}

/// The newest event, once there are `count`.
async fn event(fleet: &Fleet, count: usize, columns: &str) -> String {
    eventually("the usage events arrive", async || {
        let found = fleet.sql("SELECT count(*) FROM inference_requests");
        if found == count.to_string() { Ok(()) } else { Err(format!("{found} of {count}")) }
    })
    .await;
    fleet.sql(&format!("SELECT {columns} FROM inference_requests ORDER BY created_at DESC, id DESC LIMIT 1"))
}

/// Node `n1` with version 1 and `n2` with version 2 of the model.
async fn two_versions() -> Fleet {
    let mut fleet = Fleet::start(&["n1"], "0ms").await;
    fleet.add_version(MODEL, "2").await;
    fleet.add_node_in("here", "n2", &format!("{MODEL}@2"), "engine.kind = \"echo\"\n").await;
    fleet
}

fn explain(fleet: &Fleet, model: &str, more: &[&str]) -> String {
    let mut command = turnpike();
    command.args(["explain", "--key", &fleet.key, "--model", model, "--edge-url", &fleet.metrics["edge"]]).args(more);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_leads_to_versions_by_weight_and_keys_and_users_keep_to_theirs() {
    let fleet = two_versions().await;
    assert_eq!(by(&ask(&fleet, MODEL).await), "echo@1", "no route yet");
    let route = fleet.add_route("chat", json!({"targets": [to("1", 80), to("2", 20)]})).await;
    let (one, two) = ("echo@1".to_owned(), "echo@2".to_owned());
    let counts = spread(&fleet, "chat", 200, |_| String::new()).await;
    assert!((130..=190).contains(&counts[&one]) && counts[&one] + counts[&two] == 200, "{counts:?}");
    // The engine knows its own name only; a stream gets its usage as before.
    let mut streamed = chat_body("chat", WORDS, true);
    streamed["stream_options"] = json!({"include_usage": true});
    let reply = ask_with(&fleet, &fleet.key, &[], &streamed).await;
    assert!(
        reply.text.contains("\"model\":\"echo\"") && reply.text.contains("\"completion_tokens\":8"),
        "{}",
        reply.text
    );

    fleet.set_route(&route, json!({"targets": [to("1", 80), to("2", 20)], "sticky": {"header": "x-user"}})).await;
    let ada = spread(&fleet, "chat", 20, |_| "ada".to_owned()).await;
    assert_eq!(ada.len(), 1, "{ada:?}");
    let users = |share: u32| json!({"targets": [to("1", 100 - share), to("2", share)], "sticky": {"header": "x-user"}});
    let version_of = async |user: String| {
        by(&ask_with(&fleet, &fleet.key, &[("x-user", &user)], &chat_body("chat", "word", false)).await)
    };
    fleet.set_route(&route, users(30)).await;
    let mut before = Vec::new();
    for user in 0..60 {
        before.push(version_of(format!("user-{user}")).await);
    }
    assert!(before.contains(&one) && before.contains(&two));
    fleet.set_route(&route, users(60)).await;
    for (user, before) in before.iter().enumerate() {
        let after = version_of(format!("user-{user}")).await;
        assert!(after == *before || after == two, "user-{user} went from {before} to {after}");
    }

    fleet.set_route(&route, json!({"targets": [to("1", 50), to("2", 50)], "sticky": "key"})).await;
    assert_eq!(spread(&fleet, "chat", 20, |number| number.to_string()).await.len(), 1);
    let mut versions = BTreeMap::new();
    for _ in 0..12 {
        let (_, key) = fleet.make_key(json!({"permissions": ["inference"]})).await;
        fleet.until_pushed().await;
        *versions.entry(by(&ask_with(&fleet, &key, &[], &chat_body("chat", "word", false)).await)).or_insert(0) += 1;
    }
    assert_eq!(versions.len(), 2, "{versions:?}");
    let total = 1 + 200 + 1 + 20 + 60 + 60 + 20 + 12;
    assert_eq!(event(&fleet, total, "model_id, model_version IN ('1', '2'), cost_usd > 0").await, "echo|t|t");
    let by_node = "SELECT count(*) FROM inference_requests
                   WHERE (model_version, node) NOT IN (('1', 'n1'), ('2', 'n2')) OR model_id <> 'echo'";
    assert_eq!(fleet.sql(by_node), "0");
}

#[tokio::test(flavor = "multi_thread")]
async fn organizations_have_their_own_ways_and_keys_their_names() {
    let fleet = two_versions().await;
    fleet.add_model("small").await;
    fleet.add_route("chat", json!({"targets": [to("1", 1)]})).await;
    let own = json!({"name": "chat", "organization_id": fleet.organization, "policy": {"targets": [to("2", 1)]}});
    fleet.admin.post("/routes", own).await;
    fleet.until_pushed().await;
    assert_eq!(by(&ask(&fleet, "chat").await), "echo@2");
    let others = fleet.admin.post("/organizations", json!({"name": "Others", "slug": "others"})).await["id"].clone();
    let user = json!({"organization_id": others, "email": "owner@others.example", "role": "owner"});
    let user = fleet.admin.post("/users", user).await["id"].clone();
    let all = json!(["inference", "models.read"]);
    let stranger = json!({"organization_id": others, "user_id": user, "permissions": all});
    let (_, stranger) = fleet.make_key(stranger).await;
    let (_, by_name) = fleet.make_key(json!({"permissions": all, "allowed_models": ["chat"]})).await;
    let (_, by_model) = fleet.make_key(json!({"permissions": all, "allowed_models": [MODEL]})).await;
    let (_, neither) = fleet.make_key(json!({"permissions": all, "allowed_models": ["small"]})).await;
    fleet.until_pushed().await;
    let asked = async |key: &str, name: &str| ask_with(&fleet, key, &[], &chat_body(name, "word", false)).await;
    assert_eq!(by(&asked(&stranger, "chat").await), "echo@1");
    assert_eq!(by(&asked(&by_name, "chat").await), "echo@2");
    assert_eq!(by(&asked(&by_model, "chat").await), "echo@2");
    assert_eq!(asked(&by_name, MODEL).await.code(), "model_not_allowed");
    assert_eq!(asked(&neither, "chat").await.code(), "model_not_allowed");
    let listed = async |key: &str| {
        let models = get(&format!("{}/v1/models", fleet.edge_url), key).await.unwrap().json();
        let ids: Vec<_> =
            models["data"].as_array().unwrap().iter().map(|it| it["id"].as_str().unwrap().to_owned()).collect();
        ids.join(" ")
    };
    assert_eq!(
        (listed(&fleet.key).await, listed(&by_name).await, listed(&by_model).await, listed(&neither).await),
        ("chat echo small".to_owned(), "chat".to_owned(), "chat echo".to_owned(), "small".to_owned())
    );
    let one = get(&format!("{}/v1/models/chat", fleet.edge_url), &by_name).await.unwrap();
    assert_eq!(one.json()["id"], "chat");

    // A route may have a model's own name: a canary of it.
    let canary = fleet.add_route(MODEL, json!({"targets": [to("2", 1)]})).await;
    assert_eq!(by(&ask(&fleet, MODEL).await), "echo@2");
    fleet.admin.delete(&format!("/routes/{canary}")).await;
    fleet.until_pushed().await;
    assert_eq!(by(&ask(&fleet, MODEL).await), "echo@1");
}

/// A budget that was just set anew may still be added up: clients are told to come again, and do.
async fn until_counted(fleet: &Fleet) {
    eventually("the budget is counted", async || {
        let reply = ask(fleet, MODEL).await;
        if reply.status == 200 { Ok(()) } else { Err(reply.text) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_answer_is_gone_around_and_paid_for_as_what_answered() {
    let mut fleet = two_versions().await;
    fleet.add_model("small").await;
    fleet.add_node("n3", "small", "engine.kind = \"echo\"\n").await;
    let price = json!({"input_tokens": 1, "output_tokens": 3, "currency": "USD", "per_tokens": 1000});
    fleet.admin.patch("/models/small", json!({"pricing": price})).await;
    fleet
        .admin
        .patch(&format!("/organizations/{}/billing", fleet.organization), json!({"monthly_budget": "1000"}))
        .await;
    let policy = json!({"targets": [to("1", 1), to("2", 0)], "fallbacks": [{"model": MODEL, "version": "2"}, {"model": "small"}]});
    fleet.add_route("chat", policy).await;
    until_counted(&fleet).await;
    assert_eq!(by(&ask(&fleet, "chat").await), "echo@1");
    // An answer of the usual length would cost 12 dollars at the last fallback, and 12 cents at the model itself.
    let billing = format!("/organizations/{}/billing", fleet.organization);
    fleet.admin.patch(&billing, json!({"monthly_budget": "5"})).await;
    fleet.until_pushed().await;
    until_counted(&fleet).await;
    assert_eq!(by(&ask(&fleet, MODEL).await), "echo@1");
    let dear = ask(&fleet, "chat").await;
    assert_eq!((dear.status, dear.code().as_str()), (429, "insufficient_quota"), "{}", dear.text);
    fleet.admin.patch(&billing, json!({"monthly_budget": "1000"})).await;
    fleet.until_pushed().await;
    until_counted(&fleet).await;
    fleet.kill("n1");
    assert_eq!(by(&ask(&fleet, "chat").await), "echo@2");
    fleet.kill("n2");
    let fallen = ask(&fleet, "chat").await;
    assert_eq!(by(&fallen), "small@1");
    assert_eq!(fallen.json()["choices"][0]["message"]["content"], WORDS);
    let columns = "model_id, model_version, node, prompt_tokens, completion_tokens, trim_scale(cost_usd), status";
    eventually("the usage event arrives", async || {
        let found = fleet.sql(&format!("SELECT {columns} FROM inference_requests WHERE model_id = 'small'"));
        if found == "small|1|n3|8|8|0.032|success" { Ok(()) } else { Err(found) }
    })
    .await;
    fleet.kill("n3");
    let none = ask(&fleet, "chat").await;
    assert_eq!((none.status, none.code().as_str()), (503, "no_available_node"), "{}", none.text);
    assert!(none.text.contains("`chat`"), "{}", none.text);
}

#[tokio::test(flavor = "multi_thread")]
async fn retries_are_bounded_by_attempts_and_by_the_routes_budget() {
    let mut fleet = Fleet::start(&["n1", "n2"], "0ms").await;
    let targets = json!([{"model": MODEL, "weight": 1}]);
    let fallbacks = json!([{"model": "small"}]);
    fleet.add_model("small").await;
    fleet.add_node("n3", "small", "engine.kind = \"echo\"\n").await;
    let with = |retries: Value| json!({"targets": targets, "fallbacks": fallbacks, "retries": retries});
    let route = fleet.add_route("chat", with(json!({"budget_permille": 0}))).await;
    // Dead and still in the routing for a moment: whoever comes first meets them.
    for node in ["n1", "n2"] {
        fleet.kill(node);
    }
    let first = ask(&fleet, "chat").await;
    assert_eq!((first.status, first.code().as_str()), (503, "no_available_node"), "{}", first.text);
    assert_eq!(event(&fleet, 1, "retries").await, "0");
    // The other one was not tried yet, or both rest: either way there is a way out with retries.
    fleet.set_route(&route, with(json!({"attempts": 3, "budget_permille": 100}))).await;
    assert_eq!(by(&ask(&fleet, "chat").await), "small@1");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_own_region_answers_first_and_others_if_they_must() {
    let mut fleet = Fleet::start(&["n1"], "0ms").await;
    fleet.add_node_in("there", "n2", &format!("{MODEL}@1"), "engine.kind = \"echo\"\n").await;
    let other_edge = fleet.add_edge("edge-2", "").await;
    let targets = json!([{"model": MODEL, "weight": 1}]);
    fleet.add_route("there-first", json!({"targets": targets, "regions": {"prefer": ["there"]}})).await;
    fleet.add_route("only-here", json!({"targets": targets, "regions": {"failover": false}})).await;
    drop(other_edge);
    for _ in 0..6 {
        for name in [MODEL, "there-first", "only-here"] {
            by(&ask(&fleet, name).await);
        }
    }
    let nodes = "SELECT string_agg(node || ' ' || count, ',' ORDER BY node)
                 FROM (SELECT node, count(*) FROM inference_requests GROUP BY node) AS nodes";
    eventually("the usage events arrive", async || match fleet.sql(nodes) {
        found if found == "n1 12,n2 6" => Ok(()),
        found => Err(found),
    })
    .await;
    fleet.kill("n1");
    by(&ask(&fleet, MODEL).await);
    let refused = ask(&fleet, "only-here").await;
    assert_eq!((refused.status, refused.code().as_str()), (503, "no_available_node"), "{}", refused.text);
    fleet.start_plane("n1").await;
    eventually("the node is back", async || match ask(&fleet, "only-here").await {
        reply if reply.status == 200 => Ok(()),
        reply => Err(reply.text),
    })
    .await;
    fleet.kill("n2");
    by(&ask(&fleet, "there-first").await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_takes_too_long_to_begin_is_left_for_another_one() {
    let mut fleet = Fleet::start(&["n1"], "300ms").await;
    fleet.add_version(MODEL, "2").await;
    fleet.add_node_in("here", "n2", &format!("{MODEL}@2"), "engine.kind = \"echo\"\n").await;
    let target = json!([to("1", 1)]);
    let fallbacks = json!([{"model": MODEL, "version": "2"}]);
    let first = json!({"targets": target, "fallbacks": fallbacks, "timeouts": {"first_byte_ms": 700}});
    let route = fleet.add_route("chat", first).await;
    // Its answer would begin after 2.4 s, as a whole; as a stream after 300 ms.
    assert_eq!(by(&ask(&fleet, "chat").await), "echo@2");
    assert_eq!(event(&fleet, 1, "status, retries, node, completion_tokens").await, "success|1|n2|8");
    eventually("the slow node is rested", async || {
        let reply = ask_with(&fleet, &fleet.key, &[], &chat_body("chat", WORDS, true)).await;
        if by(&reply) == "echo@1" && reply.text.contains("[DONE]") { Ok(()) } else { Err(reply.text) }
    })
    .await;

    fleet.set_route(&route, json!({"targets": target, "timeouts": {"first_byte_ms": 700}})).await;
    let late = ask(&fleet, "chat").await;
    assert_eq!((late.status, late.code().as_str()), (504, "node_timeout"), "{}", late.text);
    assert_eq!(late.headers["connection"], "close", "the edge closes it");

    fleet.set_route(&route, json!({"targets": target, "timeouts": {"total_ms": 1000}})).await;
    let late = ask(&fleet, "chat").await;
    assert_eq!((late.status, late.code().as_str()), (504, "node_timeout"), "{}", late.text);
    let cut = ask_with(&fleet, &fleet.key, &[], &chat_body("chat", WORDS, true)).await;
    assert_eq!(cut.status, 200);
    assert!(
        cut.text.contains("one") && cut.text.contains("node_timeout") && !cut.text.contains("[DONE]"),
        "{}",
        cut.text
    );
    eventually("the last event arrives", async || {
        let found = fleet.sql(
            "SELECT status, error_code, http_status, node, completion_tokens BETWEEN 1 AND 5
             FROM inference_requests ORDER BY created_at DESC, id DESC LIMIT 1",
        );
        if found == "timeout|node_timeout|200|n1|t" { Ok(()) } else { Err(found) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn maintenance_is_told_to_the_sdk_and_an_edge_explains_itself() {
    let fleet = two_versions().await;
    let targets = json!([to("1", 90), to("2", 10)]);
    let route = fleet.add_route("chat", json!({"targets": targets, "sticky": {"header": "x-user"}})).await;
    let said = explain(&fleet, "chat", &["--header", "x-user=ada"]);
    for part in [
        "there is a route of this name, everybody's",
        "x-user always draws the same",
        "here:1",
        "it would be answered by echo@",
    ] {
        assert!(said.contains(part), "{part} is not in\n{said}");
    }
    assert!(!said.contains(&fleet.key) && !fleet.log("edge").contains(&fleet.key));
    let answered = by(&ask_with(&fleet, &fleet.key, &[("x-user", "ada")], &chat_body("chat", "word", false)).await);
    let json: Value = serde_json::from_str(&explain(&fleet, "chat", &["--header", "x-user=ada", "--json"])).unwrap();
    assert_eq!(json["order"][0], answered);
    assert_eq!(json["targets"][1]["weight"], 10);

    let closed = json!({"targets": targets, "maintenance": {"message": "Back at noon.", "retry_after_s": 77}});
    fleet.set_route(&route, closed).await;
    let program = "
import openai, os
try:
    openai.OpenAI(max_retries=0).chat.completions.create(model='chat', messages=[{'role': 'user', 'content': 'hi'}])
except openai.InternalServerError as error:
    assert error.status_code == 503 and error.code == 'model_maintenance', error
    assert error.response.headers['retry-after'] == '77' and 'Back at noon.' in str(error), error
    print('told')
";
    let mut command = python();
    command
        .args(["-c", program])
        .env("OPENAI_BASE_URL", format!("{}/v1", fleet.edge_url))
        .env("OPENAI_API_KEY", &fleet.key);
    let output = command.output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "told\n", "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(event(&fleet, 2, "model_id, status, error_code, http_status").await, "echo|error|model_maintenance|503");
    assert!(explain(&fleet, "chat", &[]).contains("refused with 503: Back at noon."));
    assert!(explain(&fleet, MODEL, &[]).contains("no route has this name"));
    assert!(explain(&fleet, "nothing", &[]).contains("neither a route nor"));
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_are_kept_by_the_version_that_gave_them() {
    let fleet = two_versions().await;
    let with =
        |cache: Value| json!({"targets": [to("1", 1), to("2", 1)], "sticky": {"header": "x-user"}, "cache": cache});
    let route = fleet.add_route("chat", with(json!({"enabled": true}))).await;
    let mut body = chat_body("chat", WORDS, false);
    body["temperature"] = json!(0);
    let asked = async |user: &str| {
        let reply = ask_with(&fleet, &fleet.key, &[("x-user", user)], &body).await;
        let cache = reply.headers.get("x-turnpike-cache").map_or("", |value| value.to_str().unwrap()).to_owned();
        (by(&reply), cache.split(';').next().unwrap().to_owned())
    };
    // Users of both versions.
    let mut users = BTreeMap::new();
    for user in 0..40 {
        let name = format!("user-{user}");
        let (version, cache) = asked(&name).await;
        let is_first = !users.contains_key(&version);
        assert_eq!(cache, if is_first { "miss" } else { "hit" }, "{name} at {version}");
        users.entry(version).or_insert(name);
    }
    assert_eq!(users.len(), 2);
    fleet.set_route(&route, with(Value::Null)).await;
    for (version, user) in &users {
        assert_eq!(asked(user).await, (version.clone(), String::new()), "the model's own policy is that of no cache");
    }
}
