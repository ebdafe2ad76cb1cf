//! What the log adds up to. Pure.

use crate::store::config_log::Logged;
use turnpike_config::log::{Audience, Position};
use turnpike_config::{Change, Routing, World as _};

/// The state after a stretch of the log, and what is wrong with it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Compiled {
    /// For edges that are in no audience. Its version is that of `at`.
    pub(crate) routing: Routing,
    /// Where in the log.
    pub(crate) at: Position,
    /// What some edges are told instead.
    pub(crate) staged: Staged,
    /// Changes that were faulty when they came, and may have been repaired since.
    suspects: Vec<Change>,
}

impl Compiled {
    /// A state read from the tables.
    pub(crate) fn new(routing: Routing, at: Position, staged: Vec<(Audience, Change)>) -> Self {
        let suspects = routing.changes().filter(|change| routing.fault(change).is_some()).collect();
        Self { routing, at, staged: Staged(staged), suspects }
    }

    /// Takes in entries that follow on `at`; false, and nothing is taken, if they do not.
    pub(crate) fn take(&mut self, logged: &[Logged]) -> bool {
        let mut at = self.at;
        for entry in logged {
            at = at.then(turnpike_config::log::Hash::of(&entry.bytes));
            if at != entry.at {
                return false;
            }
        }
        for Logged { entry, .. } in logged {
            let change = entry.change.clone();
            match &entry.audience {
                Some(audience) => self.staged.put(audience.clone(), change, &self.routing),
                None => {
                    self.staged.supersede(&change);
                    self.suspects.push(change.clone());
                    self.routing.apply(change);
                }
            }
        }
        self.at = at;
        self.routing.version = at.version;
        let routing = &self.routing;
        self.suspects.retain(|change| routing.fault(change).is_some() && is_current(routing, change));
        true
    }

    /// What keeps this state from being published; empty if nothing does.
    pub(crate) fn faults(&self) -> Vec<String> {
        self.suspects.iter().filter_map(|change| self.routing.fault(change)).collect()
    }
}

/// Whether no later change has replaced what this one did.
fn is_current(routing: &Routing, change: &Change) -> bool {
    let subject = change.subject();
    let record = routing.record(&subject);
    if subject.dropped().as_ref() == Some(change) { record.is_none() } else { record.as_ref() == Some(change) }
}

/// What only some edges are told: the changes of rollouts that are under way.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Staged(Vec<(Audience, Change)>);

impl Staged {
    /// Some are told something. What brings back what all are told is the end of it.
    fn put(&mut self, audience: Audience, change: Change, base: &Routing) {
        let subject = change.subject();
        let is_base = base.record(&subject).map_or_else(|| is_current(base, &change), |record| record == change);
        if is_base {
            self.0.retain(|(of, staged)| staged.subject() != subject || !audience.covers(of));
        } else {
            self.0.push((audience, change));
        }
    }

    /// All are told something.
    fn supersede(&mut self, change: &Change) {
        let subject = change.subject();
        self.0.retain(|(_, staged)| staged.subject() != subject);
    }

    /// Whether some edges are told this.
    pub(crate) fn has(&self, change: &Change) -> bool {
        self.0.iter().any(|(_, staged)| staged == change)
    }

    /// What an edge is told on top of what all are told.
    pub(crate) fn changes_for(&self, edge: &str, region: &str) -> Vec<Change> {
        self.0.iter().filter(|(of, _)| of.includes(edge, region)).map(|(_, change)| change.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use chrono::DateTime;
    use turnpike_config::log::{Entry, Hash};
    use turnpike_config::{
        ModelLimits, NodeRecord, NodeState, OrgId, OrgRecord, RateLimits, RouteId, RoutePolicy, RouteRecord,
    };
    use uuid::Uuid;

    fn org(slug: &str) -> Change {
        Change::PutOrg(OrgRecord {
            id: OrgId(Uuid::from_u128(1)),
            slug: slug.to_owned(),
            limits: RateLimits::default(),
            model_limits: ModelLimits::default(),
            budget: None,
            prepaid: None,
            cache_generation: 0,
        })
    }

    fn node(url: &str) -> Change {
        Change::PutNode(NodeRecord {
            name: "n".to_owned(),
            region: "eu".to_owned(),
            url: url.to_owned(),
            state: NodeState::Ready,
            serves: Vec::new(),
            slots: 1,
        })
    }

    fn route() -> Change {
        let id = RouteId { name: "r".to_owned(), organization: None };
        Change::PutRoute(RouteRecord { id, policy: RoutePolicy::default() })
    }

    fn log(from: Position, entries: Vec<(Change, Option<Audience>)>) -> Vec<Logged> {
        let mut at = from;
        let entries = entries.into_iter().map(|(change, audience)| Entry { change, audience });
        entries
            .map(|entry| {
                let bytes = entry.to_bytes();
                at = at.then(Hash::of(&bytes));
                Logged { at, bytes, entry, made_at: DateTime::UNIX_EPOCH }
            })
            .collect()
    }

    fn take(compiled: &mut Compiled, change: Change, audience: Option<Audience>) {
        assert!(compiled.take(&log(compiled.at, vec![(change, audience)])));
    }

    #[test]
    fn only_what_follows_is_taken() {
        let mut compiled = Compiled::default();
        let entries = log(Position::default(), vec![(org("a"), None), (node("http://h:1"), None)]);
        assert!(!compiled.take(&entries[1..]), "a gap");
        assert!(compiled.take(&entries));
        assert_eq!((compiled.at.version, compiled.routing.version, compiled.routing.nodes.size()), (2, 2, 1));
    }

    #[test]
    fn a_fault_lasts_until_it_is_repaired() {
        let mut compiled = Compiled::default();
        take(&mut compiled, node("nowhere"), None);
        take(&mut compiled, org("a"), None);
        assert_eq!(compiled.faults().len(), 1);
        take(&mut compiled, node("http://h:1"), None);
        assert!(compiled.faults().is_empty());
        take(&mut compiled, node("nowhere"), None);
        take(&mut compiled, Change::DropNode("n".to_owned()), None);
        assert!(compiled.faults().is_empty());
    }

    #[test]
    fn what_is_staged_is_for_its_audience_until_all_are_told_or_it_is_taken_back() {
        let canary = Audience { edges: vec!["e1".to_owned()], regions: Vec::new() };
        let mut compiled = Compiled::default();
        take(&mut compiled, org("a"), None);
        take(&mut compiled, org("b"), Some(canary.clone()));
        assert_eq!(compiled.staged.changes_for("e1", "eu"), [org("b")]);
        assert_eq!(compiled.staged.changes_for("e2", "eu"), []);
        assert_eq!(compiled.routing.record(&org("b").subject()), Some(org("a")));
        take(&mut compiled, org("a"), Some(canary.clone()));
        assert_eq!(compiled.staged, Staged::default(), "taken back");
        for new in [org("new"), node("http://h:1"), route()] {
            let subject = new.subject();
            let mut fresh = Compiled::default();
            take(&mut fresh, new, Some(canary.clone()));
            take(&mut fresh, subject.dropped().unwrap(), Some(canary.clone()));
            assert_eq!(fresh.staged, Staged::default(), "{subject} was new, and is taken back");
        }
        take(&mut compiled, org("b"), Some(canary));
        take(&mut compiled, org("b"), None);
        assert_eq!(compiled.staged, Staged::default(), "told to all");
        assert_eq!(compiled.routing.record(&org("b").subject()), Some(org("b")));
    }
}
