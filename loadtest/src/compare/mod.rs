//! The edge beside what one would use instead: the same load on each in turn, A B A B, on one machine in one run.

mod goals;
mod hold;
mod measured;
mod oha;
mod plot;
mod replay;
mod report;
mod scenario;
mod spread;
mod stage;
mod stream;
pub(crate) mod subjects;
mod trace;

use crate::program::Cost;
use anyhow::{Context as _, ensure};
use measured::{Measured, Sample};
use oha::Oha;
use report::Results;
use scenario::{Scenario, SubjectName};
use stage::Stage;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What comes before it counts.
const WARM_UP: Duration = Duration::from_millis(700);

/// Where it goes on for long, memory is looked at after this part of the time too.
const EARLY: u32 = 6;

/// Streams at a time, and for how long, of which single tokens are looked at.
const STREAMS: u32 = 8;
const STREAMING: Duration = Duration::from_millis(800);

/// What to measure.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    /// A scenario's name, or a file with one; all that come with the program if none is given.
    #[arg(value_name = "SCENARIO")]
    scenarios: Vec<String>,
    /// How often each is measured, in turn.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// How long each time, seconds.
    #[arg(long, default_value_t = 3.0, value_parser = seconds)]
    seconds: f64,
    /// Also write `compare.json` and `compare.md` with its plots into this directory.
    #[arg(long, value_name = "DIRECTORY")]
    out: Option<PathBuf>,
    /// Also send this trace again: JSON lines as Mooncake's, or CSV as Azure's. It goes on for twenty times the seconds.
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,
    /// How much faster than it came.
    #[arg(long, value_name = "FACTOR", default_value_t = 20.0, value_parser = factor)]
    speed: f64,
    /// The program to measure; otherwise the one beside this one.
    #[arg(long, value_name = "FILE")]
    turnpike: Option<PathBuf>,
}

fn factor(text: &str) -> Result<f64, String> {
    let factor = text.parse().ok().filter(|factor| (0.001..=1e6).contains(factor));
    factor.ok_or_else(|| "expected 0.001 to 1000000".to_owned())
}

/// What oha can be told, and not so long that nobody waits for it.
fn seconds(text: &str) -> Result<f64, String> {
    let seconds = text.parse().ok().filter(|seconds| (0.1..=3_600.0).contains(seconds));
    seconds.ok_or_else(|| "expected 0.1 to 3600".to_owned())
}

/// Threads of every program that is compared.
pub(crate) fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Measures and prints.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let scenarios = match &args.scenarios[..] {
        [] if args.trace.is_some() => Vec::new(),
        [] => Scenario::all()?,
        some => some.iter().map(|name| Scenario::find(name)).collect::<Result<_, _>>()?,
    };
    let turnpike = crate::turnpike(args.turnpike.as_deref())?;
    // Fails only if there is one already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = tokio::runtime::Runtime::new().context("starting the async runtime")?;
    let results = runtime.block_on(measure(args, &scenarios, turnpike))?;
    results.print(&mut std::io::stdout())?;
    let failed = results.failed();
    ensure!(failed.is_empty(), "not all of it could be measured: {}", failed.join("; "));
    Ok(())
}

async fn measure(args: &Args, scenarios: &[Scenario], turnpike: PathBuf) -> anyhow::Result<Results> {
    let oha = Oha::find()?;
    let traced = Scenario::of_trace("", args.speed);
    let wanted = scenarios.iter().chain(args.trace.is_some().then_some(&traced));
    let wanted = wanted.flat_map(|scenario| scenario.subjects.iter().copied()).collect();
    let stage = Stage::set(turnpike, &wanted).await?;
    let mut results = Results::new(args.rounds, args.seconds, stage.missing().to_vec());
    if let Some(directory) = &args.out {
        // Before it has taken long to find out that it cannot be written.
        results.write(directory)?;
    }
    let mut keep = |measured: Measured| {
        progress(&format!("{} is measured", measured.scenario.name));
        if !measured.failed.is_empty() {
            progress(&format!("{}\n{}", measured.failed.join("\n"), stage.logs()));
        }
        results.scenarios.push(measured);
        // After each, for the next one may take long.
        args.out.as_ref().map_or(Ok(()), |directory| results.write(directory))
    };
    if let Some(file) = &args.trace {
        keep(replay_all(&stage, args, file, &trace::read(file)?).await)?;
    }
    for scenario in scenarios {
        let bodies = stage.bodies(&scenario.request, args.seconds)?;
        let rounds = u32::from(!scenario.warms_up())..=scenario.rounds(args.rounds);
        let measured = in_turn(scenario, stage.subjects_of(scenario), rounds, async |subject, round| {
            let lasting = if round == 0 { WARM_UP } else { scenario.lasting(args.seconds) };
            one(&stage, &oha, scenario, subject, (round, lasting, &bodies)).await
        });
        keep(measured.await)?;
    }
    Ok(results)
}

