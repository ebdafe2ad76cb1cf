//! `usage_hours`, `usage_records` and `usage_adjustments`: what the ledger's events add up to, and which hours are to be
//! summed anew.

use super::{PgConnection, StoreError};
use chrono::{DateTime, DurationRound as _, NaiveDate, TimeDelta, Utc};
use rust_decimal::Decimal;
use sqlx::AssertSqlSafe;
use std::collections::{BTreeMap, BTreeSet};
use uuid::Uuid;

/// Key of the advisory lock under which sums change («metering» in ASCII). Whoever freezes sums takes it too.
const ROLLUP_LOCK: i64 = 0x6d65_7465_7269_6e67;

/// What an hour's events of one organization, model and price add up to.
#[derive(Clone, Debug, PartialEq, Eq, sqlx::FromRow)]
pub(crate) struct HourSum {
    /// Who pays.
    pub(crate) organization_id: Uuid,
    /// For which model.
    pub(crate) model_id: String,
    /// By which of its prices.
    pub(crate) price_version: i64,
    /// When it begins, UTC.
    pub(crate) hour: DateTime<Utc>,
    /// Requests, whatever their end.
    pub(crate) requests: i64,
    /// Prompt tokens.
    pub(crate) prompt_tokens: i64,
    /// Of those, the engine had these from an earlier prompt.
    pub(crate) cached_tokens: i64,
    /// Generated tokens.
    pub(crate) completion_tokens: i64,
    /// Exact dollars.
    pub(crate) cost_usd: Decimal,
    /// Where.
    pub(crate) region: String,
}

/// Organization, model, price version, hour, region.
pub(crate) type HourKey = (Uuid, String, i64, DateTime<Utc>, String);

impl HourSum {
    /// What there is one sum for.
    pub(crate) fn key(&self) -> HourKey {
        (self.organization_id, self.model_id.clone(), self.price_version, self.hour, self.region.clone())
    }
}

/// Days of an organization and model: organization, model, UTC day.
pub(crate) type Days = BTreeSet<(Uuid, String, NaiveDate)>;

/// The hour that a moment falls in.
pub(crate) fn hour_of(moment: DateTime<Utc>) -> DateTime<Utc> {
    moment.duration_trunc(TimeDelta::hours(1)).unwrap_or(moment)
}

/// The requests that came for an hour, by the clock of the edge.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Came {
    /// When the first of them ended.
    pub(crate) ended_from: DateTime<Utc>,
    /// When the first of them began.
    pub(crate) began_from: DateTime<Utc>,
}

/// Notes that these hours are to be summed anew for what came from `edge`. By our clock it may have begun and ended earlier
/// than by the edge's, though not before what was complete.
pub(crate) async fn mark(
    connection: &mut PgConnection,
    edge: &str,
    hours: &BTreeMap<DateTime<Utc>, Came>,
) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO usage_dirty_hours (hour, ended_from, began_from)
         SELECT hour, least(ended_from, edge.complete_to), least(began_from, edge.settled_to)
         FROM unnest($1::timestamptz[], $2::timestamptz[], $3::timestamptz[]) AS came (hour, ended_from, began_from)
         LEFT JOIN edges edge ON edge.name = $4",
    )
    .bind(hours.keys().copied().collect::<Vec<_>>())
    .bind(hours.values().map(|came| came.ended_from).collect::<Vec<_>>())
    .bind(hours.values().map(|came| came.began_from).collect::<Vec<_>>())
    .bind(edge)
    .execute(connection)
    .await?;
    Ok(())
}

/// Waits for the right to change sums; held until the transaction ends.
pub(crate) async fn lock(connection: &mut PgConnection) -> Result<(), StoreError> {
    sqlx::query("SELECT pg_advisory_xact_lock($1)").bind(ROLLUP_LOCK).execute(connection).await?;
    Ok(())
}

/// Takes the right to change sums if nobody has it; says whether it did.
pub(crate) async fn try_lock(connection: &mut PgConnection) -> Result<bool, StoreError> {
    Ok(sqlx::query_scalar("SELECT pg_try_advisory_xact_lock($1)").bind(ROLLUP_LOCK).fetch_one(connection).await?)
}

/// Whether any hour is to be summed anew.
pub(crate) async fn is_due(connection: &mut PgConnection) -> Result<bool, StoreError> {
    Ok(sqlx::query_scalar("SELECT EXISTS (SELECT 1 FROM usage_dirty_hours)").fetch_one(connection).await?)
}

