//! Which node works on a request: the one with the fewest outstanding tokens.

use crate::live::{Node, Route};
use std::sync::Arc;
use turnpike_config::NodeState;

/// A request's work on a node; counted until dropped.
#[derive(Debug)]
pub(crate) struct Assignment {
    pub(crate) node: Arc<Node>,
    tokens: i64,
}

impl Assignment {
    fn new(node: Arc<Node>, tokens: i64) -> Self {
        node.live.add_outstanding(tokens);
        Self { node, tokens }
    }
}

impl Drop for Assignment {
    fn drop(&mut self) {
        self.node.live.add_outstanding(-self.tokens);
    }
}

/// Picks a ready node that was not tried yet. Nodes that rest after failures come last: with nothing else left, trying
/// one beats refusing. `turn` spreads requests over equally loaded nodes.
pub(crate) fn pick(route: &Route, tried: &[Arc<str>], tokens: i64, turn: usize, now_ns: u64) -> Option<Assignment> {
    let count = route.nodes.len();
    (0..count)
        .map(|i| &route.nodes[(turn.wrapping_add(i)) % count])
        .filter(|node| node.record.state == NodeState::Ready && !tried.contains(&node.name))
        .min_by_key(|node| (node.live.is_resting(now_ns), node.live.outstanding()))
        .map(|node| Assignment::new(Arc::clone(node), tokens))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::live::{Model, fixtures};

    fn model() -> Arc<Model> {
        Arc::clone(fixtures::snapshot().model("m").unwrap())
    }

    #[test]
    fn the_least_loaded_node_is_picked_and_released() {
        let model = model();
        let route = model.route.as_ref().unwrap();
        let first = pick(route, &[], 100, 0, 0).unwrap();
        let second = pick(route, &[], 10, 0, 0).unwrap();
        assert_ne!(first.node.name, second.node.name);
        let third = pick(route, &[], 10, 0, 0).unwrap();
        assert_eq!(third.node.name, second.node.name);
        drop(first);
        assert_eq!(route.nodes.iter().map(|n| n.live.outstanding()).sum::<i64>(), 20);
    }

    #[test]
    fn a_failing_node_rests_but_beats_nothing() {
        let model = model();
        let route = model.route.as_ref().unwrap();
        let a = Arc::clone(&route.nodes[0]);
        a.live.failed(0);
        for turn in 0..4 {
            assert_ne!(pick(route, &[], 0, turn, 1).unwrap().node.name, a.name);
        }
        let other = Arc::clone(&route.nodes[1].name);
        assert_eq!(pick(route, &[Arc::clone(&other)], 0, 0, 1).unwrap().node.name, a.name);
        assert!(pick(route, &[other, Arc::clone(&a.name)], 0, 0, 1).is_none());
    }

    #[test]
    fn equal_nodes_take_turns() {
        let model = model();
        let route = model.route.as_ref().unwrap();
        let names: Vec<_> = (0..2).map(|turn| pick(route, &[], 0, turn, 0).unwrap().node.name.clone()).collect();
        assert_ne!(names[0], names[1]);
    }
}
