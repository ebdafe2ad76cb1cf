//! Pushing routing to an edge.

use super::Stream;
use crate::context::Context;
use crate::feed::Published;
use crate::metrics::PushKind;
use crate::roster::EdgeLive;
use crate::store::edges::News;
use chrono::Utc;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};
use turnpike_config::link::{Link, LinkError, Receiver, Sender, read_frame, write_frame};
use turnpike_config::log::Position;
use turnpike_config::push::{ChunkReply, ChunkRequest, EdgeHello, PushReply, Session, Want};

/// An edge answers a delta within this time, or its link is closed; it will reconnect and start over.
const PUSH_DEADLINE: Duration = Duration::from_secs(60);
/// An edge fetches and adopts a whole state within this time.
const SNAPSHOT_DEADLINE: Duration = Duration::from_secs(600);
/// An edge that comes is not kept waiting longer for its being noted.
const NOTING: Duration = Duration::from_secs(1);
/// Longest refusal that is kept, characters.
const MAX_REASON: usize = 1000;

/// Pushes routing to an edge until its link ends. One thing that wants an answer is on its way at a time: an edge that is
/// slow skips versions and holds up nobody.
pub(super) async fn push(
    name: &str,
    hello: &EdgeHello,
    stream: Stream,
    link: &Link,
    context: &Arc<Context>,
    stop: &CancellationToken,
) -> Result<(), LinkError> {
    // One edge's NUL, which PostgreSQL's text cannot hold, must not keep all others from being noted.
    let clean = |text: &str| text.replace('\0', "");
    let (region, build) = (clean(&hello.region), clean(&hello.build));
    let transport = link.transport().name();
    let live = EdgeLive { region, build, holds: hello.holds.version, since: Utc::now(), transport };
    let session = context.edges.enter(name, link.clone(), live.clone());
    context.metrics.edges_connected.set(context.edges.len());
    // What an edge holds says what it may still act on, such as money: that is noted before it is told anything else.
    context.notes.put_and_wait(name, News::hello(&live), NOTING).await;
    let result = tokio::select! {
        () = stop.cancelled() => Ok(()),
        reason = link.closed() => Err(LinkError::Lost(reason)),
        result = Push::new(name, hello, (session, live), context).await.run(stream) => result,
    };
    if context.edges.leave(name, session) {
        context.metrics.edges_connected.set(context.edges.len());
        context.notes.put(name, News { connected: Some(false), ..News::default() });
    }
    result
}

/// One edge's conversation.
struct Push<'a> {
    edge: (&'a str, &'a str),
    /// Its link, and what is shown of it.
    link: (u64, EdgeLive),
    /// A state that it is sent must not be older than this version: it holds it, or refused what came before it.
    least: u64,
    /// The newest version that it said it serves by; the present one if it serves by none of this log.
    serves: u64,
    session: Session,
    /// What was published when something was last sent.
    sent: Option<Arc<Published>>,
    /// When its answer is overdue, while one is due.
    answer_by: Instant,
    context: &'a Context,
}

impl<'a> Push<'a> {
    async fn new(name: &'a str, hello: &'a EdgeHello, link: (u64, EdgeLive), context: &'a Context) -> Self {
        // Boxed, here and below: what is seldom awaited takes no room in thousands of idle links.
        let known = Box::pin(context.feed.went_through(hello.holds)).await;
        let known = known.unwrap_or_else(|error| {
            // Whether a delta fits its position is seen when one is made.
            debug!(edge = name, %error, "its position cannot be looked up; taking it for one of this log");
            true
        });
        let session = Session::new(known.then_some(hello.holds));
        let least = if known { hello.holds.version } else { 0 };
        let serves = if known { hello.holds.version } else { u64::MAX };
        Self {
            edge: (name, &hello.region),
            link,
            least,
            serves,
            session,
            sent: None,
            answer_by: Instant::now(),
            context,
        }
    }

    async fn run(mut self, Stream { mut send, recv }: Stream) -> Result<(), LinkError> {
        let mut published = self.context.feed.subscribe();
        // Kept across turns: half a frame may have been read.
        let mut reply = pin!(next_reply(recv));
        loop {
            let current = Arc::clone(&published.borrow_and_update());
            if self.sent.as_ref().is_some_and(|sent| sent.rewinds_from != current.rewinds_from) {
                self.session.try_again();
                self.least = 0;
            }
            self.send(&current, &mut send).await?;
            tokio::select! {
                changed = published.changed() => if changed.is_err() {
                    return Ok(());
                },
                (recv, replied) = &mut reply => match replied? {
                    Some(replied) => {
                        self.take(&replied)?;
                        reply.set(next_reply(recv));
                    }
                    None => return Ok(()),
                },
                () = tokio::time::sleep_until(self.answer_by), if self.session.is_waiting() => {
                    return Err(LinkError::Lost("the edge does not answer".to_owned()));
                }
            }
        }
    }