/// Whether any hour before `end` is to be summed anew.
pub(crate) async fn is_due_before(connection: &mut PgConnection, end: DateTime<Utc>) -> Result<bool, StoreError> {
    Ok(sqlx::query_scalar("SELECT EXISTS (SELECT 1 FROM usage_dirty_hours WHERE hour < $1)")
        .bind(end)
        .fetch_one(connection)
        .await?)
}

/// Whether any hour from `from` until before `to` is to be summed anew.
pub(crate) async fn is_due_between(
    connection: &mut PgConnection,
    from: DateTime<Utc>,
    to: DateTime<Utc>,
) -> Result<bool, StoreError> {
    Ok(sqlx::query_scalar("SELECT EXISTS (SELECT 1 FROM usage_dirty_hours WHERE hour >= $1 AND hour < $2)")
        .bind(from)
        .bind(to)
        .fetch_one(connection)
        .await?)
}

/// The first `most` hours after `after` to be summed anew, and every mark that is known of them.
pub(crate) async fn dirty_hours(
    connection: &mut PgConnection,
    after: Option<DateTime<Utc>>,
    most: i64,
) -> Result<Vec<(DateTime<Utc>, Vec<i64>)>, StoreError> {
    Ok(sqlx::query_as(
        "SELECT hour, array_agg(mark) FROM usage_dirty_hours WHERE $1::timestamptz IS NULL OR hour > $1
         GROUP BY hour ORDER BY hour LIMIT $2",
    )
    .bind(after)
    .bind(most)
    .fetch_all(connection)
    .await?)
}

/// Removes marks that have been seen to.
pub(crate) async fn unmark(connection: &mut PgConnection, marks: &[i64]) -> Result<(), StoreError> {
    sqlx::query("DELETE FROM usage_dirty_hours WHERE mark = ANY($1)").bind(marks).execute(connection).await?;
    Ok(())
}

/// The sums of these hours as they stand.
pub(crate) async fn hours(connection: &mut PgConnection, hours: &[DateTime<Utc>]) -> Result<Vec<HourSum>, StoreError> {
    Ok(sqlx::query_as("SELECT * FROM usage_hours WHERE hour = ANY($1)").bind(hours).fetch_all(connection).await?)
}

/// What the request log adds up to in these hours, where it is the ledger.
pub(crate) async fn sum_log(
    connection: &mut PgConnection,
    hours: &[DateTime<Utc>],
) -> Result<Vec<HourSum>, StoreError> {
    // Hour by hour: each statement stays within its time, however many there are.
    let mut sums = Vec::new();
    for hour in hours {
        let found: Vec<HourSum> = sqlx::query_as(
            "SELECT organization_id, model_id, price_version, date_trunc('hour', created_at, 'UTC') AS hour,
                 count(*) AS requests, sum(prompt_tokens)::bigint AS prompt_tokens,
                 sum(cached_tokens)::bigint AS cached_tokens, sum(completion_tokens)::bigint AS completion_tokens,
                 sum(cost_usd) AS cost_usd, coalesce(region, '') AS region
             FROM inference_requests WHERE created_at >= $1 AND created_at < $2 AND model_id IS NOT NULL
                 AND NOT shadow
             GROUP BY 1, 2, 3, 4, coalesce(region, '')",
        )
        .bind(hour)
        .bind(*hour + TimeDelta::hours(1))
        .fetch_all(&mut *connection)
        .await?;
        sums.extend(found);
    }
    Ok(sums)
}

/// Of these organizations and models, those that exist.
pub(crate) async fn known(
    connection: &mut PgConnection,
    organizations: &BTreeSet<Uuid>,
    models: &BTreeSet<&str>,
) -> Result<(BTreeSet<Uuid>, BTreeSet<String>), StoreError> {
    let (organizations, models): (Vec<Uuid>, Vec<String>) = sqlx::query_as(
        "SELECT ARRAY(SELECT id FROM organizations WHERE id = ANY($1)),
             ARRAY(SELECT id::text FROM models WHERE id = ANY($2))",
    )
    .bind(organizations.iter().copied().collect::<Vec<_>>())
    .bind(models.iter().copied().collect::<Vec<_>>())
    .fetch_one(connection)
    .await?;
    Ok((organizations.into_iter().collect(), models.into_iter().collect()))
}

