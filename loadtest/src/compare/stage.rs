//! All that is compared, started once.

use super::scenario::{Ask, Kind, Scenario, SubjectName};
use super::subjects::{
    Door, Edge, NGINX_KEY, Subject, Way, haproxy, litellm, nginx, pingora, portkey, sglang_router, vllm_router,
};
use crate::compare::threads;
use crate::deployment::free_port;
use crate::program::Cost;
use anyhow::{Context as _, ensure};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tempfile::TempDir;
use turnpike_parts::process::find_program;

/// Engines behind each subject.
const ENGINES: usize = 8;
/// Most of a file with bodies.
const BODIES_BYTES: usize = 1 << 30;
/// Bodies for each second and thread: so many that one seldom comes twice within the second that its answer is kept.
const BODIES_PER_SECOND: f64 = 150_000.0;
/// Until the edge answers.
const PATIENCE: Duration = Duration::from_secs(60);

pub(super) struct Stage {
    subjects: BTreeMap<SubjectName, Subject>,
    missing: Vec<String>,
    edge: Edge,
    directory: TempDir,
}

impl Stage {
    /// Starts engines, the edge, and those that are wanted beside it.
    pub(super) async fn set(turnpike: PathBuf, wanted: &BTreeSet<SubjectName>) -> anyhow::Result<Self> {
        let directory = tempfile::tempdir()?;
        let engines = (0..ENGINES).map(|_| free_port()).collect::<Result<Vec<_>, _>>()?;
        let edge = Edge::start(turnpike, engines.clone()).await?;
        let (mut subjects, mut missing) = (BTreeMap::new(), Vec::new());
        for name in wanted.iter().copied().map(program_of).collect::<BTreeSet<_>>() {
            match start(name, &engines, directory.path()).await {
                Some(Ok(subject)) => drop(subjects.insert(name, subject)),
                Some(Err(error)) => missing.push(format!("{} does not start: {error:#}", name.name())),
                None => {
                    missing.extend(source(name).map(|(_, how)| format!("{} is not installed ({how})", name.name())))
                }
            }
        }
        let mut stage = Self { subjects, missing, edge, directory };
        stage.until_it_answers(SubjectName::Edge).await.with_context(|| stage.logs())?;
        for name in wanted.iter().copied().filter(|name| stage.has(*name)).collect::<Vec<_>>() {
            if let Err(error) = stage.until_it_answers(name).await {
                stage.subjects.remove(&program_of(name));
                stage.missing.push(format!("{error:#}"));
            }
        }
        Ok(stage)
    }

    /// Waits until requests come through, also by those that look for engines after they listen.
    async fn until_it_answers(&self, name: SubjectName) -> anyhow::Result<()> {
        let ask = Ask::of_instant(1024);
        let Way { address, headers } = self.way(name, &Scenario::of_trace("", 1.0));
        let deadline = Instant::now() + PATIENCE;
        let client = reqwest::Client::builder().no_proxy().build()?;
        loop {
            let request = client.post(format!("http://{address}/v1/chat/completions")).body(ask.body(0));
            let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, value));
            let reply = request.header("content-type", "application/json").send().await;
            let said = match reply {
                Ok(reply) if reply.status().is_success() => return Ok(()),
                Ok(reply) => format!("{} {}", reply.status(), reply.text().await?),
                Err(error) => error.to_string(),
            };
            ensure!(Instant::now() < deadline, "{} does not answer: {said}", name.name());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Why some are not compared.
    pub(super) fn missing(&self) -> &[String] {
        &self.missing
    }

    /// Those of a scenario that are there.
    pub(super) fn subjects_of(&self, scenario: &Scenario) -> Vec<SubjectName> {
        scenario.subjects.iter().copied().filter(|subject| self.has(*subject)).collect()
    }

    fn has(&self, subject: SubjectName) -> bool {
        matches!(subject, SubjectName::Direct | SubjectName::Edge) || self.subjects.contains_key(&program_of(subject))
    }

