//! A whole invoice, and the form that its checksum is taken of.

use super::lines::{Line, Terms, Totals};
use chrono::NaiveDate;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use std::fmt::Write as _;
use turnpike_config::Usd;
use utoipa::ToSchema;
use uuid::Uuid;

/// Written before the canonical form, so that a later form cannot be mistaken for this one.
const CANON: &str = "turnpike-invoice-1\n";

/// A seller or a buyer, as of the day of the invoice.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Party {
    /// Name.
    pub(crate) name: String,
    /// Postal address, a line each.
    pub(crate) address: Vec<String>,
    /// Tax identity.
    pub(crate) tax_id: Option<String>,
    /// Where mail goes.
    pub(crate) email: Option<String>,
}

/// Everything that an invoice says. Amounts are decimal dollars.
///
/// The order of the fields is part of the canonical form.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, ToSchema)]
pub(crate) struct Document {
    /// `TP-2026-000123`; `draft-…` before it is opened.
    #[schema(example = "TP-2026-000123")]
    pub(crate) invoice_number: String,
    /// Who pays.
    pub(crate) organization_id: Uuid,
    /// From which account.
    pub(crate) billing_account_id: Uuid,
    /// First UTC day.
    pub(crate) period_start: NaiveDate,
    /// Last UTC day.
    pub(crate) period_end: NaiveDate,
    /// When it was opened; null before.
    pub(crate) issued_on: Option<NaiveDate>,
    /// When it is to be paid; null before it is opened.
    pub(crate) due_date: Option<NaiveDate>,
    /// `USD`.
    pub(crate) currency: String,
    /// Who asks for the money.
    pub(crate) seller: Party,
    /// Who is asked.
    pub(crate) buyer: Party,
    /// What for.
    pub(crate) line_items: Vec<Line>,
    /// The lines before they were rounded: 12 places.
    #[schema(value_type = String, example = "99.996200000001")]
    pub(crate) exact_total: Usd,
    /// The lines.
    #[schema(value_type = String, example = "100")]
    pub(crate) lines_total: Usd,
    /// Taken off the lines' sum, thousandths.
    pub(crate) discount_permille: u32,
    /// The same in dollars.
    #[schema(value_type = String, example = "10")]
    pub(crate) discount_amount: Usd,
    /// What is left.
    #[schema(value_type = String, example = "90")]
    pub(crate) subtotal: Usd,
    /// Percent of what is left, 3 places.
    #[schema(value_type = String, example = "19.000")]
    #[serde(serialize_with = "percent")]
    pub(crate) tax_rate: u32,
    /// The same in dollars.
    #[schema(value_type = String, example = "17.1")]
    pub(crate) tax_amount: Usd,
    /// Subtotal and tax.
    #[schema(value_type = String, example = "107.1")]
    pub(crate) total_amount: Usd,
    /// Paid from money that was paid ahead.
    #[schema(value_type = String, example = "0")]
    pub(crate) credit_applied: Usd,
    /// What is left to pay.
    #[schema(value_type = String, example = "107.1")]
    pub(crate) amount_due: Usd,
}

/// Thousandths of a percent as percent with three places.
pub(crate) fn percent_text(thousandths: u32) -> String {
    format!("{}.{:03}", thousandths / 1_000, thousandths % 1_000)
}

fn percent<S: serde::Serializer>(thousandths: &u32, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&percent_text(*thousandths))
}

impl Document {
    /// Sets lines, and what they add up to.
    pub(crate) fn charge(&mut self, lines: Vec<Line>, terms: Terms) {
        let totals = Totals::of(&lines, terms);
        self.line_items = lines;
        self.exact_total = totals.exact;
        self.lines_total = totals.lines;
        self.discount_permille = terms.discount_permille;
        self.discount_amount = totals.discount;
        self.subtotal = totals.subtotal;
        self.tax_rate = terms.tax_millipercent;
        self.tax_amount = totals.tax;
        self.total_amount = totals.total;
        self.credit(Usd::ZERO);
    }

    /// Sets what is paid from money paid ahead.
    pub(crate) fn credit(&mut self, credit: Usd) {
        self.credit_applied = credit;
        self.amount_due = Usd { pico: self.total_amount.pico.saturating_sub(credit.pico) };
    }

    /// SHA-256 over the canonical form, hexadecimal: `turnpike-invoice-1`, a newline, and this document as JSON without
    /// blanks, fields in the order above, amounts in their shortest decimal form.
    pub(crate) fn checksum(&self) -> Result<String, serde_json::Error> {
        let digest = Sha256::new().chain_update(CANON).chain_update(serde_json::to_string(self)?).finalize();
        Ok(digest.iter().fold(String::with_capacity(64), |mut hex, byte| {
            // Writing to a String cannot fail.
            let _ = write!(hex, "{byte:02x}");
            hex
        }))
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::lines::tests::charge;
    use super::*;
    use proptest::prelude::*;

    pub(crate) fn document(amounts: &[i128]) -> Document {
        let day = |d| NaiveDate::from_ymd_opt(2026, 1, d);
        let mut document = Document {
            invoice_number: "TP-2026-000001".to_owned(),
            organization_id: Uuid::nil(),
            billing_account_id: Uuid::nil(),
            period_start: day(1).unwrap_or_default(),
            period_end: day(31).unwrap_or_default(),
            issued_on: day(31),
            due_date: day(31),
            currency: "USD".to_owned(),
            seller: Party { name: "Seller <&\"'>".to_owned(), ..Party::default() },
            buyer: Party::default(),
            line_items: Vec::new(),
            exact_total: Usd::ZERO,
            lines_total: Usd::ZERO,
            discount_permille: 0,
            discount_amount: Usd::ZERO,
            subtotal: Usd::ZERO,
            tax_rate: 0,
            tax_amount: Usd::ZERO,
            total_amount: Usd::ZERO,
            credit_applied: Usd::ZERO,
            amount_due: Usd::ZERO,
        };
        let lines = amounts.iter().map(|pico| charge("m", *pico).into()).collect();
        document.charge(lines, Terms { discount_permille: 100, tax_millipercent: 19_000 });
        document
    }

    #[test]
    fn the_canonical_form_does_not_drift() {
        let checksum = document(&[1_000_000_000_000]).checksum().unwrap_or_default();
        assert_eq!(checksum, "bc81713657de863a968f14226deccc92295bc5249f43a6d70c77e1bec2276c5f");
    }

    proptest! {
        #[test]
        fn every_pico_dollar_is_in_the_checksum(pico in 0_i128..10_i128.pow(15)) {
            let sum = |pico| document(&[pico]).checksum().unwrap_or_default();
            prop_assert_ne!(sum(pico), sum(pico + 1));
            prop_assert_eq!(sum(pico), sum(pico));
        }
    }
}
