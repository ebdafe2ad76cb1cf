//! Runs the engine's own process: starts it, starts it again when it ends, and stops it with all its children.

use crate::metrics::Metrics;
use rustix::process::{Pid, Signal, kill_process_group};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncBufRead, AsyncBufReadExt as _, AsyncRead, BufReader};
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

/// Before a process is started again: at first and at most. One that ran for longer than the latter begins anew.
const BACKOFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
/// Between asking a process to end and killing it.
const STOP_GRACE: Duration = Duration::from_secs(10);
/// More of a line than this is not logged, bytes.
const MAX_LINE: usize = 2048;

/// Keeps `command` (program and arguments) running until `stop`; returns when it has ended, or at once if it is empty.
/// `data_dir` holds a note of what runs, so that an agent that was killed leaves no engine behind for the next one.
pub(crate) async fn run(command: Vec<String>, data_dir: PathBuf, metrics: Arc<Metrics>, stop: CancellationToken) {
    let Some((program, arguments)) = command.split_first() else { return };
    let note = data_dir.join("engine.pid");
    end_leftover(&note).await;
    let mut backoff = BACKOFF.0;
    loop {
        let started = Instant::now();
        match spawn(program, arguments) {
            Ok(mut child) => {
                tracing::info!(program, pid = child.id(), "engine process started");
                remember(&note, child.id()).await;
                tokio::select! {
                    ended = child.wait() => log_end(program, ended),
                    () = stop.cancelled() => {
                        terminate(child).await;
                        forget(&note).await;
                        return;
                    }
                }
                forget(&note).await;
            }
            Err(error) => tracing::error!(program, %error, "the engine process cannot be started (engine.command)"),
        }
        if started.elapsed() > BACKOFF.1 {
            backoff = BACKOFF.0;
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = sleep(backoff) => {}
        }
        backoff = (backoff * 2).min(BACKOFF.1);
        metrics.engine_restarted();
    }
}

fn spawn(program: &str, arguments: &[String]) -> std::io::Result<Child> {
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        // A group of its own: engines start workers, and a terminal's Ctrl-C must reach the agent alone, which drains.
        .process_group(0)
        .kill_on_drop(true)
        .spawn()?;
    if let Some(stdout) = child.stdout.take() {
        tokio::spawn(log_lines(stdout));
    }
    if let Some(stderr) = child.stderr.take() {
        tokio::spawn(log_lines(stderr));
    }
    Ok(child)
}

fn log_end(program: &str, ended: std::io::Result<ExitStatus>) {
    match ended {
        Ok(status) => tracing::error!(program, %status, "the engine process ended; it is started again"),
        Err(error) => tracing::error!(program, %error, "the engine process was lost; it is started again"),
    }
}

async fn terminate(mut child: Child) {
    let group = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
    signal(group, Signal::TERM);
    if timeout(STOP_GRACE, child.wait()).await.is_err() {
        tracing::warn!("the engine process did not end within {STOP_GRACE:?}; it is killed");
    }
    // Also after a clean end: its workers may have outlived it.
    signal(group, Signal::KILL);
    if let Err(error) = child.wait().await {
        tracing::warn!(%error, "the engine process could not be waited for");
    }
}

fn signal(group: Option<Pid>, signal: Signal) {
    if let Some(Err(error)) = group.map(|group| kill_process_group(group, signal)) {
        // The usual case: everybody is gone.
        tracing::debug!(%error, ?signal, "signal to the engine's process group");
    }
}

/// Notes which process runs and when it was started: ids are used again, the two together are not.
async fn remember(note: &Path, pid: Option<u32>) {
    let Some((pid, started)) = pid.and_then(|pid| Some((pid, start_time(pid)?))) else { return };
    let written = match note.parent() {
        Some(directory) => tokio::fs::create_dir_all(directory).await,
        None => Ok(()),
    };
    if let Err(error) = written.and(tokio::fs::write(note, format!("{pid} {started}\n")).await) {
        tracing::warn!(note = %note.display(), %error, "cannot note which engine process runs (data_dir)");
    }
}

async fn forget(note: &Path) {
    if let Err(error) = tokio::fs::remove_file(note).await {
        tracing::debug!(%error, "engine.pid");
    }
}

/// Kills the process that an agent before this one had started and could not stop.
async fn end_leftover(note: &Path) {
    let Ok(text) = tokio::fs::read_to_string(note).await else { return };
    let mut words = text.split_ascii_whitespace();
    let (pid, started) = (words.next().and_then(|word| word.parse().ok()), words.next());
    if let Some(pid) = pid.filter(|&pid| start_time(pid).as_deref() == started) {
        tracing::warn!(pid, "an engine process was left behind by an agent that was killed; it is killed too");
        signal(i32::try_from(pid).ok().and_then(Pid::from_raw), Signal::KILL);
    }
    forget(note).await;
}

/// When a process was started, in clock ticks since boot; `None` if it does not run. Field 22 of `/proc/PID/stat`, whose
/// second field, the name in parentheses, may hold anything.
fn start_time(pid: u32) -> Option<String> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, behind_name) = stat.rsplit_once(')')?;
    behind_name.split_ascii_whitespace().nth(19).map(str::to_owned)
}

async fn log_lines(output: impl AsyncRead + Unpin) {
    let mut output = BufReader::new(output);
    while let Ok(Some(line)) = next_line(&mut output).await {
        if !line.is_empty() {
            tracing::info!(target: "engine", "{line}");
        }
    }
}

/// The next line, cut to [`MAX_LINE`] bytes however long it is; `None` at the end.
async fn next_line(output: &mut (impl AsyncBufRead + Unpin)) -> std::io::Result<Option<String>> {
    let mut line = Vec::new();
    loop {
        let buffered = output.fill_buf().await?;
        if buffered.is_empty() {
            let text = String::from_utf8_lossy(&line).trim_end().to_owned();
            return Ok((!line.is_empty()).then_some(text));
        }
        let newline = buffered.iter().position(|&byte| byte == b'\n');
        let part = &buffered[..newline.unwrap_or(buffered.len())];
        line.extend_from_slice(&part[..part.len().min(MAX_LINE - line.len())]);
        let consumed = part.len() + usize::from(newline.is_some());
        output.consume(consumed);
        if newline.is_some() {
            return Ok(Some(String::from_utf8_lossy(&line).trim_end().to_owned()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_the_very_process_that_was_noted_is_killed() {
        let directory = tempfile::tempdir().unwrap();
        let note = directory.path().join("data/engine.pid");
        let mut child = spawn("sleep", &["1000".to_owned()]).unwrap();
        let pid = child.id().unwrap();

        remember(&note, Some(pid)).await;
        let told = std::fs::read_to_string(&note).unwrap();
        std::fs::write(&note, format!("{pid} 1\n")).unwrap();
        end_leftover(&note).await;
        assert!(child.try_wait().unwrap().is_none() && !note.exists());

        std::fs::write(&note, told).unwrap();
        end_leftover(&note).await;
        assert!(!child.wait().await.unwrap().success() && !note.exists());
    }

    #[tokio::test]
    async fn lines_are_cut_and_the_rest_of_them_skipped() {
        let long = "x".repeat(3 * MAX_LINE);
        let text = format!("first\r\n\n{long}\nlast");
        let mut output = BufReader::with_capacity(100, text.as_bytes());
        let mut lines = Vec::new();
        while let Some(line) = next_line(&mut output).await.unwrap() {
            lines.push(line);
        }
        assert_eq!(lines, ["first", "", &long[..MAX_LINE], "last"]);
    }
}
