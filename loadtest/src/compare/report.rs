//! What was measured, as a table, as JSON, and as a page with plots.

use super::measured::{Measured, Sample};
use super::scenario::SubjectName;
use super::spread::Spread;
use super::stream::Tokens;
use super::{goals, plot};
use anyhow::Context as _;
use serde::Serialize;
use std::fmt::Write as _;
use std::io::Write;
use std::path::Path;

/// All of it.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Results {
    /// Unix seconds.
    made_at: u64,
    version: &'static str,
    /// What the source was, as far as git knows.
    commit: String,
    machine: Machine,
    rounds: u32,
    seconds: f64,
    /// Subjects that were not there.
    missing: Vec<String>,
    pub(super) scenarios: Vec<Measured>,
}

#[derive(Clone, Debug, Serialize)]
struct Machine {
    cpu: String,
    threads: usize,
    kernel: String,
}

impl Machine {
    fn this() -> Self {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let info = read("/proc/cpuinfo");
        let model = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
        Self {
            cpu: model.map_or("unknown", |(_, name)| name).to_owned(),
            threads: super::threads(),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
        }
    }
}

impl Results {
    pub(super) fn new(rounds: u32, seconds: f64, missing: Vec<String>) -> Self {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        let (version, machine) = (env!("CARGO_PKG_VERSION"), Machine::this());
        Self {
            made_at: since.as_secs(),
            version,
            commit: commit(),
            machine,
            rounds,
            seconds,
            missing,
            scenarios: Vec::new(),
        }
    }

    /// What could not be measured to the end, and why.
    pub(super) fn failed(&self) -> Vec<String> {
        let of = |measured: &Measured| {
            let name = measured.scenario.name.clone();
            measured.failed.clone().into_iter().map(move |failed| format!("{name}: {failed}"))
        };
        self.scenarios.iter().flat_map(of).collect()
    }

    /// As a page.
    pub(super) fn print(&self, to: &mut impl Write) -> anyhow::Result<()> {
        Ok(to.write_all(self.markdown(|_| None)?.as_bytes())?)
    }

    /// As `compare.json`, and as `compare.md` with a plot for each scenario.
    pub(super) fn write(&self, directory: &Path) -> anyhow::Result<()> {
        std::fs::create_dir_all(directory).with_context(|| format!("making {}", directory.display()))?;
        let write = |name: &str, text: &str| {
            let file = directory.join(name);
            std::fs::write(&file, text).with_context(|| format!("writing {}", file.display()))
        };
        write("compare.json", &(serde_json::to_string_pretty(self)? + "\n"))?;
        for measured in &self.scenarios {
            if let Some(plot) = plot_of(measured) {
                write(&format!("{}.svg", measured.scenario.name), &plot)?;
            }
        }
        let link = |measured: &Measured| {
            let name = &measured.scenario.name;
            plot_of(measured).map(|_| format!("![CPU time for each request]({name}.svg)\n\n"))
        };
        write("compare.md", &self.markdown(link)?)
    }

    fn markdown(&self, plot: impl Fn(&Measured) -> Option<String>) -> anyhow::Result<String> {
        let mut text = String::new();
        let Machine { cpu, threads, kernel } = &self.machine;
        writeln!(text, "# The edge beside others\n")?;
        writeln!(
            text,
            "{cpu}, {threads} threads for clients, subjects and engines together, Linux {kernel}. Medians of"
        )?;
        writeln!(
            text,
            "{} rounds of {} s, subjects in turn; in brackets the least and the most. Source: {}.\n",
            self.rounds, self.seconds, self.commit
        )?;
        for missing in &self.missing {
            writeln!(text, "Not compared: {missing}.\n")?;
        }
        if let Some(table) = goals::table(&self.scenarios) {
            writeln!(text, "{table}")?;
        }
        for measured in &self.scenarios {
            writeln!(text, "## {}\n\n{}.\n", measured.scenario.name, measured.scenario.about)?;
            text.push_str(&plot(measured).unwrap_or_default());
            rows(&mut text, measured)?;
        }
        Ok(text)
    }
}