    /// Sends whatever is due.
    async fn send(&mut self, published: &Arc<Published>, send: &mut Sender) -> Result<(), LinkError> {
        let head = published.at();
        match self.session.want(head) {
            Want::Nothing => {}
            Want::Delta(from) => {
                let delta =
                    Box::pin(self.context.feed.delta(from, published, self.edge)).await.unwrap_or_else(|error| {
                        debug!(edge = self.edge.0, %error, "no delta; sending a snapshot instead");
                        None
                    });
                match delta {
                    Some(frame) => {
                        self.session.sent_delta(head);
                        self.wrote(PushKind::Delta, published);
                        send.write_shared(frame).await?;
                    }
                    None => self.send_snapshot(published, send).await?,
                }
            }
            Want::Snapshot => self.send_snapshot(published, send).await?,
            Want::Urgent(after) => {
                for frame in self.context.feed.urgent_after(after, self.edge) {
                    self.context.metrics.count_push(PushKind::Urgent);
                    send.write_shared(frame).await?;
                }
                self.session.sent_urgent(head.version);
            }
        }
        Ok(())
    }

    async fn send_snapshot(&mut self, published: &Arc<Published>, send: &mut Sender) -> Result<(), LinkError> {
        let manifest = Box::pin(self.context.feed.manifest(published, self.edge, self.least)).await;
        let (frame, at) = manifest.ok_or_else(|| LinkError::Lost("no snapshot can be made".to_owned()))?;
        self.session.sent_snapshot(at, self.serves);
        self.wrote(PushKind::Snapshot, published);
        send.write_shared(frame).await
    }

    fn wrote(&mut self, kind: PushKind, published: &Arc<Published>) {
        self.context.metrics.count_push(kind);
        self.sent = Some(Arc::clone(published));
        let patience = if self.session.is_fetching() { SNAPSHOT_DEADLINE } else { PUSH_DEADLINE };
        self.answer_by = Instant::now() + patience;
    }

    fn take(&mut self, reply: &PushReply) -> Result<(), LinkError> {
        let (name, _) = self.edge;
        let fetching = self.session.is_fetching();
        self.session.take(reply).map_err(|error| LinkError::Lost(error.to_string()))?;
        match reply {
            PushReply::Ack(at) => {
                debug!(edge = name, version = at.version, "acked");
                self.least = at.version;
                self.serves = at.version;
                self.observe_delay(*at);
                self.link.1.holds = at.version;
                self.context.edges.set(name, self.link.0, self.link.1.clone());
                let news = News { holds: Some(at.version), answer: Some(None), ..News::default() };
                self.context.notes.put(name, news);
            }
            PushReply::Nack { version, reason } => {
                let reason: String = reason.chars().filter(|c| *c != '\0').take(MAX_REASON).collect();
                warn!(edge = name, version, reason, "an edge refused a version");
                self.context.metrics.push_refusals.inc();
                self.least = version.saturating_add(u64::from(fetching));
                let answer = Some(Some((*version, reason)));
                self.context.notes.put(name, News { answer, ..News::default() });
            }
        }
        Ok(())
    }

    /// How long the newest change took to get there.
    fn observe_delay(&self, at: Position) {
        let sent = self.sent.as_ref().filter(|sent| sent.at() == at);
        if let Some(made_at) = sent.and_then(|sent| sent.made_at) {
            let delay = Utc::now().signed_duration_since(made_at).to_std().unwrap_or_default();
            self.context.metrics.propagation.observe(delay.as_secs_f64());
        }
    }
}

async fn next_reply(mut recv: Receiver) -> (Receiver, Result<Option<PushReply>, LinkError>) {
    let reply = read_frame(&mut recv).await;
    (recv, reply)
}

/// Hands out pieces of states until the edge has enough.
pub(super) async fn chunks(
    mut stream: Stream,
    link: &Link,
    context: &Arc<Context>,
    stop: &CancellationToken,
) -> Result<(), LinkError> {
    let talk = async {
        while let Some(ChunkRequest { hash }) = read_frame(&mut stream.recv).await? {
            match context.feed.chunk(hash) {
                Some(frame) => stream.send.write_shared(frame).await?,
                None => write_frame(&mut stream.send, &ChunkReply { bytes: None }).await?,
            }
        }
        Ok(())
    };
    tokio::select! {
        () = stop.cancelled() => Ok(()),
        reason = link.closed() => Err(LinkError::Lost(reason)),
        result = talk => result,
    }
}
