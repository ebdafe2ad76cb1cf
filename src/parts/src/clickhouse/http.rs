//! As much of a client as starting a server and looking into it takes.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

/// A server's address and the user that everything connects as.
#[derive(Clone, Debug)]
pub(super) struct Client {
    pub(super) port: u16,
    pub(super) user: &'static str,
    pub(super) password: String,
}

impl Client {
    pub(super) fn url(&self) -> String {
        format!("http://{}:{}@127.0.0.1:{}", self.user, self.password, self.port)
    }

    /// Runs one statement; what it printed, tab-separated, or what the server has against it.
    pub(super) fn query(&self, sql: &str, patience: Duration) -> Result<String, String> {
        self.exchange(sql, patience).map_err(|e| e.to_string())?
    }

    fn exchange(&self, sql: &str, patience: Duration) -> std::io::Result<Result<String, String>> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, self.port));
        let mut stream = TcpStream::connect_timeout(&address, patience)?;
        stream.set_read_timeout(Some(patience))?;
        stream.set_write_timeout(Some(patience))?;
        // HTTP/1.0: the answer comes in one piece and ends with the connection.
        let head = format!(
            "POST / HTTP/1.0\r\nX-ClickHouse-User: {}\r\nX-ClickHouse-Key: {}\r\nContent-Length: {}\r\n\r\n",
            self.user,
            self.password,
            sql.len()
        );
        stream.write_all(head.as_bytes())?;
        stream.write_all(sql.as_bytes())?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        let answer = String::from_utf8_lossy(&answer);
        let malformed = || std::io::Error::new(std::io::ErrorKind::InvalidData, "not an HTTP answer");
        let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(malformed)?;
        let status = head.split_whitespace().nth(1).ok_or_else(malformed)?;
        let body = body.trim_end().to_owned();
        Ok(if status == "200" { Ok(body) } else { Err(body) })
    }
}