/// The commit that this is built from, and whether anything was changed since.
fn commit() -> String {
    let described = std::process::Command::new("git")
        .args(["-C", env!("CARGO_MANIFEST_DIR"), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"])
        .output();
    let text = described.ok().filter(|output| output.status.success()).map(|output| output.stdout);
    text.map_or_else(|| "unknown".to_owned(), |text| String::from_utf8_lossy(&text).trim().to_owned())
}

fn show(spread: Option<Spread>, decimals: usize) -> String {
    spread.map_or_else(|| "–".to_owned(), |spread| spread.show(decimals))
}

fn rows(text: &mut String, measured: &Measured) -> std::fmt::Result {
    writeln!(text, "| | CPU µs per request | × nginx | × Pingora | requests/s | p50 µs | p99 µs | RSS MiB |")?;
    writeln!(text, "|---|---|---|---|---|---|---|---|")?;
    for subject in &measured.scenario.subjects {
        let figure = |figure: fn(&Sample) -> Option<f64>| measured.spread(*subject, figure);
        writeln!(
            text,
            "| {} | {} | {} | {} | {} | {} | {} | {} |",
            subject.name(),
            show(figure(|sample| sample.cpu_us), 1),
            show(measured.ratio(*subject, measured.scenario.nginx()), 2),
            show(measured.ratio(*subject, SubjectName::Pingora), 2),
            show(figure(|sample| Some(sample.per_second)), 0),
            show(figure(|sample| Some(sample.p50_us)), 0),
            show(figure(|sample| Some(sample.p99_us)), 0),
            show(figure(|sample| sample.rss_mib), 0),
        )?;
    }
    let reused = measured.spread(SubjectName::Edge, |sample| sample.reused.map(|part| part * 100.0));
    if let Some(reused) = reused.filter(|reused| reused.max > 0.0) {
        writeln!(text, "\nThe edge answered {} % from its cache.", reused.show(1))?;
    }
    for failed in &measured.failed {
        writeln!(text, "\nFailed: {failed}.")?;
    }
    if measured.samples.iter().any(|sample| sample.tokens.is_some()) {
        token_rows(text, measured)?;
    }
    for sample in &measured.samples {
        if let (Some(early), Some(late)) = (sample.rss_early_mib, sample.rss_mib) {
            let (name, ratio) = (sample.subject.name(), late / early);
            writeln!(text, "\n{name}: {early:.0} MiB after a sixth of the time, {late:.0} at the end: × {ratio:.2}.")?;
        }
    }
    writeln!(text)
}

fn token_rows(text: &mut String, measured: &Measured) -> std::fmt::Result {
    writeln!(text, "\n| | first token p50 µs | p99 µs | between tokens p50 µs | p99 µs |\n|---|---|---|---|---|")?;
    for subject in &measured.scenario.subjects {
        let figure = |figure: fn(Tokens) -> f64| show(measured.spread(*subject, |sample| sample.tokens.map(figure)), 0);
        writeln!(
            text,
            "| {} | {} | {} | {} | {} |",
            subject.name(),
            figure(|tokens| tokens.first_p50_us),
            figure(|tokens| tokens.first_p99_us),
            figure(|tokens| tokens.between_p50_us),
            figure(|tokens| tokens.between_p99_us),
        )?;
    }
    Ok(())
}

/// CPU time for each request of each subject, as SVG; `None` if it was measured of nobody.
fn plot_of(measured: &Measured) -> Option<String> {
    let of = |subject: &SubjectName| Some((subject.name(), measured.spread(*subject, |sample| sample.cpu_us)?));
    let spreads: Vec<_> = measured.scenario.subjects.iter().filter_map(of).collect();
    plot::bars(&format!("CPU time for each request: {}", measured.scenario.about), "µs", &spreads)
}
