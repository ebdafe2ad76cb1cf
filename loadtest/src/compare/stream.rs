//! What oha does not measure: how long until a stream's first token, and how long between two.

use super::scenario::Ask;
use super::subjects::Way;
use crate::percentile;
use anyhow::{Context as _, ensure};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::Request;
use hyper::client::conn::http1;
use hyper::header::{CONTENT_TYPE, HOST};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use std::time::{Duration, Instant};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

/// Of the streams of one run, microseconds.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Tokens {
    /// From before a request is sent until the first bytes of its answer's body.
    pub(super) first_p50_us: f64,
    pub(super) first_p99_us: f64,
    /// Between two reads that brought bytes of the body.
    pub(super) between_p50_us: f64,
    pub(super) between_p99_us: f64,
}

/// What one connection saw.
#[derive(Default)]
struct Seen {
    first: Vec<Duration>,
    between: Vec<Duration>,
}

/// Streams one after the other on each of so many connections.
pub(super) async fn measure(way: &Way, ask: &Ask, connections: u32, lasting: Duration) -> anyhow::Result<Tokens> {
    let until = Instant::now() + lasting;
    let mut running = JoinSet::new();
    for number in 0..connections {
        let (way, ask) = (way.clone(), ask.clone());
        // Others than oha has asked for.
        running.spawn(async move { streams(&way, &ask, (number + 1) * 1_000_000, until).await });
    }
    let mut all = Seen::default();
    while let Some(seen) = running.join_next().await {
        let Seen { first, between } = seen??;
        all.first.extend(first);
        all.between.extend(between);
    }
    Ok(Tokens::of(all.first, all.between))
}

impl Tokens {
    /// Of all that was seen.
    pub(super) fn of(first: Vec<Duration>, between: Vec<Duration>) -> Self {
        let [first_p50_us, first_p99_us] = percentile::p50_p99_us(first);
        let [between_p50_us, between_p99_us] = percentile::p50_p99_us(between);
        Self { first_p50_us, first_p99_us, between_p50_us, between_p99_us }
    }
}

async fn streams(Way { address, headers }: &Way, ask: &Ask, from: u32, until: Instant) -> anyhow::Result<Seen> {
    let stream = TcpStream::connect(address).await.with_context(|| format!("connecting to {address}"))?;
    stream.set_nodelay(true)?;
    let (mut send, connection) = http1::handshake(TokioIo::new(stream)).await?;
    // Its errors are the requests' too.
    let _connection = tokio::spawn(connection);
    let mut seen = Seen::default();
    let mut number = from;
    while Instant::now() < until {
        number += 1;
        let request = Request::post("/v1/chat/completions").header(HOST, address.to_string());
        let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, value));
        let request = request.header(CONTENT_TYPE, "application/json");
        let request = request.body(Full::new(Bytes::from(ask.body(number))))?;
        // It may still be busy with the end of the answer before.
        send.ready().await?;
        let mut last = Instant::now();
        let reply = send.send_request(request).await?;
        ensure!(reply.status() == 200, "expected 200, but got {}", reply.status());
        let (mut body, mut is_first) = (reply.into_body(), true);
        while let Some(frame) = body.frame().await {
            frame?;
            let now = Instant::now();
            if is_first { &mut seen.first } else { &mut seen.between }.push(now - last);
            (last, is_first) = (now, false);
        }
    }
    Ok(seen)
}
