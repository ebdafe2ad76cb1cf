//! Which node works on a request: of those in the region that comes first, the one with the fewest outstanding tokens.

use crate::live::{Deployment, Node};
use std::sync::Arc;
use turnpike_config::NodeState;
use turnpike_config::route::Regions;

/// A request's work on a node; counted until dropped.
#[derive(Debug)]
pub(crate) struct Assignment {
    pub(crate) node: Arc<Node>,
    tokens: i64,
}

impl Assignment {
    fn new(node: Arc<Node>, tokens: u64) -> Self {
        let tokens = i64::try_from(tokens).unwrap_or(i64::MAX);
        node.live.add_outstanding(tokens);
        Self { node, tokens }
    }
}

impl Drop for Assignment {
    fn drop(&mut self) {
        self.node.live.add_outstanding(-self.tokens);
    }
}

/// Which regions' nodes, and in which order.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Preference<'a> {
    /// The edge's own.
    pub(crate) own: &'a str,
    /// What a route says of it; `None`: the own region first, then any other.
    pub(crate) regions: Option<&'a Regions>,
}

impl Preference<'_> {
    /// The place of a region, the first is 0; `None`: its nodes are not for the request.
    pub(crate) fn rank(&self, region: &str) -> Option<usize> {
        let (preferred, failover) = self.regions.map_or((&[][..], true), |it| (&it.prefer[..], it.failover));
        if preferred.is_empty() {
            return if region == self.own { Some(0) } else { failover.then_some(1) };
        }
        let place = preferred.iter().position(|preferred| preferred == region);
        place.or_else(|| failover.then_some(preferred.len()))
    }

    /// Ready nodes for the request.
    pub(crate) fn ready<'d>(&self, deployment: &'d Deployment) -> impl Iterator<Item = &'d Arc<Node>> {
        let fits =
            |node: &&Arc<Node>| node.record.state == NodeState::Ready && self.rank(&node.record.region).is_some();
        deployment.nodes.iter().filter(fits)
    }
}

/// What is picked by.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pick<'a> {
    pub(crate) preference: Preference<'a>,
    pub(crate) tried: &'a [Arc<str>],
    /// The request's weight.
    pub(crate) tokens: u64,
    /// Spreads requests over equally loaded nodes.
    pub(crate) turn: usize,
    pub(crate) now_ns: u64,
}

impl Pick<'_> {
    /// A ready node that was not tried yet. Nodes that rest after failures come last, whatever their region: with nothing
    /// else left, trying one beats refusing.
    pub(crate) fn of(&self, deployment: &Deployment) -> Option<Assignment> {
        self.least_loaded(deployment, |_| true)
    }

    /// The same, but none that rests.
    pub(crate) fn awake(&self, deployment: &Deployment) -> Option<Assignment> {
        self.least_loaded(deployment, |node| !node.live.is_resting(self.now_ns))
    }

    fn least_loaded(&self, deployment: &Deployment, fits: impl Fn(&Node) -> bool) -> Option<Assignment> {
        let count = deployment.nodes.len();
        (0..count)
            .map(|i| &deployment.nodes[(self.turn.wrapping_add(i)) % count])
            .filter(|node| node.record.state == NodeState::Ready && !self.tried.contains(&node.name) && fits(node))
            .filter_map(|node| Some((self.preference.rank(&node.record.region)?, node)))
            .min_by_key(|(rank, node)| (node.live.is_resting(self.now_ns), *rank, node.live.outstanding()))
            .map(|(_, node)| Assignment::new(Arc::clone(node), self.tokens))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::live::fixtures;
    use turnpike_config::Change;

    fn deployment() -> Arc<Deployment> {
        Arc::clone(fixtures::snapshot().model("m").unwrap().default.as_ref().unwrap())
    }

    const OWN: Preference<'_> = Preference { own: "r", regions: None };

    fn pick<'a>(tried: &'a [Arc<str>], tokens: u64, turn: usize, now_ns: u64) -> Pick<'a> {
        Pick { preference: OWN, tried, tokens, turn, now_ns }
    }

    #[test]
    fn the_least_loaded_node_is_picked_and_released() {
        let deployment = deployment();
        let first = pick(&[], 100, 0, 0).of(&deployment).unwrap();
        let second = pick(&[], 10, 0, 0).of(&deployment).unwrap();
        assert_ne!(first.node.name, second.node.name);
        let third = pick(&[], 10, 0, 0).of(&deployment).unwrap();
        assert_eq!(third.node.name, second.node.name);
        drop(first);
        assert_eq!(deployment.nodes.iter().map(|n| n.live.outstanding()).sum::<i64>(), 20);
    }

    #[test]
    fn a_failing_node_rests_but_beats_nothing() {
        let deployment = deployment();
        let a = Arc::clone(&deployment.nodes[0]);
        a.live.failed(0);
        for turn in 0..4 {
            assert_ne!(pick(&[], 0, turn, 1).of(&deployment).unwrap().node.name, a.name);
        }
        let other = Arc::clone(&deployment.nodes[1].name);
        assert_eq!(pick(&[Arc::clone(&other)], 0, 0, 1).of(&deployment).unwrap().node.name, a.name);
        assert!(pick(&[Arc::clone(&other)], 0, 0, 1).awake(&deployment).is_none());
        assert!(pick(&[other, Arc::clone(&a.name)], 0, 0, 1).of(&deployment).is_none());
    }

    #[test]
    fn equal_nodes_take_turns() {
        let deployment = deployment();
        let names: Vec<_> =
            (0..2).map(|turn| pick(&[], 0, turn, 0).of(&deployment).unwrap().node.name.clone()).collect();
        assert_ne!(names[0], names[1]);
    }

    /// Nodes `a` in region `r`, `b` in `s`, `c` in `t`.
    fn regions() -> Arc<Deployment> {
        let mut routing = fixtures::routing();
        let b = routing.nodes.get("b").unwrap().clone();
        for (name, region) in [("b", "s"), ("c", "t")] {
            let (name, region) = (name.to_owned(), region.to_owned());
            routing.apply(Change::PutNode(turnpike_config::NodeRecord { name, region, ..b.clone() }));
        }
        Arc::clone(fixtures::compiled(&routing).model("m").unwrap().default.as_ref().unwrap())
    }

    #[test]
    fn regions_are_tried_in_order() {
        let deployment = regions();
        let order = |own, regions: Option<&Regions>| {
            let (mut tried, mut names): (Vec<Arc<str>>, _) = (Vec::new(), String::new());
            let preference = Preference { own, regions };
            while let Some(found) = (Pick { preference, tried: &tried, tokens: 0, turn: 1, now_ns: 0 }).of(&deployment)
            {
                names += &found.node.name;
                tried.push(Arc::clone(&found.node.name));
            }
            names
        };
        let regions = |prefer: &[&str], failover| Regions {
            prefer: prefer.iter().map(|region| (*region).to_owned()).collect(),
            failover,
        };
        assert_eq!(order("r", None), "abc");
        assert_eq!(order("t", None), "cba");
        assert_eq!(order("r", Some(&regions(&[], false))), "a");
        assert_eq!(order("r", Some(&regions(&["t", "s"], false))), "cb");
        assert_eq!(order("r", Some(&regions(&["t"], true))), "cba");
        assert_eq!(order("elsewhere", Some(&regions(&[], false))), "");
        deployment.nodes[0].live.failed(0);
        assert_eq!(order("r", None), "bca", "one that rests comes last");
    }
}
