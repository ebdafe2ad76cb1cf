//! What the events add up to. Everything is read FINAL: an event that was delivered twice may lie there twice.

use super::Options;
use crate::ledger::LedgerError;
use crate::store::rollup::HourSum;
use crate::store::usage::{Grouping, Span, UsageSum};
use ::clickhouse::query::Query;
use ::clickhouse::{Client, Row, RowOwned, RowRead};
use chrono::{DateTime, NaiveDate, TimeDelta, Utc};
use rust_decimal::Decimal;
use serde::Deserialize;
use std::time::Duration;
use tokio::time::timeout;
use uuid::Uuid;

/// Decimal places of `cost`.
pub(super) const SCALE: u32 = 12;

/// Longest that sums of a whole day may take, as in PostgreSQL.
const DAY_PATIENCE: Duration = Duration::from_secs(600);

#[derive(Debug)]
pub(super) struct Reader {
    client: Client,
    target: String,
    patience: Duration,
}

#[derive(Row, Deserialize)]
struct HourRow {
    organization_id: String,
    model_id: String,
    price_version: u32,
    hour: u32,
    requests: u64,
    prompt: u64,
    cached: u64,
    completion: u64,
    cost: i128,
    place: String,
}

#[derive(Row, Deserialize)]
struct KeyRow {
    organization: String,
    model: String,
    /// Days since 1970.
    day: u16,
    key: String,
    requests: u64,
    prompt: u64,
    completion: u64,
    cost: i128,
}

impl Reader {
    pub(super) fn new(client: Client, options: &Options) -> Self {
        // An event's key has its partition's month in it, so that no event is in two.
        let client = client.with_setting("do_not_merge_across_partitions_select_final", "1");
        Self { client, target: options.target.clone(), patience: options.timeout }
    }

    pub(super) async fn hour_sums(&self, hours: &[DateTime<Utc>]) -> Result<Vec<HourSum>, LedgerError> {
        let (Some(first), Some(last)) = (hours.first(), hours.last()) else { return Ok(Vec::new()) };
        let query = self
            .client
            .query(HOUR_SUMS)
            .bind(first.timestamp())
            .bind((*last + TimeDelta::hours(1)).timestamp())
            .bind(hours.iter().map(DateTime::timestamp).collect::<Vec<_>>());
        let rows: Vec<HourRow> = self.fetch(query).await?;
        rows.into_iter().map(|row| self.hour_sum(row)).collect()
    }

    fn hour_sum(&self, row: HourRow) -> Result<HourSum, LedgerError> {
        Ok(HourSum {
            organization_id: self.id(&row.organization_id)?,
            model_id: row.model_id,
            price_version: row.price_version.into(),
            hour: DateTime::from_timestamp(row.hour.into(), 0).unwrap_or_default(),
            requests: self.figure(row.requests)?,
            prompt_tokens: self.figure(row.prompt)?,
            cached_tokens: self.figure(row.cached)?,
            completion_tokens: self.figure(row.completion)?,
            cost_usd: self.cost(row.cost)?,
            region: row.place,
        })
    }

    pub(super) async fn key_sums(
        &self,
        grouping: Grouping,
        span: Span,
        limit: i64,
    ) -> Result<Vec<UsageSum>, LedgerError> {
        let begin = |day: NaiveDate| day.and_time(chrono::NaiveTime::MIN).and_utc().timestamp();
        let query = self
            .client
            .query(KEY_SUMS)
            .bind(grouping.organization)
            .bind(grouping.model)
            .bind(grouping.day)
            .bind(begin(span.from))
            .bind(begin(span.to))
            .bind(span.organization.map(|id| id.to_string()).unwrap_or_default())
            .bind(span.organization.map(|id| id.to_string()).unwrap_or_default())
            .bind(limit);
        let rows: Vec<KeyRow> = self.fetch(query).await?;
        rows.into_iter().map(|row| self.key_sum(row, grouping)).collect()
    }

