//! Streams that are held open: how many there can be, and what each takes while it waits.

use super::oha::Seen;
use super::scenario::Ask;
use super::subjects::Way;
use crate::percentile;
use anyhow::{Context as _, ensure};
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

/// Streams that are being begun at once.
const BEGINNING: usize = 64;
/// Until a stream has its first token.
const PATIENCE: Duration = Duration::from_secs(30);

/// All streams, open until this is dropped.
pub(super) struct Held {
    pub(super) seen: Seen,
    _streams: Vec<TcpStream>,
}

/// Begins so many streams, and waits for the first token of each.
pub(super) async fn hold(way: &Way, ask: &Ask, connections: u32) -> anyhow::Result<Held> {
    let address = way.address;
    let headers: String = way.headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    let began = Instant::now();
    let (mut beginning, mut streams, mut times) = (JoinSet::new(), Vec::new(), Vec::new());
    for number in 0..connections {
        if beginning.len() >= BEGINNING {
            keep(beginning.join_next().await, &mut streams, &mut times)?;
        }
        let body = ask.body(number);
        let head = format!(
            "POST /v1/chat/completions HTTP/1.1\r\nhost: {address}\r\n{headers}\
             content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        beginning.spawn(async move {
            let begun = tokio::time::timeout(PATIENCE, begin(address, head)).await;
            begun.with_context(|| format!("stream {number} has no token after {PATIENCE:?}"))?
        });
    }
    while let Some(begun) = beginning.join_next().await {
        keep(Some(begun), &mut streams, &mut times)?;
    }
    let [p50_us, p99_us] = percentile::p50_p99_us(times);
    let per_second = f64::from(connections) / began.elapsed().as_secs_f64();
    let seen = Seen { requests: streams.len() as u64, per_second, p50_us, p99_us };
    Ok(Held { seen, _streams: streams })
}

type Begun = anyhow::Result<(TcpStream, Duration)>;

fn keep(
    begun: Option<Result<Begun, tokio::task::JoinError>>,
    streams: &mut Vec<TcpStream>,
    times: &mut Vec<Duration>,
) -> anyhow::Result<()> {
    if let Some(begun) = begun {
        let (stream, took) = begun??;
        streams.push(stream);
        times.push(took);
    }
    Ok(())
}

async fn begin(address: SocketAddr, request: String) -> Begun {
    let began = Instant::now();
    let connecting = TcpStream::connect(address).await;
    let mut stream = connecting.with_context(|| format!("connecting to {address}: is there a limit on open files?"))?;
    stream.write_all(request.as_bytes()).await?;
    let mut read = Vec::new();
    while !String::from_utf8_lossy(&read).contains("data:") {
        ensure!(stream.read_buf(&mut read).await? > 0, "a stream ended with {}", String::from_utf8_lossy(&read));
    }
    let text = String::from_utf8_lossy(&read);
    ensure!(text.starts_with("HTTP/1.1 200"), "expected a stream, but got {text}");
    Ok((stream, began.elapsed()))
}
