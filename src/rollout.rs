//! `turnpike rollout`: changes that reach some edges before they reach all.

use crate::admin::{self, Client};
use crate::config::{Source, Step, steps_text};
use crate::operator::{Operator, block_on};
use anyhow::{Context as _, bail};
use serde::Deserialize;
use serde_json::{Value, json};
use std::io::{IsTerminal as _, Write as _};
use std::time::Duration;

/// Between two looks of `--watch`.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Looks in a row that may find nobody.
const MISSED: u32 = 60;
/// Characters of a progress bar.
const BAR: usize = 30;

/// Let changes reach one edge, then its region, then all, as long as nothing speaks against them.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "\
A rollout is taken back by itself when an edge refuses it, when more requests fail than at the other edges, or when
answers begin later there.

Examples:
  turnpike rollout start -f deploy/ --reason 'new canary'
  turnpike rollout start -f deploy/ --stage edge=fra-1,hold=60 --stage region=eu,hold=600
  turnpike rollout status --watch
  turnpike rollout abort")]
pub(crate) struct Args {
    #[command(flatten)]
    operator: Operator,
    #[command(subcommand)]
    command: Command,
}

#[derive(Clone, Debug, clap::Subcommand)]
enum Command {
    /// Start one: the first stage is told.
    Start {
        #[command(flatten)]
        source: Source,
        /// Who is told before all are, such as edge=fra-1,hold=60 or region=eu,region=us,hold=600 (seconds); may be
        /// repeated. Otherwise one connected edge, then its region, 30 s each.
        #[arg(long = "stage", value_name = "STAGE", value_parser = stage)]
        stages: Vec<Value>,
        /// Why, for whoever reads the log.
        #[arg(long)]
        reason: Option<String>,
        /// Halted when so many more of 1000 requests fail than at other edges.
        #[arg(long, value_name = "PERMILLE")]
        max_5xx_extra: Option<u32>,
        /// Halted when the 99th percentile of the time to the first byte is more than so many thousandths of the other
        /// edges'.
        #[arg(long, value_name = "PERMILLE")]
        max_first_byte: Option<u32>,
        /// Show how it goes until it is over.
        #[arg(long)]
        watch: bool,
    },
    /// Show the newest one. Exit status 1 if it was halted or aborted.
    Status {
        /// Show how it goes until it is over.
        #[arg(long)]
        watch: bool,
        /// Print it as JSON.
        #[arg(long, conflicts_with = "watch")]
        json: bool,
    },
    /// Keep it where it is.
    Pause,
    /// Let it go on.
    Resume,
    /// Take it back.
    Abort,
}

/// `edge=NAME,region=NAME,hold=SECONDS`
fn stage(text: &str) -> Result<Value, String> {
    let (mut edges, mut regions, mut hold) = (Vec::new(), Vec::new(), None);
    for part in text.split(',') {
        match part.split_once('=') {
            Some(("edge", name)) if !name.is_empty() => edges.push(name),
            Some(("region", name)) if !name.is_empty() => regions.push(name),
            Some(("hold", seconds)) => hold = Some(seconds.parse::<u32>().map_err(|_| "hold: expected seconds")?),
            _ => return Err("expected edge=NAME, region=NAME and hold=SECONDS, separated by commas".to_owned()),
        }
    }
    let mut stage = json!({"edges": edges, "regions": regions});
    if let Some(hold) = hold {
        stage["hold_s"] = json!(hold);
    }
    Ok(stage)
}

#[derive(Clone, Debug, Deserialize)]
struct Rollout {
    id: String,
    reason: Option<String>,
    stages: Vec<Stage>,
    state: String,
    stage: usize,
    note: Option<String>,
}

#[derive(Clone, Debug, Deserialize)]
struct Stage {
    edges: Vec<String>,
    regions: Vec<String>,
}

#[derive(Debug, Deserialize)]
struct Started {
    id: String,
    steps: Vec<Step>,
}

impl Rollout {
    fn is_under_way(&self) -> bool {
        matches!(self.state.as_str(), "running" | "paused")
    }
}

/// `turnpike rollout`
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let client = args.operator.client()?;
    match &args.command {
        Command::Start { source, stages, reason, max_5xx_extra, max_first_byte, watch } => {
            let mut rules = json!({});
            for (name, value) in
                [("max_5xx_extra_permille", max_5xx_extra), ("max_first_byte_permille", max_first_byte)]
            {
                if let Some(value) = value {
                    rules[name] = json!(value);
                }
            }
            let stages = (!stages.is_empty()).then_some(stages);
            let body = json!({
                "documents": source.read()?, "prune": source.prune(), "stages": stages, "rules": rules, "reason": reason,
            });
            let started: Started = block_on(async { Ok(client.post("/rollouts", &body).await?) })?;
            let mut out = std::io::stdout();
            out.write_all(steps_text(&started.steps).as_bytes())?;
            writeln!(out, "rollout {} is under way", started.id)?;
            if *watch { block_on(show_until_over(&client, &started.id)) } else { Ok(()) }
        }
        Command::Status { watch: true, .. } => block_on(async {
            let newest: Rollout = newest(&client).await?;
            show_until_over(&client, &newest.id).await
        }),
        Command::Status { json, .. } => {
            let newest: Value = block_on(newest(&client))?;
            let rollout = Rollout::deserialize(&newest)?;
            let shown = if *json { newest.to_string() } else { text(&rollout) };
            writeln!(std::io::stdout(), "{shown}")?;
            over(&rollout)
        }
        Command::Pause => act(&client, "pause"),
        Command::Resume => act(&client, "resume"),
        Command::Abort => act(&client, "abort"),
    }
}

