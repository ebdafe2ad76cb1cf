//! Taking in usage events, and reading what they add up to.

use super::{PgConnection, StoreError};
use chrono::{DateTime, Duration, NaiveDate, Utc};
use rust_decimal::Decimal;
use serde::Serialize;
use sqlx::types::ipnetwork::IpNetwork;
use std::collections::{BTreeMap, BTreeSet};
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

/// Stores those events in the request log that are new and whose organization exists; returns how many. An unknown key or
/// model is stored as none.
pub(crate) async fn insert(connection: &mut PgConnection, rows: &[&UsageRow]) -> Result<u64, StoreError> {
    if rows.is_empty() {
        return Ok(0);
    }
    let cut = |text: &Option<String>, most: usize| text.as_deref().map(|text| clean(text, most));
    let signed = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
    let millis = |value: u32| i32::try_from(value).unwrap_or(i32::MAX);
    macro_rules! column {
        ($row:ident => $value:expr) => {
            rows.iter().map(|$row| $value).collect::<Vec<_>>()
        };
    }
    let stored = sqlx::query(INSERT)
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
        .bind(column!(r => i64::from(r.event.price_version)))
        .bind(column!(r => i64::from(r.event.cached_tokens)))
        .bind(column!(r => r.event.shadow))
        .execute(connection)
        .await?
        .rows_affected();
    Ok(stored)
}

const INSERT: &str = "
INSERT INTO inference_requests (id, organization_id, api_key_id, model_id, model_version, request_type,
    prompt_tokens, completion_tokens, total_tokens, estimated, cost_usd, request_size_bytes, response_size_bytes,
    processing_time_ms, queue_time_ms, total_time_ms, first_byte_ms, status, http_status, error_code,
    error_message, streamed, retries, user_agent, ip_address, region, edge, node, created_at, completed_at,
    cache_status, price_version, cached_tokens, shadow)
SELECT e.id, o.id, k.id, m.id, e.model_version, e.request_type,
    e.prompt_tokens, e.completion_tokens, e.prompt_tokens + e.completion_tokens, e.estimated, e.cost_usd,
    e.request_size_bytes, e.response_size_bytes,
    e.processing_time_ms, e.queue_time_ms, e.total_time_ms, e.first_byte_ms, e.status, e.http_status, e.error_code,
    e.error_message, e.streamed, e.retries, e.user_agent, e.ip_address, e.region, e.edge, e.node, e.created_at,
    e.completed_at, e.cache_status, e.price_version, e.cached_tokens, e.shadow
FROM unnest($1::uuid[], $2::uuid[], $3::uuid[], $4::text[], $5::text[], $6::text[], $7::bigint[], $8::bigint[],
    $9::boolean[], $10::numeric[], $11::bigint[], $12::bigint[], $13::integer[], $14::integer[], $15::integer[],
    $16::integer[], $17::text[], $18::smallint[], $19::text[], $20::text[], $21::boolean[], $22::smallint[],
    $23::text[], $24::inet[], $25::text[], $26::text[], $27::text[], $28::timestamptz[], $29::timestamptz[],
    $30::text[], $31::bigint[], $32::bigint[], $33::boolean[])
    AS e (id, organization_id, api_key_id, model_id, model_version, request_type, prompt_tokens, completion_tokens,
    estimated, cost_usd, request_size_bytes, response_size_bytes, processing_time_ms, queue_time_ms, total_time_ms,
    first_byte_ms, status, http_status, error_code, error_message, streamed, retries, user_agent, ip_address,
    region, edge, node, created_at, completed_at, cache_status, price_version, cached_tokens,
    shadow)
JOIN organizations o ON o.id = e.organization_id
LEFT JOIN api_keys k ON k.id = e.api_key_id
LEFT JOIN models m ON m.id = e.model_id
ON CONFLICT DO NOTHING";

/// Notes when keys were last used.
pub(crate) async fn note_keys(connection: &mut PgConnection, rows: &[UsageRow]) -> Result<(), StoreError> {
    let mut latest: BTreeMap<Uuid, DateTime<Utc>> = BTreeMap::new();
    for row in rows {
        let at = latest.entry(row.event.api_key.0).or_insert(row.created_at);
        *at = (*at).max(row.created_at);
    }
    // Locked in the order of their ids, so that two edges' batches cannot wait for each other.
    sqlx::query(
        "WITH latest AS (SELECT * FROM unnest($1::uuid[], $2::timestamptz[]) AS l (id, at)),
         locked AS (
             SELECT k.id, latest.at FROM api_keys k JOIN latest ON latest.id = k.id
             WHERE k.last_used_at IS NULL OR k.last_used_at < latest.at ORDER BY k.id FOR NO KEY UPDATE OF k
         )
         UPDATE api_keys SET last_used_at = greatest(last_used_at, locked.at) FROM locked WHERE api_keys.id = locked.id",
    )
    .bind(latest.keys().copied().collect::<Vec<_>>())
    .bind(latest.values().copied().collect::<Vec<_>>())
    .execute(connection)
    .await?;
    Ok(())
}

