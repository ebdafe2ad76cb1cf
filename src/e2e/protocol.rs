//! What clients are told: every error class of the SDK, and what only a client without the SDK can do wrong.

use crate::harness::{Fleet, MODEL, Reply, chat_body, eventually, get, post, python, send};
use reqwest::{Method, Version};
use serde_json::json;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

#[tokio::test(flavor = "multi_thread")]
async fn the_sdk_meets_every_error_class() {
    let fleet = Fleet::start(&["n1"], "0ms").await;
    let inference = json!({"permissions": ["inference"]});
    let with = |extra: serde_json::Value| {
        let mut fields = inference.clone();
        fields.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        fields
    };
    let (disabled_id, disabled) = fleet.make_key(inference.clone()).await;
    let (revoked_id, revoked) = fleet.make_key(inference.clone()).await;
    let soon = in_three_seconds();
    let (_, expired) = fleet.make_key(with(json!({"expires_at": soon}))).await;
    let (_, unpermitted) = fleet.make_key(json!({"permissions": ["models.read"]})).await;
    fleet.add_model("another").await;
    let (_, other_models) = fleet.make_key(with(json!({"allowed_models": ["another"]}))).await;
    let (_, limited) = fleet.make_key(with(json!({"rate_limits": {"requests_per_minute": 1}}))).await;
    fleet.until_known(&limited).await;
    fleet.admin.patch(&format!("/api_keys/{disabled_id}"), json!({"is_active": false})).await;
    fleet.admin.delete(&format!("/api_keys/{revoked_id}")).await;
    for key in [&disabled, &revoked, &expired] {
        eventually("the edge refuses the key", async || {
            match get(&format!("{}/v1/models", fleet.edge_url), key).await? {
                reply if reply.status == 401 => Ok(()),
                reply => Err(reply.text),
            }
        })
        .await;
    }
    let keys = json!({
        "disabled": disabled, "revoked": revoked, "expired": expired, "unpermitted": unpermitted,
        "other_models": other_models, "limited": limited,
    });
    let output = python()
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/src/e2e/sdk.py"))
        .arg("errors")
        .env("OPENAI_BASE_URL", format!("{}/v1", fleet.edge_url))
        .env("OPENAI_API_KEY", &fleet.key)
        .env("MODEL", MODEL)
        .env("KEYS", keys.to_string())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));

    // Every request with a live key is on record, also one that was refused.
    let refusals = "SELECT string_agg(DISTINCT status || ' ' || error_code, ',' ORDER BY status || ' ' || error_code)
                    FROM inference_requests WHERE status <> 'success'";
    let expected = [
        "error engine_refused",
        "error missing_permission",
        "error model_not_allowed",
        "error model_not_found",
        "rate_limited rate_limit_exceeded",
    ]
    .join(",");
    eventually("the refusals are in the request log", async || match fleet.sql(refusals) {
        found if found == expected => Ok(()),
        found => Err(found),
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn moderations_pass_and_are_metered() {
    let fleet = Fleet::start(&["n1"], "0ms").await;
    let url = format!("{}/v1/moderations", fleet.edge_url);
    let reply = post(&url, &fleet.key, json!({"model": MODEL, "input": ["one", "two"]})).await.unwrap();
    assert_eq!(reply.status, 200, "{}", reply.text);
    assert_eq!(reply.json()["results"].as_array().map(Vec::len), Some(2), "{}", reply.text);
    eventually("it is in the request log", async || {
        match fleet.sql("SELECT request_type, status FROM inference_requests") {
            row if row == "moderation|success" => Ok(()),
            row => Err(row),
        }
    })
    .await;
}

/// RFC 3339; far enough that the key can still be made, near enough to wait for.
fn in_three_seconds() -> String {
    let output = std::process::Command::new("date").args(["-u", "-d", "+3 seconds", "+%FT%TZ"]).output().unwrap();
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn mistakes_are_answered_in_the_clients_own_protocol() {
    let fleet = Fleet::start(&["n1"], "0ms").await;
    let call = async |method: Method, path: &str, body: Option<&str>| -> Reply {
        let url = format!("{}{path}", fleet.edge_url);
        Reply::read(send(method, &url, &fleet.key, body.map(str::to_owned)).await.unwrap()).await.unwrap()
    };
    let chat = "/v1/chat/completions";
    for (method, path, body, status, code) in [
        (Method::POST, "/v1/nonsense", Some("{}"), 404, "unknown_url"),
        (Method::GET, chat, None, 405, "method_not_supported"),
        (Method::DELETE, "/v1/models", None, 405, "method_not_supported"),
        (Method::POST, chat, Some("{\"model\": "), 400, "invalid_json"),
        (Method::POST, chat, Some("[1]"), 400, "invalid_json"),
        (Method::POST, chat, Some("{}"), 400, "missing_required_parameter"),
        (Method::POST, chat, Some("{\"model\": 7}"), 400, "invalid_value"),
        (Method::POST, chat, Some("{\"model\": \"nobody\", \"messages\": []}"), 404, "model_not_found"),
    ] {
        let reply = call(method.clone(), path, body).await;
        assert_eq!((reply.status, reply.code().as_str()), (status, code), "{method} {path} {body:?}: {}", reply.text);
        assert!(reply.headers.contains_key("x-request-id"), "{method} {path}");
        assert_eq!(reply.headers["content-type"], "application/json", "{method} {path}");
    }
    assert_eq!(get(&format!("{}/v1/models", fleet.edge_url), "sk-wrong").await.unwrap().code(), "invalid_api_key");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_megabytes_pass_through_unchanged_in_both_directions() {
    let fleet = Fleet::start(&["n1"], "0ms").await;
    // Escapes and characters beyond ASCII, so that a rewrite on the way would show.
    let text = "Brücke \\u00e9 \"über\" den Fluß 🌉 ".repeat(60_000).trim().to_owned();
    assert!(text.len() > 2_000_000);
    let url = format!("{}/v1/chat/completions", fleet.edge_url);
    let reply = post(&url, &fleet.key, chat_body(MODEL, &text, false)).await.unwrap();
    assert_eq!(reply.status, 200, "{}", &reply.text[..reply.text.len().min(500)]);
    let answer = reply.json();
    assert!(answer["choices"][0]["message"]["content"] == text.as_str(), "the answer is not the question");
    assert_eq!(answer["usage"]["prompt_tokens"], text.split_whitespace().count());
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_come_over_tls_by_either_version_of_http() {
    let mut fleet = Fleet::start(&["n1"], "0ms").await;
    let certificates = fleet.path("certs");
    let file = |name: &str| certificates.join(name).display().to_string();
    let settings = format!("http.tls_cert = \"{}\"\nhttp.tls_key = \"{}\"", file("edge.pem"), file("edge.key"));
    let url = fleet.add_edge("edge-2", &settings).await;
    fleet.until_pushed().await;
    let address: SocketAddr = url.strip_prefix("http://").unwrap().parse().unwrap();
    let url = format!("https://edge.edge.turnpike.internal:{}/v1/chat/completions", address.port());
    let authority = reqwest::Certificate::from_pem(&std::fs::read(file("ca.pem")).unwrap()).unwrap();
    for (version, client) in
        [(Version::HTTP_11, reqwest::Client::builder().http1_only()), (Version::HTTP_2, reqwest::Client::builder())]
    {
        let client = client.tls_certs_only([authority.clone()]).resolve("edge.edge.turnpike.internal", address);
        let client = client.no_proxy().build().unwrap();
        for streamed in [false, true, false] {
            let ask = client.post(&url).bearer_auth(&fleet.key).json(&chat_body(MODEL, "one two", streamed));
            let reply = ask.send().await.unwrap();
            assert_eq!((reply.version(), reply.status().as_u16()), (version, 200));
            let text = reply.text().await.unwrap();
            assert!(text.contains("two") && text.trim_end().ends_with("[DONE]") == streamed, "{text}");
        }
    }
    // Who does not speak TLS is told so by an alert.
    let mut plain = TcpStream::connect(address).unwrap();
    plain.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    plain.write_all(b"GET / HTTP/1.1\r\nhost: edge\r\n\r\n").unwrap();
    let mut told = Vec::new();
    plain.read_to_end(&mut told).unwrap();
    assert_eq!(told.first(), Some(&21), "{told:?}");
}
