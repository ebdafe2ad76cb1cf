//! A plane as a child process: watched, restarted when it dies, drained when we stop, gone when we die.

use super::log_file::LogFile;
use anyhow::{Context as _, bail};
use std::collections::VecDeque;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, ChildStderr, ChildStdin, Command};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

/// Lines kept for the message when it does not start.
const TAIL_LINES: usize = 20;
/// Pauses before a restart: doubled each time, and back to the first once it lived for a while.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
const LIVED: Duration = Duration::from_secs(30);
/// Between two looks at `/readyz` while starting.
const READY_POLL: Duration = Duration::from_millis(50);

/// What to run.
#[derive(Clone, Debug)]
pub(super) struct Spec {
    /// This binary's file. Found at the start: should it be replaced later, the system would name it otherwise.
    pub(super) program: PathBuf,
    /// Subcommand of this binary, and the name in logs.
    pub(super) plane: &'static str,
    /// Its settings file.
    pub(super) settings: PathBuf,
    /// Where its log goes.
    pub(super) log: PathBuf,
    /// Where it tells whether it is ready.
    pub(super) ready_url: String,
    /// How long it may drain before it is killed.
    pub(super) patience: Duration,
    /// Added to our own environment.
    pub(super) environment: &'static [(&'static str, &'static str)],
}

/// A plane under watch.
pub(super) struct Plane {
    spec: Spec,
    shared: Arc<Shared>,
    /// Why it ended before it was ever ready.
    failed: watch::Receiver<Option<String>>,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

#[derive(Default)]
struct Shared {
    /// Set once it was ready: from then on its death is an incident to recover from, not a failure to start.
    established: AtomicBool,
    tail: Mutex<VecDeque<String>>,
}

impl Plane {
    /// Starts it and watches it from now on.
    pub(super) fn start(spec: Spec) -> Self {
        let (fail, failed) = watch::channel(None);
        let (shared, stop) = (Arc::new(Shared::default()), CancellationToken::new());
        let task = tokio::spawn(watch_over(spec.clone(), Arc::clone(&shared), stop.clone(), fail));
        Self { spec, shared, failed, stop, task }
    }

    /// Waits until it says that it is ready; fails with its last words when it ends instead, or after `patience`.
    pub(super) async fn ready(&self, http: &reqwest::Client, patience: Duration) -> anyhow::Result<()> {
        let deadline = Instant::now() + patience;
        let mut last = "no answer yet".to_owned();
        loop {
            if let Some(reason) = self.failed.borrow().clone() {
                bail!("{} did not start: {reason}", self.spec.plane);
            }
            match http.get(&self.spec.ready_url).send().await {
                Ok(answer) if answer.status().is_success() => {
                    self.shared.established.store(true, Ordering::Release);
                    return Ok(());
                }
                Ok(answer) => last = format!("{} {}", answer.status(), answer.text().await.unwrap_or_default()),
                Err(_) if Instant::now() < deadline => {}
                Err(e) => last = e.to_string(),
            }
            if Instant::now() >= deadline {
                let tail = self.shared.last_words();
                let (plane, url) = (self.spec.plane, &self.spec.ready_url);
                bail!("{plane} is not ready after {} s ({url}: {})\n{tail}", patience.as_secs(), last.trim());
            }
            tokio::time::sleep(READY_POLL).await;
        }
    }

    /// Lets it drain, and kills it if that takes too long.
    pub(super) async fn stop(self) {
        self.stop.cancel();
        if self.task.await.is_err() {
            error!(plane = self.spec.plane, "its watcher crashed");
        }
    }
}

impl Shared {
    fn last_words(&self) -> String {
        let tail = self.tail.lock().unwrap_or_else(PoisonError::into_inner);
        tail.iter().map(|line| format!("  | {line}\n")).collect()
    }

