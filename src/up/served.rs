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
        // In this order: what the edge must know is what stood in the log when the node was ready.
        let Some(missing) = (match node_trouble(admin).await {
            None => match push_trouble(admin).await {
                None => edge_trouble(http, &model_url, api_key).await,
                behind => behind,
            },
            unready => unready,
        }) else {
            return Ok(());
        };
        if Instant::now() >= deadline {
            bail!("requests are not served after {} s: {missing}", PATIENCE.as_secs());
        }
        tokio::time::sleep(POLL).await;
    }
}

async fn node_trouble(admin: &admin::Client) -> Option<String> {
    match admin.get::<Node>(&format!("/nodes/{}", super::settings::NODE_NAME)).await {
        Ok(node) if node.connected && node.state == "ready" => None,
        Ok(node) => Some(format!("the node is {}", node.state)),
        Err(e) => Some(e.to_string()),
    }
}

/// An edge that starts serves by the routing on its disk, which may know the node as it was in an earlier life.
async fn push_trouble(admin: &admin::Client) -> Option<String> {
    let wanted = match admin.get::<ConfigHead>("/config").await {
        Ok(head) => head.version,
        Err(e) => return Some(e.to_string()),
    };
    match admin.find::<Edge>("/edges", |edge| edge.name == super::settings::EDGE_NAME).await {
        Ok(Some(edge)) if edge.holds >= wanted => None,
        Ok(Some(edge)) => Some(format!("the edge serves by version {} of {wanted}", edge.holds)),
        Ok(None) => Some("the edge has not linked to the control plane".to_owned()),
        Err(e) => Some(e.to_string()),
    }
}

async fn edge_trouble(http: &reqwest::Client, url: &str, api_key: &str) -> Option<String> {
    match http.get(url).bearer_auth(api_key).send().await {
        Ok(answer) if answer.status().is_success() => None,
        Ok(answer) => Some(format!("{url}: {} {}", answer.status(), answer.text().await.unwrap_or_default())),
        Err(e) => Some(format!("{url}: {}", e.without_url())),
    }
}
