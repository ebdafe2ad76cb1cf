//! `model_performance` in ClickHouse, and what of it comes from the events.

use super::read::Reader;
use crate::ledger::LedgerError;
use crate::store::performance::{Latencies, Minute};
use ::clickhouse::Row;
use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};

#[derive(Row, Deserialize)]
struct LatencyRow {
    node: String,
    model: String,
    version: String,
    requests: u64,
    tokens: u64,
    errors: u64,
    avg_ms: f64,
    p95_ms: f64,
    p99_ms: f64,
}

#[derive(Row, Serialize, Deserialize)]
struct MinuteRow {
    timestamp: u32,
    model_id: String,
    model_version: String,
    region: String,
    node: String,
    gpu_type: String,
    requests_per_second: f64,
    tokens_per_second: f64,
    avg_latency_ms: f64,
    p95_latency_ms: f64,
    p99_latency_ms: f64,
    gpu_utilization: f64,
    memory_utilization: f64,
    error_rate: f64,
}

impl Reader {
    pub(super) async fn latencies(&self, minute: DateTime<Utc>) -> Result<Vec<Latencies>, LedgerError> {
        let end = minute + TimeDelta::minutes(1);
        let query = self.client().query(LATENCIES).bind(minute.timestamp()).bind(end.timestamp());
        let rows: Vec<LatencyRow> = self.fetch(query).await?;
        let latencies = |row: LatencyRow| {
            Ok(Latencies {
                node: row.node,
                model_id: row.model,
                model_version: row.version,
                requests: self.figure(row.requests)?,
                tokens: self.figure(row.tokens)?,
                errors: self.figure(row.errors)?,
                avg_ms: row.avg_ms,
                p95_ms: row.p95_ms,
                p99_ms: row.p99_ms,
            })
        };
        rows.into_iter().map(latencies).collect()
    }

    pub(super) async fn put_performance(&self, minutes: &[Minute]) -> Result<(), LedgerError> {
        if minutes.is_empty() {
            return Ok(());
        }
        let put = async {
            let mut insert = self.client().insert::<MinuteRow>("model_performance").await?;
            for minute in minutes {
                insert.write(&row(minute)).await?;
            }
            insert.end().await
        };
        self.within_patience(put).await
    }

    pub(super) async fn performance(
        &self,
        model: &str,
        from: DateTime<Utc>,
        limit: i64,
    ) -> Result<Vec<Minute>, LedgerError> {
        let query = self.client().query(PERFORMANCE).bind(model).bind(from.timestamp()).bind(limit);
        let rows: Vec<MinuteRow> = self.fetch(query).await?;
        Ok(rows.into_iter().map(minute).collect())
    }
}

fn row(minute: &Minute) -> MinuteRow {
    let minute = minute.clone();
    MinuteRow {
        timestamp: u32::try_from(minute.timestamp.timestamp()).unwrap_or_default(),
        model_id: minute.model_id,
        model_version: minute.model_version,
        region: minute.region,
        node: minute.node,
        gpu_type: minute.gpu_type,
        requests_per_second: minute.requests_per_second,
        tokens_per_second: minute.tokens_per_second,
        avg_latency_ms: minute.avg_latency_ms,
        p95_latency_ms: minute.p95_latency_ms,
        p99_latency_ms: minute.p99_latency_ms,
        gpu_utilization: minute.gpu_utilization,
        memory_utilization: minute.memory_utilization,
        error_rate: minute.error_rate,
    }
}

fn minute(row: MinuteRow) -> Minute {
    Minute {
        timestamp: DateTime::from_timestamp(row.timestamp.into(), 0).unwrap_or_default(),
        model_id: row.model_id,
        model_version: row.model_version,
        region: row.region,
        node: row.node,
        gpu_type: row.gpu_type,
        requests_per_second: row.requests_per_second,
        tokens_per_second: row.tokens_per_second,
        avg_latency_ms: row.avg_latency_ms,
        p95_latency_ms: row.p95_latency_ms,
        p99_latency_ms: row.p99_latency_ms,
        gpu_utilization: row.gpu_utilization,
        memory_utilization: row.memory_utilization,
        error_rate: row.error_rate,
    }
}

// The percentiles are interpolated as PostgreSQL's percentile_cont does it.
const LATENCIES: &str = "
SELECT node, model_id AS model, model_version AS version, count() AS requests, sum(completion_tokens) AS tokens,
    countIf(status IN ('error', 'timeout')) AS errors, avg(total_time_ms) AS avg_ms,
    toFloat64(quantileExactInclusive(0.95)(total_time_ms)) AS p95_ms,
    toFloat64(quantileExactInclusive(0.99)(total_time_ms)) AS p99_ms
FROM request_analytics FINAL
WHERE timestamp >= toDateTime(?, 'UTC') AND timestamp < toDateTime(?, 'UTC') AND model_id != '' AND node != ''
GROUP BY node, model, version ORDER BY node, model, version";

const PERFORMANCE: &str = "
SELECT ?fields FROM model_performance FINAL WHERE model_id = ? AND timestamp >= toDateTime(?, 'UTC')
ORDER BY timestamp DESC, model_version, region, node LIMIT ?";