/// Sets sums of hours.
pub(crate) async fn put_hours(connection: &mut PgConnection, sums: &[&HourSum]) -> Result<(), StoreError> {
    macro_rules! column {
        ($sum:ident => $value:expr) => {
            sums.iter().map(|$sum| $value).collect::<Vec<_>>()
        };
    }
    sqlx::query(
        "INSERT INTO usage_hours (organization_id, model_id, price_version, hour, requests, prompt_tokens,
             cached_tokens, completion_tokens, cost_usd, region)
         SELECT * FROM unnest($1::uuid[], $2::text[], $3::bigint[], $4::timestamptz[], $5::bigint[], $6::bigint[],
             $7::bigint[], $8::bigint[], $9::numeric[], $10::text[])
         ON CONFLICT (organization_id, hour, model_id, price_version, region) DO UPDATE SET requests = excluded.requests,
             prompt_tokens = excluded.prompt_tokens, cached_tokens = excluded.cached_tokens,
             completion_tokens = excluded.completion_tokens, cost_usd = excluded.cost_usd",
    )
    .bind(column!(s => s.organization_id))
    .bind(column!(s => s.model_id.as_str()))
    .bind(column!(s => s.price_version))
    .bind(column!(s => s.hour))
    .bind(column!(s => s.requests))
    .bind(column!(s => s.prompt_tokens))
    .bind(column!(s => s.cached_tokens))
    .bind(column!(s => s.completion_tokens))
    .bind(column!(s => s.cost_usd))
    .bind(column!(s => s.region.as_str()))
    .execute(connection)
    .await?;
    Ok(())
}

/// Removes sums of hours.
pub(crate) async fn drop_hours(connection: &mut PgConnection, sums: &[&HourSum]) -> Result<(), StoreError> {
    sqlx::query(
        "DELETE FROM usage_hours USING unnest($1::uuid[], $2::text[], $3::bigint[], $4::timestamptz[], $5::text[])
             AS gone (organization_id, model_id, price_version, hour, region)
         WHERE usage_hours.organization_id = gone.organization_id AND usage_hours.model_id = gone.model_id
             AND usage_hours.price_version = gone.price_version AND usage_hours.hour = gone.hour
             AND usage_hours.region = gone.region",
    )
    .bind(sums.iter().map(|s| s.organization_id).collect::<Vec<_>>())
    .bind(sums.iter().map(|s| s.model_id.as_str()).collect::<Vec<_>>())
    .bind(sums.iter().map(|s| s.price_version).collect::<Vec<_>>())
    .bind(sums.iter().map(|s| s.hour).collect::<Vec<_>>())
    .bind(sums.iter().map(|s| s.region.as_str()).collect::<Vec<_>>())
    .execute(connection)
    .await?;
    Ok(())
}

/// Brings the daily books in line with the hours of these days, those of regions too. What `usage_records` and `usage_adjustments` say of a day
/// is together what its hours add up to: of a day that an invoice holds, the difference becomes an adjustment; any other
/// is set, and takes back what was set aside for no invoice yet. Gives the organizations for which something changed.
pub(crate) async fn carry_over(connection: &mut PgConnection, days: &Days) -> Result<BTreeSet<Uuid>, StoreError> {
    let organizations: Vec<Uuid> = days.iter().map(|(organization, _, _)| *organization).collect();
    let models: Vec<&str> = days.iter().map(|(_, model, _)| model.as_str()).collect();
    let dates: Vec<NaiveDate> = days.iter().map(|(_, _, date)| *date).collect();
    let mut changed = BTreeSet::new();
    for statement in [TAKE_BACK, ADJUST, SET_DAYS] {
        // Safe: three constants of this file.
        let sql = AssertSqlSafe(format!("{DAYS}{statement}"));
        let touched: Vec<Uuid> =
            sqlx::query_scalar(sql).bind(&organizations).bind(&models).bind(&dates).fetch_all(&mut *connection).await?;
        changed.extend(touched);
    }
    let touched: Vec<Uuid> =
        sqlx::query_scalar(SET_REGIONS).bind(&organizations).bind(&dates).fetch_all(connection).await?;
    changed.extend(touched);
    Ok(changed)
}