    /// Where a scenario asks a subject, and with which key.
    pub(super) fn way(&self, subject: SubjectName, scenario: &Scenario) -> Way {
        let key = self.edge.key(scenario.request.kind);
        let door = match subject {
            SubjectName::Direct => return Way::new(self.edge.engines[0], key),
            SubjectName::Edge => return Way::new(self.edge.address(), key),
            SubjectName::NginxKeyed => Door::Keyed,
            SubjectName::NginxCache => Door::Cache,
            _ if scenario.load.http2 => Door::Http2,
            _ if scenario.request.stream => Door::Stream,
            _ => Door::Plain,
        };
        let known = subject == SubjectName::NginxKeyed && scenario.request.kind != Kind::UnknownKey;
        let asked = &self.subjects[&program_of(subject)];
        let way = Way::new(asked.doors[&door], if known { NGINX_KEY } else { key });
        if asked.headers.is_empty() { way } else { Way { headers: asked.headers.clone(), ..way } }
    }

    /// What a subject's programs have taken so far; nothing is between if it is asked directly.
    pub(super) fn cost(&self, subject: SubjectName) -> anyhow::Result<Option<Cost>> {
        match subject {
            SubjectName::Direct => Ok(None),
            SubjectName::Edge => self.edge.cost().map(Some),
            other => self.subjects[&program_of(other)].cost().map(Some),
        }
    }

    /// Requests so far that a subject answered from a cache of answers, where it has one.
    pub(super) async fn reused(&self, subject: SubjectName) -> anyhow::Result<Option<u64>> {
        if subject == SubjectName::Edge { self.edge.reused().await.map(Some) } else { Ok(None) }
    }

    /// A file with a body in each line, for so many seconds.
    pub(super) fn bodies(&self, ask: &Ask, seconds: f64) -> anyhow::Result<PathBuf> {
        let file = self.directory.path().join("bodies");
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "saturates")]
        let wanted = if ask.kind == Kind::Chat { (BODIES_PER_SECOND * threads() as f64 * seconds) as u32 } else { 1 };
        let most = u32::try_from((BODIES_BYTES / ask.body_bytes).max(8)).unwrap_or(u32::MAX);
        let lines = wanted.clamp(1, most);
        let write = || {
            let mut to = BufWriter::new(File::create(&file)?);
            (0..lines).try_for_each(|number| writeln!(to, "{}", ask.body(number)))?;
            to.flush()
        };
        write().with_context(|| format!("writing {}", file.display()))?;
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

/// Starts what is measured; `None` if it is not installed.
async fn start(name: SubjectName, engines: &[SocketAddr], directory: &Path) -> Option<anyhow::Result<Subject>> {
    if name == SubjectName::Pingora {
        return Some(pingora(engines, directory).await);
    }
    let (program, _) = source(name)?;
    let program = find_program(&[program]).or_else(|| find_in_sbin(program))?;
    Some(match name {
        SubjectName::Nginx => nginx(program, engines, directory).await,
        SubjectName::Haproxy => haproxy(program, engines, directory).await,
        SubjectName::Litellm => litellm(program, engines, directory).await,
        SubjectName::Portkey => portkey(program, engines, directory).await,
        SubjectName::SglangRouter => sglang_router(program, engines, directory).await,
        SubjectName::VllmRouter => vllm_router(program, engines, directory).await,
        _ => return None,
    })
}

/// What a program is called that does not come with this one, and how it is had.
const fn source(name: SubjectName) -> Option<(&'static str, &'static str)> {
    Some(match name {
        SubjectName::Nginx => ("nginx", "apt-get install nginx"),
        SubjectName::Haproxy => ("haproxy", "apt-get install haproxy"),
        SubjectName::Litellm => ("litellm", "pip install 'litellm[proxy]'"),
        // Its name in npm's directories for programs.
        SubjectName::Portkey => ("gateway", "npm install @portkey-ai/gateway, and node_modules/.bin on the PATH"),
        SubjectName::SglangRouter => ("sglang-router", "pip install sglang-router"),
        SubjectName::VllmRouter => ("vllm-router", "pip install vllm-router"),
        _ => return None,
    })
}

/// Debian puts servers where users do not look.
fn find_in_sbin(name: &str) -> Option<PathBuf> {
    Some(PathBuf::from("/usr/sbin").join(name)).filter(|path| path.is_file())
}
