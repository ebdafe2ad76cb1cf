//! What the edge is to cost, beside what it was measured to cost.

use super::measured::{Measured, Sample};
use super::scenario::SubjectName::{self, Direct, Edge, Nginx, NginxCache, Pingora};
use super::spread::Spread;
use std::fmt::Write as _;

/// Streams that the goal for waiting ones is about.
const WAITING: f64 = 10_000.0;
/// Bytes of a megabyte in one of the MiB that are measured.
const MB: f64 = 1024.0 * 1024.0 / 1e6;

/// A figure with the most that it is to be.
struct Goal {
    what: &'static str,
    most: f64,
    of: fn(&[Measured]) -> Option<Spread>,
}

const GOALS: [Goal; 9] = [
    Goal {
        what: "everything on, CPU per request × bare Pingora",
        most: 1.25,
        of: |all| find(all, "chat-1k")?.ratio(Edge, Pingora),
    },
    Goal { what: "the same × nginx", most: 2.0, of: |all| find(all, "chat-1k")?.ratio(Edge, Nginx) },
    Goal {
        what: "a stream of 64 tokens in a burst × bare Pingora",
        most: 0.5,
        of: |all| find(all, "stream-64-burst")?.ratio(Edge, Pingora),
    },
    Goal {
        what: "a cached answer × nginx with `proxy_cache`",
        most: 1.0,
        of: |all| find(all, "cached")?.ratio(Edge, NginxCache),
    },
    Goal { what: "a wrong key × a request that is proxied", most: 0.5, of: refused },
    Goal { what: "added at 2,000 requests/s, p50, µs", most: 100.0, of: |all| added(all, |at| at.p50_us) },
    Goal { what: "added at 2,000 requests/s, p99, µs", most: 1_000.0, of: |all| added(all, |at| at.p99_us) },
    Goal { what: "resident at the end × after a sixth of the time", most: 1.2, of: grown },
    Goal { what: "10,000 streams that wait, resident, MB", most: 600.0, of: waiting },
];

/// The table; `None` if nothing was measured that there is a goal for.
pub(super) fn table(all: &[Measured]) -> Option<String> {
    let mut text = "| goal | most | measured | |\n|---|---|---|---|\n".to_owned();
    let mut is_any = false;
    for Goal { what, most, of } in GOALS {
        let Some(spread) = of(all) else { continue };
        let reached = if spread.median <= most { "reached" } else { "**missed**" };
        // Writing into a String cannot fail.
        let _ = writeln!(text, "| {what} | {most} | {} | {reached} |", spread.show(if most < 10.0 { 2 } else { 0 }));
        is_any = true;
    }
    is_any.then_some(text)
}

fn find<'a>(all: &'a [Measured], name: &str) -> Option<&'a Measured> {
    all.iter().find(|measured| measured.scenario.name == name)
}

/// Of medians, since the two were not measured in the same round.
fn refused(all: &[Measured]) -> Option<Spread> {
    let of = |name| find(all, name)?.spread(Edge, |sample| sample.cpu_us);
    let (refused, proxied) = (of("flood-401")?, of("chat-1k")?);
    Spread::of([refused.median / proxied.median])
}

fn added(all: &[Measured], at: fn(&Sample) -> f64) -> Option<Spread> {
    let measured = find(all, "chat-rate")?;
    let of = |subject: SubjectName| measured.samples.iter().filter(move |sample| sample.subject == subject);
    Spread::of(of(Edge).filter_map(|sample| {
        let direct = of(Direct).find(|direct| direct.round == sample.round)?;
        Some(at(sample) - at(direct))
    }))
}

fn grown(all: &[Measured]) -> Option<Spread> {
    find(all, "soak")?.spread(Edge, |sample| Some(sample.rss_mib? / sample.rss_early_mib?))
}

fn waiting(all: &[Measured]) -> Option<Spread> {
    let measured = find(all, "stream-idle")?;
    let streams = f64::from(measured.scenario.load.connections);
    Spread::of(measured.spread(Edge, |sample| sample.rss_mib).map(|mib| mib.median * MB / streams * WAITING))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::oha::Seen;
    use crate::compare::scenario::Scenario;

    fn measured(name: &str, samples: &[(SubjectName, f64)]) -> Measured {
        let sample = |(subject, value): &(SubjectName, f64)| {
            let seen = Seen { requests: 1, per_second: 1.0, p50_us: *value, p99_us: *value };
            let rss_mib = Some(*value);
            Sample { cpu_us: Some(*value), rss_mib, rss_early_mib: rss_mib, ..Sample::new(*subject, 1, seen, None) }
        };
        let (scenario, samples) = (Scenario::find(name).unwrap(), samples.iter().map(sample).collect());
        Measured { scenario, samples, failed: Vec::new() }
    }

    #[test]
    fn goals_are_looked_up_where_they_were_measured() {
        let all = [
            measured("chat-1k", &[(Nginx, 10.0), (Pingora, 20.0), (Edge, 30.0)]),
            measured("flood-401", &[(Edge, 3.0)]),
            measured("chat-rate", &[(Direct, 50.0), (Edge, 140.0)]),
            measured("stream-idle", &[(Edge, 570.0)]),
        ];
        let table = table(&all).unwrap();
        for line in [
            "| everything on, CPU per request × bare Pingora | 1.25 | 1.50 (1.50–1.50) | **missed** |",
            "| the same × nginx | 2 | 3.00 (3.00–3.00) | **missed** |",
            "| a wrong key × a request that is proxied | 0.5 | 0.10 (0.10–0.10) | reached |",
            "| added at 2,000 requests/s, p50, µs | 100 | 90 (90–90) | reached |",
            "| 10,000 streams that wait, resident, MB | 600 | 629 (629–629) | **missed** |",
        ] {
            assert!(table.contains(line), "{line}\n{table}");
        }
        assert!(!table.contains("burst") && super::table(&all[..0]).is_none());
    }
}
