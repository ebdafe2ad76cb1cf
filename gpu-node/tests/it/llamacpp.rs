//! llama.cpp's own server, from the Python package xllamacpp, with the built-in engine's weights.

use crate::harness::{Node, eventually};
use crate::ledger::{ask, chat, event};
use serde_json::{Value, json};
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use turnpike_config::NodeState;
use turnpike_gpu_node::builtin::weights;

/// Serves on a port of the system's choosing, prints it, and ends with its standard input.
const SERVER: &str = r#"
import sys, socket, xllamacpp
with socket.socket() as probe:
    probe.bind(("127.0.0.1", 0))
    port = probe.getsockname()[1]
params = xllamacpp.CommonParams()
params.model.path = sys.argv[1]
params.hostnames = ["127.0.0.1"]
params.port = port
params.n_parallel = 2
params.n_ctx = 1024
params.endpoint_metrics = True
params.cpuparams.n_threads = 1
params.cpuparams_batch.n_threads = 1
server = xllamacpp.Server(params)
print("PORT", port, flush=True)
sys.stdin.read()
"#;

struct LlamaCpp {
    process: Child,
    port: u16,
}

impl LlamaCpp {
    fn start() -> Self {
        let prepared = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.cache/venv/bin/python");
        let python = std::env::var_os("TURNPIKE_TEST_PYTHON").map_or(prepared, PathBuf::from);
        assert!(python.exists(), "{} is missing; ./test prepares it", python.display());
        let cache = weights::default_cache_dir(&|name| std::env::var(name).ok()).expect("a home directory");
        let model = weights::ensure(&cache, &mut |_| {}).unwrap().chat;
        let mut process = Command::new(python)
            .args(["-c", SERVER])
            .arg(model)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let port = lines
            .map_while(Result::ok)
            .find_map(|line| line.strip_prefix("PORT ")?.parse().ok())
            .expect("the server says its port; is xllamacpp installed in that Python?");
        Self { process, port }
    }
}

impl Drop for LlamaCpp {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn llama_cpp_is_watched_and_its_answers_pass_through() {
    let mut engine = tokio::task::spawn_blocking(LlamaCpp::start).await.unwrap();
    let settings = format!(
        "engine.kind = \"llamacpp\"\nengine.url = \"http://127.0.0.1:{}\"\nengine.probe_timeout = \"10s\"",
        engine.port
    );
    let node = Node::start(&settings).await.ready().await;
    let events = [event(), event(), event()];

    let whole = chat(&node, events[0], "Say hi.", &json!({"max_tokens": 3})).send().await.unwrap();
    assert_eq!(whole.status(), 200);
    let whole: Value = whole.json().await.unwrap();
    let tokens = whole["usage"]["completion_tokens"].as_u64().unwrap();
    assert!((1..=3).contains(&tokens), "{whole}");
    let counted = |usage: &Value, (status, known): (u16, Value)| {
        assert_eq!((status, &known["state"]), (200, &json!("counted")));
        assert_eq!(known["tokens"]["prompt"], usage["prompt_tokens"]);
        assert_eq!(known["tokens"]["completion"], usage["completion_tokens"]);
    };
    counted(&whole["usage"], ask(&node, events[0]).await);

    let extra = json!({"max_tokens": 3, "stream": true, "stream_options": {"include_usage": true}});
    let stream = chat(&node, events[1], "Say hi.", &extra).send().await.unwrap().text().await.unwrap();
    assert!(stream.trim_end().ends_with("data: [DONE]") && stream.contains("\"completion_tokens\""), "{stream}");
    let chunks = stream.lines().filter_map(|line| serde_json::from_str::<Value>(line.strip_prefix("data: ")?).ok());
    let usage = chunks.map(|chunk| chunk["usage"].clone()).rfind(Value::is_object).unwrap();
    counted(&usage, ask(&node, events[1]).await);

    // Read from the engine's own /metrics: what it generated after the agent's first look at it.
    eventually("its tokens are reported", async || {
        node.control.reports().last().is_some_and(|report| report.generated_tokens >= tokens)
    })
    .await;
    // A client that leaves ends the work in the engine too, long before it is done.
    let busy = async |requests: u32| {
        let page = node.client.get(format!("http://127.0.0.1:{}/metrics", engine.port)).send().await.unwrap();
        page.text().await.unwrap().lines().any(|line| line == format!("llamacpp:requests_processing {requests}"))
    };
    // Not OpenAI's: it keeps a model that draws lots from being done early. What a client sends passes through as it is.
    let extra = json!({"max_tokens": 450, "stream": true, "ignore_eos": true});
    let mut long = chat(&node, events[2], "Count from one to one thousand.", &extra).send().await.unwrap();
    assert!(long.chunk().await.unwrap().is_some());
    eventually("the engine works", async || busy(1).await).await;
    drop(long);
    // It does not count the prompt ahead, so that this is the edge's judgement.
    eventually("what passed is known", async || ask(&node, events[2]).await.1["state"] == "seen").await;
    assert_eq!(ask(&node, events[2]).await.1["tokens"]["prompt"], 40);
    eventually("the engine has let go of it", async || busy(0).await).await;
    assert!(node.metric("turnpike_node_generated_tokens_total").await < Some(400.0));

    engine.process.kill().unwrap();
    eventually("its end is noticed", async || node.control.states().last() == Some(&NodeState::Unhealthy)).await;
}
