//! What an organization may spend, and what it has spent.

use super::{ActionError, Checks, Operator, audit, nullable};
use crate::budgets;
use crate::context::Context;
use crate::store::PgConnection;
use crate::store::billing::{self, Account, Standing};
use crate::store::partitions::Month;
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::json;
use turnpike_config::Usd;
use utoipa::ToSchema;
use uuid::Uuid;

/// The one currency that usage is priced in.
const CURRENCY: &str = "USD";
/// Pico-dollars of a cent.
const CENT: i128 = 10_000_000_000;
/// First amount that the columns cannot hold, pico-dollars: 10¹² dollars.
const LIMIT: i128 = 10_i128.pow(24);

/// An organization's money. Amounts are exact decimal dollars.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Billing {
    /// The organization.
    organization_id: Uuid,
    /// `USD`.
    currency: String,
    /// Where invoices go.
    billing_email: Option<String>,
    /// What may be spent in a calendar month (UTC); null is as much as it likes.
    #[schema(value_type = Option<String>, example = "100")]
    monthly_budget: Option<Usd>,
    /// What is left of the money paid ahead; negative once more was used. Null: it pays afterwards.
    #[schema(value_type = Option<String>, example = "12.5")]
    prepaid_balance: Option<Usd>,
    /// The month that the figures below are of.
    #[schema(example = "2026-01")]
    month: String,
    /// What the usage stored so far adds up to, this month.
    #[schema(value_type = String, example = "1.0042")]
    spent_this_month: Usd,
    /// What this month's usage may add up to: the monthly budget, or what is spent and left of the money paid ahead,
    /// whichever is less. Null: no bound.
    #[schema(value_type = Option<String>)]
    allowance: Option<Usd>,
    /// What is left of the allowance; negative once more was used. Null: no bound.
    #[schema(value_type = Option<String>)]
    remaining: Option<Usd>,
}

/// What to change; absent fields stay, null clears.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct PatchBilling {
    /// What may be spent in a calendar month (UTC): decimal dollars, 0 or more, at most 2 places. Null: no bound.
    #[serde(default, deserialize_with = "nullable")]
    #[schema(value_type = Option<String>, example = "100.00")]
    monthly_budget: Option<Option<String>>,
    /// Sets what is left of the money paid ahead: decimal dollars, 0 or more. Usage is debited from it. Null: it pays
    /// afterwards.
    #[serde(default, deserialize_with = "nullable")]
    #[schema(value_type = Option<String>, example = "12.50")]
    prepaid_balance: Option<Option<String>>,
    /// `USD`.
    currency: Option<String>,
    /// Where invoices go.
    #[serde(default, deserialize_with = "nullable")]
    #[schema(value_type = Option<String>)]
    billing_email: Option<Option<String>>,
}

/// An amount of at least nothing, in whole multiples of `unit` pico-dollars. What is not one is noted.
fn amount(checks: &mut Checks, field: &str, text: &str, unit: i128, expected: &str) -> Option<Usd> {
    let amount = text.parse::<Usd>().ok().filter(|usd| (0..LIMIT).contains(&usd.pico) && usd.pico % unit == 0);
    checks.require(amount.is_some(), field, expected);
    amount
}

fn account(patch: PatchBilling, before: &Standing) -> Result<Account, ActionError> {
    let mut checks = Checks::default();
    let cents = "expected dollars such as \"100.00\": 0 or more, below 1000000000000, at most 2 decimal places";
    let exact = "expected dollars such as \"12.50\": 0 or more, below 1000000000000, at most 12 decimal places";
    let monthly_budget = match patch.monthly_budget {
        Some(text) => text.and_then(|text| amount(&mut checks, "monthly_budget", &text, CENT, cents)),
        None => before.monthly_budget(),
    };
    let prepaid_balance =
        patch.prepaid_balance.map(|text| text.and_then(|text| amount(&mut checks, "prepaid_balance", &text, 1, exact)));
    if let Some(currency) = &patch.currency {
        checks.one_of("currency", currency, &[CURRENCY]);
    }
    let billing_email = patch.billing_email.unwrap_or_else(|| before.billing_email.clone());
    checks.optional_text("billing_email", billing_email.as_deref(), 255);
    checks.finish()?;
    Ok(Account { monthly_budget, prepaid_balance, billing_email })
}

async fn standing(connection: &mut PgConnection, id: Uuid, month: Month) -> Result<Standing, ActionError> {
    let found = billing::standings(connection, month, Some(&[id])).await?;
    found.into_iter().next().ok_or_else(|| ActionError::not_found("organization", id))
}

fn view(standing: Standing, month: Month) -> Billing {
    let (spent, allowance) = (standing.spent(), standing.allowance());
    Billing {
        organization_id: standing.organization_id,
        monthly_budget: standing.monthly_budget(),
        prepaid_balance: standing.prepaid_balance(),
        month: month.to_string(),
        spent_this_month: spent,
        allowance,
        remaining: allowance.map(|allowance| Usd { pico: allowance.pico.saturating_sub(spent.pico) }),
        currency: standing.currency.unwrap_or_else(|| CURRENCY.to_owned()),
        billing_email: standing.billing_email,
    }
}

/// An organization's money at the moment `now`.
pub(crate) async fn get(context: &Context, id: Uuid, now: DateTime<Utc>) -> Result<Billing, ActionError> {
    context.rollup.settle().await;
    let month = Month::of(now);
    Ok(view(standing(&mut *context.store.read().await?, id, month).await?, month))
}

/// Changes what an organization may spend; edges are told in the same transaction.
pub(crate) async fn patch(
    context: &Context,
    operator: Operator,
    id: Uuid,
    patch: PatchBilling,
    now: DateTime<Utc>,
) -> Result<Billing, ActionError> {
    context.rollup.settle().await;
    let month = Month::of(now);
    let mut edit = context.feed.edit(operator.name()).await?;
    let before = standing(edit.connection(), id, month).await?;
    let account = account(patch, &before)?;
    billing::put(edit.connection(), id, &account).await?;
    let after = standing(edit.connection(), id, month).await?;
    let amounts =
        |of: &Standing| json!({"monthly_budget": of.monthly_budget(), "prepaid_balance": of.prepaid_balance()});
    let details = json!({"before": amounts(&before), "after": amounts(&after)});
    audit(&mut edit, operator, "billing.update", ("organization", &id.to_string()), details).await?;
    budgets::tell_if_due(&mut edit, &after, now).await?;
    edit.commit().await?;
    Ok(view(after, month))
}
