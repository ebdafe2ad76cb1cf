//! `billing_accounts`, and what organizations have spent of what they may.

use super::amounts::{TAX_PLACES, decimal, millipercent, usd};
use super::organizations::Organization;
use super::partitions::Month;
use super::{PgConnection, StoreError};
use chrono::{DateTime, Utc};
use rust_decimal::Decimal;
use serde_json::Value;
use sqlx::types::Json;
use turnpike_config::{Budget, Prepaid, Usd};
use uuid::Uuid;

/// An edge that was not seen for this long, seconds, is taken to be gone for good: otherwise one that was retired would
/// hold back every budget for ever. What it still ships is counted when it comes.
pub(super) const GONE_S: f64 = 3600.0;

/// How an organization stands with its money in a month.
#[derive(Clone, Debug, sqlx::FromRow)]
pub(crate) struct Standing {
    /// The organization.
    pub(crate) organization_id: Uuid,
    /// What edges were last told.
    pub(crate) told: Option<Json<Budget>>,
    /// What they were told of its money paid ahead.
    pub(crate) told_prepaid: Option<Json<Prepaid>>,
    /// Where invoices go.
    pub(crate) billing_email: Option<String>,
    /// What the account is kept in.
    pub(crate) currency: Option<String>,
    monthly_budget: Option<Decimal>,
    prepaid_balance: Option<Decimal>,
    #[sqlx(flatten)]
    details: Details,
    spent: Decimal,
    as_of: DateTime<Utc>,
    /// Usage of every request that had begun by then is in it.
    began_as_of: DateTime<Utc>,
    /// When an edge last came to have a link.
    linked_at: Option<DateTime<Utc>>,
}

/// The rest of an account.
#[derive(Clone, Debug, Default, sqlx::FromRow)]
struct Details {
    discount_permille: i32,
    tax_rate: Decimal,
    tax_id: Option<String>,
    billing_address: Option<Value>,
    auto_recharge_enabled: bool,
    auto_recharge_threshold: Option<Decimal>,
    auto_recharge_amount: Option<Decimal>,
    payment_method_id: Option<String>,
    stripe_customer_id: Option<String>,
}

impl Standing {
    /// What an operator may set, as it is.
    pub(crate) fn account(&self) -> Account {
        let Details { discount_permille, tax_rate, .. } = self.details;
        Account {
            monthly_budget: self.monthly_budget(),
            billing_email: self.billing_email.clone(),
            discount_permille: discount_permille.unsigned_abs(),
            tax_millipercent: millipercent(tax_rate),
            tax_id: self.details.tax_id.clone(),
            billing_address: self.details.billing_address.clone(),
            auto_recharge_enabled: self.details.auto_recharge_enabled,
            auto_recharge_threshold: self.details.auto_recharge_threshold.map(usd),
            auto_recharge_amount: self.details.auto_recharge_amount.map(usd),
            payment_method_id: self.details.payment_method_id.clone(),
        }
    }

    /// At Stripe.
    pub(crate) fn stripe_customer_id(&self) -> Option<&str> {
        self.details.stripe_customer_id.as_deref()
    }

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

