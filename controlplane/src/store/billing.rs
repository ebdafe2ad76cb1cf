//! `billing_accounts`, and what organizations have spent of what they may.

use super::organizations::Organization;
use super::partitions::Month;
use super::{PgConnection, StoreError};
use chrono::{DateTime, Utc};
use rust_decimal::Decimal;
use sqlx::types::Json;
use turnpike_config::{Budget, Usd};
use uuid::Uuid;

/// Decimal places of amounts in the tables, as of [`Usd`].
const PLACES: u32 = 12;
/// An edge that was not seen for this long, seconds, is taken to be gone for good: otherwise one that was retired would
/// hold back every budget for ever. What it still ships is counted when it comes.
const GONE_S: f64 = 3600.0;

/// How an organization stands with its money in a month.
#[derive(Clone, Debug, sqlx::FromRow)]
pub(crate) struct Standing {
    /// The organization.
    pub(crate) organization_id: Uuid,
    /// What edges were last told.
    pub(crate) told: Option<Json<Budget>>,
    /// Where invoices go.
    pub(crate) billing_email: Option<String>,
    /// What the account is kept in.
    pub(crate) currency: Option<String>,
    monthly_budget: Option<Decimal>,
    prepaid_balance: Option<Decimal>,
    spent: Decimal,
    as_of: DateTime<Utc>,
    /// When an edge last came to have a link.
    linked_at: Option<DateTime<Utc>>,
}

impl Standing {
    /// What may be spent in a month, if that is bounded.
    pub(crate) fn monthly_budget(&self) -> Option<Usd> {
        self.monthly_budget.map(usd)
    }

    /// What is left of the money paid ahead, if it pays ahead; negative once more was used.
    pub(crate) fn prepaid_balance(&self) -> Option<Usd> {
        self.prepaid_balance.map(usd)
    }

    /// What the month's usage adds up to.
    pub(crate) fn spent(&self) -> Usd {
        usd(self.spent)
    }

    /// What the month's usage may add up to: the monthly budget, or what is spent and what is left of the money paid
    /// ahead, whichever is less. Usage moves money from the one to the other and leaves the sum as it is.
    pub(crate) fn allowance(&self) -> Option<Usd> {
        let ahead = self.prepaid_balance().map(|left| Usd { pico: self.spent().pico.saturating_add(left.pico.max(0)) });
        self.monthly_budget().into_iter().chain(ahead).min()
    }

    /// When an edge last came to have a link, Unix milliseconds; 0 if none ever did.
    pub(crate) fn linked_at_ms(&self) -> u64 {
        self.linked_at.and_then(|at| u64::try_from(at.timestamp_millis()).ok()).unwrap_or(0)
    }

    /// As the edges are told.
    pub(crate) fn budget(&self, month: Month) -> Option<Budget> {
        let as_of_ms = u64::try_from(self.as_of.timestamp_millis()).unwrap_or_default();
        self.allowance().map(|monthly| Budget { monthly, month: month.number(), spent: self.spent(), as_of_ms })
    }
}

/// The columns have at most twelve places, so that this is exact; what no amount of dollars reaches saturates.
fn usd(amount: Decimal) -> Usd {
    let up = 10_i128.pow(PLACES.saturating_sub(amount.scale()));
    Usd { pico: amount.mantissa().saturating_mul(up) }
}

/// The opposite of [`usd`]; `None` beyond 7.9 × 10¹⁶ dollars.
fn decimal(amount: Usd) -> Option<Decimal> {
    Decimal::try_from_i128_with_scale(amount.pico, PLACES).ok()
}

/// How organizations stand in a month: those of `ids`, or if `None` those that have a budget or were told of one.
///
/// Sums and `as_of` are of one moment. `as_of` is how far the books are complete, the least over the edges, as they say
/// themselves; one that is away holds it back until it is [`GONE_S`]. A request that still runs is spent when it ends.
pub(crate) async fn standings(
    connection: &mut PgConnection,
    month: Month,
    ids: Option<&[Uuid]>,
) -> Result<Vec<Standing>, StoreError> {
    Ok(sqlx::query_as(STANDINGS)
        .bind(month.first_day())
        .bind(month.plus(1).first_day())
        .bind(ids)
        .bind(GONE_S)
        .fetch_all(connection)
        .await?)
}

