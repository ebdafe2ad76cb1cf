//! What goes over the wire, byte for byte, as files: peers of builds before and after this one read the same.

use super::{ChunkReply, ChunkRequest, Delta, EdgeHello, Item, Manifest, PushFrame, PushReply, Urgent};
use crate::limits::{Budget, Prepaid, RegionShare};
use crate::log::{Audience, Entry, Hash, Position};
use crate::records::{Served, VersionRecord};
use crate::route::{Destination, Maintenance, Regions, Retries, Shadow, Sticky, Target, Timeouts};
use crate::signing::Signature;
use crate::{
    CacheKey, CachePolicy, Change, KeyDigest, KeyId, KeyRecord, ModelLimits, ModelRecord, NodeRecord, NodeState, OrgId,
    OrgRecord, Permissions, Price, PriceVersion, RateLimits, RouteId, RoutePolicy, RouteRecord, Usd,
};
use minicbor::data::Type;
use minicbor::{Decode, Decoder, Encode, Encoder};
use proptest::prelude::*;
use std::fmt::Debug;
use std::path::PathBuf;
use uuid::Uuid;

fn org() -> OrgRecord {
    let limits = RateLimits { requests_per_minute: Some(600), ..RateLimits::default() };
    let usd = |pico| Usd { pico };
    let share = RegionShare { cap: usd(7), spent: usd(3), as_of_ms: 9 };
    OrgRecord {
        id: OrgId(Uuid::from_u128(1)),
        slug: "acme".to_owned(),
        limits,
        model_limits: ModelLimits::from([("large".to_owned(), limits)]),
        budget: Some(Budget {
            monthly: usd(5_000_000_000_000),
            month: 202_601,
            spent: usd(17),
            as_of_ms: 1_700_000_000_000,
        }),
        cache_generation: 2,
        prepaid: Some(Prepaid { regions: [("eu".to_owned(), share)].into(), left: usd(4) }),
    }
}

fn key() -> KeyRecord {
    KeyRecord {
        id: KeyId(Uuid::from_u128(2)),
        organization: OrgId(Uuid::from_u128(1)),
        digest: KeyDigest::of("sk-tp-golden"),
        permissions: Permissions::INFERENCE,
        limits: RateLimits { concurrent_requests: Some(4), ..RateLimits::default() },
        models: Some(vec!["large".to_owned()]),
        active: true,
        expires_at_ms: Some(1_800_000_000_000),
        model_limits: ModelLimits::default(),
    }
}

fn model() -> ModelRecord {
    let price = Price { input_token: Usd { pico: 10 }, output_token: Usd { pico: 30 }, ..Price::default() };
    ModelRecord {
        id: "large".to_owned(),
        provider: "acme".to_owned(),
        created_s: 1_700_000_000,
        context_length: 4_096,
        max_output_tokens: Some(256),
        price,
        active: true,
        public: false,
        versions: vec![VersionRecord { version: "v1".to_owned(), is_default: true, active: true }],
        cache: CachePolicy { enabled: true, ..CachePolicy::default() },
        prices: vec![PriceVersion { version: 1, from_ms: 5, price }],
    }
}

fn node() -> NodeRecord {
    NodeRecord {
        name: "gpu-7".to_owned(),
        region: "eu".to_owned(),
        url: "https://10.0.0.7:8090".to_owned(),
        state: NodeState::Ready,
        serves: vec![Served { model: "large".to_owned(), version: "v1".to_owned() }],
        slots: 32,
    }
}

fn route() -> RouteRecord {
    let to = || Destination { model: "large".to_owned(), version: Some("v1".to_owned()) };
    RouteRecord {
        id: RouteId { name: "chat".to_owned(), organization: Some(OrgId(Uuid::from_u128(1))) },
        policy: RoutePolicy {
            targets: vec![Target { model: "large".to_owned(), version: None, weight: 99 }],
            sticky: Sticky::Header("x-user".to_owned()),
            fallbacks: vec![to()],
            regions: Regions { prefer: vec!["eu".to_owned()], failover: false },
            shadow: Some(Shadow { to: to(), permille: 10 }),
            timeouts: Timeouts { first_byte_ms: Some(2_000), total_ms: None },
            retries: Retries { attempts: Some(2), budget_permille: Some(100) },
            cache: Some(CachePolicy::default()),
            maintenance: Some(Maintenance { message: "back at noon".to_owned(), retry_after_s: 60 }),
        },
    }
}

