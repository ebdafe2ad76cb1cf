//! Taking in usage events, and the daily sums.

use super::{PgConnection, StoreError};
use chrono::{DateTime, Duration, NaiveDate, Utc};
use rust_decimal::Decimal;
use serde::Serialize;
use sqlx::types::ipnetwork::IpNetwork;
use turnpike_config::{CacheStatus, UsageEvent};
use utoipa::ToSchema;
use uuid::Uuid;

/// An event in the shape of its row.
#[derive(Debug)]
pub(crate) struct UsageRow {
    /// The event.
    pub(crate) event: UsageEvent,
    /// The time inside its id.
    pub(crate) created_at: DateTime<Utc>,
    /// Its cost; the caller has checked that the column can hold it.
    pub(crate) cost: Decimal,
    /// The client's address, if it was one.
    pub(crate) ip: Option<IpNetwork>,
}

impl UsageRow {
    /// When the request ended: that is when its event went into the edge's journal.
    pub(crate) fn ended_at(&self) -> DateTime<Utc> {
        self.created_at + Duration::milliseconds(i64::from(self.event.total_ms))
    }
}

/// Stores those events that are new and whose organization exists, adds them to the daily sums, and notes when keys
/// were last used. Returns how many were stored. An unknown key or model is stored as none.
///
/// One statement: an event is either counted everywhere or nowhere.
pub(crate) async fn insert(connection: &mut PgConnection, rows: &[UsageRow]) -> Result<u64, StoreError> {
    let cut = |text: &Option<String>, most: usize| text.as_deref().map(|text| clean(text, most));
    let signed = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
    let millis = |value: u32| i32::try_from(value).unwrap_or(i32::MAX);
    macro_rules! column {
        ($row:ident => $value:expr) => {
            rows.iter().map(|$row| $value).collect::<Vec<_>>()
        };
    }
    let stored: i64 = sqlx::query_scalar(INSERT)
        .bind(column!(r => r.event.id.0))
        .bind(column!(r => r.event.organization.0))
        .bind(column!(r => r.event.api_key.0))
        .bind(column!(r => cut(&r.event.model, 100)))
        .bind(column!(r => cut(&r.event.model_version, 50)))
        .bind(column!(r => r.event.endpoint.name()))
        .bind(column!(r => i64::from(r.event.prompt_tokens)))
        .bind(column!(r => i64::from(r.event.completion_tokens)))
        .bind(column!(r => r.event.estimated))
        .bind(column!(r => r.cost))
        .bind(column!(r => signed(r.event.request_bytes)))
        .bind(column!(r => signed(r.event.response_bytes)))
        .bind(column!(r => millis(r.event.processing_ms)))
        .bind(column!(r => millis(r.event.queue_ms)))
        .bind(column!(r => millis(r.event.total_ms)))
        .bind(column!(r => r.event.first_byte_ms.map(millis)))
        .bind(column!(r => r.event.status.name()))
        .bind(column!(r => i16::try_from(r.event.http_status).unwrap_or_default()))
        .bind(column!(r => cut(&r.event.error_code, 100)))
        .bind(column!(r => cut(&r.event.error_message, 1000)))
        .bind(column!(r => r.event.streamed))
        .bind(column!(r => i16::from(r.event.retries)))
        .bind(column!(r => cut(&r.event.user_agent, 256)))
        .bind(column!(r => r.ip))
        .bind(column!(r => clean(&r.event.region, 50)))
        .bind(column!(r => clean(&r.event.edge, 255)))
        .bind(column!(r => cut(&r.event.node, 255)))
        .bind(column!(r => r.created_at))
        .bind(column!(r => r.ended_at()))
        .bind(column!(r => r.event.cache.map(CacheStatus::name)))
        .fetch_one(connection)
        .await?;
    Ok(stored.unsigned_abs())
}

