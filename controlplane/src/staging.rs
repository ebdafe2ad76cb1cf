//! The stages of a rollout, and what becomes of it. Pure.

use serde::{Deserialize, Serialize};
use turnpike_config::log::Audience;
use utoipa::ToSchema;

/// Longest hold, seconds: a week.
const MAX_HOLD_S: u32 = 7 * 24 * 3_600;
/// Most stages.
const MAX_STAGES: usize = 16;

/// Edges that are told together, and how long they are watched before the next are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Stage {
    /// Edges by name.
    #[serde(default)]
    pub(crate) edges: Vec<String>,
    /// Regions, with all their edges.
    #[serde(default)]
    pub(crate) regions: Vec<String>,
    /// Seconds from when all of them serve by it until the next stage.
    #[serde(default = "half_a_minute")]
    pub(crate) hold_s: u32,
}

/// Hold of a stage that does not say.
pub(crate) const HOLD_S: u32 = 30;

const fn half_a_minute() -> u32 {
    HOLD_S
}

impl Stage {
    /// Who is told.
    pub(crate) fn audience(&self) -> Audience {
        Audience { edges: self.edges.clone(), regions: self.regions.clone() }
    }
}

/// What cannot be right with stages: a path and a reason.
pub(crate) fn stages_mistake(stages: &[Stage]) -> Option<(String, &'static str)> {
    if stages.is_empty() || stages.len() > MAX_STAGES {
        return Some(("stages".to_owned(), "expected 1 to 16 stages; all edges are told after the last"));
    }
    let faults = stages.iter().enumerate().filter_map(|(index, stage)| {
        let path = format!("stages[{index}]");
        if stage.edges.is_empty() && stage.regions.is_empty() {
            return Some((path, "expected edges or regions"));
        }
        (stage.hold_s > MAX_HOLD_S).then(|| (format!("{path}.hold_s"), "expected at most 604800 seconds"))
    });
    faults.into_iter().next()
}

/// When a rollout is halted and taken back. The edges that were told are compared with those that were not, by requests
/// that began since all of the stage's edges serve by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Rules {
    /// Of a thousand requests, so many more may be answered with 5xx than by the other edges.
    pub(crate) max_5xx_extra_permille: u32,
    /// The 99th percentile of the time to the first byte may be so many thousandths of the other edges'.
    pub(crate) max_first_byte_permille: u32,
    /// Of fewer requests nothing is concluded.
    pub(crate) min_requests: u32,
    /// Seconds within which all edges of a stage must serve by it.
    pub(crate) max_wait_s: u32,
}

impl Default for Rules {
    fn default() -> Self {
        Self { max_5xx_extra_permille: 20, max_first_byte_permille: 1_500, min_requests: 20, max_wait_s: 60 }
    }
}

/// How a group of edges does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Health {
    pub(crate) requests: i64,
    pub(crate) failed: i64,
    /// 99th percentile of the time to the first byte, milliseconds.
    pub(crate) first_byte_p99_ms: Option<i64>,
}

impl Health {
    fn failed_permille(&self) -> i64 {
        self.failed.saturating_mul(1_000).checked_div(self.requests).unwrap_or(0)
    }
}

/// An edge of the present stage or of one before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Told {
    pub(crate) name: String,
    /// Whether it serves by what the stage was told.
    pub(crate) holds: bool,
    /// Why it refused it, if it did.
    pub(crate) nack: Option<String>,
    /// Seconds since it could know of it: since the stage was told, or the edge came.
    pub(crate) waited_s: i64,
}

/// What is seen of a rollout.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    /// Connected edges among those that were told.
    pub(crate) told: Vec<Told>,
    /// A change of it was overtaken by another that went to all.
    pub(crate) overtaken: Option<String>,
    /// Seconds since all of its edges serve by it; `None` if they do not yet.
    pub(crate) held_s: Option<i64>,
    /// Edges that were told, and the others.
    pub(crate) health: (Health, Health),
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Nothing yet.
    Wait(String),
    /// All edges of the stage serve by it: the hold begins.
    Hold,
    /// The hold is over.
    Advance,
    /// It does harm: take it back.
    Halt(String),
}

/// Waits of less than this are no harm, milliseconds: between two and three milliseconds lies no regression.
const NOTICED_MS: i64 = 50;

/// Judges a stage.
pub(crate) fn decide(stage: &Stage, rules: &Rules, seen: &Seen) -> Verdict {
    if let Some(reason) = harm(rules, seen) {
        return Verdict::Halt(reason);
    }
    let waiting = || seen.told.iter().filter(|edge| !edge.holds);
    if let Some(late) = waiting().find(|edge| edge.waited_s > rules.max_wait_s.into()) {
        return Verdict::Halt(format!("{} did not serve by it within {} s", late.name, rules.max_wait_s));
    }
    if seen.told.is_empty() {
        return Verdict::Wait("waiting for an edge of the stage to connect".to_owned());
    }
    if waiting().next().is_some() {
        let names: Vec<_> = waiting().map(|edge| edge.name.as_str()).collect();
        return Verdict::Wait(format!("waiting for {}", names.join(", ")));
    }
    match seen.held_s {
        None => Verdict::Hold,
        Some(held) if held >= stage.hold_s.into() => Verdict::Advance,
        Some(_) => Verdict::Wait(format!("held for {} s", stage.hold_s)),
    }
}

