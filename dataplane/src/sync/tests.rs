//! The edge's side of the link against the protocol's other end, over a real link; what is said there is up to each test.

use super::*;
use crate::cache::ResponseCache;
use crate::clock::Clock;
use crate::edge::{Metering, Own};
use crate::journal::{Journal, Opened};
use crate::limit::Limiter;
use crate::live::fixtures;
use crate::metrics::Metrics;
use crate::settings::Settings;
use crate::unsettled::Unsettled;
use pingora::utils::tls::CertKey;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use std::collections::HashMap;
use std::path::Path;
use std::sync::Mutex;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinHandle;
use turnpike_config::link::{
    self, Identity, Link, LinkServer, Receiver, Role, Sender, domain, read_frame, write_frame,
};
use turnpike_config::log::{Entry, Hash, Position};
use turnpike_config::push::chunks::{Chunk, cut};
use turnpike_config::push::{ChunkReply, ChunkRequest, Delta, EdgeHello, Item, Manifest, PushFrame, PushReply, Urgent};
use turnpike_config::signing::{Signer, Statement};
use turnpike_config::wire::Open;
use turnpike_config::{Change, KeyDigest, KeyId, KeyRecord, OrgId, RateLimits, Routing};
use uuid::Uuid;

const PATIENCE: Duration = Duration::from_secs(30);

fn issue(authority: &CertifiedIssuer<'static, KeyPair>, directory: &Path, name: &str, host: &str) -> link::TlsFiles {
    let key = KeyPair::generate().unwrap();
    let leaf = CertificateParams::new([host.to_owned()]).unwrap().signed_by(&key, authority).unwrap();
    let path = |end: &str| directory.join(format!("{name}{end}"));
    std::fs::write(path("-ca.pem"), authority.pem()).unwrap();
    std::fs::write(path(".pem"), leaf.pem()).unwrap();
    std::fs::write(path(".key"), key.serialize_pem()).unwrap();
    link::TlsFiles { ca: path("-ca.pem"), cert: path(".pem"), key: path(".key") }
}

/// Chunks that can be fetched, one for each permit.
struct Shelf {
    chunks: Mutex<HashMap<Hash, Chunk>>,
    permits: Semaphore,
    asked: Mutex<Vec<Hash>>,
}

impl Shelf {
    async fn serve(self: Arc<Self>, mut send: Sender, mut receive: Receiver) {
        while let Ok(Some(ChunkRequest { hash })) = read_frame(&mut receive).await {
            self.asked.lock().unwrap().push(hash);
            let Ok(permit) = self.permits.acquire().await else { return };
            permit.forget();
            let bytes = self.chunks.lock().unwrap().get(&hash).map(|chunk| chunk.bytes.clone());
            if write_frame(&mut send, &ChunkReply { bytes }).await.is_err() {
                return;
            }
        }
    }
}

/// One push stream, from its other end.
struct Line {
    connection: Link,
    send: Sender,
    receive: Receiver,
    hello: EdgeHello,
}

impl Line {
    async fn tell(&mut self, frame: &PushFrame) {
        write_frame(&mut self.send, frame).await.unwrap();
    }

    async fn hear(&mut self) -> PushReply {
        tokio::time::timeout(PATIENCE, read_frame(&mut self.receive)).await.unwrap().unwrap().unwrap()
    }

    async fn ask(&mut self, frame: &PushFrame) -> PushReply {
        self.tell(frame).await;
        self.hear().await
    }
}

/// The other end of links: a log and its state, and whoever links to it.
struct Control {
    signer: Signer,
    at: Position,
    routing: Routing,
    address: String,
    shelf: Arc<Shelf>,
    lines: mpsc::UnboundedReceiver<Line>,
    _serving: JoinHandle<()>,
}