    /// As the edges are told, of the month: a bound for all regions, as well as it is known. Money paid ahead is given out to
    /// them besides.
    pub(crate) fn budget(&self, month: Month) -> Option<Budget> {
        let as_of = if self.prepaid_balance.is_some() { self.as_of.min(self.began_as_of) } else { self.as_of };
        let as_of_ms = u64::try_from(as_of.timestamp_millis()).unwrap_or_default();
        Some(Budget { monthly: self.allowance()?, month: month.number(), spent: self.spent(), as_of_ms })
    }
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
        least(now(), min(coalesce(began_to, complete_to)),
            (SELECT min(began_from) - interval '1 ms' FROM usage_dirty_hours)) AS began_as_of,
        max(linked_at) AS linked_at
    FROM edges WHERE last_seen_at > now() - make_interval(secs => $4)
)
SELECT o.id AS organization_id, o.budget AS told, o.prepaid AS told_prepaid, a.billing_email, a.currency, a.monthly_budget,
    CASE WHEN a.prepaid_since IS NOT NULL THEN coalesce(paid.amount, 0) + coalesce(paid.used, 0)
        - coalesce(since.used, 0) - coalesce(late.used, 0) END AS prepaid_balance,
    coalesce(a.discount_permille, 0) AS discount_permille, coalesce(a.tax_rate, 0) AS tax_rate, a.tax_id,
    a.billing_address, coalesce(a.auto_recharge_enabled, false) AS auto_recharge_enabled, a.auto_recharge_threshold,
    a.auto_recharge_amount, a.payment_method_id, a.stripe_customer_id,
    coalesce(used.spent, 0) AS spent, books.as_of, books.began_as_of, books.linked_at
FROM books, organizations o
LEFT JOIN billing_accounts a ON a.organization_id = o.id
LEFT JOIN LATERAL (
    SELECT sum(e.amount) AS amount, sum(e.used) FILTER (WHERE e.day >= a.prepaid_since) AS used FROM prepaid_entries e
    WHERE e.organization_id = a.organization_id AND a.prepaid_since IS NOT NULL
) AS paid ON true
LEFT JOIN LATERAL (
    SELECT sum(u.cost_usd) AS used FROM usage_records u
    WHERE u.organization_id = a.organization_id AND u.date >= a.prepaid_since
) AS since ON true
LEFT JOIN LATERAL (
    SELECT sum(u.cost_usd) AS used FROM usage_adjustments u
    WHERE u.organization_id = a.organization_id AND u.date >= a.prepaid_since
) AS late ON true
LEFT JOIN LATERAL (
    SELECT sum(u.cost_usd) AS spent FROM usage_records u
    WHERE u.organization_id = o.id AND u.date >= $1 AND u.date < $2
) AS used ON true
WHERE o.id = ANY($3)
    OR $3 IS NULL AND (a.monthly_budget IS NOT NULL OR a.prepaid_since IS NOT NULL OR o.budget IS NOT NULL
        OR o.prepaid IS NOT NULL)
ORDER BY o.id";

/// What an operator may set of an account.
#[derive(Clone, Debug)]
pub(crate) struct Account {
    /// What may be spent in a month, whole cents.
    pub(crate) monthly_budget: Option<Usd>,
    /// Where invoices go.
    pub(crate) billing_email: Option<String>,
    /// Taken off invoices, thousandths, at most 1000.
    pub(crate) discount_permille: u32,
    /// Added to invoices, thousandths of a percent, at most 100000.
    pub(crate) tax_millipercent: u32,
    /// For invoices; the organization's own if `None`.
    pub(crate) tax_id: Option<String>,
    /// For invoices, an object; the organization's own if `None`.
    pub(crate) billing_address: Option<Value>,
    /// Money is asked for when little is left of what was paid ahead.
    pub(crate) auto_recharge_enabled: bool,
    /// Less than this is little, whole cents.
    pub(crate) auto_recharge_threshold: Option<Usd>,
    /// How much is asked for, whole cents.
    pub(crate) auto_recharge_amount: Option<Usd>,
    /// What the payment provider is to charge.
    pub(crate) payment_method_id: Option<String>,
}

