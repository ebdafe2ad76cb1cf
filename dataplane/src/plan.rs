//! Where a request for a name goes by its route: the targets in the order of its lot, and then the fallbacks.

use crate::balance::Preference;
use crate::live::{Branch, Destination, Key, Route};
use crate::reject::Reject;
use http::HeaderMap;
use std::sync::Arc;
use turnpike_config::route::Sticky;
use turnpike_config::{CachePolicy, EventId};

/// A request with a route.
pub(crate) struct Routed {
    pub(crate) route: Arc<Route>,
    /// Where it may go, in order; no two are the same.
    pub(crate) stops: Vec<Destination>,
}

/// A request as far as its route is concerned.
#[derive(Clone, Copy)]
pub(crate) struct Asking<'a> {
    pub(crate) key: &'a Key,
    pub(crate) headers: &'a HeaderMap,
    /// Its own, and of no other request.
    pub(crate) random: u64,
    /// The edge's region.
    pub(crate) region: &'a str,
}

/// What is random of a request: two with one id are the same one.
#[expect(clippy::cast_possible_truncation, reason = "the lower half, which is random in a UUIDv7")]
pub(crate) const fn random(id: EventId) -> u64 {
    id.0.as_u128() as u64
}

impl Asking<'_> {
    /// The request's lot in a route.
    pub(crate) fn lot(&self, route: &Route) -> u64 {
        let kept = match &route.record.policy.sticky {
            Sticky::Request => None,
            Sticky::Key => Some(&self.key.record.id.0.as_bytes()[..]),
            Sticky::Header(name) => self.headers.get(name).map(|value| value.as_bytes()),
        };
        kept.map_or_else(|| route.lot(self.random), |identity| route.lot_of(identity))
    }

    /// Targets as they are drawn, then the fallbacks, whether or not they can answer.
    pub(crate) fn branches<'r>(&self, route: &'r Route) -> Vec<&'r Branch> {
        route.drawn(self.lot(route)).into_iter().chain(&route.fallbacks).collect()
    }

    /// Those that can answer now; or one that cannot, so that it can be said.
    pub(crate) fn stops(&self, route: &Route) -> Vec<Destination> {
        let mut stops: Vec<Destination> = Vec::new();
        let allowed = self.branches(route).into_iter().filter(|branch| self.key.may_reach(route, &branch.model));
        for to in allowed.filter_map(|branch| branch.to.as_ref()) {
            if !stops.iter().any(|stop| stop.is(to)) {
                stops.push(to.clone());
            }
        }
        let preference = Preference { own: self.region, regions: Some(&route.record.policy.regions) };
        let (ready, mut rest): (Vec<_>, Vec<_>) =
            stops.into_iter().partition(|stop| preference.ready(&stop.deployment).next().is_some());
        if ready.is_empty() {
            rest.truncate(1);
            return rest;
        }
        ready
    }

    /// Why a route is not for the request, or not at the moment.
    pub(crate) fn refusal(&self, route: &Route, stops: &[Destination]) -> Option<Reject> {
        let model = || route.record.id.name.clone();
        if !self.key.may_use_route(route) {
            return Some(Reject::ModelNotAllowed { model: model() });
        }
        if let Some(maintenance) = &route.record.policy.maintenance {
            let message = maintenance.message.clone();
            return Some(Reject::Maintenance { message, retry_after_s: maintenance.retry_after_s.into() });
        }
        stops.is_empty().then(|| Reject::NoVersion { model: model() })
    }
}

