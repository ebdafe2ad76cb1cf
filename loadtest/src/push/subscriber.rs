//! Edges without anything behind them.

use crate::deployment::Deployment;
use anyhow::{Context as _, bail, ensure};
use futures::stream::{self, StreamExt as _, TryStreamExt as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::timeout;
use turnpike_config::link::{Dialer, Link, Receiver, Sender, read_sized_frame, write_frame};
use turnpike_config::push::{ChunkReply, ChunkRequest, Follower, PushFrame, PushReply, Step};
use turnpike_config::wire::Open;

/// Nothing takes longer.
const PATIENCE: Duration = Duration::from_secs(120);
/// Handshakes at the same time.
const AT_ONCE: usize = 64;
/// Edges that share a socket: each has one of its own in truth, and its own room for datagrams.
const PER_SOCKET: u32 = 50;

/// An edge.
pub(crate) struct Subscriber {
    link: Link,
    send: Sender,
    receive: Receiver,
    follower: Follower,
    /// Outlives the connection.
    _dialer: Arc<Dialer>,
}

impl Subscriber {
    pub(crate) async fn connect(deployment: &Deployment, dialer: &Arc<Dialer>, name: &str) -> anyhow::Result<Self> {
        let (address, trust) = (deployment.link(), deployment.trust());
        let link = dialer.dial(&address.to_string(), address, &deployment.edge_identity(name)?).await?;
        let follower = Follower::new(name.to_owned(), "here".to_owned(), trust, Default::default());
        let (mut send, receive) = link.open().await?;
        write_frame(&mut send, &Open::Push(follower.hello("loadtest"))).await?;
        Ok(Self { link, send, receive, follower, _dialer: Arc::clone(dialer) })
    }

    /// Bytes in datagrams so far.
    pub(crate) fn received(&self) -> u64 {
        self.link.received().map_or(0, |(_, bytes)| bytes)
    }

    /// Until it holds a whole state; the bytes of the frames that brought it.
    pub(crate) async fn until_whole(&mut self) -> anyhow::Result<u64> {
        loop {
            let (frame, size) = self.frame().await?;
            match self.follower.take(frame) {
                Ok(Step::Fetch(manifest)) => {
                    let (mut send, mut receive) = self.link.open().await?;
                    write_frame(&mut send, &Open::Chunks).await?;
                    let mut bytes = size as u64;
                    for hash in &manifest.chunks {
                        write_frame(&mut send, &ChunkRequest { hash: *hash }).await?;
                        let read = timeout(PATIENCE, read_sized_frame::<ChunkReply>(&mut receive)).await;
                        let (reply, size) = read.context("a chunk in time")??.context("the stream of chunks ended")?;
                        ensure!(reply.bytes.is_some(), "a chunk is not kept any more");
                        bytes += size as u64;
                    }
                    let reply = self.follower.adopt(manifest.at);
                    write_frame(&mut self.send, &reply).await?;
                    return Ok(bytes);
                }
                Ok(Step::Nothing | Step::ApplyNow { .. }) => {}
                other => bail!("not a whole state: {other:?}"),
            }
        }
    }

    /// Serves by the next change; the bytes of its frame.
    pub(crate) async fn next_change(&mut self) -> anyhow::Result<usize> {
        loop {
            let (frame, size) = self.frame().await?;
            if let Some(reply) = self.take(frame)? {
                write_frame(&mut self.send, &reply).await?;
                return Ok(size);
            }
        }
    }

    async fn frame(&mut self) -> anyhow::Result<(PushFrame, usize)> {
        let read = timeout(PATIENCE, read_sized_frame(&mut self.receive)).await.context("a frame in time")??;
        read.context("the push stream ended")
    }

    fn take(&mut self, frame: PushFrame) -> anyhow::Result<Option<PushReply>> {
        match self.follower.take(frame) {
            Ok(Step::Apply { to, .. }) => Ok(Some(self.follower.adopt(to))),
            Ok(Step::Nothing | Step::ApplyNow { .. }) => Ok(None),
            other => bail!("not a change: {other:?}"),
        }
    }

    /// Says when it serves by each change, until its link ends.
    async fn follow(mut self, served: mpsc::UnboundedSender<Instant>) -> anyhow::Result<()> {
        loop {
            let Some((frame, _)) = read_sized_frame(&mut self.receive).await? else { return Ok(()) };
            let Some(reply) = self.take(frame)? else { continue };
            // Nobody listens any more: the measurement is over.
            if served.send(Instant::now()).is_err() {
                return Ok(());
            }
            write_frame(&mut self.send, &reply).await?;
        }
    }
}

/// Many of them.
pub(crate) struct Crowd {
    size: usize,
    served: tokio::sync::Mutex<mpsc::UnboundedReceiver<Instant>>,
    lost: Arc<AtomicU32>,
    _edges: JoinSet<()>,
}

impl Crowd {
    /// Links them and waits until each holds the whole state.
    pub(crate) async fn connect(deployment: &Deployment, size: u32) -> anyhow::Result<Self> {
        let dialers = (0..size.div_ceil(PER_SOCKET)).map(|_| Ok(Arc::new(deployment.dialer()?)));
        let dialers = dialers.collect::<anyhow::Result<Vec<_>>>()?;
        let link = |number: u32| {
            let dialer = Arc::clone(&dialers[(number / PER_SOCKET) as usize]);
            async move {
                let mut edge = Subscriber::connect(deployment, &dialer, &format!("edge-{number}")).await?;
                edge.until_whole().await?;
                anyhow::Ok(edge)
            }
        };
        let linked: Vec<Subscriber> = stream::iter(0..size).map(link).buffer_unordered(AT_ONCE).try_collect().await?;
        let (served, receive) = mpsc::unbounded_channel();
        let lost = Arc::new(AtomicU32::new(0));
        let mut edges = JoinSet::new();
        for edge in linked {
            let (served, lost) = (served.clone(), Arc::clone(&lost));
            edges.spawn(async move {
                if edge.follow(served).await.is_err() {
                    lost.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        Ok(Self { size: size as usize, served: receive.into(), lost, _edges: edges })
    }

    /// How long after `began` each serves by the change; all of them, before the next one is made. What they had to catch up
    /// with before does not count.
    pub(crate) async fn until_served(&self, round: u32, began: Instant) -> anyhow::Result<Vec<Duration>> {
        let mut served = self.served.lock().await;
        let mut all = Vec::with_capacity(self.size);
        while all.len() < self.size {
            let next = timeout(PATIENCE, served.recv()).await;
            let (count, lost) = (all.len(), self.lost());
            let next =
                next.with_context(|| format!("change {round}: {count} of {} serve by it, {lost} are lost", self.size));
            all.extend(next?.context("all links are lost")?.checked_duration_since(began));
        }
        Ok(all)
    }

    /// Links that broke.
    pub(crate) fn lost(&self) -> u32 {
        self.lost.load(Ordering::Relaxed)
    }
}
