//! The edge's side of the link against the protocol's other end, over a real link; what is said there is up to each test.

mod control;

use super::*;
use crate::live::fixtures;
use control::*;
use turnpike_config::log::{Hash, Position};
use turnpike_config::push::chunks::Chunk;
use turnpike_config::push::{Delta, Manifest, PushFrame, PushReply};
use turnpike_config::signing::{Signer, Statement};
use turnpike_config::{Change, KeyRecord, OrgId, RateLimits};
use uuid::Uuid;

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
