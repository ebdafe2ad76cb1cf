//! From usage to lines, and from lines to a total.

use super::rounding::{share, to_cents};
use serde::{Deserialize, Serialize};
use turnpike_config::Usd;
use utoipa::ToSchema;

/// Thousandths in a whole.
const PERMILLE: u64 = 1_000;
/// Thousandths of a percent in a whole.
const TAX_WHOLE: u64 = 100_000;

/// What one of each costs, exact decimal dollars.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct UnitPrices {
    /// A prompt token.
    #[schema(value_type = String)]
    pub(crate) input_token: Usd,
    /// A prompt token that the engine had from an earlier prompt; as any other if null.
    #[schema(value_type = Option<String>)]
    pub(crate) cached_input_token: Option<Usd>,
    /// A generated token.
    #[schema(value_type = String)]
    pub(crate) output_token: Usd,
    /// A request; nothing if null.
    #[schema(value_type = Option<String>)]
    pub(crate) request: Option<Usd>,
}

/// Usage to be charged: of one model at one price.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Charge {
    /// What it is.
    pub(crate) kind: LineKind,
    /// The model.
    pub(crate) model_id: String,
    /// The calendar month of the usage (UTC), such as `2026-01`.
    pub(crate) month: String,
    /// Number of the price within its model; `None` where usage was not summed by price.
    pub(crate) price_version: Option<u32>,
    /// That price.
    pub(crate) unit_prices: Option<UnitPrices>,
    /// Requests, whatever their end.
    pub(crate) requests: i64,
    /// Prompt tokens, cached ones included.
    pub(crate) prompt_tokens: i64,
    /// Of the prompt tokens, those that the engine had from an earlier prompt.
    pub(crate) cached_tokens: i64,
    /// Generated tokens.
    pub(crate) completion_tokens: i64,
    /// What the requests were charged, each by itself, summed exactly.
    pub(crate) cost: Usd,
}

/// What a line is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum LineKind {
    /// Usage of the invoiced month.
    Usage,
    /// Usage of an earlier month that became known after its invoice.
    LateUsage,
    /// Usage of the month that another invoice has charged already; negative.
    ChargedBefore,
}

/// A line of an invoice. Amounts are exact decimal dollars.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Line {
    /// What it is for.
    pub(crate) kind: LineKind,
    /// In words.
    pub(crate) description: String,
    /// The model.
    pub(crate) model_id: String,
    /// The calendar month of the usage (UTC).
    #[schema(example = "2026-01")]
    pub(crate) month: String,
    /// Number of the price within its model; null where usage was not summed by price.
    pub(crate) price_version: Option<u32>,
    /// That price.
    pub(crate) unit_prices: Option<UnitPrices>,
    /// Requests, whatever their end.
    pub(crate) requests: i64,
    /// Prompt tokens, cached ones included.
    pub(crate) prompt_tokens: i64,
    /// Of the prompt tokens, those that the engine had from an earlier prompt.
    pub(crate) cached_tokens: i64,
    /// Generated tokens.
    pub(crate) completion_tokens: i64,
    /// What the requests were charged, each by itself, summed exactly: 12 places.
    #[schema(value_type = String, example = "1.004200000001")]
    pub(crate) exact_amount: Usd,
    /// The same, rounded to cents: the line's only rounding, a half goes to the even cent.
    #[schema(value_type = String, example = "1")]
    pub(crate) amount: Usd,
}

impl From<Charge> for Line {
    fn from(charge: Charge) -> Self {
        let (model, month) = (&charge.model_id, &charge.month);
        let what = match charge.kind {
            LineKind::Usage => format!("{model}, {month}"),
            LineKind::LateUsage => format!("{model}, {month}, known after that month's invoice"),
            LineKind::ChargedBefore => format!("{model}, {month}, charged by another invoice already"),
        };
        let price = charge.price_version.map(|version| format!(", price {version}")).unwrap_or_default();
        Self {
            description: format!("{what}{price}"),
            kind: charge.kind,
            month: charge.month,
            price_version: charge.price_version,
            unit_prices: charge.unit_prices,
            requests: charge.requests,
            prompt_tokens: charge.prompt_tokens,
            cached_tokens: charge.cached_tokens,
            completion_tokens: charge.completion_tokens,
            exact_amount: charge.cost,
            amount: to_cents(charge.cost),
            model_id: charge.model_id,
        }
    }
}