/// Measures each subject in turn, round after round; round 0 does not count. Who fails is left out from then on.
async fn in_turn(
    scenario: &Scenario,
    mut subjects: Vec<SubjectName>,
    rounds: RangeInclusive<u32>,
    mut measure: impl AsyncFnMut(SubjectName, u32) -> anyhow::Result<Sample>,
) -> Measured {
    let mut measured = Measured { scenario: scenario.clone(), samples: Vec::new(), failed: Vec::new() };
    for round in rounds {
        for subject in subjects.clone() {
            match measure(subject, round).await {
                Ok(sample) => measured.samples.extend((round > 0).then_some(sample)),
                Err(error) => {
                    measured.failed.push(format!("{} in round {round}: {error:#}", subject.name()));
                    subjects.retain(|other| *other != subject);
                }
            }
        }
    }
    measured
}

/// The trace, to each subject in turn.
async fn replay_all(stage: &Stage, args: &Args, file: &Path, trace: &[trace::Arrival]) -> Measured {
    let name = file.file_stem().unwrap_or_default().to_string_lossy();
    let scenario = Scenario::of_trace(&name, args.speed);
    let mut turn = 0;
    let rounds = 1..=scenario.rounds(args.rounds);
    in_turn(&scenario, stage.subjects_of(&scenario), rounds, async |subject, round| {
        let way = stage.way(subject, &scenario);
        let before = stage.cost(subject)?;
        let to = replay::To { way, model: scenario.request.model.clone() };
        turn += 1;
        let (seen, tokens) = replay::replay(to, trace, (scenario.lasting(args.seconds), args.speed, turn)).await?;
        let cost = stage.cost(subject)?.zip(before).map(|(after, before)| after - before);
        Ok(Sample { tokens: Some(tokens), ..Sample::new(subject, round, seen, cost) })
    })
    .await
}

/// One subject's turn.
async fn one(
    stage: &Stage,
    oha: &Oha,
    scenario: &Scenario,
    subject: SubjectName,
    (round, lasting, bodies): (u32, Duration, &Path),
) -> anyhow::Result<Sample> {
    let way = stage.way(subject, scenario);
    let Scenario { request, load, .. } = scenario;
    let before = stage.cost(subject)?;
    let since =
        |before: Option<Cost>| anyhow::Ok(stage.cost(subject)?.zip(before).map(|(after, before)| after - before));
    if load.hold {
        let held = hold::hold(&way, request, load.connections).await?;
        return Ok(Sample::new(subject, round, held.seen, since(before)?));
    }
    let early = async {
        tokio::time::sleep(lasting / EARLY).await;
        stage.cost(subject)
    };
    let reused_before = stage.reused(subject).await?;
    let (seen, early) = tokio::join!(oha.run(&way, bodies, *load, (lasting, request.kind.status())), early);
    let (seen, cost) = (seen?, since(before)?);
    let reused = stage.reused(subject).await?.zip(reused_before);
    let reused = reused.map(|(after, before)| (after - before) as f64 / seen.requests as f64);
    let tokens = match request.stream && !load.soak {
        true => Some(stream::measure(&way, request, STREAMS, STREAMING).await?),
        false => None,
    };
    let rss_early_mib = early?.filter(|_| load.soak).map(|cost| cost.rss_mib());
    Ok(Sample { tokens, rss_early_mib, reused, ..Sample::new(subject, round, seen, cost) })
}

/// A word to who waits.
fn progress(text: &str) {
    // Nobody is there to read it.
    let _ = std::io::Write::write_all(&mut std::io::stderr(), format!("{text}\n").as_bytes());
}

#[cfg(test)]
mod tests {
    use super::oha::Seen;
    use super::*;

    #[tokio::test]
    async fn who_fails_is_left_out_and_the_others_go_on() {
        let subjects = vec![SubjectName::Nginx, SubjectName::Portkey, SubjectName::Edge];
        let mut asked = Vec::new();
        let scenario = Scenario::find("chat-1k").unwrap();
        let measured = in_turn(&scenario, subjects, 0..=2, async |subject, round| {
            asked.push((round, subject));
            anyhow::ensure!((subject, round) != (SubjectName::Portkey, 1), "it answered 500");
            let seen = Seen { requests: 1, per_second: 1.0, p50_us: 1.0, p99_us: 1.0 };
            Ok(Sample::new(subject, round, seen, None))
        });
        let measured = measured.await;
        let (nginx, portkey, edge) = (SubjectName::Nginx, SubjectName::Portkey, SubjectName::Edge);
        let turns = [(0, nginx), (0, portkey), (0, edge), (1, nginx), (1, portkey), (1, edge), (2, nginx), (2, edge)];
        assert_eq!(asked, turns);
        let counted: Vec<_> = measured.samples.iter().map(|sample| (sample.round, sample.subject)).collect();
        assert_eq!(counted, [(1, nginx), (1, edge), (2, nginx), (2, edge)]);
        assert_eq!(measured.failed, ["Portkey in round 1: it answered 500"]);
    }

    #[test]
    fn a_time_is_one_that_can_be_waited_for() {
        assert_eq!(seconds("0.5"), Ok(0.5));
        for bad in ["0", "-1", "NaN", "inf", "1e9", "soon"] {
            assert!(seconds(bad).is_err(), "{bad}");
        }
    }
}
