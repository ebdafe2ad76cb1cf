//! `turnpike explain`: what an edge would do with a request, and why.

use crate::operator::{block_on, columns};
use crate::up;
use anyhow::{Context as _, bail};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::PathBuf;
use std::time::Duration;

const DEADLINE: Duration = Duration::from_secs(10);

/// Say what an edge would do with a request, and why.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "\
Examples:
  turnpike explain --key sk-… --model chat-large
  turnpike explain --model chat-large --header x-user=ada --edge-url http://127.0.0.1:9101 --json")]
pub(crate) struct Args {
    /// The client's API key. The edge hashes it at once, and keeps and logs nothing of it.
    #[arg(long, env = "OPENAI_API_KEY", value_name = "KEY", hide_env_values = true)]
    key: String,
    /// The name that the client sends: a model's or a route's.
    #[arg(long, value_name = "NAME")]
    model: String,
    /// A header of the request; may be given several times.
    #[arg(long = "header", value_name = "NAME=VALUE", value_parser = header)]
    headers: Vec<(String, String)>,
    /// The edge's address for operators (admin.listen); otherwise that of the `up` in --data-dir.
    #[arg(long, env = "TURNPIKE_EDGE_URL", value_name = "URL")]
    edge_url: Option<String>,
    /// Data directory of a `turnpike up`.
    #[arg(long, default_value = "./.turnpike", value_name = "DIR")]
    data_dir: PathBuf,
    /// Print the edge's answer as JSON.
    #[arg(long)]
    json: bool,
}

fn header(text: &str) -> Result<(String, String), String> {
    let pair = text.split_once('=').filter(|(name, _)| !name.is_empty());
    pair.map(|(name, value)| (name.to_owned(), value.to_owned())).ok_or_else(|| "expected NAME=VALUE".to_owned())
}

/// `turnpike explain`
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let explanation = block_on(ask(args))?;
    let text = if args.json { format!("{explanation}\n") } else { for_people(&explanation) };
    Ok(std::io::stdout().write_all(text.as_bytes())?)
}

async fn ask(args: &Args) -> anyhow::Result<Value> {
    let edge = match &args.edge_url {
        Some(url) => url.clone(),
        None => up::Running::read(&args.data_dir)?
            .map(|running| running.edge_url)
            .filter(|url| !url.is_empty())
            .with_context(|| {
                format!("no `turnpike up` runs in {}; name its --data-dir, or give --edge-url", args.data_dir.display())
            })?,
    };
    let url = format!("{}/explain", edge.trim_end_matches('/'));
    let headers: BTreeMap<_, _> = args.headers.iter().cloned().collect();
    let question = json!({"key": args.key, "model": args.model, "headers": headers});
    let client = reqwest::Client::builder().no_proxy().timeout(DEADLINE).build()?;
    let answer = client.post(&url).json(&question).send().await.with_context(|| format!("asking {url}"))?;
    if !answer.status().is_success() {
        let status = answer.status();
        let detail: String = answer.text().await.unwrap_or_default().chars().take(300).collect();
        bail!("{url}: {status} {detail}");
    }
    Ok(answer.json().await?)
}

/// Text of a field, or of what it is in JSON.
fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => "-".to_owned(),
        other => other.to_string(),
    }
}

fn for_people(it: &Value) -> String {
    let mut out = format!(
        "edge {} in region {}, by routing version {}\n\n",
        text(&it["edge"]),
        text(&it["region"]),
        text(&it["version"])
    );
    for reason in it["why"].as_array().into_iter().flatten() {
        out += &format!("* {}\n", text(reason));
    }
    let heads = ["", "MODEL", "VERSION", "WEIGHT", "READY", "RESTING", "REGIONS", ""].map(str::to_owned);
    let row = |what: &str, way: &Value| {
        let regions = way["regions"].as_array().into_iter().flatten();
        let regions: Vec<_> = regions.map(|it| format!("{}:{}", text(&it[0]), text(&it[1]))).collect();
        let trouble = if way["trouble"].is_null() { String::new() } else { text(&way["trouble"]) };
        let [model, version, weight, ready, resting] =
            ["model", "version", "weight", "nodes_ready", "nodes_resting"].map(|field| text(&way[field]));
        [what.to_owned(), model, version, weight, ready, resting, regions.join(" "), trouble]
    };
    let ways = |field: &str, what: &'static str| {
        it[field].as_array().into_iter().flatten().map(move |way| row(what, way)).collect::<Vec<_>>()
    };
    let rows: Vec<_> =
        [vec![heads], ways("targets", "target"), ways("fallbacks", "fallback")].into_iter().flatten().collect();
    if rows.len() > 1 {
        out += &format!("\n{}", columns(&rows, rows[0].len()));
    }
    let order: Vec<_> = it["order"].as_array().into_iter().flatten().map(text).collect();
    if !order.is_empty() {
        out += &format!("\norder     {}\n", order.join(", then "));
    }
    for field in ["cache", "timeouts", "retries", "shadow"] {
        let Some(fields) = it[field].as_object() else { continue };
        let said = fields.iter().filter(|(_, value)| !value.is_null());
        let said: Vec<_> = said.map(|(name, value)| format!("{name} {}", text(value))).collect();
        let said = if said.is_empty() { "as the edge's settings say".to_owned() } else { said.join(", ") };
        out += &format!("{field:<9} {said}\n");
    }
    for limit in it["limits"].as_array().into_iter().flatten() {
        let [kind, of, limit, remaining] = ["kind", "of", "limit", "remaining"].map(|field| text(&limit[field]));
        out += &format!("limit     {kind} of {of}: {remaining} of {limit} left\n");
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn people_read_what_and_why() {
        let text = for_people(&json!({
            "edge": "edge-1", "region": "eu", "version": 7, "why": ["there is a route"],
            "targets": [{"model": "m", "version": "v1", "weight": 9, "nodes_ready": 2, "nodes_resting": 0,
                "regions": [["eu", 1], ["us", 1]], "trouble": null}],
            "fallbacks": [], "order": ["m@v1", "small@1"], "retries": {"attempts": null, "left": 3}, "timeouts": {},
            "limits": [{"kind": "requests per minute", "of": "API key 7", "limit": 60, "remaining": 12}],
        }));
        for part in [
            "* there is a route\n",
            "target  m      v1       9       2      0        eu:1 us:1",
            "order     m@v1, then small@1\n",
            "retries   left 3\n",
            "timeouts  as the edge's settings say\n",
            "API key 7: 12 of 60 left",
        ] {
            assert!(text.contains(part), "{part} is not in\n{text}");
        }
    }
}
