//! Which modules import which, and whether that goes in a circle.
//!
//! A module and its children are one unit to those outside, and may know each other: a parent's re-exports and its
//! error type are part of what the children make up together. So the rule is about siblings: among the children of any
//! one module, the relation "something inside A refers to something inside B" has no cycle.

use crate::sources::{Module, ModulePath};
use std::collections::{BTreeMap, BTreeSet};

/// Resolving re-exports stops after this many steps: enough for any real chain, and it ends one that is circular.
const MAX_STEPS: usize = 32;

type Crate<'m> = BTreeMap<&'m [String], &'m Module>;
/// For each pair of siblings, one reference that makes the edge, to show.
type Edges = BTreeMap<String, BTreeMap<String, String>>;

/// Every cycle, each described by the references that make it up.
pub(crate) fn cycles(modules: &[Module]) -> Vec<String> {
    let tree: Crate<'_> = modules.iter().map(|module| (module.path.as_slice(), module)).collect();
    let mut groups: BTreeMap<ModulePath, Edges> = BTreeMap::new();
    for module in modules {
        for mention in &module.mentions {
            let Some(target) = owner(&tree, &module.path, mention, MAX_STEPS) else { continue };
            let shared = module.path.iter().zip(&target).take_while(|(a, b)| a == b).count();
            if let (Some(from), Some(to)) = (module.path.get(shared), target.get(shared)) {
                let evidence = format!("{} uses {}", name(&module.path), mention.join("::"));
                let edges = groups.entry(module.path[..shared].to_vec()).or_default();
                edges.entry(from.clone()).or_default().entry(to.clone()).or_insert(evidence);
            }
        }
    }
    groups.values().flat_map(cycles_among).collect()
}

fn name(path: &[String]) -> String {
    if path.is_empty() { "crate".to_owned() } else { path.join("::") }
}

/// The module that the item at `path`, written in module `from`, is defined in; `None` if it is of another crate.
fn owner(tree: &Crate<'_>, from: &[String], path: &[String], steps: usize) -> Option<ModulePath> {
    let steps = steps.checked_sub(1)?;
    let (first, rest) = path.split_first()?;
    match first.as_str() {
        "crate" => descend(tree, &[], rest, steps),
        "self" => descend(tree, from, rest, steps),
        "super" => {
            let parent = &from[..from.len().checked_sub(1)?];
            match rest.first() {
                Some(next) if next == "super" => owner(tree, parent, rest, steps),
                _ => descend(tree, parent, rest, steps),
            }
        }
        local if knows(tree, from, local) => descend(tree, from, path, steps),
        _ => None,
    }
}

fn knows(tree: &Crate<'_>, module: &[String], local: &str) -> bool {
    tree.get(module).is_some_and(|module| module.items.contains(local) || module.imports.contains_key(local))
}

/// Follows `rest` down from a module, through child modules and re-exports.
fn descend(tree: &Crate<'_>, module: &[String], rest: &[String], steps: usize) -> Option<ModulePath> {
    let steps = steps.checked_sub(1)?;
    let here = tree.get(module)?;
    let Some((next, after)) = rest.split_first() else { return Some(module.to_vec()) };
    let child = [module, std::slice::from_ref(next)].concat();
    if tree.contains_key(child.as_slice()) {
        return descend(tree, &child, after, steps);
    }
    if here.items.contains(next) {
        return Some(module.to_vec());
    }
    if let Some(import) = here.imports.get(next) {
        // `use x::x` would look itself up for ever; the step limit ends it.
        let full = [import.as_slice(), after].concat();
        return owner(tree, module, &full, steps);
    }
    let through_globs = here.globs.iter().filter_map(|glob| owner(tree, module, glob, steps));
    let mut defining = through_globs.filter(|candidate| {
        candidate != module
            && (knows(tree, candidate, next) || tree.contains_key([candidate, rest].concat().as_slice()))
    });
    match defining.next() {
        Some(candidate) => descend(tree, &candidate, rest, steps),
        None => Some(module.to_vec()),
    }
}