/// Why it must be taken back, if it must.
fn harm(rules: &Rules, seen: &Seen) -> Option<String> {
    if let Some(subject) = &seen.overtaken {
        return Some(format!("{subject} was changed for all edges meanwhile"));
    }
    if let Some((edge, nack)) = seen.told.iter().find_map(|edge| Some((&edge.name, edge.nack.as_ref()?))) {
        return Some(format!("{edge} refused it: {nack}"));
    }
    let (told, others) = &seen.health;
    if told.requests < rules.min_requests.into() {
        return None;
    }
    let (failed, usual) = (told.failed_permille(), others.failed_permille());
    if failed > usual + i64::from(rules.max_5xx_extra_permille) {
        return Some(format!("{failed} of 1000 requests failed, {usual} elsewhere"));
    }
    let enough = others.requests >= rules.min_requests.into();
    let (slow, usual) = (told.first_byte_p99_ms?, others.first_byte_p99_ms.filter(|_| enough)?);
    let allowed = usual.saturating_mul(rules.max_first_byte_permille.into()) / 1_000;
    (slow > allowed && slow - usual > NOTICED_MS)
        .then(|| format!("99 % of answers begin within {slow} ms, within {usual} ms elsewhere"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stage() -> Stage {
        Stage { edges: vec!["e1".to_owned()], regions: Vec::new(), hold_s: 30 }
    }

    fn told(holds: bool) -> Told {
        Told { name: "e1".to_owned(), holds, nack: None, waited_s: 1 }
    }

    fn seen() -> Seen {
        let health = Health { requests: 100, failed: 1, first_byte_p99_ms: Some(200) };
        Seen { told: vec![told(true)], overtaken: None, held_s: Some(5), health: (health, health) }
    }

    fn judged(seen: &Seen) -> Verdict {
        decide(&stage(), &Rules::default(), seen)
    }

    #[test]
    fn a_stage_waits_for_its_edges_and_holds() {
        assert!(matches!(judged(&Seen { told: Vec::new(), ..seen() }), Verdict::Wait(_)));
        assert!(matches!(judged(&Seen { told: vec![told(false)], held_s: None, ..seen() }), Verdict::Wait(_)));
        let late = Seen { told: vec![Told { waited_s: 61, ..told(false) }], held_s: None, ..seen() };
        assert!(matches!(judged(&late), Verdict::Halt(_)));
        let fresh = Seen { told: vec![told(true), told(false)], ..seen() };
        assert!(matches!(judged(&fresh), Verdict::Wait(_)), "one that has just come is no harm");
        assert_eq!(judged(&Seen { held_s: None, ..seen() }), Verdict::Hold);
        assert!(matches!(judged(&seen()), Verdict::Wait(_)));
        assert_eq!(judged(&Seen { held_s: Some(30), ..seen() }), Verdict::Advance);
    }

    #[test]
    fn harm_is_seen_and_what_is_as_usual_is_none() {
        let halts = |seen: Seen| matches!(judged(&Seen { held_s: Some(30), ..seen }), Verdict::Halt(_));
        let with = |requests, failed, p99| {
            let told = Health { requests, failed, first_byte_p99_ms: Some(p99) };
            Seen { health: (told, seen().health.1), ..seen() }
        };
        assert!(halts(Seen { told: vec![Told { nack: Some("no".to_owned()), ..told(true) }], ..seen() }));
        assert!(halts(Seen { overtaken: Some("model m".to_owned()), ..seen() }));
        assert!(halts(with(100, 4, 200)) && !halts(with(100, 3, 200)));
        assert!(!halts(with(19, 19, 9_000)), "too few to say");
        assert!(halts(with(100, 0, 301)) && !halts(with(100, 0, 300)));
        let quick = Health { requests: 100, failed: 0, first_byte_p99_ms: Some(2) };
        let told = Health { first_byte_p99_ms: Some(40), ..quick };
        assert!(!halts(Seen { health: (told, quick), ..seen() }), "nobody notices");
    }

    #[test]
    fn stages_are_checked() {
        assert_eq!(stages_mistake(&[stage()]), None);
        assert!(stages_mistake(&[]).is_some());
        let nobody = Stage { edges: Vec::new(), ..stage() };
        assert_eq!(stages_mistake(&[stage(), nobody]).map(|(path, _)| path).as_deref(), Some("stages[1]"));
        let long = Stage { hold_s: MAX_HOLD_S + 1, ..stage() };
        assert_eq!(stages_mistake(&[long]).map(|(path, _)| path).as_deref(), Some("stages[0].hold_s"));
    }
}
