//! What each book says of a UTC day.

use super::amounts::{decimal, usd};
use super::{PgConnection, StoreError};
use chrono::{DateTime, NaiveDate, Utc};
use rust_decimal::Decimal;
use serde::Serialize;
use std::ops::Range;
use turnpike_config::Usd;
use utoipa::ToSchema;
use uuid::Uuid;

/// What a book says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, ToSchema)]
pub(crate) struct Sums {
    /// Requests with a known model.
    pub(crate) requests: i64,
    /// Prompt tokens.
    pub(crate) prompt_tokens: i64,
    /// Generated tokens.
    pub(crate) completion_tokens: i64,
    /// Exact decimal dollars; 0 where a book knows of no prices.
    #[schema(value_type = String, example = "0.0013")]
    pub(crate) cost_usd: Usd,
}

impl Sums {
    /// The sum of both.
    #[must_use]
    pub(crate) const fn plus(self, other: Self) -> Self {
        Self {
            requests: self.requests.saturating_add(other.requests),
            prompt_tokens: self.prompt_tokens.saturating_add(other.prompt_tokens),
            completion_tokens: self.completion_tokens.saturating_add(other.completion_tokens),
            cost_usd: Usd { pico: self.cost_usd.pico.saturating_add(other.cost_usd.pico) },
        }
    }

    /// By how much this one is more.
    #[must_use]
    pub(crate) const fn minus(self, other: Self) -> Self {
        Self {
            requests: self.requests.saturating_sub(other.requests),
            prompt_tokens: self.prompt_tokens.saturating_sub(other.prompt_tokens),
            completion_tokens: self.completion_tokens.saturating_sub(other.completion_tokens),
            cost_usd: Usd { pico: self.cost_usd.pico.saturating_sub(other.cost_usd.pico) },
        }
    }
}

/// What a book says of one thing: an edge, or an organization's model.
#[derive(Debug, sqlx::FromRow)]
struct Row {
    name: String,
    requests: i64,
    prompt_tokens: i64,
    completion_tokens: i64,
    cost_usd: Decimal,
}

impl From<Row> for (String, Sums) {
    fn from(row: Row) -> Self {
        let Row { name, requests, prompt_tokens, completion_tokens, cost_usd } = row;
        (name, Sums { requests, prompt_tokens, completion_tokens, cost_usd: usd(cost_usd) })
    }
}

/// What a book is summed by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum By {
    /// By the name of an edge.
    Edge,
    /// By organization and model, as `ORGANIZATION MODEL`.
    Model,
}

/// Gives the statements of this transaction the time that a whole day of a large ledger takes.
pub(crate) async fn take_time(connection: &mut PgConnection) -> Result<(), StoreError> {
    sqlx::query("SET LOCAL statement_timeout = '10min'").execute(connection).await?;
    Ok(())
}

/// What a day's events add up to in the request log, where that is the ledger; in no order.
pub(crate) async fn sum_log(
    connection: &mut PgConnection,
    by: By,
    day: NaiveDate,
) -> Result<Vec<(String, Sums)>, StoreError> {
    sums(connection, if by == By::Edge { LOG_BY_EDGE } else { LOG_BY_MODEL }, day).await
}

/// What the book beside the ledger says of a day: what edges counted themselves, or `usage_records` and what came after
/// an invoice. In no order.
pub(crate) async fn booked(
    connection: &mut PgConnection,
    by: By,
    day: NaiveDate,
) -> Result<Vec<(String, Sums)>, StoreError> {
    sums(connection, if by == By::Edge { EDGES } else { RECORDS }, day).await
}

async fn sums(
    connection: &mut PgConnection,
    sql: &'static str,
    day: NaiveDate,
) -> Result<Vec<(String, Sums)>, StoreError> {
    let rows: Vec<Row> = sqlx::query_as(sql).bind(day).fetch_all(connection).await?;
    Ok(rows.into_iter().map(Into::into).collect())
}

const LOG_BY_EDGE: &str = "
SELECT edge AS name, count(*) AS requests, sum(prompt_tokens)::bigint AS prompt_tokens,
    sum(completion_tokens)::bigint AS completion_tokens, sum(cost_usd) AS cost_usd
FROM inference_requests
WHERE created_at >= $1::date::timestamp AT TIME ZONE 'UTC' AND created_at < ($1::date + 1)::timestamp AT TIME ZONE 'UTC'
    AND model_id IS NOT NULL AND NOT shadow
GROUP BY edge";

const LOG_BY_MODEL: &str = "
SELECT organization_id || ' ' || model_id AS name, count(*) AS requests, sum(prompt_tokens)::bigint AS prompt_tokens,
    sum(completion_tokens)::bigint AS completion_tokens, sum(cost_usd) AS cost_usd