// Sums and keys are locked in the order of their keys, so that two edges' batches cannot wait for each other.
const INSERT: &str = "
WITH inserted AS (
    INSERT INTO inference_requests (id, organization_id, api_key_id, model_id, model_version, request_type,
        prompt_tokens, completion_tokens, total_tokens, estimated, cost_usd, request_size_bytes, response_size_bytes,
        processing_time_ms, queue_time_ms, total_time_ms, first_byte_ms, status, http_status, error_code,
        error_message, streamed, retries, user_agent, ip_address, region, edge, node, created_at, completed_at,
        cache_status)
    SELECT e.id, o.id, k.id, m.id, e.model_version, e.request_type,
        e.prompt_tokens, e.completion_tokens, e.prompt_tokens + e.completion_tokens, e.estimated, e.cost_usd,
        e.request_size_bytes, e.response_size_bytes,
        e.processing_time_ms, e.queue_time_ms, e.total_time_ms, e.first_byte_ms, e.status, e.http_status, e.error_code,
        e.error_message, e.streamed, e.retries, e.user_agent, e.ip_address, e.region, e.edge, e.node, e.created_at,
        e.completed_at, e.cache_status
    FROM unnest($1::uuid[], $2::uuid[], $3::uuid[], $4::text[], $5::text[], $6::text[], $7::bigint[], $8::bigint[],
        $9::boolean[], $10::numeric[], $11::bigint[], $12::bigint[], $13::integer[], $14::integer[], $15::integer[],
        $16::integer[], $17::text[], $18::smallint[], $19::text[], $20::text[], $21::boolean[], $22::smallint[],
        $23::text[], $24::inet[], $25::text[], $26::text[], $27::text[], $28::timestamptz[], $29::timestamptz[],
        $30::text[])
        AS e (id, organization_id, api_key_id, model_id, model_version, request_type, prompt_tokens, completion_tokens,
        estimated, cost_usd, request_size_bytes, response_size_bytes, processing_time_ms, queue_time_ms, total_time_ms,
        first_byte_ms, status, http_status, error_code, error_message, streamed, retries, user_agent, ip_address,
        region, edge, node, created_at, completed_at, cache_status)
    JOIN organizations o ON o.id = e.organization_id
    LEFT JOIN api_keys k ON k.id = e.api_key_id
    LEFT JOIN models m ON m.id = e.model_id
    ON CONFLICT DO NOTHING
    RETURNING organization_id, api_key_id, model_id, prompt_tokens, completion_tokens, total_tokens, cost_usd, created_at
), summed AS (
    INSERT INTO usage_records (organization_id, model_id, date, requests, prompt_tokens, completion_tokens,
        total_tokens, cost_usd)
    SELECT organization_id, model_id, (created_at AT TIME ZONE 'UTC')::date, count(*), sum(prompt_tokens),
        sum(completion_tokens), sum(total_tokens), sum(cost_usd)
    FROM inserted WHERE model_id IS NOT NULL GROUP BY 1, 2, 3 ORDER BY 1, 2, 3
    ON CONFLICT (organization_id, model_id, date) DO UPDATE SET
        requests = usage_records.requests + excluded.requests,
        prompt_tokens = usage_records.prompt_tokens + excluded.prompt_tokens,
        completion_tokens = usage_records.completion_tokens + excluded.completion_tokens,
        total_tokens = usage_records.total_tokens + excluded.total_tokens,
        cost_usd = usage_records.cost_usd + excluded.cost_usd,
        updated_at = now()
), locked AS (
    SELECT id FROM api_keys WHERE id IN (SELECT api_key_id FROM inserted) ORDER BY id FOR NO KEY UPDATE
), used AS (
    UPDATE api_keys SET last_used_at = greatest(api_keys.last_used_at, latest.at)
    FROM locked, (SELECT api_key_id, max(created_at) AS at FROM inserted GROUP BY 1) AS latest
    WHERE api_keys.id = locked.id AND latest.api_key_id = locked.id
)
SELECT count(*) FROM inserted";

/// Which of these organizations do not exist.
pub(crate) async fn unknown_organizations(
    connection: &mut PgConnection,
    ids: &[Uuid],
) -> Result<Vec<Uuid>, StoreError> {
    Ok(sqlx::query_scalar(
        "SELECT wanted FROM unnest($1::uuid[]) AS wanted
         WHERE NOT EXISTS (SELECT 1 FROM organizations WHERE id = wanted)",
    )
    .bind(ids)
    .fetch_all(connection)
    .await?)
}

/// Notes how far an edge's journal has been taken in. `events_to` is the end of the last event, if there was one.
/// It is the latest that counts, not the greatest: one event of a clock gone wild must not hide a backlog.
pub(crate) async fn advance(
    connection: &mut PgConnection,
    edge: &str,
    epoch: u64,
    through: u64,
    events_to: Option<DateTime<Utc>>,
) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO usage_ingest (edge, epoch, through_seq, events_to) VALUES ($1, $2, $3, $4)
         ON CONFLICT (edge, epoch) DO UPDATE
             SET through_seq = greatest(usage_ingest.through_seq, excluded.through_seq),
                 events_to = coalesce(excluded.events_to, usage_ingest.events_to), updated_at = now()",
    )
    .bind(edge)
    .bind(Decimal::from(epoch))
    .bind(Decimal::from(through))
    .bind(events_to)
    .execute(connection)
    .await?;
    Ok(())
}