/// What an event refers to and what of it exists.
#[derive(Debug, Default)]
pub(crate) struct Known {
    /// Organizations.
    pub(crate) organizations: BTreeSet<Uuid>,
    /// Keys.
    pub(crate) keys: BTreeSet<Uuid>,
    /// Models.
    pub(crate) models: BTreeSet<String>,
}

/// What exists of all that these events refer to.
pub(crate) async fn known(connection: &mut PgConnection, rows: &[UsageRow]) -> Result<Known, StoreError> {
    let organizations: BTreeSet<Uuid> = rows.iter().map(|row| row.event.organization.0).collect();
    let keys: BTreeSet<Uuid> = rows.iter().map(|row| row.event.api_key.0).collect();
    let models: BTreeSet<&str> = rows.iter().filter_map(|row| row.event.model.as_deref()).collect();
    let (organizations, keys, models): (Vec<Uuid>, Vec<Uuid>, Vec<String>) = sqlx::query_as(
        "SELECT ARRAY(SELECT id FROM organizations WHERE id = ANY($1)),
             ARRAY(SELECT id FROM api_keys WHERE id = ANY($2)),
             ARRAY(SELECT id::text FROM models WHERE id = ANY($3))",
    )
    .bind(organizations.into_iter().collect::<Vec<_>>())
    .bind(keys.into_iter().collect::<Vec<_>>())
    .bind(models.into_iter().filter(|model| !model.contains('\0')).collect::<Vec<_>>())
    .fetch_one(connection)
    .await?;
    Ok(Known {
        organizations: organizations.into_iter().collect(),
        keys: keys.into_iter().collect(),
        models: models.into_iter().collect(),
    })
}

/// A stretch of an edge's journal.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stretch<'e> {
    /// Whose.
    pub(crate) edge: &'e str,
    /// Which life of it.
    pub(crate) epoch: u64,
    /// Its first record.
    pub(crate) first: u64,
    /// The record after its last.
    pub(crate) end: u64,
}

/// How a stretch follows what was taken in before.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Taken {
    /// How many records were skipped, which a contiguous journal never does.
    pub(crate) skipped: u64,
    /// All of it had been taken in already.
    pub(crate) is_known: bool,
}