/// For each module that is part of a cycle, a shortest one through it; those of the same modules once.
fn cycles_among(edges: &Edges) -> Vec<String> {
    let mut known = BTreeSet::new();
    let mut shown = Vec::new();
    for cycle in edges.keys().filter_map(|start| shortest_way_back(edges, start)) {
        if known.insert(cycle.iter().cloned().collect::<BTreeSet<_>>()) {
            let hops = cycle.iter().zip(cycle.iter().cycle().skip(1));
            let hops: Vec<_> = hops.map(|(from, to)| format!("{from} → {to} ({})", edges[from][to])).collect();
            shown.push(hops.join(", "));
        }
    }
    shown
}

/// Breadth first from `start` until it is reached again.
fn shortest_way_back(edges: &Edges, start: &str) -> Option<Vec<String>> {
    let mut ways = std::collections::VecDeque::from([vec![start.to_owned()]]);
    let mut seen = BTreeSet::new();
    while let Some(way) = ways.pop_front() {
        for next in edges.get(way.last()?).into_iter().flat_map(BTreeMap::keys) {
            if next == start {
                return Some(way);
            }
            if seen.insert(next.clone()) {
                ways.push_back([way.as_slice(), std::slice::from_ref(next)].concat());
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cycles_of(sources: &[(&str, &str)]) -> Vec<String> {
        cycles(&Module::from_text(sources))
    }

    fn has_cycle(a: &str, b: &str) -> bool {
        !cycles_of(&[("", "mod a; mod b; pub use b::B; pub use a::*;"), ("a", a), ("b", b)]).is_empty()
    }

    #[test]
    fn two_modules_that_import_each_other_are_a_cycle() {
        assert!(has_cycle("use crate::b::B;", "use crate::a::A; pub struct B;"));
        assert!(has_cycle("use super::b;", "fn f() { crate::a::f() }"));
        assert!(has_cycle("fn f() { say!(x = crate::b::f()) }", "fn f(a: super::a::A) {}"));
        assert!(has_cycle("use crate::{b::{self, B}};", "impl crate::a::A {}"));
    }

    #[test]
    fn re_exports_do_not_hide_a_cycle() {
        assert!(has_cycle("use crate::B; pub struct A;", "use crate::a::A; pub struct B;"), "by name");
        assert!(has_cycle("use crate::b::B; pub struct A;", "use crate::A; pub struct B;"), "by glob");
    }

    #[test]
    fn one_way_is_no_cycle() {
        assert!(!has_cycle("use crate::b::B; use b::B as C;", "pub struct B;"));
        assert!(!has_cycle("use a::b; use serde::a;", "use a::c;"), "names of other crates");
        assert!(!has_cycle("use crate::b;", "#[cfg(test)] mod tests { use crate::a; }"), "unit tests");
    }

    #[test]
    fn a_long_way_round_is_found_and_shown() {
        let found = cycles_of(&[
            ("", "mod a; mod b; mod c;"),
            ("a", "mod inner;"),
            ("a::inner", "use crate::b::y;"),
            ("b", "use crate::c::z;"),
            ("c", "use crate::a::x;"),
        ]);
        let all = "a → b (a::inner uses crate::b::y), b → c (b uses crate::c::z), c → a (c uses crate::a::x)";
        assert_eq!(found, [all]);
    }

    #[test]
    fn parent_and_child_may_know_each_other_but_siblings_inside_may_not() {
        let parent = ("p", "mod a; mod b; pub use a::A; pub struct E;");
        assert!(
            cycles_of(&[("", "mod p;"), parent, ("p::a", "use super::E;"), ("p::b", "use super::{E, A};")]).is_empty()
        );
        let found =
            cycles_of(&[("", "mod p;"), parent, ("p::a", "use super::b; pub struct A;"), ("p::b", "use super::A;")]);
        assert_eq!(found.len(), 1, "{found:?}");
    }

    #[test]
    fn circular_re_exports_end() {
        assert!(cycles_of(&[("", "mod a; use a::x;"), ("a", "pub use super::x;")]).is_empty());
    }
}
