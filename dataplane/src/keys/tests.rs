use super::*;
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::sync::Arc;
use turnpike_config::{KeyDigest, KeyId, KeyRecord, ModelLimits, OrgId, Permissions, RateLimits};
use uuid::Uuid;

fn record(digest: KeyDigest, org: u8, kind: u16) -> KeyRecord {
    KeyRecord {
        id: KeyId(Uuid::from_u128(u128::from(kind) << 8 | u128::from(org))),
        organization: OrgId(Uuid::from_u128(org.into())),
        digest,
        permissions: Permissions(kind % 5),
        limits: RateLimits {
            requests_per_minute: (!kind.is_multiple_of(3)).then_some(u32::from(kind % 3)),
            ..RateLimits::default()
        },
        models: kind.is_multiple_of(7).then(|| vec!["m".to_owned(); usize::from(kind % 2)]),
        active: !kind.is_multiple_of(11),
        expires_at_ms: kind.is_multiple_of(2).then_some(u64::from(kind)),
        model_limits: ModelLimits::default(),
    }
}

/// Digests as they are, close to each other, and at the ends.
fn digest(n: u8) -> KeyDigest {
    match n % 4 {
        0 => KeyDigest::of(&n.to_string()),
        1 => KeyDigest([[0; 16], [n; 16]].concat().try_into().unwrap_or([0; 32])),
        2 => {
            let mut bytes = [0xff; 32];
            bytes[15] = n;
            KeyDigest(bytes)
        }
        _ => {
            let mut bytes = [0x7f; 32];
            bytes[12..16].copy_from_slice(&u32::from(n).to_be_bytes());
            KeyDigest(bytes)
        }
    }
}

#[derive(Clone, Debug)]
enum Op {
    Put(u8, u8, u16),
    Remove(u8),
    Repack,
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        8 => (any::<u8>(), 0_u8..6, 0_u16..200).prop_map(|(n, org, kind)| Op::Put(n, org, kind)),
        4 => any::<u8>().prop_map(Op::Remove),
        1 => Just(Op::Repack),
    ]
}

/// Of those with equal first halves there is one in a table, as there is of real keys.
fn is_alone(n: u8) -> bool {
    n % 4 != 1 || n == 1
}

proptest! {
    #[test]
    fn a_table_is_a_map(ops in proptest::collection::vec(op(), 0..400)) {
        let (mut table, mut map) = (KeyTable::default(), BTreeMap::new());
        for op in ops {
            match op {
                Op::Put(n, org, kind) if is_alone(n) => {
                    table.put(record(digest(n), org, kind));
                    map.insert(digest(n), record(digest(n), org, kind));
                }
                Op::Remove(n) if is_alone(n) => {
                    table.remove(&digest(n));
                    map.remove(&digest(n));
                }
                Op::Repack => table = table.repacked(),
                Op::Put(..) | Op::Remove(_) => {}
            }
        }
        for table in [&table, &table.repacked()] {
            prop_assert_eq!(table.len(), map.len());
            for n in (0..=u8::MAX).filter(|n| is_alone(*n)) {
                prop_assert_eq!(table.get(&digest(n)), map.get(&digest(n)).cloned());
            }
            for org in 0..6 {
                let org = OrgId(Uuid::from_u128(org));
                prop_assert_eq!(table.owns(&org), map.values().any(|key| key.organization == org));
            }
        }
        let repacked = table.repacked();
        let (mut orgs, mut limits) = (Vec::new(), Vec::new());
        for key in repacked.witnesses() {
            orgs.push(key.organization);
            limits.push(key.limits);
        }
        for key in map.values() {
            prop_assert!(orgs.contains(&key.organization) && limits.contains(&key.limits));
        }
        prop_assert!(repacked.samples(5).count() <= 5);
    }
}

#[test]
fn keys_out_of_order_are_not_packed() {
    let mut builder = Builder::default();
    let mut digests: Vec<_> = (0..100).map(|n: u32| KeyDigest::of(&n.to_string())).collect();
    digests.sort();
    assert!(digests.iter().all(|digest| builder.push(&record(*digest, 1, 1))));
    assert!(!builder.push(&record(digests[5], 1, 1)) && !builder.push(&record(digests[99], 1, 1)));
    let (packed, rests) = builder.finish();
    assert_eq!((packed.len(), rests.len()), (100, 100));
    assert!((0..100).all(|at| packed.record(at, rests[at]).unwrap().digest == digests[at]));
    let parts = |entries: Vec<Entry>, tables: &Tables| Packed::from_parts(entries, tables.clone()).is_some();
    assert!(parts(packed.entries().to_vec(), packed.tables()));
    assert!(!parts(packed.entries().iter().rev().copied().collect(), packed.tables()));
    assert!(!parts(packed.entries().to_vec(), &Tables::default()));
}

#[test]
fn a_lookup_among_many_takes_few_probes() {
    let mut digests: Vec<_> = (0..200_000_u32).map(|n| KeyDigest::of(&n.to_string())).collect();
    digests.sort();
    let mut builder = Builder::default();
    assert!(digests.iter().all(|digest| builder.push(&record(*digest, 1, 1))));
    let table = KeyTable::new(Arc::new(builder.finish().0));
    assert!(digests.iter().step_by(97).all(|digest| table.get(digest).is_some()));
    assert!((200_000..201_000_u32).all(|n| table.get(&KeyDigest::of(&n.to_string())).is_none()));
}
