//! What is to be charged for a month, summed from usage; and whether the books are complete so far.

use super::amounts::usd;
use super::partitions::Month;
use super::{PgConnection, StoreError, rollup};
use crate::invoicing::{Charge, LineKind, UnitPrices};
use chrono::{DateTime, NaiveDate, Utc};
use rust_decimal::Decimal;
use turnpike_config::Usd;
use uuid::Uuid;

/// Keeps usage from being summed anew until the transaction ends: what is read now is what is invoiced.
pub(crate) async fn hold(connection: &mut PgConnection) -> Result<(), StoreError> {
    // Whoever writes usage_records or usage_adjustments holds it.
    rollup::lock(connection).await
}

#[derive(sqlx::FromRow)]
struct Row {
    kind: String,
    model_id: String,
    month: String,
    price_version: i64,
    input_token: Option<Decimal>,
    output_token: Option<Decimal>,
    cached_input_token: Option<Decimal>,
    request: Option<Decimal>,
    requests: i64,
    prompt_tokens: i64,
    cached_tokens: i64,
    completion_tokens: i64,
    cost_usd: Decimal,
}

impl From<Row> for Charge {
    fn from(row: Row) -> Self {
        let unit_prices = row.input_token.zip(row.output_token).map(|(input, output)| UnitPrices {
            input_token: usd(input),
            cached_input_token: row.cached_input_token.map(usd),
            output_token: usd(output),
            request: row.request.map(usd),
        });
        Self {
            kind: match row.kind.as_str() {
                "late" => LineKind::LateUsage,
                "before" => LineKind::ChargedBefore,
                _ => LineKind::Usage,
            },
            model_id: row.model_id,
            month: row.month,
            price_version: u32::try_from(row.price_version).ok().filter(|version| *version > 0),
            unit_prices,
            requests: row.requests,
            prompt_tokens: row.prompt_tokens,
            cached_tokens: row.cached_tokens,
            completion_tokens: row.completion_tokens,
            cost: usd(row.cost_usd),
        }
    }
}

/// What is to be charged for an organization's month, in the order of lines:
///
/// * the month's usage by model and price, from `usage_hours`, and for days that were only summed by day (before there
///   were hours) from `usage_records` and what came late;
/// * less what came late and is on another invoice already (this one replaces a void one);
/// * usage of earlier months that came after their invoices and is on none yet.
pub(crate) async fn of_month(
    connection: &mut PgConnection,
    organization: Uuid,
    month: Month,
) -> Result<Vec<Charge>, StoreError> {
    let rows: Vec<Row> = sqlx::query_as(CHARGES)
        .bind(organization)
        .bind(month.first_day())
        .bind(month.plus(1).first_day())
        .fetch_all(connection)
        .await?;
    Ok(rows.into_iter().map(Charge::from).collect())
}

const CHARGES: &str = "
WITH hours AS (
    SELECT model_id, price_version, (hour AT TIME ZONE 'UTC')::date AS date, requests, prompt_tokens, cached_tokens,
        completion_tokens, cost_usd
    FROM usage_hours
    WHERE organization_id = $1
        AND hour >= $2::date::timestamp AT TIME ZONE 'UTC' AND hour < $3::date::timestamp AT TIME ZONE 'UTC'
), days AS (
    SELECT model_id, date, requests, prompt_tokens, completion_tokens, cost_usd FROM usage_records
    WHERE organization_id = $1 AND date >= $2 AND date < $3
    UNION ALL
    SELECT model_id, date, requests, prompt_tokens, completion_tokens, cost_usd FROM usage_adjustments
    WHERE organization_id = $1 AND date >= $2 AND date < $3
), charged AS (
    SELECT 1 AS place, 'usage' AS kind, model_id, date, price_version, requests, prompt_tokens, cached_tokens,
        completion_tokens, cost_usd
    FROM hours
    UNION ALL
    SELECT 1, 'usage', model_id, date, 0, requests, prompt_tokens, 0, completion_tokens, cost_usd FROM days
    WHERE NOT EXISTS (SELECT 1 FROM hours WHERE hours.model_id = days.model_id AND hours.date = days.date)
    UNION ALL
    SELECT 2, 'before', model_id, date, 0, -requests, -prompt_tokens, 0, -completion_tokens, -cost_usd
    FROM usage_adjustments
    WHERE organization_id = $1 AND date >= $2 AND date < $3 AND invoice_id IS NOT NULL
    UNION ALL
    SELECT 3, 'late', model_id, date, 0, requests, prompt_tokens, 0, completion_tokens, cost_usd
    FROM usage_adjustments WHERE organization_id = $1 AND date < $2 AND invoice_id IS NULL
)
SELECT kind, charged.model_id, to_char(date, 'YYYY-MM') AS month, price_version::bigint AS price_version,
    p.input_token, p.output_token, p.cached_input_token, p.request,
    sum(requests)::bigint AS requests, sum(prompt_tokens)::bigint AS prompt_tokens,
    sum(cached_tokens)::bigint AS cached_tokens, sum(completion_tokens)::bigint AS completion_tokens,
    sum(cost_usd) AS cost_usd
