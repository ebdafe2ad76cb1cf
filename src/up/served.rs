//! Whether a request that came now would reach an engine.

use super::engine::Engine;
use crate::admin;
use anyhow::bail;
use serde::Deserialize;
use std::time::{Duration, Instant};

/// How long the news of a ready node may take to reach the edge.
const PATIENCE: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(50);

#[derive(Deserialize)]
struct Node {
    state: String,
    connected: bool,
}

#[derive(Deserialize)]
struct ConfigHead {
    version: u64,
}

#[derive(Deserialize)]
struct Edge {
    name: String,
    holds: u64,
}

/// Waits until the node is ready, the edge has been told so, and lists the model for this key.
pub(super) async fn wait(
    admin: &admin::Client,
    http: &reqwest::Client,
    base_url: &str,
    api_key: &str,
    engine: Engine,
) -> anyhow::Result<()> {
    let deadline = Instant::now() + PATIENCE;
    let model_url = format!("{base_url}/models/{}", engine.models()[0].id);
    loop {
        let Err(missing) = served(admin, http, &model_url, api_key).await else { return Ok(()) };
        if Instant::now() >= deadline {
            bail!("requests are not served after {} s: {missing}", PATIENCE.as_secs());
        }
        tokio::time::sleep(POLL).await;
    }
}

/// What is still missing. In this order: what the edge must know is what stood in the log when the node was ready.
async fn served(admin: &admin::Client, http: &reqwest::Client, model_url: &str, api_key: &str) -> Result<(), String> {
    node_is_ready(admin).await?;
    edge_is_up_to_date(admin).await?;
    edge_lists_the_model(http, model_url, api_key).await
}

async fn node_is_ready(admin: &admin::Client) -> Result<(), String> {
    let node: Node = admin.get(&format!("/nodes/{}", super::settings::NODE_NAME)).await.map_err(|e| e.to_string())?;
    if node.connected && node.state == "ready" { Ok(()) } else { Err(format!("the node is {}", node.state)) }
}

/// An edge that starts serves by the routing on its disk, which may know the node as it was in an earlier life.
async fn edge_is_up_to_date(admin: &admin::Client) -> Result<(), String> {
    let wanted = admin.get::<ConfigHead>("/config").await.map_err(|e| e.to_string())?.version;
    let edge = admin.find::<Edge>("/edges", |edge| edge.name == super::settings::EDGE_NAME).await;
    let edge = edge.map_err(|e| e.to_string())?.ok_or("the edge has not linked to the control plane")?;
    if edge.holds >= wanted { Ok(()) } else { Err(format!("the edge serves by version {} of {wanted}", edge.holds)) }
}

async fn edge_lists_the_model(http: &reqwest::Client, url: &str, api_key: &str) -> Result<(), String> {
    match http.get(url).bearer_auth(api_key).send().await {
        Ok(answer) if answer.status().is_success() => Ok(()),
        Ok(answer) => Err(format!("{url}: {} {}", answer.status(), answer.text().await.unwrap_or_default())),
        Err(e) => Err(format!("{url}: {}", e.without_url())),
    }
}
