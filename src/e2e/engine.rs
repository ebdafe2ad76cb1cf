//! An engine that is not ours: llama.cpp's own server, run and supervised by a node agent.

use crate::harness::{Fleet, chat_body, descendants, eventually, free_port, post, python_path, turnpike};
use serde_json::json;
use std::path::Path;

const MODEL: &str = "smollm2";

/// The weights' file, fetched by the binary if it is not there yet.
fn weights() -> String {
    let output = turnpike().args(["weights", "fetch"]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let directory = String::from_utf8(output.stdout).unwrap();
    let file = Path::new(directory.trim()).join("smollm2-135m-instruct.q8_0.gguf");
    assert!(file.exists(), "{}", file.display());
    file.display().to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn llama_cpp_is_run_metered_and_started_again_after_a_crash() {
    let mut fleet = Fleet::start(&[], "0ms").await;
    fleet.add_model(MODEL).await;
    let port = free_port();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/src/e2e/llama_server.py");
    let command = json!([python_path(), "-B", script, weights(), port.to_string()]);
    let engine =
        format!("engine.kind = \"llamacpp\"\nengine.url = \"http://127.0.0.1:{port}\"\nengine.command = {command}\n");
    fleet.add_node("llama", MODEL, &engine).await;

    let url = format!("{}/v1/chat/completions", fleet.edge_url);
    let ask = async |stream: bool| {
        let mut body = chat_body(MODEL, "Say hello.", stream);
        body["max_tokens"] = json!(6);
        body["temperature"] = json!(0);
        post(&url, &fleet.key, body).await
    };
    let reply = ask(false).await.unwrap();
    assert_eq!(reply.status, 200, "{}", reply.text);
    let usage = reply.json()["usage"].clone();
    let streamed = ask(true).await.unwrap();
    assert!(streamed.text.trim_end().ends_with("data: [DONE]"), "{}", streamed.text);
    assert!(!streamed.text.contains("\"prompt_tokens\""), "usage that nobody asked for: {}", streamed.text);
    let sums = "SELECT count(*), sum(prompt_tokens), sum(completion_tokens) FROM inference_requests \
                WHERE status = 'success' AND NOT estimated";
    let twice = |field: &str| usage[field].as_u64().unwrap() * 2;
    let expected = format!("2|{}|{}", twice("prompt_tokens"), twice("completion_tokens"));
    eventually("both are billed by llama.cpp's own count", async || match fleet.sql(sums) {
        found if found == expected => Ok(()),
        found => Err(format!("{found} instead of {expected}")),
    })
    .await;

    let engines = descendants(fleet.id("llama"));
    let engine =
        engines.iter().find(|process| process.name.starts_with("python")).unwrap_or_else(|| panic!("{engines:?}"));
    engine.kill();
    eventually("it answers again", async || {
        let reply = ask(false).await?;
        if reply.status == 200 { Ok(()) } else { Err(format!("{} {}", reply.status, reply.text)) }
    })
    .await;
    let now = descendants(fleet.id("llama"));
    assert!(now.iter().all(|process| process.id != engine.id), "the killed process answered: {now:?}");
}
