//! How we talk to a server of ours: a PING of our own, and redis-cli for everything else.

use super::Error;
use super::programs::Programs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

/// How long redis-cli may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// The exit status by which `timeout` says that time was up.
const TIMED_OUT: i32 = 124;

/// The server's operator.
#[derive(Debug)]
pub(super) struct Client {
    cli: PathBuf,
    port: u16,
    password: Option<String>,
    /// Set where the server speaks TLS: whom to trust.
    ca: Option<PathBuf>,
}

impl Client {
    pub(super) fn new(programs: &Programs, port: u16, password: Option<String>, ca: Option<PathBuf>) -> Self {
        Self { cli: programs.cli().to_owned(), port, password, ca }
    }

    pub(super) fn port(&self) -> u16 {
        self.port
    }

    /// The id of the process that answers PING at the port within `patience`; none while it still reads its data.
    pub(super) fn answering_process(&self, patience: Duration) -> Option<u32> {
        if self.ca.is_none() {
            return self.ping(patience).ok().flatten();
        }
        (self.command_within(patience, &["PING"]).ok()? == "PONG").then_some(())?;
        process_id(self.command_within(patience, &["INFO", "server"]).ok()?.lines())
    }

    /// The same without TLS, in the server's own protocol: this is asked often, and a process each would be dear.
    fn ping(&self, patience: Duration) -> std::io::Result<Option<u32>> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, self.port));
        let mut stream = TcpStream::connect_timeout(&address, patience)?;
        stream.set_read_timeout(Some(patience))?;
        stream.set_write_timeout(Some(patience))?;
        let login = self.password.as_ref().map(|password| request(&["AUTH", password])).unwrap_or_default();
        stream.write_all(format!("{login}{}{}", request(&["PING"]), request(&["INFO", "server"])).as_bytes())?;
        let mut lines = BufReader::new(stream).lines().map_while(Result::ok);
        let ready = lines.find(|line| line == "+PONG" || line.starts_with('-')).is_some_and(|line| line == "+PONG");
        Ok(ready.then(|| process_id(lines)).flatten())
    }

    /// Runs redis-cli; what it printed, trimmed.
    pub(super) fn command(&self, arguments: &[&str]) -> Result<String, Error> {
        self.command_within(PATIENCE, arguments)
    }

    pub(super) fn command_within(&self, patience: Duration, arguments: &[&str]) -> Result<String, Error> {
        let output = self.redis_cli(patience, arguments).output().map_err(Error::io("running timeout redis-cli"))?;
        let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        if output.status.success() {
            return Ok(text);
        }
        let complaint = String::from_utf8_lossy(&output.stderr);
        let output = match output.status.code() {
            Some(TIMED_OUT) => format!("no answer within {} s {text}", patience.as_secs_f32()),
            _ => format!("{} {text} {}", output.status, complaint.trim()),
        };
        let command = arguments.first().copied().unwrap_or_default().to_owned();
        Err(Error::Command { command, port: self.port, output: output.trim().to_owned() })
    }

    fn redis_cli(&self, patience: Duration, arguments: &[&str]) -> Command {
        let mut command = Command::new("timeout");
        command.arg(format!("{:.3}", patience.as_secs_f32())).arg(&self.cli);
        // -e: an error that the server answers with is one of redis-cli too.
        command.args(["-e", "-h", "127.0.0.1", "-p", &self.port.to_string()]);
        if let Some(ca) = &self.ca {
            command.arg("--tls").arg("--cacert").arg(ca);
        }
        // Not as an argument, which everybody can read; and not one that a user's shell holds for another server.
        match &self.password {
            Some(password) => command.env("REDISCLI_AUTH", password),
            None => command.env_remove("REDISCLI_AUTH"),
        };
        command.args(arguments);
        command
    }
}

/// A request in the server's protocol.
fn request(words: &[&str]) -> String {
    let bulks = words.iter().map(|word| format!("${}\r\n{word}\r\n", word.len()));
    format!("*{}\r\n{}", words.len(), bulks.collect::<String>())
}

/// Whose `INFO server` this is.
fn process_id<S: AsRef<str>>(info: impl IntoIterator<Item = S>) -> Option<u32> {
    info.into_iter().find_map(|line| line.as_ref().strip_prefix("process_id:")?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_count_bytes() {
        assert_eq!(request(&["AUTH", "ä"]), "*2\r\n$4\r\nAUTH\r\n$2\r\nä\r\n");
    }

    #[test]
    fn the_process_is_read_from_its_info() {
        assert_eq!(process_id("# Server\r\nredis_version:7.0.15\r\nprocess_id:42\r\n".lines()), Some(42));
        assert_eq!(process_id(["# Server"]), None);
    }
}
