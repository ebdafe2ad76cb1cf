//! What an organization may spend, and what it has spent.

use super::prepaid::{self, LIMIT};
use super::standing::standing;
use super::{ActionError, Checks, Operator, audit, nullable};
use crate::budgets;
use crate::context::Context;
use crate::invoicing::{CENT, percent_text};
use crate::store::billing::{self, Account, Standing};
use crate::store::partitions::Month;
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use turnpike_config::Usd;
use utoipa::ToSchema;
use uuid::Uuid;

/// The one currency that usage is priced in.
const CURRENCY: &str = "USD";
/// A thousandth, in 10⁻¹².
const MILLI: i128 = 1_000_000_000;

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
    /// Taken off invoices, thousandths.
    discount_permille: u32,
    /// Added to invoices, percent with 3 places.
    #[schema(example = "19.000")]
    tax_rate: String,
    /// For invoices; null: the organization's own.
    tax_id: Option<String>,
    /// For invoices; null: the organization's own.
    billing_address: Option<Value>,
    /// Money is asked for when little is left of what was paid ahead.
    auto_recharge_enabled: bool,
    /// Less than this is little.
    #[schema(value_type = Option<String>, example = "10")]
    auto_recharge_threshold: Option<Usd>,
    /// How much is asked for.
    #[schema(value_type = Option<String>, example = "50")]
    auto_recharge_amount: Option<Usd>,
    /// What the payment provider is to charge.
    payment_method_id: Option<String>,
    /// At Stripe.
    stripe_customer_id: Option<String>,
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
    /// Sets what is left of the money paid ahead, by an `adjustment` in its ledger: decimal dollars, 0 or more. Usage is
    /// debited from it. Null: it pays afterwards.
    #[serde(default, deserialize_with = "nullable")]
    #[schema(value_type = Option<String>, example = "12.50")]
    prepaid_balance: Option<Option<String>>,
    /// `USD`.
    currency: Option<String>,
    /// Where invoices go.
    #[serde(default, deserialize_with = "nullable")]
    #[schema(value_type = Option<String>)]
    billing_email: Option<Option<String>>,
    /// Taken off the sum of an invoice's lines, thousandths: 0 to 1000. For invoices that are opened from now on.
    #[schema(maximum = 1000)]
    discount_permille: Option<u32>,
    /// Percent of what is left, 0 to 100, at most 3 places. For invoices that are opened from now on.
    #[schema(example = "19")]
    tax_rate: Option<String>,
    /// Tax identity for invoices.
    #[serde(default, deserialize_with = "nullable")]
    #[schema(value_type = Option<String>)]
    tax_id: Option<Option<String>>,
    /// Postal address for invoices, an object: `line1`, `line2`, `postal_code`, `city`, `state`, `country`.
    #[serde(default, deserialize_with = "nullable")]
    #[schema(value_type = Option<Value>)]
    billing_address: Option<Option<Value>>,
    /// Ask the payment provider for money when little is left of what was paid ahead. Needs the two amounts below.
    auto_recharge_enabled: Option<bool>,
    /// Less than this is little: decimal dollars, 0 or more, at most 2 places.
    #[serde(default, deserialize_with = "nullable")]
    #[schema(value_type = Option<String>, example = "10.00")]
    auto_recharge_threshold: Option<Option<String>>,
    /// How much is asked for: decimal dollars above 0, at most 2 places.
    #[serde(default, deserialize_with = "nullable")]
    #[schema(value_type = Option<String>, example = "50.00")]
    auto_recharge_amount: Option<Option<String>>,
    /// What the payment provider is to charge, such as `pm_…`; its own default for the customer if null.
    #[serde(default, deserialize_with = "nullable")]
    #[schema(value_type = Option<String>)]
    payment_method_id: Option<Option<String>>,
}

/// What a patch makes of an account.
struct Wanted {
    account: Account,
    /// What is to be left of the money paid ahead; `None` leaves it as it is.
    prepaid_balance: Option<Option<Usd>>,
}

/// An amount of at least nothing, in whole multiples of `unit` pico-dollars. What is not one is noted.
fn amount(checks: &mut Checks, field: &str, text: &str, unit: i128, expected: &str) -> Option<Usd> {
    let amount = text.parse::<Usd>().ok().filter(|usd| (0..LIMIT).contains(&usd.pico) && usd.pico % unit == 0);
    checks.require(amount.is_some(), field, expected);
    amount
}

