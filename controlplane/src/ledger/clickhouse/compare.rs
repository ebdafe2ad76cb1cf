//! What the events of a day say, to be compared with other books.

use super::read::Reader;
use crate::ledger::LedgerError;
use crate::store::reconcile::{By, Event, Sums};
use ::clickhouse::Row;
use chrono::{DateTime, NaiveDate, NaiveTime, TimeDelta, Utc};
use serde::Deserialize;
use std::ops::Range;
use turnpike_config::Usd;
use uuid::Uuid;

#[derive(Row, Deserialize)]
struct SumRow {
    name: String,
    requests: u64,
    prompt: u64,
    completion: u64,
    cost: i128,
}

#[derive(Row, Deserialize)]
struct WorkRow {
    #[serde(with = "::clickhouse::serde::uuid")]
    event_id: Uuid,
    node: String,
    prompt_tokens: u32,
    completion_tokens: u32,
    exact: u8,
    failed: u8,
}

impl Reader {
    pub(super) async fn sums_by(&self, by: By, day: NaiveDate) -> Result<Vec<(String, Sums)>, LedgerError> {
        let sql = match by {
            By::Edge => BY_EDGE,
            By::Model => BY_MODEL,
        };
        let midnight = day.and_time(NaiveTime::MIN).and_utc();
        let query =
            self.client().query(sql).bind(midnight.timestamp()).bind((midnight + TimeDelta::days(1)).timestamp());
        let rows: Vec<SumRow> = self.fetch_day(query).await?;
        let sums = |row: SumRow| {
            let sums = Sums {
                requests: self.figure(row.requests)?,
                prompt_tokens: self.figure(row.prompt)?,
                completion_tokens: self.figure(row.completion)?,
                cost_usd: Usd { pico: row.cost },
            };
            Ok((row.name, sums))
        };
        rows.into_iter().map(sums).collect()
    }

    pub(super) async fn events(&self, span: &Range<DateTime<Utc>>) -> Result<Vec<Event>, LedgerError> {
        let query = self.client().query(EVENTS).bind(span.start.timestamp()).bind(span.end.timestamp());
        let rows: Vec<WorkRow> = self.fetch_day(query).await?;
        let event = |row: WorkRow| Event {
            id: row.event_id,
            node: Some(row.node).filter(|node| !node.is_empty()),
            prompt_tokens: row.prompt_tokens.into(),
            completion_tokens: row.completion_tokens.into(),
            exact: row.exact != 0,
            failed: row.failed != 0,
        };
        Ok(rows.into_iter().map(event).collect())
    }
}

const BY_EDGE: &str = "
SELECT toString(edge) AS name, count() AS requests, sum(prompt_tokens) AS prompt, sum(completion_tokens) AS completion,
    sum(request_analytics.cost) AS cost
FROM request_analytics FINAL
WHERE timestamp >= toDateTime(?, 'UTC') AND timestamp < toDateTime(?, 'UTC') AND model_id != ''
    AND NOT shadow
GROUP BY name";

const BY_MODEL: &str = "
SELECT concat(organization_id, ' ', model_id) AS name, count() AS requests, sum(prompt_tokens) AS prompt,
    sum(completion_tokens) AS completion, sum(request_analytics.cost) AS cost
FROM request_analytics FINAL
WHERE timestamp >= toDateTime(?, 'UTC') AND timestamp < toDateTime(?, 'UTC') AND model_id != ''
    AND NOT shadow
GROUP BY name";

const EVENTS: &str = "
SELECT event_id, toString(node) AS node, prompt_tokens, completion_tokens,
    toUInt8(NOT estimated AND cache_status NOT IN ('hit', 'coalesced')) AS exact,
    toUInt8(status IN ('error', 'timeout')) AS failed
FROM request_analytics FINAL
WHERE timestamp >= toDateTime(?, 'UTC') AND timestamp < toDateTime(?, 'UTC') AND NOT shadow";
