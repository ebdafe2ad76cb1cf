use super::*;
use std::sync::Arc;
use turnpike_config::{
    Budget, Change, KeyDigest, KeyId, KeyRecord, ModelRecord, NodeRecord, NodeState, OrgRecord, RateLimits, Usd,
};
use uuid::Uuid;

fn digest() -> KeyDigest {
    KeyDigest::of(fixtures::KEY)
}

fn step(before: &Snapshot, changes: &[Change]) -> Result<Next, String> {
    before.after(changes, fixtures::at(before.at.version + 1), &fixtures::loopback)
}

fn stepped(before: &Snapshot, changes: &[Change]) -> Snapshot {
    step(before, changes).unwrap().snapshot
}

/// Where the units of the key's requests per minute are counted.
fn share(snapshot: &Snapshot) -> usize {
    Arc::as_ptr(snapshot.key(&digest()).unwrap().limits.own.requests.as_ref().unwrap()).addr()
}

#[test]
fn a_push_keeps_limits_and_loads_of_what_did_not_change() {
    let first = fixtures::snapshot();
    first.node("a").unwrap().live.add_outstanding(70);
    first.model("m").unwrap().live.learn(32_000, 1_000);
    let key = first.key(&digest()).unwrap();

    let whole = fixtures::after(&first, &fixtures::routing()).unwrap().snapshot;
    let other = KeyRecord { digest: KeyDigest::of("other"), id: KeyId(Uuid::from_u128(9)), ..key.record.clone() };
    let small = stepped(&first, &[Change::PutKey(other)]);
    for second in [whole, small] {
        assert_eq!(share(&first), share(&second));
        assert!(second.model("m").unwrap().live.prompt_tokens(4_000) < 1_000);
        assert_eq!(second.node("a").unwrap().live.outstanding(), 70);
    }
    let renamed = stepped(&first, &[Change::PutKey(KeyRecord { expires_at_ms: Some(7), ..key.record.clone() })]);
    assert_eq!(renamed.key(&digest()).unwrap().record.expires_at_ms, Some(7));
    assert_eq!(share(&first), share(&renamed), "its limits did not change");
    let limits = RateLimits { requests_per_minute: Some(9), ..key.record.limits };
    let limited = stepped(&first, &[Change::PutKey(KeyRecord { limits, ..key.record.clone() })]);
    assert_ne!(share(&renamed), share(&limited));
}

#[test]
fn a_request_goes_by_the_snapshot_that_it_began_with() {
    let first = fixtures::snapshot();
    let record = first.key(&digest()).unwrap().record.clone();
    let second = stepped(&first, &[Change::PutKey(KeyRecord { active: false, ..record.clone() })]);
    let third = stepped(&second, &[Change::DropKey(digest())]);
    let fourth = stepped(&third, &[Change::PutKey(record)]);
    for _ in 0..2 {
        assert!(first.key(&digest()).unwrap().record.active);
        assert!(!second.key(&digest()).unwrap().record.active);
        assert!(third.key(&digest()).is_none());
        assert!(fourth.key(&digest()).unwrap().record.active);
    }
    let org = first.org(&first.key(&digest()).unwrap().record.organization).unwrap().record.clone();
    let changed = stepped(&fourth, &[Change::PutOrg(turnpike_config::OrgRecord { cache_generation: 5, ..org })]);
    assert_eq!(changed.key(&digest()).unwrap().org.record.cache_generation, 5);
}

#[test]
fn a_key_is_forgotten_some_minutes_after_its_last_use_and_never_while_something_is_outstanding() {
    let snapshot = fixtures::snapshot();
    let held = snapshot.key(&digest()).unwrap();
    let tokens = held.limits.own.tokens.clone();
    for _ in 0..9 {
        assert_eq!(snapshot.seats().sweep(), 1, "a request has it");
    }
    drop(held);
    assert_eq!(snapshot.seats().sweep(), 1, "a request has tokens reserved");
    drop(tokens);
    let _ = snapshot.key(&digest());
    for _ in 0..4 {
        assert_eq!(snapshot.seats().sweep(), 1);
    }
    assert_eq!(snapshot.seats().sweep(), 0);
    assert!(snapshot.key(&digest()).is_some());
}

#[test]
fn a_model_without_an_active_default_version_is_not_listed() {
    let first = fixtures::snapshot();
    let mut record = first.model("m").unwrap().record.clone();
    record.versions[0].active = false;
    let second = stepped(&first, &[Change::PutModel(record.clone())]);
    assert!(second.model("m").unwrap().default.is_none());
    assert_eq!((first.listing().count(), second.listing().count()), (1, 0));
    let third = stepped(&second, &[Change::PutModel(ModelRecord { active: false, ..record })]);
    assert!(third.model("m").is_none() && third.is_off("m"));
}