fn wanted(patch: PatchBilling, before: &Standing) -> Result<Wanted, ActionError> {
    let mut checks = Checks::default();
    let cents = "expected dollars such as \"100.00\": 0 or more, below 1000000000000, at most 2 decimal places";
    let exact = "expected dollars such as \"12.50\": 0 or more, below 1000000000000, at most 12 decimal places";
    let old = before.account();
    let mut money = |field: &str, patch: Option<Option<String>>, old: Option<Usd>| match patch {
        Some(text) => text.and_then(|text| amount(&mut checks, field, &text, CENT, cents)),
        None => old,
    };
    let monthly_budget = money("monthly_budget", patch.monthly_budget, old.monthly_budget);
    let threshold = money("auto_recharge_threshold", patch.auto_recharge_threshold, old.auto_recharge_threshold);
    let recharge = money("auto_recharge_amount", patch.auto_recharge_amount, old.auto_recharge_amount);
    let prepaid_balance =
        patch.prepaid_balance.map(|text| text.and_then(|text| amount(&mut checks, "prepaid_balance", &text, 1, exact)));
    if let Some(currency) = &patch.currency {
        checks.one_of("currency", currency, &[CURRENCY]);
    }
    let tax_millipercent = match patch.tax_rate {
        Some(text) => tax_rate(&mut checks, &text),
        None => old.tax_millipercent,
    };
    let account = Account {
        monthly_budget,
        billing_email: patch.billing_email.unwrap_or(old.billing_email),
        discount_permille: patch.discount_permille.unwrap_or(old.discount_permille),
        tax_millipercent,
        tax_id: patch.tax_id.unwrap_or(old.tax_id),
        billing_address: patch.billing_address.unwrap_or(old.billing_address),
        auto_recharge_enabled: patch.auto_recharge_enabled.unwrap_or(old.auto_recharge_enabled),
        auto_recharge_threshold: threshold,
        auto_recharge_amount: recharge,
        payment_method_id: patch.payment_method_id.unwrap_or(old.payment_method_id),
    };
    check(&mut checks, &account);
    checks.finish()?;
    Ok(Wanted { account, prepaid_balance })
}

fn check(checks: &mut Checks, account: &Account) {
    checks.optional_text("billing_email", account.billing_email.as_deref(), 255);
    checks.require(account.discount_permille <= 1000, "discount_permille", "expected 0 to 1000");
    checks.optional_text("tax_id", account.tax_id.as_deref(), 100);
    if let Some(address) = &account.billing_address {
        checks.object("billing_address", address);
    }
    checks.optional_text("payment_method_id", account.payment_method_id.as_deref(), 100);
    let positive = account.auto_recharge_amount.is_none_or(|amount| amount > Usd::ZERO);
    checks.require(positive, "auto_recharge_amount", "expected more than 0");
    let whole = account.auto_recharge_threshold.is_some() && account.auto_recharge_amount.is_some();
    let detail = "needs auto_recharge_threshold and auto_recharge_amount";
    checks.require(!account.auto_recharge_enabled || whole, "auto_recharge_enabled", detail);
}

/// Percent with at most three places, as thousandths of a percent.
fn tax_rate(checks: &mut Checks, text: &str) -> u32 {
    let percent = text.parse::<Usd>().ok().filter(|percent| percent.pico % MILLI == 0);
    let rate = percent.and_then(|percent| u32::try_from(percent.pico / MILLI).ok()).filter(|rate| *rate <= 100_000);
    checks.require(
        rate.is_some(),
        "tax_rate",
        "expected percent such as \"19\" or \"8.875\": 0 to 100, at most 3 places",
    );
    rate.unwrap_or_default()
}

fn view(standing: Standing, month: Month) -> Billing {
    let (spent, allowance, account) = (standing.spent(), standing.allowance(), standing.account());
    Billing {
        organization_id: standing.organization_id,
        monthly_budget: account.monthly_budget,
        discount_permille: account.discount_permille,
        tax_rate: percent_text(account.tax_millipercent),
        tax_id: account.tax_id,
        billing_address: account.billing_address,
        auto_recharge_enabled: account.auto_recharge_enabled,
        auto_recharge_threshold: account.auto_recharge_threshold,
        auto_recharge_amount: account.auto_recharge_amount,
        payment_method_id: account.payment_method_id,
        stripe_customer_id: standing.stripe_customer_id().map(str::to_owned),
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
    // Not before it is known that there is such an organization.
    standing(edit.connection(), id, month).await?;
    billing::lock(edit.connection(), id).await?;
    let before = standing(edit.connection(), id, month).await?;
    let wanted = wanted(patch, &before)?;
    if wanted.account.auto_recharge_enabled && !before.account().auto_recharge_enabled && context.stripe.is_none() {
        let detail = "nobody is there to ask for money: set stripe.secret_key_file and stripe.webhook_secret_file";
        return Err(ActionError::field("auto_recharge_enabled", detail));
    }
    billing::put(edit.connection(), id, &wanted.account).await?;
    if let Some(balance) = wanted.prepaid_balance {
        prepaid::set(edit.connection(), operator, id, balance, now).await?;
    }
    let after = standing(edit.connection(), id, month).await?;
    let amounts = |of: &Standing| {
        let account = of.account();
        json!({
            "monthly_budget": of.monthly_budget(),
            "prepaid_balance": of.prepaid_balance(),
            "discount_permille": account.discount_permille,
            "tax_rate": percent_text(account.tax_millipercent),
            "auto_recharge_enabled": account.auto_recharge_enabled,
        })
    };
    let details = json!({"before": amounts(&before), "after": amounts(&after)});
    audit(&mut edit, operator, "billing.update", ("organization", &id.to_string()), details).await?;
    budgets::tell_if_due(&mut edit, &context.spending.demand, &[id], now).await?;
    edit.commit().await?;
    Ok(view(after, month))
}
