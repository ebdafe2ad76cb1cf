//! Edges and nodes as the control plane sees them: real links that speak the wire protocol.

use crate::plane::{PATIENCE, Plane};
use quinn::{Connection, RecvStream, SendStream};
use tokio::time::timeout;
use turnpike_config::link::{Role, connect, read_frame, write_frame};
use turnpike_config::routing::Served;
use turnpike_config::wire::{
    DayCount, EdgeHello, NodeHello, NodeReply, NodeReport, Open, PushFrame, PushReply, UsageAck, UsageBatch, Watermark,
};
use turnpike_config::{NodeState, Routing, UsageEvent};

/// A link with one stream.
pub(crate) struct Link {
    pub(crate) connection: Connection,
    pub(crate) send: SendStream,
    pub(crate) recv: RecvStream,
}

impl Link {
    pub(crate) async fn open(plane: &Plane, role: Role, name: &str, open: Open) -> Self {
        let identity = plane.identity(role, name);
        let connection = connect(&plane.link.to_string(), &identity).await.unwrap();
        let (mut send, recv) = connection.open_bi().await.unwrap();
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

pub(crate) struct Edge {
    pub(crate) link: Link,
    pub(crate) routing: Routing,
}

impl Edge {
    pub(crate) async fn connect(plane: &Plane, name: &str, holds: Routing) -> Self {
        Self::connect_in("eu", plane, name, holds).await
    }

    pub(crate) async fn connect_in(region: &str, plane: &Plane, name: &str, holds: Routing) -> Self {
        let hello = EdgeHello { region: region.to_owned(), holds: holds.version, build: "test".to_owned() };
        Self { link: Link::open(plane, Role::Edge, name, Open::Push(hello)).await, routing: holds }
    }

    /// Takes the next frame without answering.
    pub(crate) async fn take(&mut self) -> Kind {
        let frame = timeout(PATIENCE, read_frame::<PushFrame>(&mut self.link.recv)).await.expect("a frame in time");
        match frame.unwrap().expect("the stream is open") {
            PushFrame::Snapshot(routing) => {
                self.routing = routing;
                Kind::Snapshot
            }
            PushFrame::Delta(delta) => {
                assert_eq!(delta.from, self.routing.version, "a delta fits what the edge holds");
                assert_eq!(delta.changes.len() as u64, delta.to - delta.from, "one change per version");
                delta.changes.into_iter().for_each(|change| self.routing.apply(change));
                self.routing.version = delta.to;
                Kind::Delta
            }
        }
    }

    pub(crate) async fn reply(&mut self, reply: PushReply) {
        write_frame(&mut self.link.send, &reply).await.unwrap();
    }

    pub(crate) async fn next(&mut self) -> Kind {
        let kind = self.take().await;
        self.reply(PushReply::Ack(self.routing.version)).await;
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
        let batch = UsageBatch { epoch, first_seq: seq, events: Vec::new(), end_seq: seq, complete, counts };
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