#[test]
fn routes_follow_their_nodes() {
    let first = fixtures::snapshot();
    let names = |snapshot: &Snapshot| {
        let model = Arc::clone(snapshot.model("m").unwrap());
        model.default.as_ref().unwrap().nodes.iter().map(|node| node.name.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(names(&first), ["a", "b"]);
    let second = stepped(&first, &[Change::DropNode("a".to_owned())]);
    assert_eq!(names(&second), ["b"]);
    let mut record = first.node("b").unwrap().record.clone();
    record.serves.clear();
    let third = stepped(&second, &[Change::PutNode(record)]);
    assert_eq!(names(&third), Vec::<String>::new());
    let fourth = stepped(&third, &[Change::PutNode(first.node("a").unwrap().record.clone())]);
    assert_eq!(names(&fourth), ["a"]);
}

#[test]
fn a_name_that_stops_resolving_keeps_its_address() {
    let first = fixtures::snapshot();
    let nodes: Vec<_> = first.nodes().map(|node| Change::PutNode(node.record.clone())).collect();
    let Next { snapshot: second, unreachable } = first.after(&nodes, fixtures::at(2), &|_| None).unwrap();
    assert_eq!((second.nodes().count(), unreachable.len()), (2, 0));
    let Next { snapshot: third, unreachable } = Snapshot::default().after(&nodes, fixtures::at(2), &|_| None).unwrap();
    assert_eq!((third.nodes().count(), third.astray().count(), unreachable.len()), (0, 2, 2));
    let found = stepped(&third, &nodes);
    assert_eq!((found.nodes().count(), found.astray().count()), (2, 0));
}

#[test]
fn what_is_unfit_is_refused_with_the_reason() {
    let first = fixtures::snapshot();
    let record = first.key(&digest()).unwrap().record.clone();
    let org = record.organization;
    let refused = |changes: &[Change]| step(&first, changes).err().unwrap_or_default();
    assert!(refused(&[Change::DropOrg(org)]).contains("there are keys of it"));
    let strange = KeyRecord { organization: turnpike_config::OrgId(Uuid::from_u128(77)), ..record.clone() };
    assert!(refused(&[Change::PutKey(strange.clone())]).contains("does not exist"));
    assert!(
        fixtures::after(&first, &{
            let mut routing = fixtures::routing();
            routing.apply(Change::PutKey(strange));
            routing
        })
        .is_err_and(|reason| reason.contains("does not exist"))
    );
    let limits = RateLimits { requests_per_minute: Some(0), ..record.limits };
    assert!(refused(&[Change::PutKey(KeyRecord { limits, ..record.clone() })]).contains("admits nothing"));
    // What was changed again on the way counts as it is in the end.
    assert_eq!(refused(&[Change::PutKey(record), Change::DropKey(digest()), Change::DropOrg(org)]), "");
}

#[test]
fn what_is_shared_changes_once_it_is_served_by_and_not_when_it_is_refused() {
    let first = fixtures::snapshot();
    let record = first.org(&first.key(&digest()).unwrap().record.organization).unwrap().record.clone();
    let org = |pico| {
        let budget = Budget { monthly: Usd { pico }, month: 202_601, spent: Usd { pico: pico / 2 }, as_of_ms: 5 };
        OrgRecord { budget: Some(budget), ..record.clone() }
    };
    let node = |state| NodeRecord { state, ..first.node("a").unwrap().record.clone() };
    let first = stepped(&first, &[Change::PutOrg(org(8_000_000)), Change::PutNode(node(NodeState::Unhealthy))]);
    let limit = Arc::clone(first.org(&record.id).unwrap().limits.money().next().unwrap());
    let seen = || (limit.share.limit(), limit.floor().units);
    let live = Arc::clone(&first.node("a").unwrap().live);
    live.failed(0);
    let strange = KeyRecord {
        organization: turnpike_config::OrgId(Uuid::from_u128(77)),
        ..first.key(&digest()).unwrap().record.clone()
    };
    let changes = [Change::PutOrg(org(2_000_000)), Change::PutNode(node(NodeState::Ready)), Change::PutKey(strange)];
    assert!(step(&first, &changes).is_err());
    assert_eq!((seen(), live.is_resting(1)), ((8, 4.0), true));
    let second = stepped(&first, &changes[..2]);
    assert_eq!((seen(), live.is_resting(1)), ((8, 4.0), true), "it is not served by yet");
    second.take_effect(Some(&changes[..2]));
    assert_eq!((seen(), live.is_resting(1)), ((2, 1.0), false));
    // A failure after its return counts, whatever is pushed of it next.
    live.failed(0);
    stepped(&second, &changes[1..2]).take_effect(None);
    assert!(live.is_resting(1));
}

#[test]
fn a_panic_is_a_refusal() {
    let first = fixtures::snapshot();
    let nodes: Vec<_> = first.nodes().map(|node| Change::PutNode(node.record.clone())).collect();
    let reason = first.after(&nodes, fixtures::at(2), &|_| panic!("resolver on fire")).err().unwrap_or_default();
    assert!(reason.contains("resolver on fire"), "{reason}");
}