/// Each day, whether an invoice holds it, and what its hours add up to beyond all adjustments.
const DAYS: &str = "
WITH days AS (
    SELECT d.*, usage_is_invoiced(d.organization_id, d.date) AS is_invoiced,
        coalesce(h.requests, 0) - coalesce(a.requests, 0) AS requests,
        coalesce(h.prompt_tokens, 0) - coalesce(a.prompt_tokens, 0) AS prompt_tokens,
        coalesce(h.completion_tokens, 0) - coalesce(a.completion_tokens, 0) AS completion_tokens,
        coalesce(h.cost_usd, 0) - coalesce(a.cost_usd, 0) AS cost_usd
    FROM unnest($1::uuid[], $2::text[], $3::date[]) AS d (organization_id, model_id, date)
    LEFT JOIN LATERAL (
        SELECT sum(requests) AS requests, sum(prompt_tokens) AS prompt_tokens,
            sum(completion_tokens) AS completion_tokens, sum(cost_usd) AS cost_usd
        FROM usage_hours WHERE organization_id = d.organization_id AND model_id = d.model_id
            AND hour >= d.date::timestamp AT TIME ZONE 'UTC' AND hour < (d.date + 1)::timestamp AT TIME ZONE 'UTC'
    ) AS h ON true
    LEFT JOIN LATERAL (
        SELECT sum(requests) AS requests, sum(prompt_tokens) AS prompt_tokens,
            sum(completion_tokens) AS completion_tokens, sum(cost_usd) AS cost_usd
        FROM usage_adjustments
        WHERE organization_id = d.organization_id AND model_id = d.model_id AND date = d.date
    ) AS a ON true
)";

const TAKE_BACK: &str = "
DELETE FROM usage_adjustments a USING days d
WHERE a.organization_id = d.organization_id AND a.model_id = d.model_id AND a.date = d.date
    AND a.invoice_id IS NULL AND NOT d.is_invoiced
RETURNING a.organization_id";

const ADJUST: &str = "
INSERT INTO usage_adjustments (organization_id, model_id, date, requests, prompt_tokens, completion_tokens, cost_usd)
SELECT d.organization_id, d.model_id, d.date, d.requests - coalesce(r.requests, 0),
    d.prompt_tokens - coalesce(r.prompt_tokens, 0), d.completion_tokens - coalesce(r.completion_tokens, 0),
    d.cost_usd - coalesce(r.cost_usd, 0)
FROM days d
LEFT JOIN usage_records r ON r.organization_id = d.organization_id AND r.model_id = d.model_id AND r.date = d.date
WHERE d.is_invoiced AND (d.requests, d.prompt_tokens, d.completion_tokens, d.cost_usd)
    <> (coalesce(r.requests, 0), coalesce(r.prompt_tokens, 0), coalesce(r.completion_tokens, 0), coalesce(r.cost_usd, 0))
RETURNING organization_id";

const SET_DAYS: &str = "
INSERT INTO usage_records (organization_id, model_id, date, requests, prompt_tokens, completion_tokens, total_tokens,
    cost_usd)
SELECT organization_id, model_id, date, requests, prompt_tokens, completion_tokens, prompt_tokens + completion_tokens,
    cost_usd
FROM days WHERE NOT is_invoiced ORDER BY 1, 2, 3
ON CONFLICT (organization_id, model_id, date) DO UPDATE SET requests = excluded.requests,
    prompt_tokens = excluded.prompt_tokens, completion_tokens = excluded.completion_tokens,
    total_tokens = excluded.total_tokens, cost_usd = excluded.cost_usd, updated_at = now()
WHERE (usage_records.requests, usage_records.prompt_tokens, usage_records.completion_tokens, usage_records.cost_usd)
    <> (excluded.requests, excluded.prompt_tokens, excluded.completion_tokens, excluded.cost_usd)
RETURNING organization_id";

/// A region of which no hour is left has nothing.
const SET_REGIONS: &str = "
INSERT INTO usage_region_days (organization_id, date, region, requests, cost_usd)
SELECT d.organization_id, d.date, s.region, sum(s.requests), sum(s.cost_usd)
FROM (SELECT DISTINCT * FROM unnest($1::uuid[], $2::date[]) AS days (organization_id, date)) AS d
CROSS JOIN LATERAL (
    SELECT region, requests, cost_usd FROM usage_hours
    WHERE organization_id = d.organization_id AND hour >= d.date::timestamp AT TIME ZONE 'UTC'
        AND hour < (d.date + 1)::timestamp AT TIME ZONE 'UTC'
    UNION ALL SELECT region, 0, 0 FROM usage_region_days
    WHERE organization_id = d.organization_id AND date = d.date
) AS s
GROUP BY 1, 2, 3 ORDER BY 1, 2, 3
ON CONFLICT (organization_id, date, region) DO UPDATE SET requests = excluded.requests, cost_usd = excluded.cost_usd
WHERE (usage_region_days.requests, usage_region_days.cost_usd) <> (excluded.requests, excluded.cost_usd)
RETURNING organization_id";