/// At most `most` characters, without the NUL that PostgreSQL's text cannot hold.
fn clean(text: &str, most: usize) -> String {
    text.chars().filter(|c| *c != '\0').take(most).collect()
}

/// What the sums are grouped by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Grouping {
    /// One row per organization.
    pub(crate) organization: bool,
    /// One row per model.
    pub(crate) model: bool,
    /// One row per UTC day.
    pub(crate) day: bool,
    /// One row per key: summed from the request log, which is kept for a limited time.
    pub(crate) key: bool,
}

/// What is summed: events whose UTC day is in `from..to`, of one organization if given.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Span {
    /// Only this organization.
    pub(crate) organization: Option<Uuid>,
    /// First day.
    pub(crate) from: NaiveDate,
    /// Day after the last.
    pub(crate) to: NaiveDate,
}

/// Usage summed over a group; fields that were not grouped by are absent.
#[derive(Clone, Debug, Serialize, ToSchema, sqlx::FromRow)]
pub(crate) struct UsageSum {
    /// The organization.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) organization_id: Option<Uuid>,
    /// The model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) model_id: Option<String>,
    /// The UTC day.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) date: Option<NaiveDate>,
    /// The key; absent also for requests of a key that no longer exists.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) api_key_id: Option<Uuid>,
    /// Requests, whatever their end.
    pub(crate) requests: i64,
    /// Prompt tokens.
    pub(crate) prompt_tokens: i64,
    /// Generated tokens.
    pub(crate) completion_tokens: i64,
    /// Both.
    pub(crate) total_tokens: i64,
    /// Exact decimal dollars.
    #[serde(serialize_with = "shortest")]
    #[schema(value_type = String, example = "0.0013")]
    pub(crate) cost_usd: Decimal,
}

fn shortest<S: serde::Serializer>(amount: &Decimal, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&amount.normalize())
}

/// Sums usage, at most `limit` groups, in the order of the groups.
pub(crate) async fn sums(
    connection: &mut PgConnection,
    grouping: Grouping,
    span: Span,
    limit: i64,
) -> Result<Vec<UsageSum>, StoreError> {
    // The flags are parameters, not text: one statement per source, planned once.
    let sql = if grouping.key { SUMS_BY_KEY } else { SUMS };
    Ok(sqlx::query_as(sql)
        .bind(grouping.organization)
        .bind(grouping.model)
        .bind(grouping.day)
        .bind(span.organization)
        .bind(span.from)
        .bind(span.to)
        .bind(limit)
        .fetch_all(connection)
        .await?)
}

const SUMS: &str = "
SELECT organization_id, model_id, date, NULL::uuid AS api_key_id, sum(requests)::bigint AS requests,
    sum(prompt_tokens)::bigint AS prompt_tokens, sum(completion_tokens)::bigint AS completion_tokens,
    sum(total_tokens)::bigint AS total_tokens, sum(cost_usd) AS cost_usd
FROM (
    SELECT CASE WHEN $1 THEN organization_id END AS organization_id, CASE WHEN $2 THEN model_id END AS model_id,
        CASE WHEN $3 THEN date END AS date, requests, prompt_tokens, completion_tokens, total_tokens, cost_usd
    FROM usage_records
    WHERE ($4::uuid IS NULL OR organization_id = $4) AND date >= $5 AND date < $6
) AS picked
GROUP BY 1, 2, 3 ORDER BY 3, 1, 2 LIMIT $7";

const SUMS_BY_KEY: &str = "
SELECT organization_id, model_id, date, api_key_id, count(*) AS requests,
    sum(prompt_tokens)::bigint AS prompt_tokens, sum(completion_tokens)::bigint AS completion_tokens,
    sum(total_tokens)::bigint AS total_tokens, sum(cost_usd) AS cost_usd
FROM (
    SELECT CASE WHEN $1 THEN organization_id END AS organization_id, CASE WHEN $2 THEN model_id END AS model_id,
        CASE WHEN $3 THEN (created_at AT TIME ZONE 'UTC')::date END AS date, api_key_id,
        prompt_tokens, completion_tokens, total_tokens, cost_usd
    FROM inference_requests
    WHERE ($4::uuid IS NULL OR organization_id = $4) AND model_id IS NOT NULL
        AND created_at >= $5::date::timestamp AT TIME ZONE 'UTC' AND created_at < $6::date::timestamp AT TIME ZONE 'UTC'
) AS picked
GROUP BY 1, 2, 3, 4 ORDER BY 3, 1, 2, 4 LIMIT $7";