FROM inference_requests
WHERE created_at >= $1::date::timestamp AT TIME ZONE 'UTC' AND created_at < ($1::date + 1)::timestamp AT TIME ZONE 'UTC'
    AND model_id IS NOT NULL AND NOT shadow
GROUP BY organization_id, model_id";

const EDGES: &str = "
SELECT edge AS name, sum(requests)::bigint AS requests, sum(prompt_tokens)::bigint AS prompt_tokens,
    sum(completion_tokens)::bigint AS completion_tokens, sum(cost_usd) AS cost_usd
FROM edge_days WHERE day = $1 GROUP BY edge";

const RECORDS: &str = "
SELECT organization_id || ' ' || model_id AS name, sum(requests)::bigint AS requests,
    sum(prompt_tokens)::bigint AS prompt_tokens, sum(completion_tokens)::bigint AS completion_tokens,
    sum(cost_usd) AS cost_usd
FROM (
    SELECT organization_id, model_id, requests, prompt_tokens, completion_tokens, cost_usd
    FROM usage_records WHERE date = $1
    UNION ALL
    SELECT organization_id, model_id, requests, prompt_tokens, completion_tokens, cost_usd
    FROM usage_adjustments WHERE date = $1
) AS booked
GROUP BY organization_id, model_id";

/// An event of the usage ledger, as far as a node knows of it.
#[derive(Clone, Debug, PartialEq, Eq, sqlx::FromRow)]
pub(crate) struct Event {
    /// Its id.
    pub(crate) id: Uuid,
    /// Which node worked on it last, if one did.
    pub(crate) node: Option<String>,
    /// Prompt tokens.
    pub(crate) prompt_tokens: i64,
    /// Generated tokens.
    pub(crate) completion_tokens: i64,
    /// The engine counted: the answer is not from the cache, and nobody estimated.
    pub(crate) exact: bool,
    /// The client got an error: without tokens that passed, nobody pays for it, whatever the node counted.
    pub(crate) failed: bool,
}

/// All events from a span of time in the request log, where that is the ledger.
pub(crate) async fn events(
    connection: &mut PgConnection,
    span: &Range<DateTime<Utc>>,
) -> Result<Vec<Event>, StoreError> {
    Ok(sqlx::query_as(
        "SELECT id, node, prompt_tokens, completion_tokens,
             NOT estimated AND coalesce(cache_status NOT IN ('hit', 'coalesced'), true) AS exact,
             status IN ('error', 'timeout') AS failed
         FROM inference_requests WHERE created_at >= $1 AND created_at < $2 AND NOT shadow",
    )
    .bind(span.start)
    .bind(span.end)
    .fetch_all(connection)
    .await?)
}

/// An entry of a node's ledger.
#[derive(Clone, Debug, PartialEq, Eq, sqlx::FromRow)]
pub(crate) struct Entry {
    /// The event's id.
    pub(crate) event_id: Uuid,
    /// Which node.
    pub(crate) node: String,
    /// `counted`, `seen`, `refused` or `lost`.
    pub(crate) state: String,
    /// Prompt tokens.
    pub(crate) prompt_tokens: i64,
    /// Generated tokens.
    pub(crate) completion_tokens: i64,
}

/// All entries of nodes' ledgers for events from a span of one UTC day.
pub(crate) async fn entries(
    connection: &mut PgConnection,
    span: &Range<DateTime<Utc>>,
) -> Result<Vec<Entry>, StoreError> {
    // The ids of a moment begin with its milliseconds.
    let first = |at: DateTime<Utc>| Uuid::from_u128(u128::from(at.timestamp_millis().unsigned_abs()) << 80);
    Ok(sqlx::query_as(
        "SELECT event_id, node, state, prompt_tokens, completion_tokens FROM node_ledger
         WHERE day = $1 AND event_id >= $2 AND event_id < $3",
    )
    .bind(span.start.date_naive())
    .bind(first(span.start))
    .bind(first(span.end))
    .fetch_all(connection)
    .await?)
}

/// An invoice that covers a day, and what the daily books say of what it charges.
#[derive(Debug, sqlx::FromRow)]
pub(crate) struct Invoiced {
    /// As shown.
    pub(crate) invoice_number: String,
    charged: Decimal,
    booked: Decimal,
}

impl Invoiced {
    /// What its lines add up to.
    pub(crate) fn charged(&self) -> Usd {
        usd(self.charged)
    }

