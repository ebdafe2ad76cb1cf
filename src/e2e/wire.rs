//! The edge's HTTP/1.1, byte by byte: what SDKs never send, and attackers do.

use crate::harness::{Fleet, MODEL, chat_body, eventually, get};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

/// Nothing here takes longer, unless the edge hangs.
const PATIENCE: Duration = Duration::from_secs(20);

fn connect(fleet: &Fleet) -> BufReader<TcpStream> {
    connect_to(&fleet.edge_url)
}

fn connect_to(url: &str) -> BufReader<TcpStream> {
    let stream = TcpStream::connect(url.strip_prefix("http://").unwrap()).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    BufReader::new(stream)
}

/// Head of a chat request, without the end of the head.
fn head(fleet: &Fleet) -> String {
    format!("POST /v1/chat/completions HTTP/1.1\r\nhost: edge\r\nauthorization: Bearer {}\r\n", fleet.key)
}

fn body() -> String {
    chat_body(MODEL, "one two", false).to_string()
}

/// Reads one response with a Content-Length; its status.
fn read_response(connection: &mut BufReader<TcpStream>) -> (u16, String) {
    let mut status = String::new();
    connection.read_line(&mut status).unwrap();
    let status = status.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or_else(|| panic!("{status:?}"));
    let mut length = 0;
    loop {
        let mut line = String::new();
        connection.read_line(&mut line).unwrap();
        if line == "\r\n" {
            break;
        }
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
    }
    let mut body = vec![0; length];
    connection.read_exact(&mut body).unwrap();
    (status, String::from_utf8(body).unwrap())
}