const STANDINGS: &str = "
WITH books AS (
    SELECT least(now(), min(complete_to), (SELECT min(ended_from) - interval '1 ms' FROM usage_dirty_hours)) AS as_of,
        max(linked_at) AS linked_at
    FROM edges WHERE last_seen_at > now() - make_interval(secs => $4)
)
SELECT o.id AS organization_id, o.budget AS told, a.billing_email, a.currency, a.monthly_budget, a.prepaid_balance,
    coalesce(used.spent, 0) AS spent, books.as_of, books.linked_at
FROM books, organizations o
LEFT JOIN billing_accounts a ON a.organization_id = o.id
LEFT JOIN LATERAL (
    SELECT sum(u.cost_usd) AS spent FROM usage_records u
    WHERE u.organization_id = o.id AND u.date >= $1 AND u.date < $2
) AS used ON true
WHERE o.id = ANY($3)
    OR $3 IS NULL AND (a.monthly_budget IS NOT NULL OR a.prepaid_balance IS NOT NULL OR o.budget IS NOT NULL)
ORDER BY o.id";

/// What an operator may set of an account.
#[derive(Clone, Debug)]
pub(crate) struct Account {
    /// What may be spent in a month, whole cents.
    pub(crate) monthly_budget: Option<Usd>,
    /// What is paid ahead; `None` leaves it to be debited as it is.
    pub(crate) prepaid_balance: Option<Option<Usd>>,
    /// Where invoices go.
    pub(crate) billing_email: Option<String>,
}

/// Writes an organization's account, and makes it if there is none.
pub(crate) async fn put(
    connection: &mut PgConnection,
    organization: Uuid,
    account: &Account,
) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO billing_accounts (id, organization_id, billing_email, monthly_budget, prepaid_balance)
         VALUES ($1, $2, $3, $4, $5)
         ON CONFLICT (organization_id) DO UPDATE SET billing_email = excluded.billing_email,
             monthly_budget = excluded.monthly_budget, updated_at = now(),
             prepaid_balance = CASE WHEN $6 THEN excluded.prepaid_balance ELSE billing_accounts.prepaid_balance END",
    )
    .bind(Uuid::now_v7())
    .bind(organization)
    .bind(&account.billing_email)
    .bind(account.monthly_budget.and_then(decimal))
    .bind(account.prepaid_balance.flatten().and_then(decimal))
    .bind(account.prepaid_balance.is_some())
    .execute(connection)
    .await?;
    Ok(())
}

/// Notes what edges are told of an organization's budget; `None` if it is gone.
pub(crate) async fn tell(
    connection: &mut PgConnection,
    organization: Uuid,
    budget: Option<Budget>,
) -> Result<Option<Organization>, StoreError> {
    Ok(sqlx::query_as("UPDATE organizations SET budget = $2 WHERE id = $1 RETURNING *")
        .bind(organization)
        .bind(budget.map(Json))
        .fetch_optional(connection)
        .await?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn standing(monthly: Option<&str>, prepaid: Option<&str>, spent: &str) -> Standing {
        let decimal = |text: &str| text.parse::<Decimal>().unwrap_or_default();
        Standing {
            organization_id: Uuid::nil(),
            told: None,
            billing_email: None,
            currency: None,
            monthly_budget: monthly.map(decimal),
            prepaid_balance: prepaid.map(decimal),
            spent: decimal(spent),
            as_of: DateTime::UNIX_EPOCH,
            linked_at: None,
        }
    }

    #[test]
    fn the_allowance_is_the_least_of_what_is_set() {
        let allowance = |monthly, prepaid| standing(monthly, prepaid, "2.5").allowance().map(|usd| usd.to_string());
        assert_eq!(allowance(None, None), None);
        assert_eq!(allowance(Some("10.00"), None).as_deref(), Some("10"));
        assert_eq!(allowance(None, Some("0.000000000001")).as_deref(), Some("2.500000000001"));
        assert_eq!(allowance(Some("10.00"), Some("4")).as_deref(), Some("6.5"));
        assert_eq!(allowance(Some("6.00"), Some("4")).as_deref(), Some("6"));
        assert_eq!(allowance(Some("10.00"), Some("-1")).as_deref(), Some("2.5"), "spent is spent, and no more");
        assert_eq!(allowance(Some("0.00"), None).as_deref(), Some("0"));
    }

    #[test]
    fn amounts_survive_the_columns_and_saturate_beyond() {
        for text in ["0", "0.000000000001", "-12.5", "999999999999.99"] {
            let amount: Usd = text.parse().unwrap_or_default();
            assert_eq!(decimal(amount).map(usd), Some(amount), "{text}");
        }
        assert!(usd(Decimal::MAX).pico > 10_i128.pow(38));
    }
}
