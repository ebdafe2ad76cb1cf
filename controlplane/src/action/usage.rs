//! Reading usage and the request log.

use super::{ActionError, Checks};
use crate::context::Context;
use crate::store::performance::Minute;
use crate::store::requests::{self, Filter, LoggedRequest};
use crate::store::usage::{self, Grouping, Span, UsageSum};
use chrono::{DateTime, Days, NaiveDate, TimeDelta, Utc};
use turnpike_config::{CacheStatus, RequestStatus};
use uuid::Uuid;

/// Most groups of one answer.
const MAX_GROUPS: i64 = 10_000;
/// Days of usage shown when no first day is asked for.
const DEFAULT_DAYS: u64 = 30;
/// What usage can be grouped by.
const GROUPS: [&str; 6] = ["organization", "model", "day", "hour", "price_version", "key"];

/// Which usage is wanted.
#[derive(Clone, Debug)]
pub(crate) struct UsageQuery {
    /// Only this organization.
    pub(crate) organization: Option<Uuid>,
    /// First UTC day; 30 days before `to` if absent.
    pub(crate) from: Option<NaiveDate>,
    /// Day after the last; tomorrow if absent.
    pub(crate) to: Option<NaiveDate>,
    /// Names of groups, separated by commas.
    pub(crate) group_by: String,
}

/// Sums usage.
pub(crate) async fn sums(
    context: &Context,
    query: UsageQuery,
    now: DateTime<Utc>,
) -> Result<Vec<UsageSum>, ActionError> {
    let names: Vec<&str> = query.group_by.split(',').map(str::trim).filter(|name| !name.is_empty()).collect();
    let mut checks = Checks::default();
    for name in &names {
        checks.one_of("group_by", name, &GROUPS);
    }
    let today = now.date_naive();
    let to = query.to.or_else(|| today.checked_add_days(Days::new(1))).unwrap_or(today);
    let from = query.from.or_else(|| to.checked_sub_days(Days::new(DEFAULT_DAYS))).unwrap_or(to);
    checks.require(from < to, "from", "expected a day before `to` (which is not included)");
    let by = |name: &str| names.contains(&name);
    let grouping = Grouping {
        organization: by("organization"),
        model: by("model"),
        day: by("day"),
        hour: by("hour"),
        price_version: by("price_version"),
        key: by("key"),
    };
    let apart = !grouping.key || !grouping.hour && !grouping.price_version;
    checks.require(apart, "group_by", "`key` does not go with `hour` or `price_version`");
    checks.finish()?;
    let span = Span { organization: query.organization, from, to };
    context.rollup.settle().await;
    let mut connection = context.store.read().await?;
    let sums = if grouping.key {
        context.ledger.key_sums(&mut connection, grouping, span, MAX_GROUPS + 1).await?
    } else {
        usage::sums(&mut connection, grouping, span, MAX_GROUPS + 1).await?
    };
    if sums.len() as u64 > MAX_GROUPS.unsigned_abs() {
        return Err(ActionError::field("group_by", "more than 10000 groups: narrow the days or the grouping"));
    }
    Ok(sums)
}

/// A page of the request log, the newest first. `before` is the last id of the page before.
pub(crate) async fn requests(
    context: &Context,
    filter: Filter,
    before: Option<Uuid>,
    limit: i64,
) -> Result<Vec<LoggedRequest>, ActionError> {
    let mut checks = Checks::default();
    if let Some(status) = &filter.status {
        checks.one_of("status", status, &RequestStatus::ALL.map(RequestStatus::name));
    }
    if let Some(status) = &filter.cache_status {
        checks.one_of("cache_status", status, &CacheStatus::ALL.map(CacheStatus::name));
    }
    checks.finish()?;
    // A request's time is the one inside its id.
    let before = before.map(|id| {
        let ms = turnpike_config::EventId(id).unix_ms();
        (i64::try_from(ms).ok().and_then(DateTime::from_timestamp_millis).unwrap_or_default(), id)
    });
    Ok(requests::list(&mut *context.store.read().await?, &filter, before, limit).await?)
}

/// How a model did since `from`, or in the last hour; the newest first.
pub(crate) async fn performance(
    context: &Context,
    model: &str,
    from: Option<DateTime<Utc>>,
    now: DateTime<Utc>,
) -> Result<Vec<Minute>, ActionError> {
    let from = from.unwrap_or(now - TimeDelta::hours(1));
    let mut connection = context.store.read().await?;
    Ok(context.ledger.performance(&mut connection, model, from, MAX_GROUPS).await?)
}
