//! Edges and nodes as the control plane sees them: real links that speak the wire protocol.

use crate::plane::{PATIENCE, Plane};
use tokio::time::timeout;
use turnpike_config::link::{self, Receiver, Role, Sender, connect, read_frame, write_frame};
use turnpike_config::log::{Hash, Position};
use turnpike_config::push::chunks::Chunk;
use turnpike_config::push::{ChunkReply, ChunkRequest, Follower, PushFrame, PushReply, Refusal, Step};
use turnpike_config::records::Served;
use turnpike_config::wire::{DayCount, NodeHello, NodeReply, NodeReport, Open, UsageAck, UsageBatch, Watermark};
use turnpike_config::{Change, NodeState, Routing, UsageEvent};

/// A link with one stream.
pub(crate) struct Link {
    pub(crate) connection: link::Link,
    pub(crate) send: Sender,
    pub(crate) recv: Receiver,
}

impl Link {
    pub(crate) async fn open(plane: &Plane, role: Role, name: &str, open: Open) -> Self {
        let identity = plane.identity(role, name);
        let connection = connect(&plane.link.to_string(), &identity).await.unwrap();
        let (mut send, recv) = connection.open().await.unwrap();
        write_frame(&mut send, &open).await.unwrap();
        Self { connection, send, recv }
    }
}

/// What an edge was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Snapshot,
    Delta,
}

/// What an edge holds.
#[derive(Clone, Debug, Default)]
pub(crate) struct Held {
    pub(crate) routing: Routing,
    pub(crate) at: Position,
}

pub(crate) struct Edge {
    pub(crate) link: Link,
    pub(crate) routing: Routing,
    pub(crate) follower: Follower,
}

impl Edge {
    pub(crate) async fn connect(plane: &Plane, name: &str, routing: Routing) -> Self {
        Self::come_back(plane, name, Held { routing, at: Position::default() }).await
    }

    pub(crate) async fn connect_in(region: &str, plane: &Plane, name: &str, routing: Routing) -> Self {
        Self::come_back_in(plane, name, region, Held { routing, at: Position::default() }).await
    }

    pub(crate) async fn come_back(plane: &Plane, name: &str, held: Held) -> Self {
        Self::come_back_in(plane, name, "eu", held).await
    }

    pub(crate) async fn come_back_in(plane: &Plane, name: &str, region: &str, held: Held) -> Self {
        let follower = Follower::new(name.to_owned(), region.to_owned(), plane.trust(), held.at);
        let link = Link::open(plane, Role::Edge, name, Open::Push(follower.hello("test"))).await;
        Self { link, routing: held.routing, follower }
    }

    pub(crate) fn held(&self) -> Held {
        Held { routing: self.routing.clone(), at: self.follower.held() }
    }

    /// Takes the next frame that wants an answer, without answering.
    pub(crate) async fn take(&mut self) -> Kind {
        loop {
            let frame = timeout(PATIENCE, read_frame::<PushFrame>(&mut self.link.recv)).await.expect("a frame in time");
            match self.follower.take(frame.unwrap().expect("the stream is open")).expect("it is right") {
                Step::Apply { changes, to } => {
                    changes.into_iter().for_each(|change| self.routing.apply(change));
                    self.adopt(to);
                    return Kind::Delta;
                }
                Step::Fetch(manifest) => {
                    self.routing = Routing::default();
                    for hash in manifest.chunks {
                        self.fetch(hash).await.into_iter().for_each(|change| self.routing.apply(change));
                    }
                    self.follower.pending(manifest.at.version).for_each(|(_, change)| self.routing.apply(change));
                    self.adopt(manifest.at);
                    return Kind::Snapshot;
                }
                Step::ApplyNow { change, .. } => self.routing.apply(change),
                Step::Held(_) => return Kind::Snapshot,
                Step::Nothing => {}
            }
        }
    }

    /// Takes the next frame, which is refused.
    pub(crate) async fn refused(&mut self) -> Refusal {
        let frame = timeout(PATIENCE, read_frame::<PushFrame>(&mut self.link.recv)).await.expect("a frame in time");
        self.follower.take(frame.unwrap().expect("the stream is open")).expect_err("it is refused")
    }

    fn adopt(&mut self, to: Position) {
        self.routing.version = to.version;
        self.follower.adopt(to);
    }

    pub(crate) async fn fetch(&self, hash: Hash) -> Vec<Change> {
        let (mut send, mut recv) = self.link.connection.open().await.unwrap();
        write_frame(&mut send, &Open::Chunks).await.unwrap();
        write_frame(&mut send, &ChunkRequest { hash }).await.unwrap();
        let reply = timeout(PATIENCE, read_frame::<ChunkReply>(&mut recv)).await.expect("a chunk in time");
        Chunk::open(hash, &reply.unwrap().unwrap().bytes.expect("the chunk is kept")).unwrap()
    }

