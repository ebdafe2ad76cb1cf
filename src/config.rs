//! `turnpike config`: what there is to be, in files, and the log of what changed.

use crate::admin::Client;
use crate::operator::{Operator, block_on, columns};
use crate::private;
use anyhow::{Context as _, bail};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use toml::Table;

/// Declare configuration in files, and see what changed.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "\
Files are TOML, all *.toml of a directory together:
  [[organization]]                  [[route]]
  slug = \"acme\"                     name = \"chat\"
  name = \"Acme\"                     policy = { targets = [{ model = \"large\", weight = 1 }] }
and so user, model, version, key (by digest), node. What is not named stays as it is.

Examples:
  turnpike config export -f deploy/
  turnpike config diff -f deploy/
  turnpike config apply -f deploy/ --reason 'ticket 4711'
  turnpike config log")]
pub(crate) struct Args {
    #[command(flatten)]
    operator: Operator,
    #[command(subcommand)]
    command: Command,
}

#[derive(Clone, Debug, clap::Subcommand)]
enum Command {
    /// Bring about what files declare: all of it, or nothing.
    Apply {
        #[command(flatten)]
        source: Source,
        /// Only say what would be done.
        #[arg(long)]
        dry_run: bool,
        /// Why, for whoever reads the log.
        #[arg(long)]
        reason: Option<String>,
    },
    /// Say what applying files would change. Exit status 1 if anything would, or if that cannot be said.
    Diff {
        #[command(flatten)]
        source: Source,
    },
    /// Write down what there is, in files that can be applied. Keys are there by digest alone.
    Export {
        /// A directory, one file for each kind; otherwise everything on standard output.
        #[arg(short = 'f', long = "files", value_name = "DIR")]
        files: Option<PathBuf>,
    },
    /// Show what changed, the newest first.
    Log {
        /// How many versions.
        #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u16).range(1..=500))]
        limit: u16,
        /// Print a JSON array instead of text.
        #[arg(long)]
        json: bool,
    },
    /// After the database was restored: let edges go back from a version that is no more.
    Rewind {
        /// The highest version that an edge holds; see `last_nack` and `holds` of its edges.
        #[arg(long, value_name = "VERSION")]
        from: u64,
        /// Why, for whoever reads the audit log.
        #[arg(long)]
        reason: String,
    },
}

/// Files that declare something.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Source {
    /// A TOML file, or a directory of them.
    #[arg(short = 'f', long = "files", value_name = "PATH")]
    files: PathBuf,
    /// Also take away what is not declared: routes are removed, keys revoked for good, models switched off.
    #[arg(long)]
    prune: bool,
}

impl Source {
    /// The documents in them.
    pub(crate) fn read(&self) -> anyhow::Result<Map<String, Value>> {
        read(&self.files)
    }

    /// Whether what they do not name is taken away.
    pub(crate) const fn prune(&self) -> bool {
        self.prune
    }
}

/// What was done, or would be.
#[derive(Debug, Deserialize)]
struct Outcome {
    version: u64,
    steps: Vec<Step>,
    unchanged: usize,
}

/// One record that differs.
#[derive(Debug, Deserialize)]
pub(crate) struct Step {
    kind: String,
    name: String,
    action: String,
    diff: Vec<FieldDiff>,
}

#[derive(Debug, Deserialize)]
struct FieldDiff {
    path: String,
    before: Option<Value>,
    after: Option<Value>,
}

#[derive(Debug, Deserialize)]
struct Page {
    data: Vec<Value>,
}

/// `turnpike config`
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let client = args.operator.client()?;
    let mut out = std::io::stdout();
    match &args.command {
        Command::Apply { source, dry_run, reason } => {
            let outcome = block_on(send(&client, source, *dry_run, reason.as_deref()))?;
            out.write_all(text(&outcome, *dry_run).as_bytes())?;
        }
        Command::Diff { source } => {
            let outcome = block_on(send(&client, source, true, None))?;
            out.write_all(text(&outcome, true).as_bytes())?;
            if !outcome.steps.is_empty() {
                bail!("what is declared differs in {} of its records", outcome.steps.len());
            }
        }
        Command::Export { files } => {
            let documents: Table = block_on(async { Ok(client.get("/config/documents").await?) })?;
            match files {
                Some(directory) => export(&documents, directory, &mut out)?,
                None => out.write_all(documents.to_string().as_bytes())?,
            }
        }
        Command::Log { limit, json } => {
            let page: Page = block_on(async { Ok(client.get(&format!("/config/log?limit={limit}")).await?) })?;
            let text = if *json { format!("{}\n", Value::Array(page.data)) } else { log_text(&page.data) };
            out.write_all(text.as_bytes())?;
        }
        Command::Rewind { from, reason } => {
            let body = json!({"from_version": from, "reason": reason});
            let head: Value = block_on(async { Ok(client.post("/config/rewind", &body).await?) })?;
            writeln!(out, "edges up to version {from} may go back to version {}", head["version"])?;
        }
    }
    Ok(())
}

async fn send(client: &Client, source: &Source, dry_run: bool, reason: Option<&str>) -> anyhow::Result<Outcome> {
    let documents = source.read()?;
    let body = json!({"documents": documents, "prune": source.prune, "dry_run": dry_run, "reason": reason});
    Ok(client.post("/config/documents", &body).await?)
}

