//! Changes on their way to real edges: from files, in stages, and poisoned.

use crate::harness::{Fleet, MODEL, chat_body, eventually, get, post, turnpike};
use minicbor::bytes::ByteVec;
use rustls_pki_types::PrivatePkcs8KeyDer;
use rustls_pki_types::pem::PemObject as _;
use serde_json::{Value, json};
use std::process::Output;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use turnpike_config::link::{Identity, Link, LinkServer, Receiver, Role, Sender, TlsFiles, read_frame, write_frame};
use turnpike_config::log::{Entry, Hash, Position};
use turnpike_config::push::{Delta, EdgeHello, Item, MAX_CHUNKS, Manifest, PushFrame, PushReply};
use turnpike_config::signing::{Signature, Signer, Statement};
use turnpike_config::wire::Open;
use turnpike_config::{Change, KeyDigest, KeyId, KeyRecord, ModelLimits, OrgId, Permissions, RateLimits};
use uuid::Uuid;

/// Runs a command of an operator's.
async fn operate(fleet: &Fleet, arguments: &[&str]) -> Output {
    let mut command = turnpike();
    command
        .args(arguments)
        .env("TURNPIKE_ADMIN_URL", &fleet.admin.base)
        .env("TURNPIKE_ADMIN_TOKEN", &fleet.admin.token);
    tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Runs one that succeeds.
async fn done(fleet: &Fleet, arguments: &[&str]) -> String {
    let output = operate(fleet, arguments).await;
    assert!(output.status.success(), "{arguments:?}: {}", text(&output));
    text(&output)
}

#[tokio::test(flavor = "multi_thread")]
async fn files_bring_about_what_they_say_at_once_or_in_stages() {
    let mut fleet = Fleet::start(&["n1"], "0ms").await;
    let other = fleet.add_edge_in("there", "edge-there", "").await;
    let directory = fleet.path("deploy");
    let files = directory.to_str().unwrap();
    done(&fleet, &["config", "export", "-f", files]).await;
    assert!(done(&fleet, &["config", "diff", "-f", files]).await.contains("nothing to change"));

    let route = |weight: u32| {
        format!(
            "[[route]]\nname = \"alias\"\npolicy = {{ targets = [{{ model = \"{MODEL}\", weight = {weight} }}] }}\n"
        )
    };
    std::fs::write(directory.join("route.toml"), route(1)).unwrap();
    let differs = operate(&fleet, &["config", "diff", "-f", files]).await;
    assert!(!differs.status.success() && text(&differs).contains("create route alias"), "{}", text(&differs));
    let stages = ["--stage", "edge=edge,hold=1", "--stage", "region=here,hold=0"];
    let start = ["rollout", "start", "-f", files, "--reason", "a new name", "--watch"];
    let shown = done(&fleet, &[&start[..], &stages[..]].concat()).await;
    assert!(shown.contains("1/3 edge edge") && shown.contains("3/3 all edges · done"), "{shown}");
    for edge in [fleet.edge_url.clone(), other] {
        eventually("the alias answers", async || {
            let reply =
                post(&format!("{edge}/v1/chat/completions"), &fleet.key, chat_body("alias", "hi", false)).await?;
            if reply.status == 200 { Ok(()) } else { Err(reply.text) }
        })
        .await;
    }
    let log = done(&fleet, &["config", "log"]).await;
    assert!(log.contains("a new name") && log.contains("policy.targets"), "{log}");

    // One that an operator takes back leaves nothing behind.
    std::fs::write(directory.join("route.toml"), route(2)).unwrap();
    done(&fleet, &["rollout", "start", "-f", files, "--stage", "edge=edge,hold=600"]).await;
    done(&fleet, &["rollout", "pause"]).await;
    assert!(done(&fleet, &["rollout", "status"]).await.contains("paused"));
    done(&fleet, &["rollout", "abort"]).await;
    assert!(!operate(&fleet, &["rollout", "status"]).await.status.success(), "a script notices");
    let routes = fleet.admin.get("/routes").await;
    assert_eq!(routes["data"][0]["policy"]["targets"][0]["weight"], 1, "{routes}");
    let broken = directory.join("broken.toml");
    std::fs::write(&broken, "[[route]]\nname = \"x\"\npolicy = { targets = [{ model = \"nope\", weight = 1 }] }\n")
        .unwrap();
    let refused = operate(&fleet, &["config", "apply", "-f", broken.to_str().unwrap()]).await;
    assert!(!refused.status.success() && text(&refused).contains("route[x].policy.targets[0]"), "{}", text(&refused));
}

/// Requests that go on and on.
struct Load {
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicU64>,
    tasks: Vec<JoinHandle<Vec<String>>>,
}

impl Load {
    fn start(fleet: &Fleet) -> Self {
        let (stop, answered) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let tasks = (0..4)
            .map(|_| {
                let (stop, answered) = (Arc::clone(&stop), Arc::clone(&answered));
                let (url, key) = (format!("{}/v1/chat/completions", fleet.edge_url), fleet.key.clone());
                tokio::spawn(async move {
                    let mut failed = Vec::new();
                    while !stop.load(Ordering::Relaxed) {
                        match post(&url, &key, chat_body(MODEL, "one two", false)).await {
                            Ok(reply) if reply.status == 200 => drop(answered.fetch_add(1, Ordering::Relaxed)),
                            Ok(reply) => failed.push(reply.text),
                            Err(error) => failed.push(error),
                        }
                    }
                    failed
                })
            })
            .collect();
        Self { stop, answered, tasks }
    }

    /// Ends it; none of its requests has failed.
    async fn finish(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        for task in self.tasks {
            assert_eq!(task.await.unwrap(), Vec::<String>::new(), "no request fails");
        }
        self.answered.load(Ordering::Relaxed)
    }
}

/// A control plane that says what it likes, with the deployment's own certificate and keys.
struct Impostor {
    server: LinkServer,
    signer: Signer,
}

impl Impostor {
    fn start(fleet: &Fleet) -> Self {
        let file = |name: &str| fleet.path("certs").join(name);
        let files = TlsFiles { ca: file("ca.pem"), cert: file("control.pem"), key: file("control.key") };
        let address = ([127, 0, 0, 1], fleet.link_port()).into();
        let server = LinkServer::bind(address, &Identity::load(&files).unwrap()).unwrap();
        let key = PrivatePkcs8KeyDer::from_pem_file(file("signing.key")).unwrap();
        Self { server, signer: Signer::from_pkcs8(key.secret_pkcs8_der()).unwrap() }
    }

    /// The edge comes; what else connects or is opened is left alone.
    async fn edge(&self) -> (EdgeHello, Sender, Receiver, Link) {
        let come = async {
            loop {
                let incoming = self.server.accept().await.unwrap();
                let Ok((peer, connection)) = LinkServer::authenticate(incoming).await else { continue };
                if peer.role != Role::Edge {
                    continue;
                }
                while let Ok((send, mut recv)) = connection.accept().await {
                    if let Ok(Some(Open::Push(hello))) = read_frame::<Open>(&mut recv).await {
                        return (hello, send, recv, connection);
                    }
                }
            }
        };
        timeout(Duration::from_secs(60), come).await.unwrap()
    }

    fn delta(&self, from: Position, entries: Vec<ByteVec>) -> Delta {
        let to = entries.iter().fold(from, |at, entry| at.then(Hash::of(entry)));
        let signature = self.signer.sign(Statement::Head(to));
        Delta { from: from.version, entries: entries.into_iter().map(Item::Entry).collect(), signature }
    }
}

fn entry(change: Change) -> ByteVec {
    Entry { change, audience: None }.to_bytes()
}

fn key_of(organization: OrgId, n: u128) -> Change {
    Change::PutKey(KeyRecord {
        id: KeyId(Uuid::from_u128(n)),
        organization,
        digest: KeyDigest::of(&n.to_string()),
        permissions: Permissions::INFERENCE,
        limits: RateLimits::default(),
        models: None,
        active: true,
        expires_at_ms: None,
        model_limits: ModelLimits::default(),
    })
}

/// A name, a frame, and what the refusal says.
fn poisons(impostor: &Impostor, held: Position, organization: OrgId) -> Vec<(&'static str, PushFrame, &'static str)> {
    let good = entry(key_of(organization, 1));
    let delta = |entries: Vec<ByteVec>| PushFrame::Delta(impostor.delta(held, entries));
    let raw = |bytes: &[u8]| delta(vec![bytes.to_vec().into()]);
    let mut truncated = good.to_vec();
    truncated.truncate(good.len() / 2);
    let unsigned = Delta { signature: Signature([7; 64]), ..impostor.delta(held, vec![good.clone()]) };
    let old = impostor.delta(Position { version: held.version - 1, chain: held.chain }, vec![good.clone()]);
    let nobody = OrgId(Uuid::from_u128(99));
    let zero = RateLimits { requests_per_minute: Some(0), ..RateLimits::default() };
    let Change::PutKey(nothing) = key_of(organization, 2) else { unreachable!() };
    let nothing = Change::PutKey(KeyRecord { limits: zero, ..nothing });
    let after = Position { version: held.version + 1, chain: Hash::of(b"elsewhere") };
    let many = Manifest::new(after, vec![Hash::default(); MAX_CHUNKS + 1], 0, &impostor.signer);
    let forged = Manifest { replaces: u64::MAX, ..Manifest::new(after, Vec::new(), 0, &impostor.signer) };
    let back = Manifest::new(Position { version: 1, chain: Hash::of(b"old") }, Vec::new(), 0, &impostor.signer);
    vec![
        // [[2, null], null]: a key of nothing.
        ("null fields", raw(&[0x82, 0x82, 0x02, 0x81, 0xf6, 0xf6]), "cannot read"),
        ("unknown variant", raw(&[0x82, 0x82, 0x18, 99, 0x80, 0xf6]), "cannot read"),
        ("truncated", delta(vec![truncated.into()]), "cannot read"),
        ("bad signature", PushFrame::Delta(unsigned), "signed by no key"),
        ("old version", PushFrame::Delta(old), "follows on version"),
        ("dangling reference", delta(vec![good, entry(key_of(nobody, 3))]), "does not exist"),
        ("what admits nothing", delta(vec![entry(nothing)]), "admits nothing"),
        ("too many chunks", PushFrame::Manifest(many), "over the limit"),
        ("a forged way back", PushFrame::Manifest(forged), "signed by no key"),
        ("back without a word", PushFrame::Manifest(back), "config rewind"),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn poison_is_refused_within_a_second_and_no_request_fails() {
    let mut fleet = Fleet::start(&["n1"], "0ms").await;
    let organization = OrgId(fleet.organization.parse().unwrap());
    let load = Load::start(&fleet);
    fleet.kill("control");
    let impostor = Impostor::start(&fleet);
    let (hello, mut send, mut recv, connection) = impostor.edge().await;
    for (name, frame, says) in poisons(&impostor, hello.holds, organization) {
        let sent = Instant::now();
        write_frame(&mut send, &frame).await.unwrap();
        let reply = timeout(Duration::from_secs(5), read_frame::<PushReply>(&mut recv)).await;
        let reply = reply.unwrap_or_else(|_| panic!("{name}: no answer")).unwrap().unwrap();
        let took = sent.elapsed();
        assert!(matches!(&reply, PushReply::Nack { reason, .. } if reason.contains(says)), "{name}: {reply:?}");
        assert!(took < Duration::from_secs(1), "{name}: refused after {took:?}");
    }
    // A frame of twice the size that is allowed ends the link, and the edge comes again with what it had.
    let length = u32::try_from(2 * turnpike_config::wire::MAX_FRAME).unwrap();
    send.write_shared(length.to_be_bytes().to_vec().into()).await.unwrap();
    let (again, mut send, mut recv, _connection) = impostor.edge().await;
    assert_eq!(again.holds, hello.holds);
    drop(connection);
    // What is good is taken after all that.
    let good = impostor.delta(hello.holds, vec![entry(key_of(organization, 7))]);
    let to = hello.holds.then(good.entries[0].hash());
    write_frame(&mut send, &PushFrame::Delta(good)).await.unwrap();
    // How soon is not the matter here, and the machine may be busy.
    let reply = timeout(Duration::from_secs(30), read_frame::<PushReply>(&mut recv)).await.unwrap().unwrap();
    assert_eq!(reply, Some(PushReply::Ack(to)));
    let answered = load.finish().await;
    println!("{answered} requests answered meanwhile, 0 failed");
    assert!(answered > 20, "{answered}");
    let url = format!("{}/metrics", fleet.metrics["edge"]);
    let refused = get(&url, "").await.unwrap().text;
    let refused =
        refused.lines().find(|line| line.starts_with("turnpike_edge_pushes_refused_total")).unwrap().to_owned();
    assert!(refused.ends_with(" 10"), "{refused}");

    // What is taken is written down beside the requests, a moment later.
    let (routing, KeyDigest(digest)) = (fleet.path("edge-data").join("routing"), KeyDigest::of("7"));
    eventually("what was taken last is on disk", async || {
        let files = std::fs::read_dir(&routing).unwrap().filter_map(|file| std::fs::read(file.unwrap().path()).ok());
        let is_there = files.into_iter().any(|bytes| bytes.windows(digest.len()).any(|part| part == digest));
        if is_there { Ok(()) } else { Err(routing.display().to_string()) }
    })
    .await;
    // Nobody is left to tell it anything, and it starts again all the same.
    drop((send, recv, impostor));
    fleet.kill("edge");
    fleet.start_plane("edge").await;
    let load = Load::start(&fleet);
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(load.finish().await > 0);
    let body: Value = json!(chat_body(MODEL, "hi", false));
    let url = format!("{}/v1/chat/completions", fleet.edge_url);
    assert_eq!(post(&url, &7_u128.to_string(), body).await.unwrap().status, 200, "what was taken last is on disk");
}
