//! A trace, sent again to one subject: each request when it came, only faster, and each answer read as it comes.

use super::oha::Seen;
use super::stream::Tokens;
use super::subjects::Way;
use super::trace::Arrival;
use crate::percentile;
use anyhow::{Context as _, ensure};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::Request;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::{CONTENT_TYPE, HOST};
use hyper_util::rt::TokioIo;
use serde_json::json;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

/// Who is asked.
pub(super) struct To {
    pub(super) way: Way,
    /// One of the simulator's.
    pub(super) model: String,
}

/// Connections without a request.
type Idle = Arc<Mutex<Vec<SendRequest<Full<Bytes>>>>>;

/// What became of one request.
struct Reply {
    first: Duration,
    between: Vec<Duration>,
    whole: Duration,
}

/// Sends what arrives within `lasting`, `speed` times as fast as it came. No other `turn` has the same prompts.
pub(super) async fn replay(
    to: To,
    trace: &[Arrival],
    (lasting, speed, turn): (Duration, f64, usize),
) -> anyhow::Result<(Seen, Tokens)> {
    let (to, idle, began) = (Arc::new(to), Idle::default(), Instant::now());
    let mut running = JoinSet::new();
    for (number, arrival) in trace.iter().enumerate() {
        let at = arrival.at.div_f64(speed);
        if at > lasting {
            break;
        }
        tokio::time::sleep_until((began + at).into()).await;
        let body = json!({"model": to.model, "stream": true, "max_tokens": arrival.answer_tokens, "temperature": 0,
            "messages": [{"role": "user", "content": arrival.text(turn, number)}]});
        running.spawn(ask(Arc::clone(&to), Arc::clone(&idle), body.to_string()));
    }
    ensure!(!running.is_empty(), "nothing arrives within {lasting:?}");
    let requests = running.len() as u64;
    let (mut first, mut between, mut whole) = (Vec::new(), Vec::new(), Vec::new());
    while let Some(reply) = running.join_next().await {
        let reply: Reply = reply??;
        first.push(reply.first);
        between.extend(reply.between);
        whole.push(reply.whole);
    }
    let per_second = requests as f64 / began.elapsed().as_secs_f64();
    let [p50_us, p99_us] = percentile::p50_p99_us(whole);
    Ok((Seen { requests, per_second, p50_us, p99_us }, Tokens::of(first, between)))
}

async fn ask(to: Arc<To>, idle: Idle, body: String) -> anyhow::Result<Reply> {
    let kept = idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
    let mut send = match kept.filter(SendRequest::is_ready) {
        Some(send) => send,
        None => connect(to.way.address).await?,
    };
    let request = Request::post("/v1/chat/completions").header(HOST, to.way.address.to_string());
    let request = to.way.headers.iter().fold(request, |request, (name, value)| request.header(*name, value));
    let request = request.header(CONTENT_TYPE, "application/json");
    let began = Instant::now();
    let reply = send.send_request(request.body(Full::new(Bytes::from(body)))?).await?;
    let status = reply.status();
    let (mut body, mut last, mut first, mut between) = (reply.into_body(), began, None, Vec::new());
    while let Some(frame) = body.frame().await {
        frame?;
        let now = Instant::now();
        if first.replace(first.unwrap_or(now - last)).is_some() {
            between.push(now - last);
        }
        last = now;
    }
    ensure!(status == 200, "expected 200, but got {status}");
    idle.lock().unwrap_or_else(PoisonError::into_inner).push(send);
    Ok(Reply { first: first.context("an answer without a body")?, between, whole: last - began })
}

async fn connect(address: SocketAddr) -> anyhow::Result<SendRequest<Full<Bytes>>> {
    let stream = TcpStream::connect(address).await.with_context(|| format!("connecting to {address}"))?;
    stream.set_nodelay(true)?;
    let (send, connection) = http1::handshake(TokioIo::new(stream)).await?;
    // Its errors are the requests' too.
    drop(tokio::spawn(connection));
    Ok(send)
}
