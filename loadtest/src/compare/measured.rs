//! What was measured of each scenario.

use super::oha::Seen;
use super::scenario::{Scenario, SubjectName};
use super::spread::Spread;
use super::stream::Tokens;
use crate::program::Cost;
use serde::Serialize;

/// One run of one subject.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Sample {
    pub(super) subject: SubjectName,
    pub(super) round: u32,
    pub(super) requests: u64,
    pub(super) per_second: f64,
    pub(super) p50_us: f64,
    pub(super) p99_us: f64,
    /// CPU time of the subject's programs, microseconds for each request.
    pub(super) cpu_us: Option<f64>,
    /// Resident afterwards.
    pub(super) rss_mib: Option<f64>,
    /// Resident early on, of what goes on for long.
    pub(super) rss_early_mib: Option<f64>,
    /// Part of the requests that it answered from a cache, where it has one.
    pub(super) reused: Option<f64>,
    /// Of streams, which are measured apart.
    pub(super) tokens: Option<Tokens>,
}

impl Sample {
    pub(super) fn new(subject: SubjectName, round: u32, seen: Seen, cost: Option<Cost>) -> Self {
        let Seen { requests, per_second, p50_us, p99_us } = seen;
        let each = |cost: Cost| cost.cpu.as_secs_f64() * 1e6 / requests as f64;
        let (cpu_us, rss_mib) = (cost.map(each), cost.map(Cost::rss_mib));
        let (rss_early_mib, reused, tokens) = (None, None, None);
        Self { subject, round, requests, per_second, p50_us, p99_us, cpu_us, rss_mib, rss_early_mib, reused, tokens }
    }
}

/// A scenario with its samples.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Measured {
    pub(super) scenario: Scenario,
    pub(super) samples: Vec<Sample>,
    /// Who could not be measured to the end, and why.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) failed: Vec<String>,
}

impl Measured {
    fn of(&self, subject: SubjectName) -> impl Iterator<Item = &Sample> {
        self.samples.iter().filter(move |sample| sample.subject == subject)
    }

    pub(super) fn spread(&self, subject: SubjectName, figure: impl Fn(&Sample) -> Option<f64>) -> Option<Spread> {
        Spread::of(self.of(subject).filter_map(figure))
    }

    /// CPU time for each request beside another subject's in the same round.
    pub(super) fn ratio(&self, subject: SubjectName, to: SubjectName) -> Option<Spread> {
        Spread::of(self.of(subject).filter_map(|sample| {
            let other = self.of(to).find(|other| other.round == sample.round)?;
            Some(sample.cpu_us? / other.cpu_us?)
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_are_of_the_same_round() {
        let sample = |subject, round, cpu: f64| {
            let seen = Seen { requests: 1, per_second: 1.0, p50_us: 1.0, p99_us: 1.0 };
            Sample { cpu_us: Some(cpu), ..Sample::new(subject, round, seen, None) }
        };
        let samples = [(1, 10.0, 20.0), (2, 20.0, 50.0), (3, 10.0, 10.0)];
        let samples = samples.into_iter().flat_map(|(round, one, other)| {
            [sample(SubjectName::Nginx, round, one), sample(SubjectName::Edge, round, other)]
        });
        let scenario = Scenario::find("chat-1k").unwrap();
        let measured = Measured { scenario, samples: samples.collect(), failed: Vec::new() };
        let ratio = measured.ratio(SubjectName::Edge, SubjectName::Nginx);
        assert_eq!(ratio, Some(Spread { median: 2.0, min: 1.0, max: 2.5 }));
        assert_eq!(measured.ratio(SubjectName::Edge, SubjectName::Haproxy), None);
    }
}
