//! What edges counted themselves.

use super::amounts::decimal;
use super::{PgConnection, StoreError};
use chrono::{Days, NaiveDate};
use rust_decimal::Decimal;
use turnpike_config::wire::DayCount;

/// Sets an edge's counts of days, each day at most once; of the same journal, the one that goes further stands.
pub(crate) async fn put(
    connection: &mut PgConnection,
    edge: &str,
    (epoch, through_seq): (u64, u64),
    counts: &[DayCount],
) -> Result<(), StoreError> {
    macro_rules! column {
        ($count:ident => $value:expr) => {
            counts.iter().map(|$count| $value).collect::<Vec<_>>()
        };
    }
    let figure = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
    let costs = counts.iter().map(|count| decimal(count.cost)).collect::<Result<Vec<Decimal>, _>>()?;
    sqlx::query(
        "INSERT INTO edge_days AS held
             (edge, epoch, day, through_seq, requests, prompt_tokens, completion_tokens, cost_usd)
         SELECT $1, $2, day, $3, requests, prompt_tokens, completion_tokens, cost_usd
         FROM unnest($4::date[], $5::bigint[], $6::bigint[], $7::bigint[], $8::numeric[])
             AS c (day, requests, prompt_tokens, completion_tokens, cost_usd)
         ORDER BY day
         ON CONFLICT (day, edge, epoch) DO UPDATE
             SET through_seq = excluded.through_seq, requests = excluded.requests,
                 prompt_tokens = excluded.prompt_tokens, completion_tokens = excluded.completion_tokens,
                 cost_usd = excluded.cost_usd, updated_at = now()
             WHERE held.through_seq <= excluded.through_seq",
    )
    .bind(edge)
    .bind(Decimal::from(epoch))
    .bind(Decimal::from(through_seq))
    .bind(column!(c => day(c)))
    .bind(column!(c => figure(c.requests)))
    .bind(column!(c => figure(c.prompt_tokens)))
    .bind(column!(c => figure(c.completion_tokens)))
    .bind(costs)
    .execute(connection)
    .await?;
    Ok(())
}

/// The count's day; the last one there is for what no calendar has.
fn day(count: &DayCount) -> NaiveDate {
    NaiveDate::default().checked_add_days(Days::new(count.day.into())).unwrap_or(NaiveDate::MAX)
}