    fn note(&self, line: String) {
        let mut tail = self.tail.lock().unwrap_or_else(PoisonError::into_inner);
        if tail.len() == TAIL_LINES {
            tail.pop_front();
        }
        tail.push_back(line);
    }
}

async fn watch_over(spec: Spec, shared: Arc<Shared>, stop: CancellationToken, fail: watch::Sender<Option<String>>) {
    let mut pause = FIRST_PAUSE;
    loop {
        let started = Instant::now();
        let ended = match launch(&spec, &shared).await {
            Ok(Launched { mut child, stdin, logs }) => {
                let status = tokio::select! {
                    status = child.wait() => Some(status),
                    () = stop.cancelled() => None,
                };
                match status {
                    Some(status) => {
                        // Its last lines are on their way through the pipe.
                        let _ = tokio::time::timeout(Duration::from_secs(1), logs).await;
                        status.map_or_else(|e| e.to_string(), describe)
                    }
                    None => return drain(&spec, child, stdin).await,
                }
            }
            Err(e) => format!("{e:#}"),
        };
        if !shared.established.load(Ordering::Acquire) {
            let words = shared.last_words();
            fail.send_replace(Some(format!("{ended}; its last lines:\n{words}")));
            return;
        }
        if started.elapsed() >= LIVED {
            pause = FIRST_PAUSE;
        }
        warn!(plane = spec.plane, restart_in_ms = pause.as_millis(), "died ({ended}); restarting");
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = stop.cancelled() => return,
        }
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// A running child.
struct Launched {
    child: Child,
    /// Its standard input; as long as it is open, the child runs.
    stdin: Option<ChildStdin>,
    /// Takes its log until it ends.
    logs: JoinHandle<()>,
}

/// Starts the child, with a task that takes its log.
async fn launch(spec: &Spec, shared: &Arc<Shared>) -> anyhow::Result<Launched> {
    let mut command = Command::new(&spec.program);
    command.arg(spec.plane).arg("--config").arg(&spec.settings).arg("--exit-with-parent");
    command.args(["--log-format", "text"]);
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("TURNPIKE_")) {
        // Overrides of settings are meant for one plane, and here are three.
        command.env_remove(name);
    }
    command.envs(spec.environment.iter().copied());
    // Its own process group: a Ctrl-C at the terminal is for us, and we stop the planes in the right order.
    command.process_group(0).kill_on_drop(true);
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let log = LogFile::open(&spec.log).await.with_context(|| format!("opening {}", spec.log.display()))?;
    let mut child = command.spawn().with_context(|| format!("starting turnpike {}", spec.plane))?;
    info!(plane = spec.plane, pid = child.id(), log = %spec.log.display(), "started");
    let logs = match child.stderr.take() {
        Some(stderr) => tokio::spawn(take_logs(spec.plane, stderr, log, Arc::clone(shared))),
        None => bail!("{}: no pipe to its standard error", spec.plane),
    };
    // Held apart, because waiting for a child would close it.
    let stdin = child.stdin.take();
    Ok(Launched { child, stdin, logs })
}

/// Everything goes to the file; warnings, errors and what is no log line (a panic) also to our standard error.
async fn take_logs(plane: &'static str, stderr: ChildStderr, mut log: LogFile, shared: Arc<Shared>) {
    let mut lines = BufReader::new(stderr).split(b'\n');
    while let Ok(Some(line)) = lines.next_segment().await {
        let line = String::from_utf8_lossy(&line).into_owned();
        log.write(&line).await;
        if is_notable(&line) {
            let mut out = std::io::stderr().lock();
            let _ = std::io::Write::write_fmt(&mut out, format_args!("[{plane}] {line}\n"));
        }
        shared.note(line);
    }
}

/// `2026-01-01T00:00:00Z  INFO …`: the level is the second word.
fn is_notable(line: &str) -> bool {
    !matches!(line.split_whitespace().nth(1), Some("INFO" | "DEBUG" | "TRACE"))
}

async fn drain(spec: &Spec, mut child: Child, stdin: Option<ChildStdin>) {
    // The end of its standard input tells it to drain.
    drop(stdin);
    match tokio::time::timeout(spec.patience, child.wait()).await {
        Ok(Ok(status)) if status.success() => info!(plane = spec.plane, "stopped"),
        Ok(Ok(status)) => warn!(plane = spec.plane, "stopped badly ({})", describe(status)),
        Ok(Err(e)) => warn!(plane = spec.plane, error = %e, "cannot be waited for"),
        Err(_) => {
            warn!(plane = spec.plane, "did not drain within {} s; killing it", spec.patience.as_secs());
            let _ = child.kill().await;
        }
    }
}

fn describe(status: ExitStatus) -> String {
    status.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_matters_is_repeated() {
        assert!(!is_notable("2026-01-01T00:00:00.000Z  INFO turnpike: started"));
        assert!(is_notable("2026-01-01T00:00:00.000Z  WARN turnpike: hm"));
        assert!(is_notable("thread 'main' panicked at src/main.rs"));
        assert!(is_notable("turnpike: no such file"));
    }
}