fn at(version: u64) -> Position {
    Position { version, chain: Hash::of(&version.to_be_bytes()) }
}

/// Compares a message with its file; with `TURNPIKE_BLESS` set, writes the file.
fn is_as_ever<T: Encode<()> + for<'b> Decode<'b, ()> + PartialEq + Debug>(name: &str, message: &T) {
    let bytes = minicbor::to_vec(message).unwrap();
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>() + "\n";
    let file = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("src/push/golden/{name}.hex"));
    if std::env::var_os("TURNPIKE_BLESS").is_some() {
        std::fs::write(&file, &hex).unwrap();
    }
    let kept = std::fs::read_to_string(&file).unwrap_or_default();
    let bless = "if that is meant: TURNPIKE_BLESS=1 cargo test -p turnpike-config push::golden";
    assert_eq!(kept, hex, "{name}: peers of other builds read {}; {bless}", file.display());
    assert_eq!(minicbor::decode::<T>(&bytes).unwrap(), *message, "{name}");
}

#[test]
fn every_message_is_as_ever() {
    let changes = [
        ("put_org", Change::PutOrg(org())),
        ("drop_org", Change::DropOrg(OrgId(Uuid::from_u128(1)))),
        ("put_key", Change::PutKey(key())),
        ("drop_key", Change::DropKey(KeyDigest::of("sk-tp-golden"))),
        ("put_model", Change::PutModel(model())),
        ("drop_model", Change::DropModel("large".to_owned())),
        ("put_node", Change::PutNode(node())),
        ("drop_node", Change::DropNode("gpu-7".to_owned())),
        ("purge_answer", Change::PurgeAnswer { key: CacheKey::of(b"k"), at_ms: 5 }),
        ("put_route", Change::PutRoute(route())),
        ("drop_route", Change::DropRoute(route().id)),
    ];
    for (name, change) in &changes {
        is_as_ever(name, change);
    }
    let audience = Audience { edges: vec!["e1".to_owned()], regions: vec!["eu".to_owned()] };
    let entry = Entry { change: changes[2].1.clone(), audience: Some(audience) };
    is_as_ever("entry", &entry);
    is_as_ever("hello", &EdgeHello { region: "eu".to_owned(), holds: at(5), build: "1.2.3".to_owned() });
    let signature = Signature([7; 64]);
    let entries = vec![Item::Entry(entry.to_bytes()), Item::Hidden(Hash::of(b"hidden"))];
    is_as_ever("delta", &PushFrame::Delta(Delta { from: 5, entries, signature }));
    let manifest = Manifest { at: at(9), chunks: vec![Hash::of(b"chunk")], replaces: 3, signature };
    is_as_ever("manifest", &PushFrame::Manifest(manifest));
    is_as_ever("urgent", &PushFrame::Urgent(Urgent { version: 6, entry: entry.to_bytes(), signature }));
    is_as_ever("ack", &PushReply::Ack(at(6)));
    is_as_ever("nack", &PushReply::Nack { version: 6, reason: "why".to_owned() });
    is_as_ever("chunk_request", &ChunkRequest { hash: Hash::of(b"chunk") });
    is_as_ever("chunk_reply", &ChunkReply { bytes: Some(vec![1, 2, 3].into()) });
}

#[test]
fn a_key_and_its_signature_are_a_small_frame() {
    let change =
        Change::PutKey(KeyRecord { limits: RateLimits::default(), models: None, expires_at_ms: None, ..key() });
    let entries = vec![Item::Entry(Entry { change, audience: None }.to_bytes())];
    let delta = Delta { from: 1_000_000, entries, signature: Signature([7; 64]) };
    let bytes = crate::wire::frame(&PushFrame::Delta(delta)).unwrap();
    println!("{} bytes", bytes.len());
    assert!(bytes.len() <= 220, "{} bytes", bytes.len());
}