/// Notes how far an edge's journal has been taken in.
pub(crate) async fn advance(connection: &mut PgConnection, stretch: Stretch<'_>) -> Result<Taken, StoreError> {
    let Stretch { edge, epoch, first, end } = stretch;
    let before: Option<Decimal> = sqlx::query_scalar(
        "WITH before AS (SELECT through_seq FROM usage_ingest WHERE edge = $1 AND epoch = $2)
         INSERT INTO usage_ingest (edge, epoch, through_seq) VALUES ($1, $2, $3)
         ON CONFLICT (edge, epoch) DO UPDATE
             SET through_seq = greatest(usage_ingest.through_seq, excluded.through_seq), updated_at = now()
         RETURNING (SELECT through_seq FROM before)",
    )
    .bind(edge)
    .bind(Decimal::from(epoch))
    .bind(Decimal::from(end.saturating_sub(1)))
    .fetch_one(connection)
    .await?;
    let next = before.and_then(|through| u64::try_from(through).ok()).map(|through| through.saturating_add(1));
    Ok(Taken {
        skipped: next.map_or(0, |next| first.saturating_sub(next)),
        is_known: next.is_some_and(|next| end <= next),
    })
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
    /// One row per UTC hour.
    pub(crate) hour: bool,
    /// One row per price of a model.
    pub(crate) price_version: bool,
    /// One row per key: summed from the ledger, which is kept for a limited time.
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
    /// The UTC hour, by its beginning.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) hour: Option<DateTime<Utc>>,
    /// Which of the model's prices the cost was reckoned by; 0 if the model had no numbered prices.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) price_version: Option<i64>,
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

/// Sums usage, at most `limit` groups, in the order of the groups. Not by key: see [`sums_by_key`].
pub(crate) async fn sums(
    connection: &mut PgConnection,
    grouping: Grouping,
    span: Span,
    limit: i64,
) -> Result<Vec<UsageSum>, StoreError> {
    // The flags are parameters, not text: one statement per source, planned once.
    let by_hour = grouping.hour || grouping.price_version;
    Ok(sqlx::query_as(if by_hour { SUMS_BY_HOUR } else { SUMS })
        .bind(grouping.organization)
        .bind(grouping.model)
        .bind(grouping.day)
        .bind(span.organization)
        .bind(span.from)
        .bind(span.to)
        .bind(limit)
        .bind(grouping.hour)
        .bind(grouping.price_version)
        .fetch_all(connection)
        .await?)
}

/// Sums usage from the request log by key and whatever else but hours and prices, at most `limit` groups, in the order
/// of the groups.
pub(crate) async fn sums_by_key(
    connection: &mut PgConnection,
    grouping: Grouping,
    span: Span,
    limit: i64,
) -> Result<Vec<UsageSum>, StoreError> {
    Ok(sqlx::query_as(SUMS_BY_KEY)
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
SELECT organization_id, model_id, date, NULL::timestamptz AS hour, NULL::bigint AS price_version,
    NULL::uuid AS api_key_id, sum(requests)::bigint AS requests,
    sum(prompt_tokens)::bigint AS prompt_tokens, sum(completion_tokens)::bigint AS completion_tokens,
    sum(total_tokens)::bigint AS total_tokens, sum(cost_usd) AS cost_usd
FROM (
    SELECT CASE WHEN $1 THEN organization_id END AS organization_id, CASE WHEN $2 THEN model_id END AS model_id,
        CASE WHEN $3 THEN date END AS date, requests, prompt_tokens, completion_tokens, total_tokens, cost_usd
    FROM (
        SELECT organization_id, model_id, date, requests, prompt_tokens, completion_tokens, total_tokens, cost_usd
        FROM usage_records
        UNION ALL -- what came after a day's invoice
        SELECT organization_id, model_id, date, requests, prompt_tokens, completion_tokens,
            prompt_tokens + completion_tokens, cost_usd
        FROM usage_adjustments
    ) AS booked
    WHERE ($4::uuid IS NULL OR organization_id = $4) AND date >= $5 AND date < $6 AND NOT ($8 OR $9)
) AS picked
GROUP BY 1, 2, 3 ORDER BY 3, 1, 2 LIMIT $7";

const SUMS_BY_HOUR: &str = "
SELECT organization_id, model_id, date, hour, price_version, NULL::uuid AS api_key_id,
    sum(requests)::bigint AS requests, sum(prompt_tokens)::bigint AS prompt_tokens,
    sum(completion_tokens)::bigint AS completion_tokens,
    sum(prompt_tokens + completion_tokens)::bigint AS total_tokens, sum(cost_usd) AS cost_usd
FROM (
    SELECT CASE WHEN $1 THEN organization_id END AS organization_id, CASE WHEN $2 THEN model_id END AS model_id,
        CASE WHEN $3 THEN (hour AT TIME ZONE 'UTC')::date END AS date, CASE WHEN $8 THEN hour END AS hour,
        CASE WHEN $9 THEN price_version END AS price_version, requests, prompt_tokens, completion_tokens, cost_usd
    FROM usage_hours
    WHERE ($4::uuid IS NULL OR organization_id = $4)
        AND hour >= $5::date::timestamp AT TIME ZONE 'UTC' AND hour < $6::date::timestamp AT TIME ZONE 'UTC'
) AS picked
GROUP BY 1, 2, 3, 4, 5 ORDER BY 4, 3, 1, 2, 5 LIMIT $7";

const SUMS_BY_KEY: &str = "
SELECT organization_id, model_id, date, NULL::timestamptz AS hour, NULL::bigint AS price_version, api_key_id,
    count(*) AS requests,
    sum(prompt_tokens)::bigint AS prompt_tokens, sum(completion_tokens)::bigint AS completion_tokens,
    sum(total_tokens)::bigint AS total_tokens, sum(cost_usd) AS cost_usd
FROM (
    SELECT CASE WHEN $1 THEN organization_id END AS organization_id, CASE WHEN $2 THEN model_id END AS model_id,
        CASE WHEN $3 THEN (created_at AT TIME ZONE 'UTC')::date END AS date, api_key_id,
        prompt_tokens, completion_tokens, total_tokens, cost_usd
    FROM inference_requests
    WHERE ($4::uuid IS NULL OR organization_id = $4) AND model_id IS NOT NULL AND NOT shadow
        AND created_at >= $5::date::timestamp AT TIME ZONE 'UTC' AND created_at < $6::date::timestamp AT TIME ZONE 'UTC'
) AS picked
GROUP BY 1, 2, 3, 6 ORDER BY 3, 1, 2, 6 LIMIT $7";
