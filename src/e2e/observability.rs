//! A real Prometheus reads every plane, and secrets are in no log.

use crate::harness::{Fleet, MODEL, Process, chat_body, eventually, free_port, get, post};
use serde_json::Value;
use std::process::Command;

/// One series of each plane that must be there with a value above zero.
const SERIES: [&str; 3] = [
    "turnpike_edge_requests_total{endpoint=\"chat\",status=\"success\"}",
    "turnpike_node_requests_total{endpoint=\"chat\",outcome=\"answered\"}",
    "turnpike_controlplane_usage_events_total{fate=\"stored\"}",
];

fn configuration(fleet: &Fleet) -> String {
    let targets: Vec<_> =
        fleet.metrics.values().map(|url| format!("'{}'", url.trim_start_matches("http://"))).collect();
    format!(
        "global: {{scrape_interval: 200ms, scrape_timeout: 200ms}}\nscrape_configs:\n\
         - {{job_name: turnpike, static_configs: [{{targets: [{}]}}]}}\n",
        targets.join(", ")
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn a_real_prometheus_scrapes_every_plane() {
    let fleet = Fleet::start(&["n1"], "0ms").await;
    let url = format!("{}/v1/chat/completions", fleet.edge_url);
    assert_eq!(post(&url, &fleet.key, chat_body(MODEL, "a b c", false)).await.unwrap().status, 200);

    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("prometheus.yml");
    std::fs::write(&file, configuration(&fleet)).unwrap();
    let port = free_port();
    let mut command = Command::new("prometheus");
    command
        .arg(format!("--config.file={}", file.display()))
        .arg(format!("--storage.tsdb.path={}", directory.path().join("data").display()))
        .arg(format!("--web.listen-address=127.0.0.1:{port}"));
    let _prometheus = Process::start(command, &directory.path().join("prometheus.log"));

    let query = async |expression: &str| -> Result<Vec<f64>, String> {
        let mut address = reqwest::Url::parse(&format!("http://127.0.0.1:{port}/api/v1/query")).unwrap();
        address.query_pairs_mut().append_pair("query", expression);
        let reply = get(address.as_str(), "").await?;
        if reply.status != 200 {
            return Err(reply.text);
        }
        let found = reply.json()["data"]["result"].as_array().cloned().unwrap_or_default();
        Ok(found.iter().filter_map(|series| series["value"][1].as_str()?.parse().ok()).collect())
    };
    eventually("Prometheus finds every plane up", async || match query("up").await? {
        values if values == [1.0; 3] => Ok(()),
        values => Err(format!("{values:?}")),
    })
    .await;
    for series in SERIES {
        eventually(series, async || match query(series).await? {
            values if values.iter().sum::<f64>() > 0.0 => Ok(()),
            values => Err(format!("{values:?}")),
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_log_metric_or_table_repeats_a_key_a_prompt_or_an_answer() {
    const SECRET: &str = "xylophone-in-the-attic";
    let fleet = Fleet::start(&["n1"], "0ms").await;
    let url = format!("{}/v1/chat/completions", fleet.edge_url);
    for stream in [false, true] {
        let reply = post(&url, &fleet.key, chat_body(MODEL, SECRET, stream)).await.unwrap();
        assert!(reply.text.contains(SECRET), "{}", reply.text);
    }
    // A body that does not parse is quoted nowhere either.
    let broken = format!("{{\"model\": \"{SECRET}");
    assert_eq!(post(&url, &fleet.key, broken).await.unwrap().status, 400);
    eventually("the events arrive", async || match fleet.sql("SELECT count(*) FROM inference_requests") {
        count if count == "3" => Ok(()),
        count => Err(count),
    })
    .await;
    let mut texts: Vec<(String, String)> = Vec::new();
    for (plane, base) in &fleet.metrics {
        texts.push((format!("{plane}'s metrics"), get(&format!("{base}/metrics"), "").await.unwrap().text));
        texts.push((format!("{plane}'s log"), fleet.log(plane)));
    }
    for table in ["inference_requests", "config_log", "audit_log", "api_keys"] {
        texts.push((table.to_owned(), fleet.sql(&format!("SELECT * FROM {table}"))));
    }
    for (place, text) in texts {
        assert!(!text.is_empty(), "{place} is empty");
        for secret in [SECRET, fleet.key.as_str(), fleet.admin.token.as_str()] {
            assert!(!text.contains(secret), "{place} holds {secret}");
        }
    }
    let events: Value = fleet.admin.get("/requests").await;
    assert!(!events.to_string().contains(SECRET), "{events}");
}