/// The same array with a field more, as a newer build might send it.
fn with_one_more(bytes: &[u8]) -> Vec<u8> {
    let mut decoder = Decoder::new(bytes);
    assert_eq!(decoder.datatype().unwrap(), Type::Array);
    let length = decoder.array().unwrap().unwrap();
    let mut out = Vec::new();
    Encoder::new(&mut out).array(length + 1).unwrap();
    out.extend_from_slice(&bytes[decoder.position()..]);
    Encoder::new(&mut out).str("of a newer build").unwrap();
    out
}

/// The same array without what stands behind `fields`, as an older build sent it.
fn with_only(bytes: &[u8], fields: u64) -> Vec<u8> {
    let mut decoder = Decoder::new(bytes);
    decoder.array().unwrap();
    let start = decoder.position();
    (0..fields).for_each(|_| decoder.skip().unwrap());
    let mut out = Vec::new();
    Encoder::new(&mut out).array(fields).unwrap();
    out.extend_from_slice(&bytes[start..decoder.position()]);
    out
}

#[test]
fn peers_of_the_next_and_of_the_last_build_are_understood() {
    fn newer<T: Encode<()> + for<'b> Decode<'b, ()> + PartialEq + Debug>(record: &T) {
        let bytes = with_one_more(&minicbor::to_vec(record).unwrap());
        assert_eq!(minicbor::decode::<T>(&bytes).unwrap(), *record);
    }
    newer(&org());
    newer(&key());
    newer(&model());
    newer(&node());
    newer(&route());
    newer(&route().policy);
    newer(&EdgeHello { region: "eu".to_owned(), holds: at(5), build: "1".to_owned() });
    let older = with_only(&minicbor::to_vec(org()).unwrap(), 2);
    let org = minicbor::decode::<OrgRecord>(&older).unwrap();
    assert_eq!((org.slug.as_str(), org.limits, org.budget, org.prepaid), ("acme", RateLimits::default(), None, None));
    let older = with_only(&minicbor::to_vec(key()).unwrap(), 8);
    assert_eq!(minicbor::decode::<KeyRecord>(&older).unwrap(), key());
    let older = with_only(&minicbor::to_vec(model()).unwrap(), 9);
    assert_eq!(minicbor::decode::<ModelRecord>(&older).unwrap().cache, CachePolicy::default());
    let older = with_only(&minicbor::to_vec(route().policy).unwrap(), 1);
    assert_eq!(minicbor::decode::<RoutePolicy>(&older).unwrap().targets, route().policy.targets);
}

proptest! {
    /// Whatever is flipped, cut off or stretched in a frame: it is read or refused, and never costs more than it is long.
    #[test]
    fn a_damaged_frame_is_read_or_refused(
        which in 0_usize..4,
        flips in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..8),
        cut in any::<prop::sample::Index>(),
        cuts in any::<bool>(),
    ) {
        let signature = Signature([7; 64]);
        let entry = Entry { change: [Change::PutOrg(org()), Change::PutKey(key()), Change::PutModel(model()),
            Change::PutRoute(route())][which].clone(), audience: None };
        let delta = Delta { from: 5, entries: vec![Item::Entry(entry.to_bytes())], signature };
        for bytes in [minicbor::to_vec(PushFrame::Delta(delta)).unwrap(), entry.to_bytes().to_vec()] {
            let mut bytes = bytes;
            for (index, with) in &flips {
                let index = index.index(bytes.len());
                bytes[index] ^= with;
            }
            if cuts {
                bytes.truncate(cut.index(bytes.len()));
            }
            let _ = minicbor::decode::<PushFrame>(&bytes);
            let _ = Entry::from_bytes(&bytes);
            let _ = minicbor::decode::<PushReply>(&bytes);
            let _ = minicbor::decode::<EdgeHello>(&bytes);
        }
    }
}