async fn events(fleet: &Fleet, expected: &str) {
    eventually("as many usage events as requests", async || {
        let found = fleet.sql("SELECT count(*) FROM inference_requests");
        if found == expected { Ok(()) } else { Err(format!("{found} instead of {expected}")) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_serves_one_request_after_another_also_after_errors() {
    let fleet = Fleet::start(&["n1"], "0ms").await;
    let mut connection = connect(&fleet);
    for sent in [body(), "{".to_owned(), body(), format!("{{\"model\": \"{}\"}}", "x".repeat(100_000)), body()] {
        let request = format!("{}content-length: {}\r\n\r\n{sent}", head(&fleet), sent.len());
        connection.get_mut().write_all(request.as_bytes()).unwrap();
        let (status, answer) = read_response(&mut connection);
        let expected = if sent == body() {
            200
        } else if sent == "{" {
            400
        } else {
            404
        };
        assert_eq!(status, expected, "{answer}");
    }
    events(&fleet, "5").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn chunked_bodies_and_expectations_are_understood() {
    let fleet = Fleet::start(&["n1"], "0ms").await;
    let mut connection = connect(&fleet);
    let sent = body();
    let (first, second) = sent.split_at(10);
    write!(connection.get_mut(), "{}transfer-encoding: chunked\r\n\r\n", head(&fleet)).unwrap();
    for part in [first, second, ""] {
        write!(connection.get_mut(), "{:x}\r\n{part}\r\n", part.len()).unwrap();
    }
    assert_eq!(read_response(&mut connection).0, 200);

    write!(connection.get_mut(), "{}expect: 100-continue\r\ncontent-length: {}\r\n\r\n", head(&fleet), sent.len())
        .unwrap();
    // A client that expects this does not send its body before.
    assert_eq!(read_response(&mut connection).0, 100);
    connection.get_mut().write_all(sent.as_bytes()).unwrap();
    assert_eq!(read_response(&mut connection).0, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_said_before_the_body_does_not_hide_what_becomes_of_it() {
    let mut fleet = Fleet::start(&["n1"], "0ms").await;
    let ask = |fleet: &Fleet| {
        let (mut connection, sent) = (connect(fleet), body());
        let head = format!("{}expect: 100-continue\r\ncontent-length: {}\r\n\r\n", head(fleet), sent.len());
        connection.get_mut().write_all(head.as_bytes()).unwrap();
        assert_eq!(read_response(&mut connection).0, 100);
        connection.get_mut().write_all(sent.as_bytes()).unwrap();
        read_response(&mut connection)
    };
    assert_eq!(ask(&fleet).0, 200);
    fleet.kill("n1");
    let (status, answer) = ask(&fleet);
    assert!(status == 502 || status == 503, "{status} {answer}");
    eventually("both have the status that the client got", async || {
        let expected = format!("200\n{status}");
        let statuses = fleet.sql("SELECT http_status FROM inference_requests ORDER BY http_status");
        if statuses == expected { Ok(()) } else { Err(statuses) }
    })
    .await;
}

/// Two lengths for one body: whoever believes the other one sees a second request inside the first. A node must never.
#[tokio::test(flavor = "multi_thread")]
async fn a_request_with_two_lengths_reaches_a_node_once_at_most() {
    let fleet = Fleet::start(&["n1"], "0ms").await;
    let sent = body();
    let chunk = format!("{:x}\r\n{sent}\r\n0\r\n\r\n", sent.len());
    let hidden = format!("{}content-length: {}\r\n\r\n{sent}", head(&fleet), sent.len());
    let mut connection = connect(&fleet);
    let lengths = format!("content-length: {}\r\ntransfer-encoding: chunked\r\n\r\n", chunk.len() + hidden.len());
    let request = [head(&fleet), lengths, chunk, hidden].concat();
    connection.get_mut().write_all(request.as_bytes()).unwrap();
    let mut everything = Vec::new();
    // The edge may reset the connection over the rest it did not read: what came before counts.
    let _ = connection.read_to_end(&mut everything);
    let answers = String::from_utf8_lossy(&everything).matches("HTTP/1.1 ").count();
    assert_eq!(answers, 1, "{}", String::from_utf8_lossy(&everything));

    let metrics = get(&format!("{}/metrics", fleet.metrics["n1"]), "").await.unwrap().text;
    let answered = metrics.lines().filter(|line| line.starts_with("turnpike_node_requests_total{"));
    let count: u64 = answered.map(|line| line.rsplit_once(' ').unwrap().1.parse::<u64>().unwrap()).sum();
    assert!(count <= 1, "{metrics}");
}

/// Whether a connection ends without another byte.
fn is_closed(connection: &mut BufReader<TcpStream>) -> bool {
    matches!(connection.read(&mut [0; 1]), Ok(0) | Err(_))
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_over_the_cap_are_closed_and_a_stop_lets_streams_end() {
    let mut fleet = Fleet::start(&["n1"], "100ms").await;
    let url = fleet.add_edge("edge-2", "limits.max_connections = 3").await;
    fleet.until_pushed().await;
    let send = |connection: &mut BufReader<TcpStream>, text: &str, streamed: bool| {
        let sent = chat_body(MODEL, text, streamed).to_string();
        let request = format!("{}content-length: {}\r\n\r\n{sent}", head(&fleet), sent.len());
        connection.get_mut().write_all(request.as_bytes()).unwrap();
    };
    let (mut busy, mut idle, third) = (connect_to(&url), connect_to(&url), connect_to(&url));
    send(&mut idle, "one", false);
    assert_eq!(read_response(&mut idle).0, 200);
    let began = Instant::now();
    assert!(is_closed(&mut connect_to(&url)) && began.elapsed() < PATIENCE, "a fourth one is open");
    drop(third);
    eventually("there is room again", async || {
        let mut another = connect_to(&url);
        another.get_mut().write_all(b"GET /v1/models HTTP/1.1\r\nhost: edge\r\n\r\n").map_err(|e| e.to_string())?;
        let mut line = String::new();
        another.read_line(&mut line).map_err(|e| e.to_string())?;
        if line.contains("401") { Ok(()) } else { Err(line) }
    })
    .await;

    send(&mut busy, "one two three four five six seven eight nine ten", true);
    let mut line = String::new();
    busy.read_line(&mut line).unwrap();
    assert!(line.contains("200"), "{line}");
    fleet.process("edge-2").signal("TERM");
    let began = Instant::now();
    assert!(is_closed(&mut idle) && began.elapsed() < PATIENCE, "who waits for nothing is let go");
    let address = url.strip_prefix("http://").unwrap();
    eventually("nobody is taken any more", async || match TcpStream::connect(address) {
        Ok(_) => Err("connected".to_owned()),
        Err(_) => Ok(()),
    })
    .await;
    let mut rest = String::new();
    busy.read_to_string(&mut rest).unwrap();
    assert!(rest.contains("ten") && rest.contains("[DONE]"), "{rest}");
    assert!(fleet.process("edge-2").wait().success());
}
