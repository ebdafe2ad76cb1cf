//! All that is compared, started once.

use super::scenario::{Ask, Kind, Scenario, SubjectName};
use super::subjects::{Door, Edge, NGINX_KEY, Subject, haproxy, nginx, pingora};
use crate::deployment::free_port;
use crate::program::Cost;
use anyhow::{Context as _, ensure};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use tempfile::TempDir;
use turnpike_parts::process::find_program;

/// Engines behind each subject.
const ENGINES: usize = 8;
/// Most of a file with bodies.
const BODIES_BYTES: usize = 256 << 20;
/// Bodies for each second: so many that one seldom comes twice within the moment that its answer is kept.
const BODIES_PER_SECOND: f64 = 80_000.0;
/// Until the edge answers.
const PATIENCE: Duration = Duration::from_secs(60);

pub(super) struct Stage {
    subjects: BTreeMap<SubjectName, Subject>,
    missing: Vec<String>,
    edge: Edge,
    directory: TempDir,
}

impl Stage {
    pub(super) async fn set(turnpike: PathBuf) -> anyhow::Result<Self> {
        let directory = tempfile::tempdir()?;
        let engines = (0..ENGINES).map(|_| free_port()).collect::<Result<Vec<_>, _>>()?;
        let edge = Edge::start(turnpike, engines.clone()).await?;
        let (mut subjects, mut missing) = (BTreeMap::new(), Vec::new());
        subjects.insert(SubjectName::Pingora, pingora(&engines, directory.path()).await?);
        match find_program(&["nginx"]).or_else(|| find_in_sbin("nginx")) {
            Some(program) => {
                subjects.insert(SubjectName::Nginx, nginx(program, &engines, directory.path()).await?);
            }
            None => missing.push("nginx is not installed (apt-get install nginx)".to_owned()),
        }
        match find_program(&["haproxy"]).or_else(|| find_in_sbin("haproxy")) {
            Some(program) => {
                subjects.insert(SubjectName::Haproxy, haproxy(program, &engines, directory.path()).await?);
            }
            None => missing.push("HAProxy is not installed (apt-get install haproxy)".to_owned()),
        }
        let stage = Self { subjects, missing, edge, directory };
        stage.until_the_edge_answers().await?;
        Ok(stage)
    }

    async fn until_the_edge_answers(&self) -> anyhow::Result<()> {
        let ask = Ask::of_instant(1024);
        let deadline = Instant::now() + PATIENCE;
        let client = reqwest::Client::builder().no_proxy().build()?;
        loop {
            let url = format!("http://{}/v1/chat/completions", self.edge.address());
            let request = client.post(url).bearer_auth(self.edge.key(Kind::Chat)).body(ask.body(0));
            let reply = request.send().await?;
            let (status, text) = (reply.status(), reply.text().await?);
            if status.is_success() {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "the edge does not answer: {status} {text}\n{}", self.logs());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Why some are not compared.
    pub(super) fn missing(&self) -> &[String] {
        &self.missing
    }

    pub(super) fn has(&self, subject: SubjectName) -> bool {
        matches!(subject, SubjectName::Direct | SubjectName::Edge) || self.subjects.contains_key(&program_of(subject))
    }

    /// Where a scenario asks a subject, and with which key.
    pub(super) fn way(&self, subject: SubjectName, scenario: &Scenario) -> (SocketAddr, String) {
        let key = self.edge.key(scenario.request.kind);
        let door = match subject {
            SubjectName::Direct => return (self.edge.engines[0], key.to_owned()),
            SubjectName::Edge => return (self.edge.address(), key.to_owned()),
            SubjectName::NginxKeyed => Door::Keyed,
            SubjectName::NginxCache => Door::Cache,
            _ if scenario.load.http2 => Door::Http2,
            _ if scenario.request.stream => Door::Stream,
            _ => Door::Plain,
        };
        let known = subject == SubjectName::NginxKeyed && scenario.request.kind != Kind::UnknownKey;
        let key = if known { NGINX_KEY } else { key };
        (self.subjects[&program_of(subject)].doors[&door], key.to_owned())
    }

    /// What a subject's programs have taken so far; nothing is between if it is asked directly.
    pub(super) fn cost(&self, subject: SubjectName) -> anyhow::Result<Option<Cost>> {
        match subject {
            SubjectName::Direct => Ok(None),
            SubjectName::Edge => self.edge.cost().map(Some),
            other => self.subjects[&program_of(other)].cost().map(Some),
        }
    }

    /// A file with a body in each line, for so many seconds.
    pub(super) fn bodies(&self, ask: &Ask, seconds: f64) -> anyhow::Result<PathBuf> {
        let file = self.directory.path().join("bodies");
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "saturates")]
        let wanted = if ask.kind == Kind::Chat { (BODIES_PER_SECOND * seconds) as u32 } else { 1 };
        let most = u32::try_from((BODIES_BYTES / ask.body_bytes).max(8)).unwrap_or(u32::MAX);
        let lines = wanted.clamp(1, most);
        let mut text = String::new();
        for number in 0..lines {
            writeln!(text, "{}", ask.body(number))?;
        }
        std::fs::write(&file, text).with_context(|| format!("writing {}", file.display()))?;
        Ok(file)
    }

    pub(super) fn logs(&self) -> String {
        self.edge.logs()
    }
}

/// Which program has a subject's doors.
const fn program_of(subject: SubjectName) -> SubjectName {
    match subject {
        SubjectName::NginxKeyed | SubjectName::NginxCache => SubjectName::Nginx,
        other => other,
    }
}

/// Debian puts servers where users do not look.
fn find_in_sbin(name: &str) -> Option<PathBuf> {
    Some(PathBuf::from("/usr/sbin").join(name)).filter(|path| path.is_file())
}
