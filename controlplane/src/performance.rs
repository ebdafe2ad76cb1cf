//! How nodes do: their reports and the events of their requests become a row per minute, node and model.
//!
//! A minute is written once its events can be expected to have come. What a process that is stopped has not written is
//! lost: these are figures for charts.

use crate::ledger::{Ledger, LedgerError};
use crate::partitions;
use crate::store::Store;
use crate::store::performance::{Latencies, Minute};
use chrono::{DateTime, DurationRound as _, TimeDelta, Utc};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use turnpike_config::records::Served;
use turnpike_config::wire::{NodeHello, NodeReport};

/// How long after its end a minute is written: by then edges have shipped what began in it, long answers apart.
const SETTLED_AFTER: TimeDelta = TimeDelta::seconds(60);
/// Between two looks for minutes to write.
const EVERY: Duration = Duration::from_secs(10);
/// Minutes of nodes kept for a database that is away; the oldest are given up then.
const MOST_WAITING: usize = 10_000;
const SECONDS_PER_MINUTE: f64 = 60.0;

/// What nodes have reported and is not written yet, by minute and node.
#[derive(Debug, Default)]
pub(crate) struct Reported(Mutex<BTreeMap<(DateTime<Utc>, String), NodeMinute>>);

/// A node's reports of one minute.
#[derive(Clone, Debug, PartialEq)]
struct NodeMinute {
    region: String,
    serves: Vec<Served>,
    gpu_type: String,
    /// Completed requests and generated tokens, at its first and its latest report.
    first: (u64, u64),
    latest: (u64, u64),
    gpu: Mean,
    memory: Mean,
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Mean {
    permille: u64,
    count: u64,
}

impl Mean {
    fn add(&mut self, permille: Option<u16>) {
        if let Some(permille) = permille {
            self.permille += u64::from(permille);
            self.count += 1;
        }
    }

    /// 0 to 1.
    fn ratio(self) -> f64 {
        if self.count == 0 { 0.0 } else { self.permille as f64 / self.count as f64 / 1000.0 }
    }
}

impl Reported {
    /// Takes in a node's report.
    pub(crate) fn add(&self, name: &str, hello: &NodeHello, report: &NodeReport, now: DateTime<Utc>) {
        let Ok(minute) = now.duration_trunc(TimeDelta::minutes(1)) else { return };
        let counted = (report.completed, report.generated_tokens);
        let mut minutes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // The counters go on from where the minute before left them, unless the node was started anew meanwhile.
        let before = minutes.get(&(minute - TimeDelta::minutes(1), name.to_owned())).map(|before| before.latest);
        let entry = minutes.entry((minute, name.to_owned())).or_insert_with(|| NodeMinute {
            region: hello.region.clone(),
            serves: hello.serves.clone(),
            gpu_type: hello.gpus.first().cloned().unwrap_or_default(),
            first: before.filter(|before| before.0 <= counted.0 && before.1 <= counted.1).unwrap_or(counted),
            latest: counted,
            gpu: Mean::default(),
            memory: Mean::default(),
        });
        if counted.0 < entry.latest.0 || counted.1 < entry.latest.1 {
            entry.first = (0, 0);
        }
        entry.latest = counted;
        entry.gpu.add(report.gpu_permille);
        entry.memory.add(report.gpu_memory_permille);
        while minutes.len() > MOST_WAITING {
            minutes.pop_first();
        }
    }

    /// The minutes that ended before `settled`, oldest first, with their nodes.
    fn settled(&self, settled: DateTime<Utc>) -> BTreeMap<DateTime<Utc>, Vec<(String, NodeMinute)>> {
        let minutes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut found: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for ((minute, node), of) in minutes.iter().filter(|((minute, _), _)| *minute + TimeDelta::minutes(1) <= settled)
        {
            found.entry(*minute).or_default().push((node.clone(), of.clone()));
        }
        found
    }

    fn forget(&self, minute: DateTime<Utc>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).retain(|(of, _), _| *of != minute);
    }
}

/// From where to where figures go.
pub(crate) struct Recorder {
    pub(crate) reported: Arc<Reported>,
    pub(crate) store: Store,
    pub(crate) ledger: Arc<Ledger>,
    /// Months for which they are kept in PostgreSQL, if that is where they go.
    pub(crate) keep_months: u32,
}

/// Writes minutes until stopped.
pub(crate) async fn run(recorder: Recorder, stop: CancellationToken) {
    let mut away = false;
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(EVERY) => {}
        }
        match write_settled(&recorder, Utc::now()).await {
            Ok(()) => {
                if away {
                    info!("figures of nodes are written again");
                }
                away = false;
            }
            Err(error) => {
                if !away {
                    warn!(%error, "figures of nodes could not be written; trying again");
                }
                away = true;
            }
        }
    }
}

async fn write_settled(recorder: &Recorder, now: DateTime<Utc>) -> Result<(), LedgerError> {
    let Recorder { reported, store, ledger, keep_months } = recorder;
    let oldest = partitions::oldest_kept(now, *keep_months).start();
    for (minute, nodes) in reported.settled(now - SETTLED_AFTER) {
        let mut connection = store.read().await?;
        let latencies = ledger.latencies(&mut connection, minute).await?;
        let rows: Vec<Minute> = nodes.iter().flat_map(|(node, of)| rows(minute, node, of, &latencies)).collect();
        ledger.put_performance(&mut connection, &rows, oldest).await?;
        reported.forget(minute);
    }
    Ok(())
}

