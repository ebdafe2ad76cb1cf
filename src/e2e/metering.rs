//! `turnpike up` with a ClickHouse: usage goes there, and the bill is summed from there.

use crate::harness::{Up, chat_body, eventually, post, turnpike};
use serde_json::Value;
use turnpike_parts::clickhouse::ClickHouse;

#[tokio::test(flavor = "multi_thread")]
async fn up_takes_a_clickhouse_and_sums_what_is_there() {
    let clickhouse = tokio::task::spawn_blocking(|| ClickHouse::start_temporary().unwrap()).await.unwrap();
    let directory = tempfile::tempdir().unwrap();
    let mut command = turnpike();
    command.env("TURNPIKE_CLICKHOUSE_URL", clickhouse.url());
    let up = Up::start_with(command, &directory.path().join("data"), "echo");
    let url = format!("{}/chat/completions", up.text("base_url"));
    for _ in 0..3 {
        let reply =
            post(&url, &up.text("api_key"), chat_body(&up.text("model"), "one two three", false)).await.unwrap();
        assert_eq!(reply.status, 200, "{reply:?}");
    }
    let events = "SELECT count(), sum(total_tokens) FROM turnpike.request_analytics FINAL WHERE status = 'success'";
    let found = eventually("the events are in ClickHouse", async || match clickhouse.query(events).unwrap() {
        found if found.starts_with("3\t") => Ok(found),
        found => Err(found),
    })
    .await;
    let usage = eventually("they are summed", async || {
        let usage: Value = up.admin().get("/usage").await;
        if usage["data"][0]["requests"] == 3 { Ok(usage) } else { Err(usage.to_string()) }
    })
    .await;
    assert_eq!(format!("3\t{}", usage["data"][0]["total_tokens"]), found);
    let logs = ["controlplane", "dataplane", "gpu-node"]
        .map(|plane| std::fs::read_to_string(directory.path().join(format!("data/logs/{plane}.log"))).unwrap());
    let password = clickhouse.url().split(['@', ':']).nth(2).unwrap().to_owned();
    assert!(logs.iter().all(|log| !log.contains(&password)), "a log has the password");
}