impl Control {
    fn start(files: &link::TlsFiles) -> Self {
        let server = LinkServer::bind(([127, 0, 0, 1], 0).into(), &Identity::load(files).unwrap()).unwrap();
        let address = server.local_addr().unwrap().to_string();
        let shelf = Arc::new(Shelf {
            chunks: Mutex::default(),
            permits: Semaphore::new(Semaphore::MAX_PERMITS / 2),
            asked: Mutex::default(),
        });
        let (line, lines) = mpsc::unbounded_channel();
        let serving = tokio::spawn(Self::accept(server, Arc::clone(&shelf), line));
        let signer = Signer::from_seed(&[7; 32]).unwrap();
        let at = Position { version: 0, chain: Hash::of(b"a deployment") };
        Self { signer, at, routing: Routing::default(), address, shelf, lines, _serving: serving }
    }

    async fn accept(server: LinkServer, shelf: Arc<Shelf>, line: mpsc::UnboundedSender<Line>) {
        while let Some(incoming) = server.accept().await {
            let Ok((_, connection)) = LinkServer::authenticate(incoming).await else { continue };
            let (shelf, line) = (Arc::clone(&shelf), line.clone());
            tokio::spawn(async move {
                let mut usage = Vec::new();
                while let Ok((send, mut receive)) = connection.accept().await {
                    match read_frame::<Open>(&mut receive).await {
                        Ok(Some(Open::Push(hello))) => {
                            let _ = line.send(Line { connection: connection.clone(), send, receive, hello });
                        }
                        Ok(Some(Open::Chunks)) => drop(tokio::spawn(Arc::clone(&shelf).serve(send, receive))),
                        _ => usage.push((send, receive)),
                    }
                }
            });
        }
    }

    async fn line(&mut self) -> Line {
        tokio::time::timeout(PATIENCE, self.lines.recv()).await.unwrap().unwrap()
    }

    /// Changes the state, and says so as a delta.
    fn delta(&mut self, changes: Vec<Change>) -> PushFrame {
        let delta = self.delta_of(changes.iter().map(bytes).collect());
        changes.into_iter().for_each(|change| self.routing.apply(change));
        self.at = delta.entries.iter().fold(self.at, |at, entry| at.then(entry.hash()));
        PushFrame::Delta(delta)
    }

    /// A signed delta of anything, which does not become part of the log.
    fn delta_of(&self, entries: Vec<Vec<u8>>) -> Delta {
        let entries: Vec<_> = entries.into_iter().map(|entry| Item::Entry(entry.into())).collect();
        let to = entries.iter().fold(self.at, |at, entry| at.then(entry.hash()));
        Delta { from: self.at.version, entries, signature: self.signer.sign(Statement::Head(to)) }
    }

    /// The whole state, ready to be fetched.
    fn manifest(&self) -> Manifest {
        self.manifest_of(cut(&self.routing).unwrap())
    }

    fn manifest_of(&self, chunks: Vec<Chunk>) -> Manifest {
        let hashes = chunks.iter().map(|chunk| chunk.hash).collect();
        self.shelf.chunks.lock().unwrap().extend(chunks.into_iter().map(|chunk| (chunk.hash, chunk)));
        Manifest::new(self.at, hashes, 0, &self.signer)
    }

    fn urgent(&self, ahead: u64, change: &Change) -> PushFrame {
        let (version, entry) = (self.at.version + ahead, bytes(change));
        let signature = self.signer.sign(Statement::Urgent { version, entry: Hash::of(&entry) });
        PushFrame::Urgent(Urgent { version, entry: entry.into(), signature })
    }
}

fn bytes(change: &Change) -> Vec<u8> {
    Entry { change: change.clone(), audience: None }.to_bytes().into()
}

