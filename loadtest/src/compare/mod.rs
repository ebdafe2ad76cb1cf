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
use anyhow::Context as _;
use measured::Sample;
use oha::Oha;
use report::Results;
use scenario::{Scenario, SubjectName};
use stage::Stage;
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
    results.print(&mut std::io::stdout())
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
    if let Some(file) = &args.trace {
        let trace = trace::read(file)?;
        let (scenario, samples) = replay_all(&stage, args, file, &trace).await?;
        results.add(scenario, samples);
        if let Some(directory) = &args.out {
            results.write(directory)?;
        }
        progress("the trace is measured");
    }
    for scenario in scenarios {
        let bodies = stage.bodies(&scenario.request, args.seconds)?;
        let subjects: Vec<_> = scenario.subjects.iter().copied().filter(|subject| stage.has(*subject)).collect();
        let mut samples = Vec::new();
        for round in u32::from(!scenario.warms_up())..=scenario.rounds(args.rounds) {
            let lasting = if round == 0 { WARM_UP } else { scenario.lasting(args.seconds) };
            for subject in &subjects {
                let sample = one(&stage, &oha, scenario, *subject, (round, lasting, &bodies)).await;
                let sample = sample.with_context(|| format!("{subject:?}, {}: {}", scenario.name, stage.logs()))?;
                samples.extend((round > 0).then_some(sample));
            }
        }
        results.add(scenario.clone(), samples);
        // After each, for the next one may fail.
        if let Some(directory) = &args.out {
            results.write(directory)?;
        }
        progress(&format!("{} is measured", scenario.name));
    }
    Ok(results)
}

/// The trace, to each subject in turn.
async fn replay_all(
    stage: &Stage,
    args: &Args,
    file: &Path,
    trace: &[trace::Arrival],
) -> anyhow::Result<(Scenario, Vec<Sample>)> {
    let name = file.file_stem().unwrap_or_default().to_string_lossy();
    let scenario = Scenario::of_trace(&name, args.speed);
    let mut samples = Vec::new();
    for round in 1..=scenario.rounds(args.rounds) {
        for subject in scenario.subjects.iter().copied().filter(|subject| stage.has(*subject)) {
            let way = stage.way(subject, &scenario);
            let before = stage.cost(subject)?;
            let to = replay::To { way, model: scenario.request.model.clone() };
            let terms = (scenario.lasting(args.seconds), args.speed, samples.len());
            let replayed = replay::replay(to, trace, terms).await;
            let (seen, tokens) = replayed.with_context(|| format!("{subject:?}, {name}: {}", stage.logs()))?;
            let cost = stage.cost(subject)?.zip(before).map(|(after, before)| after - before);
            samples.push(Sample { tokens: Some(tokens), ..Sample::new(subject, round, seen, cost) });
        }
    }
    Ok((scenario, samples))
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
    let (seen, early) = tokio::join!(oha.run(&way, bodies, *load, (lasting, request.kind.status())), early);
    let (seen, cost) = (seen?, since(before)?);
    let tokens = match request.stream && !load.soak {
        true => Some(stream::measure(&way, request, STREAMS, STREAMING).await?),
        false => None,
    };
    let rss_early_mib = early?.filter(|_| load.soak).map(|cost| cost.rss_mib());
    Ok(Sample { tokens, rss_early_mib, ..Sample::new(subject, round, seen, cost) })
}

/// A word to who waits.
fn progress(text: &str) {
    // Nobody is there to read it.
    let _ = std::io::Write::write_all(&mut std::io::stderr(), format!("{text}\n").as_bytes());
}

#[cfg(test)]
mod tests {
    use super::seconds;

    #[test]
    fn a_time_is_one_that_can_be_waited_for() {
        assert_eq!(seconds("0.5"), Ok(0.5));
        for bad in ["0", "-1", "NaN", "inf", "1e9", "soon"] {
            assert!(seconds(bad).is_err(), "{bad}");
        }
    }
}
