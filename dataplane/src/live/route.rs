//! Routes with the models that they lead to, and which of their targets a request goes to.

use super::model::{Deployment, Model};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use turnpike_config::{RouteRecord, route};

/// A version of a model that can answer.
#[derive(Clone, Debug)]
pub(crate) struct Destination {
    pub(crate) model: Arc<Model>,
    pub(crate) deployment: Arc<Deployment>,
}

impl Destination {
    /// Whether it is the same version of the same model.
    pub(crate) fn is(&self, other: &Self) -> bool {
        self.model.record.id == other.model.record.id && self.deployment.version == other.deployment.version
    }
}

/// A way that a route may take.
#[derive(Debug)]
pub(crate) struct Branch {
    pub(crate) model: String,
    /// As the route names it; `None` is the default one.
    pub(crate) version: Option<String>,
    pub(crate) weight: u32,
    /// `None` while the model is switched off or the version is not active.
    pub(crate) to: Option<Destination>,
    /// Its part in the lots that are drawn.
    salt: u64,
}

/// A route with the models that it leads to.
#[derive(Debug)]
pub(crate) struct Route {
    pub(crate) record: RouteRecord,
    pub(crate) targets: Vec<Branch>,
    pub(crate) fallbacks: Vec<Branch>,
    pub(crate) shadow: Option<Destination>,
    /// Every organization may use all of its targets.
    pub(crate) public: bool,
    pub(crate) live: Arc<RouteLive>,
    salt: u64,
}

impl Route {
    /// What is counted of it is kept from `previous`. `find` gives switched-on models.
    pub(super) fn new<'m>(
        record: RouteRecord,
        previous: Option<&Self>,
        find: impl Fn(&str) -> Option<&'m Arc<Model>>,
    ) -> Self {
        let to = |model: &str, version: Option<&str>| {
            let model = find(model).filter(|model| model.record.active)?;
            Some(Destination { model: Arc::clone(model), deployment: Arc::clone(model.deployment(version)?) })
        };
        let branch = |model: &str, version: Option<&str>, weight| Branch {
            model: model.to_owned(),
            version: version.map(str::to_owned),
            weight,
            to: to(model, version),
            salt: mixed(hash(model.as_bytes()) ^ hash(version.unwrap_or_default().as_bytes()).rotate_left(32)),
        };
        let policy = &record.policy;
        let targets =
            policy.targets.iter().map(|target| branch(&target.model, target.version.as_deref(), target.weight));
        let targets: Vec<_> = targets.collect();
        let fallbacks = policy.fallbacks.iter().map(|to| branch(&to.model, to.version.as_deref(), 0)).collect();
        let shadow = policy.shadow.as_ref().and_then(|shadow| to(&shadow.to.model, shadow.to.version.as_deref()));
        let public = targets.iter().all(|target| find(&target.model).is_some_and(|model| model.record.public));
        let live = previous.map(|route| Arc::clone(&route.live)).unwrap_or_default();
        let salt = hash(record.id.name.as_bytes());
        Self { record, targets, fallbacks, shadow, public, live, salt }
    }

    /// Its targets in the order of a lot: each is before all others as often as its weight is part of all weights, and of
    /// those that are left when one is taken away, again so. A changed weight moves no lot between other targets.
    ///
    /// Weighted rendezvous hashing: the largest of -weight / ln(hash of lot and target) is first.
    pub(crate) fn drawn(&self, lot: u64) -> Vec<&Branch> {
        let mut scored: Vec<(f64, &Branch)> = self
            .targets
            .iter()
            .filter(|target| target.weight > 0)
            .map(|target| (-f64::from(target.weight) / unit(mixed(lot.wrapping_add(target.salt))).ln(), target))
            .collect();
        scored.sort_by(|(a, _), (b, _)| b.total_cmp(a));
        scored.into_iter().map(|(_, target)| target).collect()
    }

    /// The lot of all that has the same identity, such as a key. Routes of another name draw other lots.
    pub(crate) fn lot_of(&self, identity: &[u8]) -> u64 {
        mixed(hash(identity) ^ self.salt)
    }

    /// The lot of a request that keeps to nothing; `random` is its own.
    pub(crate) const fn lot(&self, random: u64) -> u64 {
        mixed(random ^ self.salt)
    }

    /// Whether a request is one of those that are also sent to the shadow.
    pub(crate) fn is_shadowed(&self, random: u64) -> bool {
        let permille = self.record.policy.shadow.as_ref().map_or(0, |shadow| shadow.permille);
        mixed(random ^ self.salt.rotate_left(17)) % 1_000 < permille.into()
    }
}

/// What is counted of a route, kept across snapshots.
#[derive(Debug)]
pub(crate) struct RouteLive {
    /// Thousandths of retries that are left.
    retries: AtomicU64,
}

/// Retries, in thousandths, that are saved up at most, and there at first.
const SAVED: u64 = 10_000;

impl Default for RouteLive {
    fn default() -> Self {
        Self { retries: AtomicU64::new(SAVED) }
    }
}

impl RouteLive {
    /// A request adds its part to the budget of retries.
    pub(crate) fn earn(&self, retries: &route::Retries) {
        let Some(permille) = retries.budget_permille else { return };
        self.change(|saved| Some((saved + u64::from(permille)).min(SAVED)));
    }

    /// Takes a retry from the budget, if there is one left.
    pub(crate) fn spend(&self, retries: &route::Retries) -> bool {
        match retries.budget_permille {
            None => true,
            Some(0) => false,
            Some(_) => self.change(|saved| saved.checked_sub(1_000)),
        }
    }

