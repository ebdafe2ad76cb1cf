use crate::harness::{Node, eventually};
use std::path::Path;

fn alive(pid: &str) -> bool {
    // A process that has ended and is not yet collected still has a folder, in state Z.
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

fn settings(script: &str) -> String {
    format!(
        "engine.kind = \"vllm\"\nengine.url = \"http://127.0.0.1:9\"\nengine.command = [\"sh\", \"-c\", {script:?}]"
    )
}

fn pids(file: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    text.split_whitespace().map(str::to_owned).collect()
}

#[tokio::test]
async fn the_engines_process_is_stopped_with_its_children() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("pids");
    let script = format!("sleep 1000 & echo $$ $! > {}; wait", file.display());
    let node = Node::start(&settings(&script)).await;
    eventually("it has started", async || pids(&file).len() == 2).await;
    let pids = pids(&file);
    assert!(pids.iter().all(|pid| alive(pid)), "{pids:?}");
    node.shutdown.cancel();
    node.ended().await;
    eventually("both are gone", async || !pids.iter().any(|pid| alive(pid))).await;
}

#[tokio::test]
async fn a_process_that_ends_is_started_again() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("runs");
    let node = Node::start(&settings(&format!("echo run >> {}", file.display()))).await;
    eventually("it ran twice", async || pids(&file).len() >= 2).await;
    assert!(node.metric("turnpike_node_engine_restarts_total").await >= Some(1.0));
    node.shutdown.cancel();
    node.ended().await;
}
