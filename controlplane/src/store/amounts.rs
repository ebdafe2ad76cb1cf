//! Money between the tables' `numeric` and [`Usd`].

use super::StoreError;
use rust_decimal::Decimal;
use turnpike_config::Usd;

/// Decimal places of amounts in the tables, as of [`Usd`].
const PLACES: u32 = 12;

/// Decimal places of a tax rate in percent.
pub(super) const TAX_PLACES: u32 = 3;

/// A tax rate in percent, as thousandths of a percent.
pub(super) fn millipercent(percent: Decimal) -> u32 {
    (percent * Decimal::ONE_THOUSAND).try_into().unwrap_or_default()
}

/// The columns have at most twelve places, so that this is exact; what no amount of dollars reaches saturates.
pub(super) fn usd(amount: Decimal) -> Usd {
    let up = 10_i128.pow(PLACES.saturating_sub(amount.scale()));
    Usd { pico: amount.mantissa().saturating_mul(up) }
}

/// The opposite of [`usd`].
///
/// # Errors
/// Beyond 7.9 × 10¹⁶ dollars.
pub(super) fn decimal(amount: Usd) -> Result<Decimal, StoreError> {
    Decimal::try_from_i128_with_scale(amount.pico, PLACES)
        .map_err(|_| StoreError::BadValue(format!("{amount} dollars are more than the books can hold")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_survive_the_columns_and_saturate_beyond() {
        for text in ["0", "0.000000000001", "-12.5", "999999999999.99"] {
            let amount: Usd = text.parse().unwrap_or_default();
            assert_eq!(decimal(amount).map(usd).ok(), Some(amount), "{text}");
        }
        assert!(usd(Decimal::MAX).pico > 10_i128.pow(38));
        assert!(decimal(Usd { pico: i128::MAX }).is_err());
    }
}
