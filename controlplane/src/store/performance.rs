//! `model_performance` and what of it comes from the request log, where PostgreSQL is the ledger.

use super::{PgConnection, StoreError};
use chrono::{DateTime, TimeDelta, Utc};
use serde::Serialize;
use utoipa::ToSchema;

/// How a model did on a node in a minute.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema, sqlx::FromRow)]
pub(crate) struct Minute {
    /// When the minute begins.
    pub(crate) timestamp: DateTime<Utc>,
    /// The model.
    pub(crate) model_id: String,
    /// Its version.
    pub(crate) model_version: String,
    /// Where the node stands.
    pub(crate) region: String,
    /// The node.
    pub(crate) node: String,
    /// Its first GPU; empty without any.
    pub(crate) gpu_type: String,
    /// Requests that ended, per second.
    pub(crate) requests_per_second: f64,
    /// Tokens generated per second.
    pub(crate) tokens_per_second: f64,
    /// Mean time of requests that began in the minute, from arrival at the edge to the last byte, milliseconds.
    pub(crate) avg_latency_ms: f64,
    /// 95 of 100 took at most this long, milliseconds.
    pub(crate) p95_latency_ms: f64,
    /// 99 of 100 took at most this long, milliseconds.
    pub(crate) p99_latency_ms: f64,
    /// Mean use of the GPUs, 0 to 1.
    pub(crate) gpu_utilization: f64,
    /// Mean use of the GPUs' memory, 0 to 1.
    pub(crate) memory_utilization: f64,
    /// Which part of the requests failed or timed out, 0 to 1.
    pub(crate) error_rate: f64,
}

/// What the events of a minute say of a model on a node.
#[derive(Clone, Debug, PartialEq, sqlx::FromRow)]
pub(crate) struct Latencies {
    /// The node.
    pub(crate) node: String,
    /// The model.
    pub(crate) model_id: String,
    /// Its version.
    pub(crate) model_version: String,
    /// Requests that began.
    pub(crate) requests: i64,
    /// Tokens generated.
    pub(crate) tokens: i64,
    /// Of the requests, those that failed or timed out.
    pub(crate) errors: i64,
    /// Mean, milliseconds.
    pub(crate) avg_ms: f64,
    /// 95th percentile, interpolated, milliseconds.
    pub(crate) p95_ms: f64,
    /// 99th percentile, interpolated, milliseconds.
    pub(crate) p99_ms: f64,
}

/// What the request log says of the minute that begins at `minute`.
pub(crate) async fn latencies(
    connection: &mut PgConnection,
    minute: DateTime<Utc>,
) -> Result<Vec<Latencies>, StoreError> {
    Ok(sqlx::query_as(
        "SELECT node, model_id, coalesce(model_version, '') AS model_version, count(*) AS requests,
             sum(completion_tokens)::bigint AS tokens, count(*) FILTER (WHERE status IN ('error', 'timeout')) AS errors,
             avg(total_time_ms)::float8 AS avg_ms,
             percentile_cont(0.95) WITHIN GROUP (ORDER BY total_time_ms) AS p95_ms,
             percentile_cont(0.99) WITHIN GROUP (ORDER BY total_time_ms) AS p99_ms
         FROM inference_requests
         WHERE created_at >= $1 AND created_at < $2 AND model_id IS NOT NULL AND node IS NOT NULL
             AND total_time_ms IS NOT NULL
         GROUP BY 1, 2, 3 ORDER BY 1, 2, 3",
    )
    .bind(minute)
    .bind(minute + TimeDelta::minutes(1))
    .fetch_all(connection)
    .await?)
}

/// Writes minutes; one that is there is replaced. Those from before `oldest` are removed.
pub(crate) async fn put(
    connection: &mut PgConnection,
    minutes: &[Minute],
    oldest: DateTime<Utc>,
) -> Result<(), StoreError> {
    macro_rules! column {
        ($minute:ident => $value:expr) => {
            minutes.iter().map(|$minute| $value).collect::<Vec<_>>()
        };
    }
    sqlx::query(
        "INSERT INTO model_performance (timestamp, model_id, model_version, region, node, gpu_type, requests_per_second,
             tokens_per_second, avg_latency_ms, p95_latency_ms, p99_latency_ms, gpu_utilization, memory_utilization,
             error_rate)
         SELECT * FROM unnest($1::timestamptz[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[],
             $7::float8[], $8::float8[], $9::float8[], $10::float8[], $11::float8[], $12::float8[], $13::float8[],
             $14::float8[])
         ON CONFLICT (timestamp, model_id, model_version, region, node) DO UPDATE SET gpu_type = excluded.gpu_type,
             requests_per_second = excluded.requests_per_second, tokens_per_second = excluded.tokens_per_second,
             avg_latency_ms = excluded.avg_latency_ms, p95_latency_ms = excluded.p95_latency_ms,
             p99_latency_ms = excluded.p99_latency_ms, gpu_utilization = excluded.gpu_utilization,
             memory_utilization = excluded.memory_utilization, error_rate = excluded.error_rate",
    )
    .bind(column!(m => m.timestamp))
    .bind(column!(m => m.model_id.as_str()))
    .bind(column!(m => m.model_version.as_str()))
    .bind(column!(m => m.region.as_str()))
    .bind(column!(m => m.node.as_str()))
    .bind(column!(m => m.gpu_type.as_str()))
    .bind(column!(m => m.requests_per_second))
    .bind(column!(m => m.tokens_per_second))
    .bind(column!(m => m.avg_latency_ms))
    .bind(column!(m => m.p95_latency_ms))
    .bind(column!(m => m.p99_latency_ms))
    .bind(column!(m => m.gpu_utilization))
    .bind(column!(m => m.memory_utilization))
    .bind(column!(m => m.error_rate))
    .execute(&mut *connection)
    .await?;
    sqlx::query("DELETE FROM model_performance WHERE timestamp < $1").bind(oldest).execute(connection).await?;
    Ok(())
}

/// The latest minutes of a model since `from`, at most `limit`, the newest first.
pub(crate) async fn list(
    connection: &mut PgConnection,
    model: &str,
    from: DateTime<Utc>,
    limit: i64,
) -> Result<Vec<Minute>, StoreError> {
    Ok(sqlx::query_as(
        "SELECT * FROM model_performance WHERE model_id = $1 AND timestamp >= $2
         ORDER BY timestamp DESC, model_version, region, node LIMIT $3",
    )
    .bind(model)
    .bind(from)
    .bind(limit)
    .fetch_all(connection)
    .await?)
}