    /// Whole retries that are left.
    pub(crate) fn left(&self, retries: &route::Retries) -> Option<u64> {
        let saved = || self.retries.load(Ordering::Relaxed) / 1_000;
        retries.budget_permille.map(|permille| if permille == 0 { 0 } else { saved() })
    }

    fn change(&self, change: impl Fn(u64) -> Option<u64>) -> bool {
        // Relaxed: the value is its own only data.
        self.retries.fetch_update(Ordering::Relaxed, Ordering::Relaxed, change).is_ok()
    }
}

/// FNV-1a: edges of every version must agree.
fn hash(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

/// The finalizer of SplitMix64.
const fn mixed(seed: u64) -> u64 {
    let mut z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Between 0 and 1, neither of them.
fn unit(hash: u64) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "53 bits")]
    let numerator = (hash >> 11) as f64 + 0.5;
    numerator / 9_007_199_254_740_992.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use turnpike_config::route::{Retries, Target};
    use turnpike_config::{RouteId, RoutePolicy};

    const DRAWS: u64 = 100_000;

    fn weighted(weights: &[(&str, u32)]) -> Route {
        let target =
            |(model, weight): &(&str, u32)| Target { model: (*model).to_owned(), version: None, weight: *weight };
        let policy = RoutePolicy { targets: weights.iter().map(target).collect(), ..RoutePolicy::default() };
        let id = RouteId { name: "r".to_owned(), organization: None };
        Route::new(RouteRecord { id, policy }, None, |_| None)
    }

    fn first(route: &Route, lot: u64) -> &str {
        &route.drawn(lot)[0].model
    }

    #[test]
    fn targets_are_drawn_by_their_weights() {
        let route = weighted(&[("a", 90), ("b", 9), ("c", 1), ("none", 0)]);
        let mut drawn = std::collections::HashMap::new();
        for random in 0..DRAWS {
            *drawn.entry(first(&route, route.lot(random))).or_insert(0_u64) += 1;
        }
        // Four standard deviations.
        for (model, expected, within) in [("a", 90_000, 380), ("b", 9_000, 362), ("c", 1_000, 126)] {
            assert!(drawn[model].abs_diff(expected) <= within, "{drawn:?}");
        }
        assert_eq!(drawn.len(), 3);
    }

    #[test]
    fn without_the_first_the_others_are_drawn_by_their_weights() {
        let route = weighted(&[("a", 50), ("b", 40), ("c", 10)]);
        let second = |lot| route.drawn(lot).into_iter().find(|target| target.model != "a").unwrap().model.clone();
        let b = (0..DRAWS).filter(|random| second(route.lot(*random)) == "b").count();
        assert!(b.abs_diff(80_000) < 510, "{b}");
    }

    /// Keys that go elsewhere once weights have changed, and whether all of them went to `b`.
    fn moved(before: &[(&str, u32)], after: &[(&str, u32)]) -> (u64, bool) {
        let (before, after) = (weighted(before), weighted(after));
        let lots = (0..DRAWS).map(|key| before.lot_of(&key.to_be_bytes()));
        let moved = lots.filter(|lot| first(&before, *lot) != first(&after, *lot)).collect::<Vec<_>>();
        (moved.len() as u64, moved.iter().all(|lot| first(&after, *lot) == "b"))
    }

    #[test]
    fn a_changed_weight_moves_no_more_than_it_must() {
        // From 1 of 200 to 6 of 205; from 1 of 100 to 6 of 100; from nothing to 10 of 110.
        for (before, after, expected, within) in [
            (&[("a", 99), ("b", 1), ("c", 100)][..], &[("a", 99), ("b", 6), ("c", 100)][..], 2_427, 200),
            (&[("a", 99), ("b", 1)], &[("a", 94), ("b", 6)], 5_000, 280),
            (&[("a", 60), ("c", 40)], &[("a", 60), ("b", 10), ("c", 40)], 9_091, 370),
        ] {
            let (moved, all_there) = moved(before, after);
            assert!(all_there && moved.abs_diff(expected) <= within, "{moved} instead of {expected}");
        }
    }

    #[test]
    fn lots_of_one_identity_differ_between_routes_and_stay_the_same_on_every_edge() {
        let route = weighted(&[("a", 1), ("b", 1)]);
        assert_eq!(route.lot_of(b"key"), 0x66f5_b7c9_4bff_3ec0);
        let mut other = weighted(&[("a", 1), ("b", 1)]);
        other.salt = hash(b"other");
        let same = (0..DRAWS)
            .filter(|key| {
                let key = key.to_be_bytes();
                first(&route, route.lot_of(&key)) == first(&other, other.lot_of(&key))
            })
            .count();
        assert!(same.abs_diff(50_000) < 700, "{same}");
    }

    #[test]
    fn retries_are_a_part_of_requests() {
        let live = RouteLive::default();
        let retries = |permille| Retries { attempts: None, budget_permille: permille };
        assert!((0..100).all(|_| live.spend(&retries(None))));
        assert!(!live.spend(&retries(Some(0))));
        let tenth = retries(Some(100));
        assert_eq!((0..100).filter(|_| live.spend(&tenth)).count(), 10);
        let granted = (0..1_000).filter(|_| {
            live.earn(&tenth);
            live.spend(&tenth)
        });
        assert_eq!(granted.count(), 100);
        assert_eq!(live.left(&tenth), Some(0));
    }
}