/// A node's rows: one per model that it serves, or has served in the minute.
fn rows(minute: DateTime<Utc>, node: &str, of: &NodeMinute, latencies: &[Latencies]) -> Vec<Minute> {
    let own: Vec<&Latencies> = latencies.iter().filter(|latencies| latencies.node == node).collect();
    let mut models: Vec<(&str, &str)> = of.serves.iter().map(|s| (s.model.as_str(), s.version.as_str())).collect();
    models.extend(own.iter().map(|l| (l.model_id.as_str(), l.model_version.as_str())));
    models.sort_unstable();
    models.dedup();
    let alone = models.len() == 1;
    let row = |(model, version): (&str, &str)| {
        let seen = own.iter().find(|l| l.model_id == model && l.model_version == version);
        // A node's own counters are not told apart by model; where there are several, the events are.
        let (requests, tokens) = match seen {
            _ if alone => (of.latest.0 - of.first.0, of.latest.1 - of.first.1),
            Some(seen) => (seen.requests.unsigned_abs(), seen.tokens.unsigned_abs()),
            None => (0, 0),
        };
        Minute {
            timestamp: minute,
            model_id: model.to_owned(),
            model_version: version.to_owned(),
            region: of.region.clone(),
            node: node.to_owned(),
            gpu_type: of.gpu_type.clone(),
            requests_per_second: requests as f64 / SECONDS_PER_MINUTE,
            tokens_per_second: tokens as f64 / SECONDS_PER_MINUTE,
            avg_latency_ms: seen.map_or(0.0, |seen| seen.avg_ms),
            p95_latency_ms: seen.map_or(0.0, |seen| seen.p95_ms),
            p99_latency_ms: seen.map_or(0.0, |seen| seen.p99_ms),
            gpu_utilization: of.gpu.ratio(),
            memory_utilization: of.memory.ratio(),
            error_rate: seen.map_or(0.0, |seen| seen.errors as f64 / seen.requests.max(1) as f64),
        }
    };
    models.into_iter().map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use turnpike_config::NodeState;

    fn hello(models: &[&str]) -> NodeHello {
        NodeHello {
            region: "eu".to_owned(),
            url: String::new(),
            engine: "vllm".to_owned(),
            serves: models.iter().map(|m| Served { model: (*m).to_owned(), version: "1".to_owned() }).collect(),
            slots: 1,
            gpus: vec!["H100".to_owned()],
            build: String::new(),
        }
    }

    fn report(completed: u64, gpu: u16) -> NodeReport {
        NodeReport {
            state: NodeState::Ready,
            running: 0,
            waiting: 0,
            kv_cache_permille: None,
            gpu_permille: Some(gpu),
            gpu_memory_permille: None,
            completed,
            generated_tokens: completed * 10,
        }
    }

    fn at(seconds: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(1_800_000_000 + seconds, 0).unwrap_or_default()
    }

    fn written(reported: &Reported, latencies: &[Latencies]) -> Vec<Minute> {
        let settled = reported.settled(at(86_400));
        settled.iter().flat_map(|(m, nodes)| nodes.iter().flat_map(|(n, of)| rows(*m, n, of, latencies))).collect()
    }

    #[test]
    fn counters_are_followed_from_minute_to_minute_and_over_a_restart() {
        let reported = Reported::default();
        let hello = hello(&["m"]);
        for (second, completed, gpu) in [(0, 100, 200), (59, 130, 400), (61, 140, 0), (119, 190, 0), (121, 5, 0)] {
            reported.add("n1", &hello, &report(completed, gpu), at(second));
        }
        let rates: Vec<f64> = written(&reported, &[]).iter().map(|row| row.requests_per_second * 60.0).collect();
        assert_eq!(rates.iter().map(|rate| rate.round()).collect::<Vec<_>>(), [30.0, 60.0, 0.0]);
        let first = &written(&reported, &[])[0];
        assert!((first.gpu_utilization - 0.3).abs() < 1e-9 && (first.tokens_per_second - 5.0).abs() < 1e-9);
        assert_eq!((first.gpu_type.as_str(), first.memory_utilization), ("H100", 0.0));
        assert_eq!(reported.settled(at(120)).len(), 2, "the last minute has not ended");
        reported.forget(at(0));
        assert_eq!(reported.settled(at(86_400)).len(), 2);
    }

    #[test]
    fn models_of_one_node_are_told_apart_by_their_events() {
        let reported = Reported::default();
        reported.add("n1", &hello(&["m", "n"]), &report(7, 0), at(0));
        let seen = Latencies {
            node: "n1".to_owned(),
            model_id: "n".to_owned(),
            model_version: "1".to_owned(),
            requests: 120,
            tokens: 600,
            errors: 30,
            avg_ms: 5.0,
            p95_ms: 9.0,
            p99_ms: 10.0,
        };
        let other = Latencies { node: "n2".to_owned(), ..seen.clone() };
        let rows = written(&reported, &[other, seen]);
        let figures: Vec<_> = rows.iter().map(|r| (r.model_id.as_str(), r.requests_per_second, r.error_rate)).collect();
        assert_eq!(figures, [("m", 0.0, 0.0), ("n", 2.0, 0.25)]);
        assert_eq!((rows[1].tokens_per_second, rows[1].p99_latency_ms), (10.0, 10.0));
    }
}