/// Writes an organization's account, and makes it if there is none.
pub(crate) async fn put(
    connection: &mut PgConnection,
    organization: Uuid,
    account: &Account,
) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO billing_accounts (id, organization_id, billing_email, monthly_budget, discount_permille, tax_rate,
             tax_id, billing_address, auto_recharge_enabled, auto_recharge_threshold, auto_recharge_amount,
             payment_method_id)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)
         ON CONFLICT (organization_id) DO UPDATE SET billing_email = excluded.billing_email,
             monthly_budget = excluded.monthly_budget, discount_permille = excluded.discount_permille,
             tax_rate = excluded.tax_rate, tax_id = excluded.tax_id, billing_address = excluded.billing_address,
             auto_recharge_enabled = excluded.auto_recharge_enabled,
             auto_recharge_threshold = excluded.auto_recharge_threshold,
             auto_recharge_amount = excluded.auto_recharge_amount, payment_method_id = excluded.payment_method_id,
             updated_at = now()",
    )
    .bind(Uuid::now_v7())
    .bind(organization)
    .bind(&account.billing_email)
    .bind(account.monthly_budget.map(decimal).transpose()?)
    .bind(i32::try_from(account.discount_permille).unwrap_or_default())
    .bind(Decimal::new(i64::from(account.tax_millipercent), TAX_PLACES))
    .bind(&account.tax_id)
    .bind(&account.billing_address)
    .bind(account.auto_recharge_enabled)
    .bind(account.auto_recharge_threshold.map(decimal).transpose()?)
    .bind(account.auto_recharge_amount.map(decimal).transpose()?)
    .bind(&account.payment_method_id)
    .execute(connection)
    .await?;
    Ok(())
}

/// Whether there is such an organization.
pub(crate) async fn exists(connection: &mut PgConnection, organization: Uuid) -> Result<bool, StoreError> {
    Ok(sqlx::query_scalar("SELECT EXISTS (SELECT 1 FROM organizations WHERE id = $1)")
        .bind(organization)
        .fetch_one(connection)
        .await?)
}

/// Keeps others from appending to an organization's ledger and from closing its months until the transaction ends.
/// Makes its account if there is none.
pub(crate) async fn lock(connection: &mut PgConnection, organization: Uuid) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO billing_accounts (id, organization_id) VALUES ($1, $2) ON CONFLICT (organization_id) DO NOTHING",
    )
    .bind(Uuid::now_v7())
    .bind(organization)
    .execute(&mut *connection)
    .await?;
    sqlx::query("SELECT 1 FROM billing_accounts WHERE organization_id = $1 FOR UPDATE")
        .bind(organization)
        .execute(connection)
        .await?;
    Ok(())
}

/// Notes what edges are told of an organization's money; `None` if it is gone.
pub(crate) async fn tell(
    connection: &mut PgConnection,
    organization: Uuid,
    budget: Option<Budget>,
    prepaid: Option<Prepaid>,
) -> Result<Option<Organization>, StoreError> {
    Ok(sqlx::query_as("UPDATE organizations SET budget = $2, prepaid = $3 WHERE id = $1 RETURNING *")
        .bind(organization)
        .bind(budget.map(Json))
        .bind(prepaid.map(Json))
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
            told_prepaid: None,
            billing_email: None,
            currency: None,
            monthly_budget: monthly.map(decimal),
            prepaid_balance: prepaid.map(decimal),
            details: Details::default(),
            spent: decimal(spent),
            as_of: DateTime::UNIX_EPOCH,
            began_as_of: DateTime::UNIX_EPOCH,
            linked_at: None,
        }
    }

    #[test]
    fn edges_are_told_what_all_regions_may_spend_and_money_paid_ahead_waits_for_what_runs() {
        let month = Month::of(DateTime::UNIX_EPOCH);
        let at = |ms| DateTime::from_timestamp_millis(ms).unwrap_or_default();
        let told = |monthly, prepaid| {
            let standing = Standing { as_of: at(9), began_as_of: at(4), ..standing(monthly, prepaid, "2.5") };
            standing.budget(month).map(|budget| (budget.monthly.to_string(), budget.as_of_ms))
        };
        let whole = |text: &str, as_of| Some((text.to_owned(), as_of));
        assert_eq!(told(None, Some("4")), whole("6.5", 4));
        assert_eq!(told(Some("100"), None), whole("100", 9));
        assert_eq!(told(Some("3"), Some("4")), whole("3", 4));
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
}