    pub(crate) async fn reply(&mut self, reply: PushReply) {
        write_frame(&mut self.link.send, &reply).await.unwrap();
    }

    pub(crate) async fn next(&mut self) -> Kind {
        let kind = self.take().await;
        self.reply(PushReply::Ack(self.follower.held())).await;
        kind
    }

    /// Follows until `condition` holds.
    pub(crate) async fn until(&mut self, what: &str, condition: impl Fn(&Routing) -> bool) {
        let follow = async {
            while !condition(&self.routing) {
                self.next().await;
            }
        };
        timeout(PATIENCE, follow).await.unwrap_or_else(|_| panic!("{what} did not reach the edge"));
    }

    pub(crate) async fn until_version(&mut self, version: u64) {
        self.until("the version", |routing| routing.version >= version).await;
    }

    pub(crate) fn node_state(&self, name: &str) -> Option<NodeState> {
        self.routing.nodes.get(name).map(|node| node.state)
    }
}

pub(crate) struct Meter(Link);

impl Meter {
    pub(crate) async fn connect(plane: &Plane, name: &str) -> Self {
        Self(Link::open(plane, Role::Edge, name, Open::Usage).await)
    }

    pub(crate) async fn send(&mut self, epoch: u64, first_seq: u64, events: &[UsageEvent]) {
        self.send_with(epoch, first_seq, events, Watermark::default()).await;
    }

    pub(crate) async fn send_with(&mut self, epoch: u64, first_seq: u64, events: &[UsageEvent], complete: Watermark) {
        let end_seq = first_seq + events.len() as u64;
        let batch = UsageBatch { epoch, first_seq, events: events.to_vec(), end_seq, complete, counts: Vec::new() };
        write_frame(&mut self.0.send, &batch).await.unwrap();
    }

    /// Ships nothing but what the edge has counted itself.
    pub(crate) async fn count(&mut self, epoch: u64, seq: u64, counts: Vec<DayCount>) {
        let complete = Watermark::default();
        let batch: UsageBatch =
            UsageBatch { epoch, first_seq: seq, events: Vec::new(), end_seq: seq, complete, counts };
        write_frame(&mut self.0.send, &batch).await.unwrap();
        assert_eq!(self.ack().await.end_seq, seq);
    }

    /// Ships nothing but how far the edge has come.
    pub(crate) async fn say(&mut self, epoch: u64, seq: u64, complete: Watermark) {
        self.send_with(epoch, seq, &[], complete).await;
        assert_eq!(self.ack().await.end_seq, seq);
    }

    pub(crate) async fn ack(&mut self) -> UsageAck {
        let ack = timeout(PATIENCE, read_frame::<UsageAck>(&mut self.0.recv)).await.expect("an ack in time");
        ack.unwrap().expect("the stream is open")
    }

    pub(crate) async fn ship(&mut self, epoch: u64, first_seq: u64, events: &[UsageEvent]) {
        self.send(epoch, first_seq, events).await;
        let ack = self.ack().await;
        assert_eq!((ack.epoch, ack.end_seq), (epoch, first_seq + events.len() as u64));
    }
}

pub(crate) fn node_hello(url: &str) -> NodeHello {
    NodeHello {
        region: "eu".to_owned(),
        url: url.to_owned(),
        engine: "builtin".to_owned(),
        serves: vec![Served { model: "m".to_owned(), version: "v1".to_owned() }],
        slots: 4,
        gpus: Vec::new(),
        build: "test".to_owned(),
    }
}

pub(crate) struct Node(pub(crate) Link);

impl Node {
    pub(crate) async fn connect(plane: &Plane, name: &str) -> Self {
        let (node, reply) = Self::hello(plane, name, node_hello("https://10.0.0.1:9000")).await;
        assert!(matches!(reply, NodeReply::Welcome { report_every_ms } if report_every_ms > 0), "{reply:?}");
        node
    }

    pub(crate) async fn hello(plane: &Plane, name: &str, hello: NodeHello) -> (Self, NodeReply) {
        let mut link = Link::open(plane, Role::Node, name, Open::Node(hello)).await;
        let reply = timeout(PATIENCE, read_frame(&mut link.recv)).await.expect("a reply in time").unwrap().unwrap();
        (Self(link), reply)
    }

    pub(crate) async fn report(&mut self, state: NodeState, running: u32) {
        let report = NodeReport {
            state,
            running,
            waiting: 0,
            kv_cache_permille: Some(250),
            gpu_permille: None,
            gpu_memory_permille: None,
            completed: 7,
            generated_tokens: 70,
        };
        write_frame(&mut self.0.send, &report).await.unwrap();
    }
}