async fn newest<T: serde::de::DeserializeOwned>(client: &Client) -> anyhow::Result<T> {
    #[derive(Deserialize)]
    struct Page {
        data: Vec<Value>,
    }
    let page: Page = client.get("/rollouts?limit=1").await?;
    let newest =
        page.data.into_iter().next().context("there was no rollout yet; see: turnpike rollout start --help")?;
    Ok(serde_json::from_value(newest)?)
}

fn act(client: &Client, what: &str) -> anyhow::Result<()> {
    let rollout: Rollout = block_on(async {
        let newest: Rollout = newest(client).await?;
        Ok(client.post(&format!("/rollouts/{}/{what}", newest.id), &json!({})).await?)
    })?;
    Ok(writeln!(std::io::stdout(), "{}", text(&rollout))?)
}

/// Shows it until it is over: in place on a terminal, a line for each change otherwise. A control plane that is away for a
/// moment, as when it is replaced, is waited for.
async fn show_until_over(client: &Client, id: &str) -> anyhow::Result<()> {
    let in_place = std::io::stdout().is_terminal();
    let (mut shown, mut missed) = (String::new(), 0);
    loop {
        let rollout: Rollout = match client.get(&format!("/rollouts/{id}")).await {
            Ok(rollout) => rollout,
            Err(admin::Error::Unreachable { .. }) if missed < MISSED => {
                missed += 1;
                tokio::time::sleep(LOOK_EVERY).await;
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        missed = 0;
        let now = text(&rollout);
        if now != shown {
            let mut out = std::io::stdout();
            if in_place {
                write!(out, "\r\x1b[2K{now}")?;
            } else {
                writeln!(out, "{now}")?;
            }
            out.flush()?;
            shown = now;
        }
        if !rollout.is_under_way() {
            if in_place {
                writeln!(std::io::stdout())?;
            }
            return over(&rollout);
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// What a script is told.
fn over(rollout: &Rollout) -> anyhow::Result<()> {
    if matches!(rollout.state.as_str(), "halted" | "aborted") {
        bail!("rollout {} was {}", rollout.id, rollout.state);
    }
    Ok(())
}

/// `[█████░░░░░] 1/2 edges fra-1 · running · holding`
fn text(rollout: &Rollout) -> String {
    let all = rollout.stages.len() + 1;
    let told = if rollout.state == "done" { all } else { rollout.stage + 1 };
    let full = BAR * told / all;
    let bar: String = (0..BAR).map(|at| if at < full { '█' } else { '░' }).collect();
    let whom = match rollout.stages.get(rollout.stage).filter(|_| rollout.state != "done") {
        Some(stage) => {
            let edges = stage.edges.iter().map(|name| format!("edge {name}"));
            let regions = stage.regions.iter().map(|name| format!("region {name}"));
            edges.chain(regions).collect::<Vec<_>>().join(", ")
        }
        None => "all edges".to_owned(),
    };
    let words = [Some(whom), Some(rollout.state.clone()), rollout.note.clone(), rollout.reason.clone()];
    format!("[{bar}] {told}/{all} {}", words.into_iter().flatten().collect::<Vec<_>>().join(" · "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stages_are_written_briefly() {
        assert_eq!(stage("edge=fra-1,hold=60"), Ok(json!({"edges": ["fra-1"], "regions": [], "hold_s": 60})));
        assert_eq!(stage("region=eu,region=us"), Ok(json!({"edges": [], "regions": ["eu", "us"]})));
        for bad in ["", "edge=", "fra-1", "edge=a,hold=soon"] {
            assert!(stage(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_bar_says_how_far_it_is() {
        let stages = vec![
            Stage { edges: vec!["e1".to_owned()], regions: Vec::new() },
            Stage { edges: Vec::new(), regions: vec!["eu".to_owned()] },
        ];
        let mut rollout =
            Rollout { id: "i".to_owned(), reason: None, stages, state: "running".to_owned(), stage: 0, note: None };
        assert_eq!(text(&rollout), format!("[{}{}] 1/3 edge e1 · running", "█".repeat(10), "░".repeat(20)));
        rollout.state = "done".to_owned();
        assert_eq!(text(&rollout), format!("[{}] 3/3 all edges · done", "█".repeat(30)));
    }
}