/// The documents of a file, or of all files of a directory in the order of their names.
fn read(path: &Path) -> anyhow::Result<Map<String, Value>> {
    let mut files = vec![path.to_owned()];
    if path.is_dir() {
        let entries = std::fs::read_dir(path).with_context(|| path.display().to_string())?;
        let entries = entries.collect::<Result<Vec<_>, _>>().with_context(|| path.display().to_string())?;
        files = entries.into_iter().map(|entry| entry.path()).collect();
        files.retain(|file| file.extension().is_some_and(|extension| extension == "toml"));
        files.sort();
        if files.is_empty() {
            bail!("{} holds no *.toml", path.display());
        }
    }
    let mut all = Map::new();
    for file in files {
        let text = std::fs::read_to_string(&file).with_context(|| file.display().to_string())?;
        let table: Table = toml::from_str(&text).with_context(|| file.display().to_string())?;
        for (kind, documents) in table {
            let toml::Value::Array(documents) = documents else {
                bail!("{}: {kind}: expected a list: [[{kind}]]", file.display());
            };
            let list = all.entry(kind).or_insert_with(|| json!([]));
            if let Value::Array(list) = list {
                list.extend(documents.into_iter().map(plain));
            }
        }
    }
    Ok(all)
}

/// TOML as JSON; a date is a text there.
fn plain(value: toml::Value) -> Value {
    match value {
        toml::Value::Datetime(at) => Value::String(at.to_string()),
        toml::Value::Array(list) => list.into_iter().map(plain).collect(),
        toml::Value::Table(table) => Value::Object(table.into_iter().map(|(name, v)| (name, plain(v))).collect()),
        toml::Value::String(text) => Value::String(text),
        toml::Value::Integer(number) => json!(number),
        toml::Value::Float(number) => json!(number),
        toml::Value::Boolean(truth) => json!(truth),
    }
}

fn export(documents: &Table, directory: &Path, out: &mut impl std::io::Write) -> anyhow::Result<()> {
    std::fs::create_dir_all(directory).with_context(|| directory.display().to_string())?;
    for (kind, list) in documents {
        let file = directory.join(format!("{kind}.toml"));
        let table = Table::from_iter([(kind.clone(), list.clone())]);
        // Whole or not at all: a declaration that is cut off would say that the rest is to go.
        private::write(&file, table.to_string())?;
        writeln!(out, "{}", file.display())?;
    }
    Ok(())
}

fn text(outcome: &Outcome, dry_run: bool) -> String {
    let mut text = steps_text(&outcome.steps);
    let (changed, unchanged) = (outcome.steps.len(), outcome.unchanged);
    text.push_str(&match (changed, dry_run) {
        (0, _) => format!("nothing to change, {unchanged} as declared\n"),
        (_, true) => format!("{changed} to change, {unchanged} as declared; nothing was done\n"),
        (_, false) => format!("{changed} changed, {unchanged} as declared; version {}\n", outcome.version),
    });
    text
}

/// Records that differ, each with its fields.
pub(crate) fn steps_text(steps: &[Step]) -> String {
    let text = |step: &Step| format!("{} {} {}\n{}", step.action, step.kind, step.name, diff_text(&step.diff));
    steps.iter().map(text).collect()
}

fn diff_text(diff: &[FieldDiff]) -> String {
    let shown = |value: &Option<Value>| value.as_ref().map_or_else(|| "-".to_owned(), Value::to_string);
    let rows: Vec<_> = diff
        .iter()
        .map(|field| [format!("  {}", field.path), shown(&field.before), "→".to_owned(), shown(&field.after)])
        .collect();
    columns(&rows, usize::MAX).lines().map(|line| format!("{}\n", line.trim_end())).collect()
}

fn log_text(versions: &[Value]) -> String {
    let mut text = String::new();
    for version in versions {
        let word = |name: &str| version[name].as_str().unwrap_or_default().to_owned();
        let kind = version["change"].as_object().and_then(|change| change.keys().next()).cloned().unwrap_or_default();
        let reason = version["reason"].as_str().map(|reason| format!(": {reason}")).unwrap_or_default();
        text.push_str(&format!(
            "{} {} {} {}{reason}\n",
            version["version"],
            word("at"),
            word("author"),
            kind.replace('_', " ")
        ));
        let diff = serde_json::from_value::<Vec<FieldDiff>>(version["diff"].clone()).unwrap_or_default();
        text.push_str(&diff_text(&diff));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_a_directory_add_up() {
        let directory = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(directory.path().join(name), text).unwrap();
        write("b.toml", "[[model]]\nid = \"m\"\n[[key]]\nexpires_at = 2026-01-01T00:00:00Z\n");
        write("a.toml", "[[model]]\nid = \"l\"\n");
        write("notes.txt", "no TOML");
        let documents = read(directory.path()).unwrap();
        assert_eq!(documents["model"], json!([{"id": "l"}, {"id": "m"}]));
        assert_eq!(documents["key"][0]["expires_at"], "2026-01-01T00:00:00Z");
        write("c.toml", "model = 1\n");
        let error = format!("{:#}", read(directory.path()).unwrap_err());
        assert!(error.contains("c.toml") && error.contains("[[model]]"), "{error}");
    }
}
