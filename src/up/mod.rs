//! `turnpike up`: everything on one machine, as separate processes that are linked exactly as in production.

mod bootstrap;
mod child;
mod database;
mod engine;
mod layout;
mod log_file;
mod ports;
mod report;
mod served;
mod settings;
mod stack;

pub(crate) use layout::Running;

use crate::pki::SigningFiles;
use crate::shutdown;
use anyhow::Context as _;
use engine::Choice;
use layout::DataDir;
use ports::Ports;
use stack::Stack;
use std::path::PathBuf;
use std::time::Duration;
use tokio::runtime::Runtime;

/// How long work that cannot be cancelled, such as a download, may hold up the end.
const END_PATIENCE: Duration = Duration::from_millis(200);

const EXAMPLES: &str = "\
Examples:
  turnpike up                                  everything on the usual ports, data in ./.turnpike
  turnpike up --port 9000 --data-dir /srv/tp   another edge port, another place for the data
  turnpike up --auto-ports --json              any free ports; one line of JSON once all is ready
  turnpike up --engine echo                    no language model: answers repeat the question

The first start makes certificates, a database, an organization with an owner and an API key, and downloads the
built-in engine's model (175 MB, kept in ~/.cache/turnpike). Later starts keep all of it.

Ctrl-C or SIGTERM drains and stops everything in order; a second one stops at once. The data directory holds:
  secrets/api_key, secrets/admin_token   the credentials        logs/*.log   each plane's log
  certs/                                 the authority          *.toml       each plane's settings, for reading

PostgreSQL comes from this machine (PATH, /usr/lib/postgresql) or is downloaded. It refuses to run as root; started by
root, it runs as user postgres or nobody.";

/// Start everything on this machine.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// Where all data are kept.
    #[arg(long, default_value = "./.turnpike", value_name = "DIR")]
    data_dir: PathBuf,
    /// What answers: the language model built in, or an echo.
    #[arg(long, value_enum, default_value = "auto")]
    engine: Choice,
    /// Region of the edge and the node, as metered.
    #[arg(long, default_value = "local", value_parser = region)]
    region: String,
    /// Redis for what edges share, as redis://[user:password@]host:port or rediss:// for TLS. Without it the edge keeps
    /// limits and cached answers itself. A password given here shows in the list of processes; in the environment, as
    /// TURNPIKE_REDIS_URL, it does not.
    #[arg(long, value_name = "URL")]
    redis_url: Option<String>,
    /// ClickHouse for usage events, as http(s)://[user:password@]host:port. Without it they are kept in PostgreSQL. Also
    /// TURNPIKE_CLICKHOUSE_URL, for the same reason.
    #[arg(long, value_name = "URL")]
    clickhouse_url: Option<String>,
    /// Print exactly one line on standard output once all is ready: a JSON object with `base_url`, `api_key`,
    /// `admin_url`, `admin_token`, `console_url` and `model`.
    #[arg(long)]
    json: bool,
    /// Also drain and stop when standard input ends, that is, when the process that holds its other end dies.
    #[arg(long)]
    exit_with_parent: bool,
    #[command(flatten)]
    ports: ports::Options,
}

fn region(text: &str) -> Result<String, String> {
    let clean = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if (1..=50).contains(&text.len()) && text.chars().all(clean) {
        Ok(text.to_owned())
    } else {
        Err("expected 1 to 50 of a-z, 0-9 and -, such as eu-west-1".to_owned())
    }
}

/// Runs until told to stop.
pub(crate) fn run(args: Args) -> anyhow::Result<()> {
    let runtime = Runtime::new().context("starting the async runtime")?;
    let outcome = runtime.block_on(Box::pin(serve(args)));
    runtime.shutdown_timeout(END_PATIENCE);
    outcome
}

async fn serve(args: Args) -> anyhow::Result<()> {
    let stop = shutdown::on_signals().context("listening for signals")?;
    if args.exit_with_parent {
        shutdown::with_parent(stop.clone());
    }
    let dir = DataDir::open(&args.data_dir)?;
    Running::outlast(&dir)?;
    let ports = Ports::choose(&args.ports)?;
    let program = std::env::current_exe().context("finding this program's file")?;
    let redis_url = args.redis_url.or_else(|| std::env::var("TURNPIKE_REDIS_URL").ok());
    let clickhouse_url = args.clickhouse_url.or_else(|| std::env::var("TURNPIKE_CLICKHOUSE_URL").ok());
    let signing = SigningFiles::open_or_create(&dir.certificates()).context("the signing key")?;
    let plan = settings::Plan { program, dir: &dir, signing, ports, region: &args.region, redis_url, clickhouse_url };
    let mut stack = Stack::default();
    let started = tokio::select! {
        started = Box::pin(stack.start(&plan, args.engine)) => Some(started),
        () = stop.cancelled() => None,
    };
    let outcome = match started {
        Some(Ok(ready)) => {
            let printed = report::print(&ready, args.json);
            if printed.is_ok() {
                stop.cancelled().await;
            }
            printed
        }
        Some(Err(e)) => Err(e),
        // Told to stop before all was there.
        None => Ok(()),
    };
    stack.stop().await;
    Running::remove(&dir);
    outcome
}