/// The journal, as soon as the threads of the one before have let go of it.
fn journal(directory: &Path) -> Journal {
    let began = std::time::Instant::now();
    loop {
        match Journal::open(directory, 1 << 30, |_, _| {}) {
            Ok(Opened { journal, .. }) => return journal,
            Err(error) => assert!(began.elapsed() < PATIENCE, "{error}"),
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// A control plane and an edge that is linked to it.
struct World {
    control: Control,
    directory: tempfile::TempDir,
    files: link::TlsFiles,
}

struct Running {
    edge: Arc<Edge>,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Running {
    fn key(&self, n: u64) -> Option<Arc<crate::live::Key>> {
        self.edge.snapshot.load().key(&key(n).digest)
    }

    async fn until(&self, what: impl Fn(&Self) -> bool) {
        let reached = async {
            while !what(self) {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        tokio::time::timeout(PATIENCE, reached).await.unwrap();
    }

    async fn stop(self) {
        self.stop.cancel();
        // A fetch that was broken off may take a moment to let go.
        self.until(|running| running.task.is_finished() && Arc::strong_count(&running.edge) == 1).await;
    }
}

impl World {
    fn new() -> Self {
        // Whoever was first has installed the same one.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let directory = tempfile::tempdir().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let control = Control::start(&issue(&authority, directory.path(), "control", link::CONTROL_DOMAIN));
        let files = issue(&authority, directory.path(), "edge", &domain(Role::Edge, "e1"));
        Self { control, directory, files }
    }

    fn edge(&self) -> Running {
        let here = self.directory.path();
        let text = format!(
            "data_dir = \"{0}/data\"\n[http]\nlisten = \"127.0.0.1:1\"\n[admin]\nlisten = \"127.0.0.1:1\"\n\
             [control]\naddress = \"{1}\"\n[tls]\nca = \"{0}/x\"\ncert = \"{0}/x\"\nkey = \"{0}/x\"\n\
             [signing]\ntrusted = \"{0}/x\"\n",
            here.display(),
            self.control.address
        );
        let settings = Settings::load("edge.toml", &text, &|_| None).unwrap();
        let metrics = Arc::new(Metrics::new());
        let (unsettled, _) = Unsettled::new();
        let journal = journal(&settings.data_dir.join("journal"));
        let identity = Identity::load(&self.files).unwrap();
        let chain = identity.chain.iter().map(|certificate| certificate.to_vec()).collect();
        let own = Own { name: "e1".to_owned(), certificate: CertKey::new(chain, identity.key_der().to_vec()) };
        let limiter = Arc::new(Limiter::alone(Clock, Arc::clone(&metrics)));
        let cache = ResponseCache::new(1 << 20, None);
        let metering = Metering { journal, unsettled };
        let edge = Arc::new(Edge::new(settings, own, metering, metrics, limiter, cache, None));
        let sync = Sync::start(Arc::clone(&edge), self.control.signer.trust()).unwrap();
        let stop = CancellationToken::new();
        let task = tokio::spawn(sync.run(identity, stop.clone()));
        Running { edge, stop, task }
    }

    /// An edge that has the fixtures' state, as version 1 and following.
    async fn linked(&mut self) -> (Running, Line) {
        let running = self.edge();
        let mut line = self.control.line().await;
        let all = self.control.delta(fixtures::routing().changes().collect());
        // It holds nothing, not even the beginning of this log.
        assert_eq!(line.hello.holds, Position::default());
        drop(all);
        let manifest = PushFrame::Manifest(self.control.manifest());
        assert_eq!(line.ask(&manifest).await, PushReply::Ack(self.control.at));
        (running, line)
    }
}

fn key(n: u64) -> KeyRecord {
    let like = fixtures::routing().keys.values().next().unwrap().clone();
    KeyRecord { id: KeyId(Uuid::from_u128(n.into())), digest: KeyDigest::of(&n.to_string()), ..like }
}

fn put(n: u64) -> Change {
    Change::PutKey(key(n))
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_pushed_is_served_by_and_survives_a_restart() {
    let mut world = World::new();
    let (running, mut line) = world.linked().await;
    for n in 0..10 {
        let delta = world.control.delta(vec![put(n)]);
        assert_eq!(line.ask(&delta).await, PushReply::Ack(world.control.at));
        assert!(running.key(n).is_some());
    }
    let (at, metrics) = (world.control.at, Arc::clone(&running.edge.metrics));
    assert_eq!((metrics.pushes_applied.get(), metrics.pushes_refused.get()), (11, 0));
    assert!(metrics.push_bytes.get() > 10 * 100 && metrics.apply_seconds.get() > 0.0);
    running.stop().await;
    let again = world.edge();
    assert_eq!(again.edge.snapshot.load().at, at, "before it is linked");
    assert!(again.key(3).is_some() && again.edge.snapshot.load().model("m").is_some());
    let mut line = world.control.line().await;
    assert_eq!(line.hello.holds, at);
    let delta = world.control.delta(vec![Change::DropKey(key(3).digest)]);
    assert_eq!(line.ask(&delta).await, PushReply::Ack(world.control.at));
    assert!(again.key(3).is_none());
    again.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn poison_is_refused_with_its_reason_and_changes_nothing() {
    let mut world = World::new();
    let (running, mut line) = world.linked().await;
    let first = world.control.delta(vec![put(1)]);
    line.ask(&first).await;
    let (control, at) = (&world.control, world.control.at);
    let stranger = Signer::from_seed(&[8; 32]).unwrap();
    let delta = |changes: &[Change]| control.delta_of(changes.iter().map(bytes).collect());
    let signed_by_others = Delta { signature: stranger.sign(Statement::Head(at)), ..delta(&[put(2)]) };
    let nobody = OrgId(Uuid::from_u128(404));
    let zero = RateLimits { tokens_per_minute: Some(0), ..RateLimits::default() };
    let truncated = bytes(&put(2)).split_last().map(|(_, rest)| rest.to_vec()).unwrap();
    // An entry whose change has the number 99.
    let unknown = vec![0x82, 0x82, 0x18, 99, 0x81, 0x00, 0xf6];
    let PushFrame::Delta(old) = first else { panic!() };
    let deltas = [
        ("signed by no key", signed_by_others),
        ("follows on version", old),
        ("cannot read", control.delta_of(vec![unknown])),
        ("cannot read", control.delta_of(vec![truncated])),
        ("cannot read", control.delta_of(vec![vec![]])),
        ("does not exist", delta(&[put(2), Change::PutKey(KeyRecord { organization: nobody, ..key(3) })])),
        ("there are keys of it", delta(&[Change::DropOrg(key(1).organization)])),
        ("admits nothing", delta(&[Change::PutKey(KeyRecord { limits: zero, ..key(2) })])),
        ("over the limit of 4096", control.delta_of((0..4097).map(|n| bytes(&put(n))).collect())),
    ];
    let mut tried = 0;
    for (reason, delta) in deltas {
        let version = delta.to();
        match line.ask(&PushFrame::Delta(delta)).await {
            PushReply::Nack { version: refused, reason: said } => {
                assert!(refused == version && said.contains(reason), "{reason}: {said}");
            }
            PushReply::Ack(at) => panic!("{reason}: {at:?}"),
        }
        tried += 1;
    }
    let chunk = |changes: &[Change]| Chunk::pack(changes).unwrap();
    let sorted = |n: u64| {
        let mut keys: Vec<_> = (0..n).map(put).collect();
        keys.sort_by_key(|change| if let Change::PutKey(key) = change { key.digest } else { key(0).digest });
        keys
    };
    let org = control.routing.orgs.values().next().cloned().map(Change::PutOrg).unwrap();
    let damaged = Chunk { hash: Hash::of(b"another"), ..chunk(&[put(2)]) };
    let cut_short = {
        let Chunk { bytes, .. } = chunk(&sorted(100));
        let bytes = bytes[..bytes.len() / 2].to_vec();
        Chunk { hash: Hash::of(&bytes), bytes: bytes.into() }
    };
    let bomb = {
        let bytes = zstd::bulk::compress(&vec![0; 64 << 20], 1).unwrap();
        Chunk { hash: Hash::of(&bytes), bytes: bytes.into() }
    };
    let backwards = sorted(9).into_iter().rev().collect::<Vec<_>>();
    let states = [
        ("not what its hash says", vec![damaged]),
        ("does not unpack", vec![cut_short]),
        ("does not unpack", vec![bomb]),
        ("does not exist", vec![chunk(&sorted(50))]),
        ("out of order", vec![chunk(std::slice::from_ref(&org)), chunk(&backwards)]),
        ("out of order", vec![chunk(&[org, put(1)]), chunk(&[put(1)])]),
        ("drops something", vec![chunk(&[Change::DropKey(key(1).digest)])]),
    ];
    for (reason, chunks) in states {
        let at = Position { version: at.version + 1, chain: Hash::of(reason.as_bytes()) };
        let Manifest { chunks, .. } = control.manifest_of(chunks);
        let manifest = Manifest::new(at, chunks, 0, &control.signer);
        match line.ask(&PushFrame::Manifest(manifest)).await {
            PushReply::Nack { version, reason: said } => {
                assert!(version == at.version && said.contains(reason), "{reason}: {said}");
            }
            PushReply::Ack(at) => panic!("{reason}: {at:?}"),
        }
        tried += 1;
    }
    let PushReply::Nack { .. } = line
        .ask(&PushFrame::Manifest(Manifest { signature: stranger.sign(Statement::Head(at)), ..control.manifest() }))
        .await
    else {
        panic!("an unsigned manifest")
    };
    assert_eq!(running.edge.metrics.pushes_refused.get(), tried + 1);
    assert_eq!(running.edge.snapshot.load().at, at);
    assert!(running.key(1).is_some() && running.key(2).is_none());
    // And it goes on.
    let delta = world.control.delta(vec![put(2)]);
    assert_eq!(line.ask(&delta).await, PushReply::Ack(world.control.at));
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_urgent_entry_does_not_wait_for_a_whole_state() {
    let mut world = World::new();
    let (running, mut line) = world.linked().await;
    let delta = world.control.delta((0..3_000).map(put).collect());
    line.ask(&delta).await;
    // The edge is told of a state of a fork, and the chunks are slow.
    world.control.at.version += 1;
    world.control.at.chain = Hash::of(b"further on");
    world.control.shelf.permits.forget_permits(usize::MAX >> 4);
    let manifest = world.control.manifest();
    assert!(manifest.chunks.len() > 1);
    line.tell(&PushFrame::Manifest(manifest)).await;
    line.tell(&world.control.urgent(1, &Change::DropKey(key(5).digest))).await;
    running.until(|edge| edge.key(5).is_none()).await;
    // What does not fit yet is no reason to stop.
    let strange = KeyRecord { organization: OrgId(Uuid::from_u128(404)), ..key(9_000) };
    line.tell(&world.control.urgent(2, &Change::PutKey(strange))).await;
    line.tell(&world.control.urgent(3, &Change::PutKey(KeyRecord { active: false, ..key(6) }))).await;
    running.until(|edge| edge.key(6).is_some_and(|key| !key.record.active)).await;
    assert_ne!(running.edge.snapshot.load().at, world.control.at);
    // An edge that is started again before the state is there has not forgotten.
    running.stop().await;
    let running = world.edge();
    assert!(running.key(5).is_none() && running.key(6).is_some_and(|key| !key.record.active));
    let mut line = world.control.line().await;
    line.tell(&PushFrame::Manifest(world.control.manifest())).await;
    line.tell(&world.control.urgent(1, &Change::DropKey(key(5).digest))).await;
    line.tell(&world.control.urgent(4, &Change::DropKey(key(7).digest))).await;
    running.until(|edge| edge.key(7).is_none()).await;
    world.control.shelf.permits.add_permits(10_000);
    assert_eq!(line.hear().await, PushReply::Ack(world.control.at));
    assert!(running.key(5).is_none() && running.key(7).is_none(), "the state has them, what came after has not");
    assert!(running.key(6).is_some_and(|key| !key.record.active), "it remembers what it was told before");
    // The log was set back before anybody saw the end of it: nothing of that is left once it is further.
    for n in 0..5 {
        let delta = world.control.delta(vec![put(n)]);
        assert_eq!(line.ask(&delta).await, PushReply::Ack(world.control.at));
    }
    for n in [5, 6, 7] {
        assert!(running.key(n).is_some_and(|key| key.record.active), "key {n}");
    }
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transfer_that_breaks_off_goes_on_where_it_was() {
    let mut world = World::new();
    let running = world.edge();
    let mut line = world.control.line().await;
    drop(world.control.delta(fixtures::routing().changes().chain((0..20_000).map(put)).collect()));
    let manifest = world.control.manifest();
    let all = manifest.chunks.len();
    assert!(all > 8, "{all} chunks");
    world.control.shelf.permits.forget_permits(usize::MAX >> 4);
    world.control.shelf.permits.add_permits(all / 2);
    line.tell(&PushFrame::Manifest(manifest)).await;
    let chunks = ChunkFiles::open(running.edge.settings.data_dir.join("chunks")).unwrap();
    running.until(|_| chunks.count() == all / 2).await;
    line.connection.close(0, "gone");
    let line = world.control.line().await;
    assert_eq!(line.hello.holds, Position::default());
    // It is restarted as well, and one of the chunks is damaged meanwhile.
    running.stop().await;
    let kept = std::fs::read_dir(world.directory.path().join("data/chunks")).unwrap().next().unwrap().unwrap();
    std::fs::write(kept.path(), b"damaged").unwrap();
    line.connection.close(0, "gone");
    let running = world.edge();
    let mut line = world.control.line().await;
    world.control.shelf.asked.lock().unwrap().clear();
    world.control.shelf.permits.add_permits(10_000);
    let reply = line.ask(&PushFrame::Manifest(world.control.manifest())).await;
    assert_eq!(reply, PushReply::Ack(world.control.at));
    assert_eq!(world.control.shelf.asked.lock().unwrap().len(), all - all / 2 + 1);
    assert_eq!(chunks.count(), 0, "what is served by needs no chunks");
    assert_eq!(running.edge.snapshot.load().key_count(), 20_001);
    // A chunk that is not kept any more: the edge comes again, for a new manifest.
    world.control.at = world.control.at.then(Hash::of(b"x"));
    let manifest = world.control.manifest();
    world.control.shelf.chunks.lock().unwrap().clear();
    line.tell(&PushFrame::Manifest(manifest)).await;
    let line = world.control.line().await;
    assert_ne!(line.hello.holds, Position::default());
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_version_that_an_edge_died_by_is_refused_and_the_next_one_taken() {
    let mut world = World::new();
    let (running, mut line) = world.linked().await;
    let before = world.control.at;
    let deadly = world.control.delta(vec![put(1)]);
    assert_eq!(line.ask(&deadly).await, PushReply::Ack(world.control.at));
    running.stop().await;
    // As three starts leave it that ended before the edge had served for long.
    let noted = serde_json::json!({"at": world.control.at, "starts": 3, "distrusted": null});
    std::fs::write(world.directory.path().join("data/routing/starts.json"), noted.to_string()).unwrap();
    let running = world.edge();
    assert_eq!(running.edge.metrics.gave_up_version.get(), 1);
    assert!(running.edge.snapshot.load().at == before && running.key(1).is_none());
    let mut line = world.control.line().await;
    assert_eq!(line.hello.holds, before);
    for frame in [deadly, PushFrame::Manifest(world.control.manifest())] {
        let reply = line.ask(&frame).await;
        assert!(matches!(&reply, PushReply::Nack { reason, .. } if reason.contains("died")), "{reply:?}");
    }
    // What follows leads elsewhere.
    drop(world.control.delta(vec![put(2)]));
    let manifest = PushFrame::Manifest(world.control.manifest());
    assert_eq!(line.ask(&manifest).await, PushReply::Ack(world.control.at));
    assert!(running.key(1).is_some() && running.key(2).is_some());
    running.stop().await;
}