/// The cache policy by which a model's answers are kept: a route's stands before the model's, but for its purges.
pub(crate) fn cache_policy(route: Option<&Route>, of_model: CachePolicy) -> CachePolicy {
    let of_route = route.and_then(|route| route.record.policy.cache);
    of_route.map_or(of_model, |policy| CachePolicy { generation: of_model.generation, ..policy })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::live::{Snapshot, fixtures};
    use turnpike_config::records::{Served, VersionRecord};
    use turnpike_config::route::{Destination as To, Maintenance, Regions, Target};
    use turnpike_config::{Change, KeyDigest, NodeRecord, NodeState, RouteId, RoutePolicy, RouteRecord};

    /// Model `m` with versions `v1` on `a`, `v2` on `b`; model `small` with `v1` on `c` in another region.
    fn snapshot(policy: RoutePolicy, changes: Vec<Change>) -> Snapshot {
        let mut routing = fixtures::routing();
        let mut model = routing.models.get("m").unwrap().clone();
        model.versions.push(VersionRecord { version: "v2".into(), is_default: false, active: true });
        routing.apply(Change::PutModel(model.clone()));
        model.versions.pop();
        routing.apply(Change::PutModel(turnpike_config::ModelRecord { id: "small".into(), ..model }));
        let node = routing.nodes.get("a").unwrap().clone();
        for (name, region, model, version) in [("b", "r", "m", "v2"), ("c", "s", "small", "v1")] {
            let serves = vec![Served { model: model.into(), version: version.into() }];
            let (name, region) = (name.into(), region.into());
            routing.apply(Change::PutNode(NodeRecord { name, region, serves, ..node.clone() }));
        }
        let id = RouteId { name: "alias".into(), organization: None };
        routing.apply(Change::PutRoute(RouteRecord { id, policy }));
        changes.into_iter().for_each(|change| routing.apply(change));
        fixtures::compiled(&routing)
    }

    fn policy() -> RoutePolicy {
        let target = |version: &str, weight| Target { model: "m".into(), version: Some(version.into()), weight };
        RoutePolicy {
            targets: vec![target("v1", 90), target("v2", 10)],
            fallbacks: vec![To { model: "small".into(), version: None }, To { model: "m".into(), version: None }],
            ..RoutePolicy::default()
        }
    }

    fn stops(snapshot: &Snapshot, random: u64, headers: &[(&'static str, &str)]) -> Vec<String> {
        let key = snapshot.key(&KeyDigest::of(fixtures::KEY)).unwrap();
        let headers = headers
            .iter()
            .map(|(name, value)| (http::HeaderName::from_static(name), http::HeaderValue::try_from(*value).unwrap()));
        let headers = headers.collect();
        let route = snapshot.route("alias", &key.record.organization).unwrap();
        let asking = Asking { key: &key, headers: &headers, random, region: "r" };
        let stops = asking.stops(route);
        if let Some(refusal) = asking.refusal(route, &stops) {
            return vec![refusal.answer().code.to_owned()];
        }
        stops.iter().map(|stop| format!("{}@{}", stop.model.record.id, stop.deployment.version)).collect()
    }

    fn down(snapshot: &Snapshot, node: &str) -> Change {
        Change::PutNode(NodeRecord { state: NodeState::Lost, ..snapshot.node(node).unwrap().record.clone() })
    }

    #[test]
    fn targets_come_as_drawn_and_then_the_fallbacks_each_once() {
        let snapshot = snapshot(policy(), Vec::new());
        let mut first = std::collections::BTreeMap::new();
        for random in 0..1_000 {
            let stops = stops(&snapshot, random, &[]);
            assert_eq!((stops.len(), stops[2].as_str()), (3, "small@v1"));
            *first.entry(stops[0].clone()).or_insert(0) += 1;
        }
        assert!(first["m@v1"] > 850 && first["m@v2"] > 60, "{first:?}");
    }

    #[test]
    fn what_has_no_ready_node_is_left_out_and_the_state_is_followed() {
        let first = snapshot(policy(), Vec::new());
        let step =
            |before: &Snapshot, change| before.after(&[change], fixtures::at(9), &fixtures::loopback).unwrap().snapshot;
        let second = step(&first, down(&first, "a"));
        let third = step(&second, down(&second, "b"));
        let fourth = step(&third, down(&third, "c"));
        for random in 0..100 {
            assert_eq!(stops(&second, random, &[]), ["m@v2", "small@v1"]);
            assert_eq!(stops(&third, random, &[]), ["small@v1"]);
            assert_eq!(stops(&fourth, random, &[]).len(), 1, "so that it can be said that it has no node");
        }
        let regions = Regions { prefer: Vec::new(), failover: false };
        let apart = snapshot(RoutePolicy { regions, ..policy() }, Vec::new());
        assert!(!stops(&apart, 1, &[]).contains(&"small@v1".to_owned()));
        let mut record = first.model("m").unwrap().record.clone();
        record.active = false;
        assert_eq!(stops(&step(&first, Change::PutModel(record)), 1, &[]), ["small@v1"]);
        let dropped = step(&first, Change::DropRoute(RouteId { name: "alias".into(), organization: None }));
        let organization = first.key(&KeyDigest::of(fixtures::KEY)).unwrap().record.organization;
        assert!(dropped.route("alias", &organization).is_none());
    }

    #[test]
    fn keys_and_headers_keep_to_their_target() {
        let by_key = snapshot(RoutePolicy { sticky: Sticky::Key, ..policy() }, Vec::new());
        let by_header = snapshot(RoutePolicy { sticky: Sticky::Header("X-User".into()), ..policy() }, Vec::new());
        let (mut drawn, mut kept) = (std::collections::BTreeSet::new(), std::collections::BTreeSet::new());
        for random in 0..200 {
            assert_eq!(stops(&by_key, random, &[]), stops(&by_key, 0, &[]));
            assert_eq!(stops(&by_header, random, &[("x-user", "ada")]), stops(&by_header, 0, &[("x-user", "ada")]));
            drawn.insert(stops(&by_header, random, &[]));
            kept.insert(stops(&by_header, 0, &[("x-user", &random.to_string())]));
        }
        assert_eq!((drawn.len(), kept.len()), (2, 2));
    }

    #[test]
    fn an_organizations_own_route_stands_before_everybodys() {
        let everybodys = snapshot(policy(), Vec::new());
        let organization = everybodys.key(&KeyDigest::of(fixtures::KEY)).unwrap().record.organization;
        let to = Target { model: "small".into(), version: None, weight: 1 };
        let own = RouteRecord {
            id: RouteId { name: "alias".into(), organization: Some(organization) },
            policy: RoutePolicy { targets: vec![to], ..RoutePolicy::default() },
        };
        let changes = [Change::PutRoute(own.clone())];
        let both = everybodys.after(&changes, fixtures::at(5), &fixtures::loopback).unwrap().snapshot;
        assert_eq!(stops(&both, 1, &[]), ["small@v1"]);
        let stranger = turnpike_config::OrgId(uuid::Uuid::from_u128(99));
        assert!(both.route("alias", &stranger).is_some_and(|route| route.record.id.organization.is_none()));
        let dropped = both.after(&[Change::DropRoute(own.id)], fixtures::at(6), &fixtures::loopback).unwrap().snapshot;
        assert_eq!(stops(&dropped, 1, &[]).len(), 3);
    }

    #[test]
    fn who_may_use_it() {
        let first = snapshot(policy(), Vec::new());
        let record = first.key(&KeyDigest::of(fixtures::KEY)).unwrap().record.clone();
        let with = |models: &[&str]| {
            let models = Some(models.iter().map(|model| (*model).to_owned()).collect());
            Change::PutKey(turnpike_config::KeyRecord { models, ..record.clone() })
        };
        let mut private = first.model("m").unwrap().record.clone();
        private.public = false;
        let private = Change::PutModel(private);
        let code = |changes| stops(&snapshot(policy(), changes), 1, &[]);
        assert_eq!(code(vec![with(&["other"])]), ["model_not_allowed"]);
        assert_eq!(code(vec![with(&["alias"]), private.clone()]).len(), 3);
        assert_eq!(code(vec![with(&["m"])]).len(), 2, "only its own models");
        assert_eq!(code(vec![private]), ["model_not_allowed"]);
        let maintenance = Some(Maintenance { message: "back at noon".into(), retry_after_s: 9 });
        let closed = snapshot(RoutePolicy { maintenance, ..policy() }, Vec::new());
        assert_eq!(stops(&closed, 1, &[]), ["model_maintenance"]);
    }
}
