//! Processes of the product, and of Python.

use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

const STOP_PATIENCE: Duration = Duration::from_secs(60);

/// The binary under test. Nothing that the developer has set in the environment reaches it.
pub(crate) fn turnpike() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_turnpike"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("TURNPIKE_") {
            command.env_remove(name);
        }
    }
    command
}

/// The Python that has the packages of `requirements.txt`, as `./test` prepares it.
pub(crate) fn python() -> Command {
    let mut command = Command::new(python_path());
    command.arg("-B").env_remove("HTTP_PROXY").env_remove("http_proxy");
    command
}

/// Where that Python is.
pub(crate) fn python_path() -> PathBuf {
    let prepared = Path::new(env!("CARGO_MANIFEST_DIR")).join(".cache/venv/bin/python");
    let python = std::env::var_os("TURNPIKE_TEST_PYTHON").map_or(prepared, PathBuf::from);
    assert!(python.exists(), "{} is missing; ./test prepares it", python.display());
    python
}

/// A process that is killed when the test ends, however it ends. Its standard error goes into a file.
pub(crate) struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts it. Its standard input stays open as long as this test runs.
    pub(crate) fn start(mut command: Command, log: &Path) -> Self {
        let file = File::options().create(true).append(true).open(log).unwrap();
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(file);
        let child = command.spawn().unwrap_or_else(|e| panic!("{command:?}: {e}"));
        Self { child, log: log.to_owned() }
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// The first line of its standard output, or the end of its log if it ends without one.
    pub(crate) fn first_line(&mut self) -> String {
        let mut line = String::new();
        let stdout = self.child.stdout.take().unwrap();
        BufReader::new(stdout).read_line(&mut line).unwrap();
        assert!(!line.is_empty(), "it ended without a word on standard output; its log:\n{}", self.log());
        line
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Sends a signal by name, such as `INT`.
    pub(crate) fn signal(&self, name: &str) {
        send_signal(name, self.id());
    }

    /// Kills it as a power cut would, and waits until it is gone.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub(crate) fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Waits for it to end by itself.
    pub(crate) fn wait(&mut self) -> ExitStatus {
        let deadline = Instant::now() + STOP_PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < deadline, "still running after {STOP_PATIENCE:?}; its log:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

fn send_signal(name: &str, id: u32) {
    assert!(try_signal(name, id), "kill -{name} {id}");
}

/// Says whether there was such a process.
fn try_signal(name: &str, id: u32) -> bool {
    // The shell's own `kill`: a bare system has no other.
    Command::new("sh").args(["-c", &format!("kill -{name} {id}")]).status().unwrap().success()
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may be gone already, which is what is wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            // The harness of the test prints what a failing test printed.
            println!("--- {}\n{}", self.log.display(), self.log());
        }
    }
}

/// A running process, told apart from a later one with the same number by when it started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Running {
    pub(crate) id: u32,
    pub(crate) name: String,
    parent: u32,
    started: String,
}

impl Running {
    fn read(id: u32) -> Option<Self> {
        // proc_pid_stat(5): pid (name) state ppid … the 22nd field is the start time.
        let stat = std::fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
        let (head, tail) = stat.rsplit_once(')')?;
        let fields: Vec<_> = tail.split_whitespace().collect();
        let dead = matches!(*fields.first()?, "Z" | "X");
        let name = head.split_once('(')?.1.to_owned();
        let running = Self { id, name, parent: fields.get(1)?.parse().ok()?, started: fields.get(19)?.to_string() };
        (!dead).then_some(running)
    }

    /// Kills it as a crash would.
    pub(crate) fn kill(&self) {
        send_signal("KILL", self.id);
    }

    /// The same; says whether it had not ended by itself before.
    pub(crate) fn try_kill(&self) -> bool {
        try_signal("KILL", self.id)
    }

    pub(crate) fn is_alive(&self) -> bool {
        Self::read(self.id).is_some_and(|now| now.started == self.started)
    }
}

/// All processes below this one.
pub(crate) fn descendants(id: u32) -> Vec<Running> {
    let all: Vec<_> = std::fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter_map(Running::read)
        .collect();
    let mut found: Vec<Running> = Vec::new();
    let mut parents = vec![id];
    while let Some(parent) = parents.pop() {
        let children = all.iter().filter(|process| process.parent == parent);
        for child in children {
            parents.push(child.id);
            found.push(child.clone());
        }
    }
    found
}
