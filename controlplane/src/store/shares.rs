//! `prepaid_shares`: which region may spend how much of money paid ahead, and what is known of the regions.

use super::amounts::{decimal, usd};
use super::billing::GONE_S;
use super::{PgConnection, StoreError};
use crate::allotment::{Asked, Lowered, Region, Share};
use chrono::{DateTime, Utc};
use rust_decimal::Decimal;
use std::collections::BTreeMap;
use turnpike_config::Usd;
use uuid::Uuid;

/// An edge that was not seen for this long, seconds, is away: it may take a while until it is told anything.
const AWAY_S: f64 = 60.0;

/// An account's regions by name.
pub(crate) type Regions = BTreeMap<String, Place>;

/// A region of an account.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    /// For the allotment. What clients ask for is left to the caller, from `requests`.
    pub(crate) region: Region,
    /// Requests in the books, whatever became of them.
    pub(crate) requests: i64,
    /// Up to when what edges are told is complete: those that are gone are left out.
    pub(crate) as_of: DateTime<Utc>,
}

#[derive(sqlx::FromRow)]
struct Row {
    organization_id: Uuid,
    region: String,
    cap: Decimal,
    bound: Decimal,
    lowered_version: Option<i64>,
    acked_at: Option<DateTime<Utc>>,
    spent: Decimal,
    requests: i64,
    is_live: bool,
    is_heard: bool,
    holds: Option<i64>,
    complete_to: DateTime<Utc>,
    as_of: DateTime<Utc>,
}

impl From<Row> for Place {
    fn from(row: Row) -> Self {
        let lowered =
            row.lowered_version.map(|version| Lowered { version: version.unsigned_abs(), acked_at: row.acked_at });
        let share = Share { cap: usd(row.cap).pico, bound: usd(row.bound).pico, lowered };
        let region = Region {
            share,
            spent: usd(row.spent).pico,
            is_live: row.is_live,
            is_heard: row.is_heard,
            holds: row.holds.map(i64::unsigned_abs),
            complete_to: row.complete_to,
            asked: Asked::default(),
        };
        Self { region, requests: row.requests, as_of: row.as_of }
    }
}

/// The regions of accounts that pay ahead: those of `ids`, or all. One that edges are in has none of the money yet, if it is
/// new.
///
/// To be read before what is left of the money: usage that is booked in between is missing here, and then less can be given
/// out than there is, not more.
pub(crate) async fn of(
    connection: &mut PgConnection,
    ids: Option<&[Uuid]>,
) -> Result<BTreeMap<Uuid, Regions>, StoreError> {
    let rows: Vec<Row> = sqlx::query_as(REGIONS).bind(ids).bind(GONE_S).bind(AWAY_S).fetch_all(connection).await?;
    let mut found = BTreeMap::<Uuid, Regions>::new();
    for row in rows {
        found.entry(row.organization_id).or_default().insert(row.region.clone(), row.into());
    }
    Ok(found)
}

// What was spent is counted from the day on which the account first paid ahead, also where it did not in between: the same
// for ever, so that edges need not forget anything.
const REGIONS: &str = "
WITH dirty AS (
    SELECT least(now(), min(began_from) - interval '1 ms') AS began_to,
        least(now(), min(ended_from) - interval '1 ms', min(began_from) - interval '1 ms') AS as_of
    FROM usage_dirty_hours
), places AS (
    SELECT region, min(holds) AS holds, min(coalesce(settled_to, least(complete_to, began_to))) AS complete_to,
        coalesce(bool_or(last_seen_at > now() - make_interval(secs => $2)), false) AS is_live,
        bool_and(coalesce(last_seen_at > now() - make_interval(secs => $3), false)) AS is_heard,
        min(least(complete_to, began_to, settled_to)) FILTER (WHERE last_seen_at > now() - make_interval(secs => $2)) AS as_of
    FROM edges GROUP BY region
), accounts AS (
    SELECT a.organization_id, least(min(e.day), a.prepaid_since) AS since FROM billing_accounts a
    LEFT JOIN prepaid_entries e ON e.organization_id = a.organization_id AND e.kind = 'opening'
    WHERE a.prepaid_since IS NOT NULL AND ($1::uuid[] IS NULL OR a.organization_id = ANY($1))
    GROUP BY a.organization_id, a.prepaid_since
)
SELECT a.organization_id, r.region, r.cap, r.bound, r.lowered_version, r.acked_at,
    coalesce(used.spent, 0) AS spent, coalesce(used.requests, 0)::bigint AS requests,
    coalesce(p.is_live, false) AS is_live, coalesce(p.is_heard, true) AS is_heard, p.holds,
    least(p.complete_to, dirty.began_to) AS complete_to, least(p.as_of, dirty.as_of) AS as_of
FROM dirty, accounts a
CROSS JOIN LATERAL (
    SELECT region, cap, bound, lowered_version, acked_at FROM prepaid_shares s
    WHERE s.organization_id = a.organization_id
    UNION ALL SELECT region, 0, 0, NULL, NULL FROM places
    WHERE NOT EXISTS (
        SELECT 1 FROM prepaid_shares s WHERE s.organization_id = a.organization_id AND s.region = places.region)
) AS r
LEFT JOIN places p ON p.region = r.region
LEFT JOIN LATERAL (
    SELECT sum(u.cost_usd) AS spent, sum(u.requests) AS requests FROM usage_region_days u
    WHERE u.organization_id = a.organization_id AND u.date >= a.since AND u.region = left(r.region, 50)
) AS used ON true";

/// Writes what regions are given.
pub(crate) async fn put(
    connection: &mut PgConnection,
    organization: Uuid,
    shares: &[(&str, Share)],
) -> Result<(), StoreError> {
    let amounts = |of: fn(&Share) -> i128| -> Result<Vec<Decimal>, StoreError> {
        shares.iter().map(|(_, share)| decimal(Usd { pico: of(share) })).collect()
    };
    let lowered = |share: &Share| share.lowered.map(|lowered| i64::try_from(lowered.version).unwrap_or(i64::MAX));
    sqlx::query(
        "INSERT INTO prepaid_shares (organization_id, region, cap, bound, lowered_version, acked_at)
         SELECT $1, * FROM unnest($2::text[], $3::numeric[], $4::numeric[], $5::bigint[], $6::timestamptz[])
         ON CONFLICT (organization_id, region) DO UPDATE SET cap = excluded.cap, bound = excluded.bound,
             lowered_version = excluded.lowered_version, acked_at = excluded.acked_at",
    )
    .bind(organization)
    .bind(shares.iter().map(|(region, _)| *region).collect::<Vec<_>>())
    .bind(amounts(|share| share.cap)?)
    .bind(amounts(|share| share.bound)?)
    .bind(shares.iter().map(|(_, share)| lowered(share)).collect::<Vec<_>>())
    .bind(shares.iter().map(|(_, share)| share.lowered.and_then(|lowered| lowered.acked_at)).collect::<Vec<_>>())
    .execute(connection)
    .await?;
    Ok(())
}