/// What an organization has agreed to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Terms {
    /// Taken off the lines' sum, thousandths, at most 1000.
    pub(crate) discount_permille: u32,
    /// Added to what is left, thousandths of a percent, at most 100000.
    pub(crate) tax_millipercent: u32,
}

/// What lines add up to. All but `exact` are whole cents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Totals {
    /// The lines before they were rounded.
    pub(crate) exact: Usd,
    /// The lines.
    pub(crate) lines: Usd,
    /// Taken off.
    pub(crate) discount: Usd,
    /// What is left.
    pub(crate) subtotal: Usd,
    /// Added.
    pub(crate) tax: Usd,
    /// Subtotal and tax.
    pub(crate) total: Usd,
}

impl Totals {
    /// Adds up. The discount is rounded once, from the sum of rounded lines; the tax once, from the subtotal.
    pub(crate) fn of(lines: &[Line], terms: Terms) -> Self {
        let sum = |amount: fn(&Line) -> Usd| Usd {
            pico: lines.iter().fold(0, |sum: i128, line| sum.saturating_add(amount(line).pico)),
        };
        let (exact, rounded) = (sum(|line| line.exact_amount), sum(|line| line.amount));
        let discount = share(rounded, u64::from(terms.discount_permille), PERMILLE);
        let subtotal = Usd { pico: rounded.pico.saturating_sub(discount.pico) };
        let tax = share(subtotal, u64::from(terms.tax_millipercent), TAX_WHOLE);
        let total = Usd { pico: subtotal.pico.saturating_add(tax.pico) };
        Self { exact, lines: rounded, discount, subtotal, tax, total }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use proptest::prelude::*;

    pub(crate) fn charge(model: &str, pico: i128) -> Charge {
        Charge {
            kind: LineKind::Usage,
            model_id: model.to_owned(),
            month: "2026-01".to_owned(),
            price_version: Some(3),
            unit_prices: None,
            requests: 2,
            prompt_tokens: 100,
            cached_tokens: 40,
            completion_tokens: 10,
            cost: Usd { pico },
        }
    }

    #[test]
    fn each_line_is_rounded_once_and_what_is_taken_and_added_once_more() {
        let lines: Vec<Line> = [15_000_000_000, 25_000_000_000, 1].map(|pico| Line::from(charge("m", pico))).into();
        let totals = Totals::of(&lines, Terms { discount_permille: 125, tax_millipercent: 7_250 });
        let shown = [totals.exact, totals.lines, totals.discount, totals.subtotal, totals.tax, totals.total]
            .map(|amount| amount.to_string());
        // 0.015 → 0.02, 0.025 → 0.02; 12.5 % of 0.04 is 0.005 → 0; 7.25 % of 0.04 is 0.0029 → 0.
        assert_eq!(shown, ["0.040000000001", "0.04", "0", "0.04", "0", "0.04"]);
        assert_eq!(lines[0].description, "m, 2026-01, price 3");
    }

    proptest! {
        #[test]
        fn totals_hold_together(
            amounts in proptest::collection::vec(0_i128..10_i128.pow(18), 0..40),
            discount_permille in 0_u32..=1_000,
            tax_millipercent in 0_u32..=100_000,
        ) {
            let lines: Vec<Line> = amounts.iter().map(|pico| Line::from(charge("m", *pico))).collect();
            let totals = Totals::of(&lines, Terms { discount_permille, tax_millipercent });
            prop_assert_eq!(totals.exact.pico, amounts.iter().sum::<i128>(), "no pico-dollar is lost");
            let drift = (totals.lines.pico - totals.exact.pico).unsigned_abs();
            prop_assert!(drift * 2 <= lines.len() as u128 * 10_000_000_000);
            prop_assert_eq!(totals.subtotal.pico, totals.lines.pico - totals.discount.pico);
            prop_assert_eq!(totals.total.pico, totals.subtotal.pico + totals.tax.pico);
            prop_assert!(Usd::ZERO <= totals.subtotal && totals.subtotal <= totals.lines);
            prop_assert!(Usd::ZERO <= totals.tax && totals.tax <= totals.subtotal);
        }
    }
}
