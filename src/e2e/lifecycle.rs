//! `turnpike up` from start to end: what it keeps, what it stops, what it says when it cannot start.

use crate::harness::{Up, chat_body, descendants, eventually, get, post, turnpike};
use serde_json::json;
use std::net::TcpListener;

async fn ask(up: &Up, key: &str) -> Result<(), String> {
    let url = format!("{}/chat/completions", up.text("base_url"));
    let reply = post(&url, key, chat_body(&up.text("model"), "a b c", false)).await?;
    if reply.status == 200 { Ok(()) } else { Err(format!("{} {}", reply.status, reply.text)) }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_keeps_everything_and_ctrl_c_leaves_nothing_running() {
    let directory = tempfile::tempdir().unwrap();
    let data_dir = directory.path().join("data");
    let mut up = Up::start(&data_dir, "echo");
    let key = up.text("api_key");
    ask(&up, &key).await.unwrap();
    up.admin().post("/organizations", json!({"name": "Second", "slug": "second"})).await;
    let children = descendants(up.process.id());
    assert!(children.iter().filter(|child| child.name == "turnpike").count() >= 3, "{children:?}");
    assert!(children.iter().any(|child| child.name == "postgres"), "{children:?}");

    assert!(up.interrupt().success(), "{}", up.process.log());
    let left: Vec<_> = children.iter().filter(|child| child.is_alive()).collect();
    assert!(left.is_empty(), "still running after Ctrl-C: {left:?}");

    let up = Up::start(&data_dir, "echo");
    ask(&up, &key).await.unwrap();
    let slugs = up.sql("SELECT string_agg(slug, ',' ORDER BY slug) FROM organizations");
    assert!(slugs.contains("second"), "{slugs}");
    eventually("the usage of both lives is there", async || match up.sql("SELECT count(*) FROM inference_requests") {
        count if count == "2" => Ok(()),
        count => Err(count),
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn when_the_parent_is_killed_its_children_end_too_and_it_can_start_again() {
    let directory = tempfile::tempdir().unwrap();
    let data_dir = directory.path().join("data");
    let mut up = Up::start(&data_dir, "echo");
    let key = up.text("api_key");
    let children = descendants(up.process.id());
    assert!(children.len() >= 4, "{children:?}");
    up.process.kill();
    eventually("all children have ended", async || {
        let left: Vec<_> = children.iter().filter(|child| child.is_alive()).collect();
        if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
    })
    .await;
    let up = Up::start(&data_dir, "echo");
    ask(&up, &key).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn without_weights_it_says_so_and_serves_an_echo_under_its_own_name() {
    let directory = tempfile::tempdir().unwrap();
    let mut command = turnpike();
    // An empty cache, and an index where nobody listens.
    command.env("XDG_CACHE_HOME", directory.path()).env("PIP_INDEX_URL", "http://127.0.0.1:9/").env("PIP_RETRIES", "0");
    let up = Up::start_with(command, &directory.path().join("data"), "auto");
    assert_eq!(up.text("model"), "echo");
    let said = up.process.log();
    assert!(said.contains("pip could not download") && said.contains("echo"), "{said}");
    ask(&up, &up.text("api_key")).await.unwrap();
}

#[test]
fn a_taken_port_is_named_with_the_setting_that_changes_it() {
    let directory = tempfile::tempdir().unwrap();
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = other.local_addr().unwrap().port().to_string();
    let output =
        turnpike().args(["up", "--port", &port, "--data-dir"]).arg(directory.path().join("data")).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success());
    assert!(said.contains(&port) && said.contains("--port") && said.contains("in use"), "{said}");
}

#[test]
fn a_settings_file_with_mistakes_names_them_all() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("edge.toml");
    std::fs::write(&file, "data_dir = \"x\"\nhttp.listen = \"nowhere\"\nhttp.lisen = 1\n").unwrap();
    let output = turnpike().args(["dataplane", "--config"]).arg(&file).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success());
    for part in ["edge.toml", "http.listen: expected an address", "http.lisen: unknown setting", "tls.cert: missing"] {
        assert!(said.contains(part), "{part} is not in {said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn health_and_help_are_there() {
    let help = turnpike().args(["up", "--help"]).output().unwrap();
    let help = String::from_utf8_lossy(&help.stdout).into_owned();
    for flag in ["--data-dir", "--port", "--admin-port", "--auto-ports", "--json", "--engine"] {
        assert!(help.contains(flag), "{flag} is not in {help}");
    }
    let directory = tempfile::tempdir().unwrap();
    let up = Up::start(&directory.path().join("data"), "echo");
    for path in ["/livez", "/readyz", "/openapi.json"] {
        assert_eq!(get(&format!("{}{path}", up.text("admin_url")), "").await.unwrap().status, 200, "{path}");
    }
}
