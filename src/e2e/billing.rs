//! The main road: `turnpike up`, the official SDK, a language model, and the bill that agrees with it.

use crate::harness::{Up, eventually, python, turnpike};
use serde_json::Value;

/// Runs one scenario of `sdk.py`; what the SDK was told was used.
fn sdk(up: &Up, scenario: &str) -> Value {
    let output = python()
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/src/e2e/sdk.py"))
        .arg(scenario)
        .env("OPENAI_BASE_URL", up.text("base_url"))
        .env("OPENAI_API_KEY", up.text("api_key"))
        .env("MODEL", up.text("model"))
        .env("EMBEDDING_MODEL", "all-minilm-l6-v2")
        .output()
        .unwrap();
    assert!(output.status.success(), "{scenario}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn sum(seen: &[Value], field: &str) -> u64 {
    seen.iter().map(|usage| usage[field].as_u64().unwrap()).sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_bill_equals_what_the_sdk_saw_to_the_token() {
    let directory = tempfile::tempdir().unwrap();
    let data_dir = directory.path().join("data");
    let up = Up::start(&data_dir, "builtin");
    let scenarios = ["models", "chat", "completion", "streaming", "embeddings", "large_prompt"];
    let seen: Vec<_> = scenarios.iter().map(|scenario| sdk(&up, scenario)).collect();
    let expected =
        [sum(&seen, "requests"), sum(&seen, "prompt_tokens"), sum(&seen, "completion_tokens")].map(|n| n.to_string());
    let expected = expected.join("|");

    let events =
        "SELECT count(*), sum(prompt_tokens), sum(completion_tokens) FROM inference_requests WHERE status = 'success'";
    eventually("every request is in the request log", async || {
        let found = up.sql(events);
        if found == expected { Ok(()) } else { Err(format!("{found} instead of {expected}")) }
    })
    .await;
    let daily = eventually("and in the daily sums", async || {
        let daily = up.sql("SELECT sum(prompt_tokens), sum(completion_tokens), sum(cost_usd) FROM usage_records");
        let is_there = daily.starts_with(expected.split_once('|').unwrap().1);
        if is_there { Ok(daily) } else { Err(format!("{daily} instead of {expected}")) }
    })
    .await;
    assert_eq!(up.sql("SELECT sum(cost_usd) FROM inference_requests"), daily.rsplit_once('|').unwrap().1);
    // Nothing was estimated: the engine's own counts reached the edge, also where the client did not ask for them.
    assert_eq!(up.sql("SELECT count(*) FROM inference_requests WHERE estimated"), "0");

    admin_api_and_command_line_agree(&up, &data_dir, &daily).await;

    sdk(&up, "abort");
    // The prompt is the one of the scenario «chat», and nodes tell its size before the stream begins.
    let gone = "SELECT estimated, completion_tokens > 0 AND completion_tokens < 400, prompt_tokens
                FROM inference_requests WHERE status = 'client_gone'";
    let expected = format!("t|t|{}", seen[1]["prompt_tokens"]);
    eventually("the request that was left is in the log", async || match up.sql(gone) {
        row if row == expected => Ok(()),
        row => Err(row),
    })
    .await;
}

async fn admin_api_and_command_line_agree(up: &Up, data_dir: &std::path::Path, daily: &str) {
    let [prompt, completion, _cost] = daily.split('|').collect::<Vec<_>>().try_into().unwrap();
    let usage = up.admin().get("/usage").await;
    let total =
        |field: &str| usage["data"].as_array().unwrap().iter().map(|day| day[field].as_u64().unwrap()).sum::<u64>();
    assert_eq!(total("prompt_tokens").to_string(), prompt, "{usage}");
    assert_eq!(total("completion_tokens").to_string(), completion, "{usage}");
    let output = turnpike().args(["usage", "--data-dir"]).arg(data_dir).output().unwrap();
    let table = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(table.contains(&up.text("model")), "{table}");
}
