//! The edge's side of the link against the protocol's other end, over a real link; what is said there is up to each test.

use super::super::*;
use crate::cache::ResponseCache;
use crate::clock::Clock;
use crate::edge::{Metering, Own};
use crate::journal::{Journal, Opened};
use crate::limit::Limiter;
use crate::live::fixtures;
use crate::metrics::Metrics;
use crate::settings::Settings;
use crate::unsettled::Unsettled;
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
use turnpike_config::{Change, KeyDigest, KeyId, KeyRecord, Routing};
use uuid::Uuid;

pub(super) const PATIENCE: Duration = Duration::from_secs(30);

pub(super) fn issue(
    authority: &CertifiedIssuer<'static, KeyPair>,
    directory: &Path,
    name: &str,
    host: &str,
) -> link::TlsFiles {
    let key = KeyPair::generate().unwrap();
    let leaf = CertificateParams::new([host.to_owned()]).unwrap().signed_by(&key, authority).unwrap();
    let path = |end: &str| directory.join(format!("{name}{end}"));
    std::fs::write(path("-ca.pem"), authority.pem()).unwrap();
    std::fs::write(path(".pem"), leaf.pem()).unwrap();
    std::fs::write(path(".key"), key.serialize_pem()).unwrap();
    link::TlsFiles { ca: path("-ca.pem"), cert: path(".pem"), key: path(".key") }
}

/// Chunks that can be fetched, one for each permit.
pub(super) struct Shelf {
    pub(super) chunks: Mutex<HashMap<Hash, Chunk>>,
    pub(super) permits: Semaphore,
    pub(super) asked: Mutex<Vec<Hash>>,
}

impl Shelf {
    pub(super) async fn serve(self: Arc<Self>, mut send: Sender, mut receive: Receiver) {
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
pub(super) struct Line {
    pub(super) connection: Link,
    pub(super) send: Sender,
    pub(super) receive: Receiver,
    pub(super) hello: EdgeHello,
}

impl Line {
    pub(super) async fn tell(&mut self, frame: &PushFrame) {
        write_frame(&mut self.send, frame).await.unwrap();
    }

    pub(super) async fn hear(&mut self) -> PushReply {
        tokio::time::timeout(PATIENCE, read_frame(&mut self.receive)).await.unwrap().unwrap().unwrap()
    }

    pub(super) async fn ask(&mut self, frame: &PushFrame) -> PushReply {
        self.tell(frame).await;
        self.hear().await
    }
}

/// The other end of links: a log and its state, and whoever links to it.
pub(super) struct Control {
    pub(super) signer: Signer,
    pub(super) at: Position,
    pub(super) routing: Routing,
    pub(super) address: String,
    pub(super) shelf: Arc<Shelf>,
    pub(super) lines: mpsc::UnboundedReceiver<Line>,
    pub(super) _serving: JoinHandle<()>,
}

impl Control {
    pub(super) fn start(files: &link::TlsFiles) -> Self {
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

    pub(super) async fn accept(server: LinkServer, shelf: Arc<Shelf>, line: mpsc::UnboundedSender<Line>) {
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

    pub(super) async fn line(&mut self) -> Line {
        tokio::time::timeout(PATIENCE, self.lines.recv()).await.unwrap().unwrap()
    }

    /// Changes the state, and says so as a delta.
    pub(super) fn delta(&mut self, changes: Vec<Change>) -> PushFrame {
        let delta = self.delta_of(changes.iter().map(bytes).collect());
        changes.into_iter().for_each(|change| self.routing.apply(change));
        self.at = delta.entries.iter().fold(self.at, |at, entry| at.then(entry.hash()));
        PushFrame::Delta(delta)
    }

    /// A signed delta of anything, which does not become part of the log.
    pub(super) fn delta_of(&self, entries: Vec<Vec<u8>>) -> Delta {
        let entries: Vec<_> = entries.into_iter().map(|entry| Item::Entry(entry.into())).collect();
        let to = entries.iter().fold(self.at, |at, entry| at.then(entry.hash()));
        Delta { from: self.at.version, entries, signature: self.signer.sign(Statement::Head(to)) }
    }

    /// The whole state, ready to be fetched.
    pub(super) fn manifest(&self) -> Manifest {
        self.manifest_of(cut(&self.routing).unwrap())
    }

    pub(super) fn manifest_of(&self, chunks: Vec<Chunk>) -> Manifest {
        let hashes = chunks.iter().map(|chunk| chunk.hash).collect();
        self.shelf.chunks.lock().unwrap().extend(chunks.into_iter().map(|chunk| (chunk.hash, chunk)));
        Manifest::new(self.at, hashes, 0, &self.signer)
    }

    pub(super) fn urgent(&self, ahead: u64, change: &Change) -> PushFrame {
        let (version, entry) = (self.at.version + ahead, bytes(change));
        let signature = self.signer.sign(Statement::Urgent { version, entry: Hash::of(&entry) });
        PushFrame::Urgent(Urgent { version, entry: entry.into(), signature })
    }
}

pub(super) fn bytes(change: &Change) -> Vec<u8> {
    Entry { change: change.clone(), audience: None }.to_bytes().into()
}

/// The journal, as soon as the threads of the one before have let go of it.
pub(super) fn journal(directory: &Path) -> Journal {
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
pub(super) struct World {
    pub(super) control: Control,
    pub(super) directory: tempfile::TempDir,
    pub(super) files: link::TlsFiles,
}

pub(super) struct Running {
    pub(super) edge: Arc<Edge>,
    pub(super) stop: CancellationToken,
    pub(super) task: JoinHandle<()>,
}

impl Running {
    pub(super) fn key(&self, n: u64) -> Option<Arc<crate::live::Key>> {
        self.edge.snapshot.load().key(&key(n).digest)
    }

    pub(super) async fn until(&self, what: impl Fn(&Self) -> bool) {
        let reached = async {
            while !what(self) {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        tokio::time::timeout(PATIENCE, reached).await.unwrap();
    }

    pub(super) async fn stop(self) {
        self.stop.cancel();
        // A fetch that was broken off may take a moment to let go.
        self.until(|running| running.task.is_finished() && Arc::strong_count(&running.edge) == 1).await;
    }
}

impl World {
    pub(super) fn new() -> Self {
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

    pub(super) fn edge(&self) -> Running {
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
        let nodes = crate::upstream::Connector::new(identity.client_config(&[]).unwrap());
        let aside = crate::node_client::Aside::new(&identity, tokio::runtime::Handle::current()).unwrap();
        let own = Own { name: "e1".to_owned(), nodes, aside };
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
    pub(super) async fn linked(&mut self) -> (Running, Line) {
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

pub(super) fn key(n: u64) -> KeyRecord {
    let like = fixtures::routing().keys.values().next().unwrap().clone();
    KeyRecord { id: KeyId(Uuid::from_u128(n.into())), digest: KeyDigest::of(&n.to_string()), ..like }
}

pub(super) fn put(n: u64) -> Change {
    Change::PutKey(key(n))
}