FROM charged LEFT JOIN model_prices p ON p.model_id = charged.model_id AND p.version = price_version
GROUP BY place, 1, 2, 3, 4, 5, 6, 7, 8 ORDER BY place, 3, 2, 4";

/// The same by the daily books alone: `usage_records` of the month and all open adjustments until its end.
pub(crate) async fn booked(connection: &mut PgConnection, organization: Uuid, month: Month) -> Result<Usd, StoreError> {
    let booked: Decimal = sqlx::query_scalar(
        "SELECT coalesce((SELECT sum(cost_usd) FROM usage_records
                 WHERE organization_id = $1 AND date >= $2 AND date < $3), 0)
             + coalesce((SELECT sum(cost_usd) FROM usage_adjustments
                 WHERE organization_id = $1 AND date < $3 AND invoice_id IS NULL), 0)",
    )
    .bind(organization)
    .bind(month.first_day())
    .bind(month.plus(1).first_day())
    .fetch_one(connection)
    .await?;
    Ok(usd(booked))
}

/// Notes that an invoice charges what was open until its month's end.
pub(crate) async fn take_up(
    connection: &mut PgConnection,
    organization: Uuid,
    month: Month,
    invoice: Uuid,
) -> Result<(), StoreError> {
    sqlx::query(
        "UPDATE usage_adjustments SET invoice_id = $3
         WHERE organization_id = $1 AND date < $2 AND invoice_id IS NULL",
    )
    .bind(organization)
    .bind(month.plus(1).first_day())
    .bind(invoice)
    .execute(connection)
    .await?;
    Ok(())
}

/// What a void invoice charged is open again.
pub(crate) async fn give_back(connection: &mut PgConnection, invoice: Uuid) -> Result<(), StoreError> {
    sqlx::query("UPDATE usage_adjustments SET invoice_id = NULL WHERE invoice_id = $1")
        .bind(invoice)
        .execute(connection)
        .await?;
    Ok(())
}

/// Organizations with something to charge for a month and no invoice for it, void ones included: what an operator
/// took back is theirs to make anew. With `all`, also those that have a void one or a draft.
pub(crate) async fn due(connection: &mut PgConnection, month: Month, all: bool) -> Result<Vec<Uuid>, StoreError> {
    Ok(sqlx::query_scalar(
        "SELECT o.id FROM organizations o
         WHERE (EXISTS (SELECT 1 FROM usage_records u
                 WHERE u.organization_id = o.id AND u.date >= $1 AND u.date < $2 AND u.cost_usd <> 0)
             OR EXISTS (SELECT 1 FROM usage_adjustments u
                 WHERE u.organization_id = o.id AND u.date < $2 AND u.invoice_id IS NULL))
             AND NOT EXISTS (SELECT 1 FROM invoices i WHERE i.organization_id = o.id AND i.period_start = $1
                 AND (NOT $3 OR i.status NOT IN ('void', 'draft')))
         ORDER BY o.id",
    )
    .bind(month.first_day())
    .bind(month.plus(1).first_day())
    .bind(all)
    .fetch_all(connection)
    .await?)
}

/// Months from `from` until before `to` with usage that costs something, and how many organizations have no invoice of
/// it, not even a void one; ascending, without those of which there are none.
pub(crate) async fn unbilled(
    connection: &mut PgConnection,
    from: Month,
    to: Month,
) -> Result<Vec<(Month, i64)>, StoreError> {
    let found: Vec<(NaiveDate, i64)> = sqlx::query_as(
        "SELECT date_trunc('month', u.date)::date AS month, count(DISTINCT u.organization_id) FROM usage_records u
         WHERE u.date >= $1 AND u.date < $2 AND u.cost_usd <> 0 AND NOT EXISTS (
             SELECT 1 FROM invoices i WHERE i.organization_id = u.organization_id
                 AND i.period_start = date_trunc('month', u.date)::date)
         GROUP BY 1 ORDER BY 1",
    )
    .bind(from.first_day())
    .bind(to.first_day())
    .fetch_all(connection)
    .await?;
    Ok(found.into_iter().map(|(day, count)| (Month::of_day(day), count)).collect())
}

/// Edges that may still have usage of requests that began before `end`, by their clock and so by the times in event ids;
/// one that has never said so, by when it first came.
pub(crate) async fn edges_behind(connection: &mut PgConnection, end: DateTime<Utc>) -> Result<Vec<String>, StoreError> {
    Ok(sqlx::query_scalar("SELECT name FROM edges WHERE coalesce(began_to, complete_to) < $1 ORDER BY name")
        .bind(end)
        .fetch_all(connection)
        .await?)
}