    fn key_sum(&self, row: KeyRow, grouping: Grouping) -> Result<UsageSum, LedgerError> {
        let (prompt_tokens, completion_tokens) = (self.figure(row.prompt)?, self.figure(row.completion)?);
        let day = || NaiveDate::default().checked_add_days(chrono::Days::new(row.day.into()));
        Ok(UsageSum {
            organization_id: grouping.organization.then(|| self.id(&row.organization)).transpose()?,
            model_id: grouping.model.then_some(row.model),
            date: if grouping.day { day() } else { None },
            hour: None,
            price_version: None,
            api_key_id: if row.key.is_empty() { None } else { Some(self.id(&row.key)?) },
            requests: self.figure(row.requests)?,
            prompt_tokens,
            completion_tokens,
            total_tokens: prompt_tokens.saturating_add(completion_tokens),
            cost_usd: self.cost(row.cost)?,
        })
    }

    pub(super) const fn client(&self) -> &Client {
        &self.client
    }

    pub(super) async fn fetch<T: RowOwned + RowRead>(&self, query: Query) -> Result<Vec<T>, LedgerError> {
        self.within_patience(query.fetch_all()).await
    }

    /// For what reads a whole day of a large ledger.
    pub(super) async fn fetch_day<T: RowOwned + RowRead>(&self, query: Query) -> Result<Vec<T>, LedgerError> {
        self.within(self.patience.max(DAY_PATIENCE), query.fetch_all()).await
    }

    pub(super) async fn within_patience<T>(
        &self,
        work: impl Future<Output = Result<T, ::clickhouse::error::Error>>,
    ) -> Result<T, LedgerError> {
        self.within(self.patience, work).await
    }

    async fn within<T>(
        &self,
        patience: Duration,
        work: impl Future<Output = Result<T, ::clickhouse::error::Error>>,
    ) -> Result<T, LedgerError> {
        match timeout(patience, work).await {
            Ok(Ok(done)) => Ok(done),
            Ok(Err(error)) => Err(self.failed(error)),
            Err(_) => Err(self.failed(format!("no answer within {patience:?}"))),
        }
    }

    fn failed(&self, reason: impl std::fmt::Display) -> LedgerError {
        LedgerError::ClickHouse { target: self.target.clone(), reason: reason.to_string() }
    }

    fn id(&self, text: &str) -> Result<Uuid, LedgerError> {
        text.parse().map_err(|_| self.failed(format!("«{text}» is no id")))
    }

    pub(super) fn figure(&self, sum: u64) -> Result<i64, LedgerError> {
        i64::try_from(sum).map_err(|_| self.failed(format!("a sum of {sum} is beyond what PostgreSQL can hold")))
    }

    fn cost(&self, pico: i128) -> Result<Decimal, LedgerError> {
        let beyond = |_| self.failed(format!("a sum of {pico} pico-dollars is beyond what can be billed"));
        Decimal::try_from_i128_with_scale(pico, SCALE).map_err(beyond)
    }
}

const HOUR_SUMS: &str = "
SELECT organization_id, model_id, price_version, toUnixTimestamp(toStartOfHour(timestamp)) AS hour,
    count() AS requests, sum(prompt_tokens) AS prompt, sum(cached_tokens) AS cached, sum(completion_tokens) AS completion,
    sum(request_analytics.cost) AS cost, substringUTF8(replaceAll(toString(region), '\\0', ''), 1, 50) AS place
FROM request_analytics FINAL
WHERE timestamp >= toDateTime(?, 'UTC') AND timestamp < toDateTime(?, 'UTC') AND model_id != '' AND NOT shadow
    AND has(?, toInt64(toUnixTimestamp(toStartOfHour(timestamp))))
GROUP BY organization_id, model_id, price_version, hour, place";

const KEY_SUMS: &str = "
SELECT if(?, organization_id, '') AS organization, if(?, model_id, '') AS model,
    if(?, toUInt16(toDate(timestamp)), toUInt16(0)) AS day, api_key_id AS key,
    count() AS requests, sum(prompt_tokens) AS prompt, sum(completion_tokens) AS completion,
    sum(request_analytics.cost) AS cost
FROM request_analytics FINAL
WHERE timestamp >= toDateTime(?, 'UTC') AND timestamp < toDateTime(?, 'UTC') AND model_id != '' AND NOT shadow
    AND (? = '' OR organization_id = ?)
GROUP BY organization, model, day, key
ORDER BY day, organization, model, key = '', key LIMIT ?";