    /// What `usage_records` of its period and the adjustments that it takes up add up to.
    pub(crate) fn booked(&self) -> Usd {
        usd(self.booked)
    }
}

/// Every invoice that stands and covers the day.
pub(crate) async fn invoices(connection: &mut PgConnection, day: NaiveDate) -> Result<Vec<Invoiced>, StoreError> {
    Ok(sqlx::query_as(
        "SELECT i.invoice_number, i.exact_total AS charged,
             coalesce((SELECT sum(u.cost_usd) FROM usage_records u WHERE u.organization_id = i.organization_id
                 AND u.date BETWEEN i.period_start AND i.period_end), 0)
             + coalesce((SELECT sum(a.cost_usd) FROM usage_adjustments a WHERE a.invoice_id = i.id), 0) AS booked
         FROM invoices i
         WHERE i.status IN ('open', 'paid', 'uncollectible') AND $1 BETWEEN i.period_start AND i.period_end
         ORDER BY i.invoice_number",
    )
    .bind(day)
    .fetch_all(connection)
    .await?)
}

/// Edges that may still have usage of requests that began before `end`.
pub(crate) async fn edges_behind(connection: &mut PgConnection, end: DateTime<Utc>) -> Result<i64, StoreError> {
    Ok(sqlx::query_scalar("SELECT count(*) FROM edges WHERE coalesce(began_to, complete_to) < $1")
        .bind(end)
        .fetch_one(connection)
        .await?)
}

/// By how much a day's books differ, all differences taken together without their signs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Apart {
    /// Requests, events and entries.
    pub(crate) events: i64,
    /// Tokens.
    pub(crate) tokens: i64,
    /// Dollars.
    pub(crate) cost: Usd,
}

/// A day that was compared.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Compared {
    /// The UTC day.
    pub(crate) day: NaiveDate,
    /// When.
    pub(crate) ran_at: DateTime<Utc>,
    /// All usage of the day was in the books.
    pub(crate) complete: bool,
    /// With what result.
    pub(crate) apart: Apart,
}

/// Notes that a day was compared; the latest time stands.
pub(crate) async fn note(connection: &mut PgConnection, compared: Compared) -> Result<(), StoreError> {
    let Compared { day, ran_at, complete, apart } = compared;
    sqlx::query(
        "INSERT INTO reconciliations (day, ran_at, complete, events, tokens, cost_usd) VALUES ($1, $2, $3, $4, $5, $6)
         ON CONFLICT (day) DO UPDATE SET ran_at = excluded.ran_at, complete = excluded.complete,
             events = excluded.events, tokens = excluded.tokens, cost_usd = excluded.cost_usd",
    )
    .bind(day)
    .bind(ran_at)
    .bind(complete)
    .bind(apart.events)
    .bind(apart.tokens)
    .bind(decimal(apart.cost)?)
    .execute(connection)
    .await?;
    Ok(())
}

/// Days from `from` to `to` that are to be compared, ascending, each with whether it was when it was not complete: the last
/// one, and those before it that have usage and are later than the first day that edges counted.
pub(crate) async fn to_compare(
    connection: &mut PgConnection,
    from: NaiveDate,
    to: NaiveDate,
) -> Result<Vec<(NaiveDate, bool)>, StoreError> {
    Ok(sqlx::query_as(
        "SELECT d.day, r.day IS NOT NULL
         FROM (SELECT day::date AS day FROM generate_series($1::date, $2::date, interval '1 day') AS day) AS d
         LEFT JOIN reconciliations r ON r.day = d.day
         WHERE r.complete IS NOT TRUE AND (d.day = $2
             OR d.day > (SELECT min(day) FROM edge_days)
                 AND (EXISTS (SELECT 1 FROM edge_days e WHERE e.day = d.day)
                     OR EXISTS (SELECT 1 FROM usage_records u WHERE u.date = d.day)))
         ORDER BY d.day",
    )
    .bind(from)
    .bind(to)
    .fetch_all(connection)
    .await?)
}

/// What came of the last day that was compared.
pub(crate) async fn last_noted(connection: &mut PgConnection) -> Result<Option<Compared>, StoreError> {
    let row: Option<(NaiveDate, DateTime<Utc>, bool, i64, i64, Decimal)> = sqlx::query_as(
        "SELECT day, ran_at, complete, events, tokens, cost_usd FROM reconciliations ORDER BY day DESC LIMIT 1",
    )
    .fetch_optional(connection)
    .await?;
    Ok(row.map(|(day, ran_at, complete, events, tokens, cost)| {
        let apart = Apart { events, tokens, cost: usd(cost) };
        Compared { day, ran_at, complete, apart }
    }))
}
