//! The one place where money is rounded.

use std::cmp::Ordering;
use turnpike_config::Usd;

/// Pico-dollars of a cent.
pub(crate) const CENT: i128 = 10_000_000_000;

/// The nearest whole number of cents; a half goes to the even one.
pub(super) fn to_cents(amount: Usd) -> Usd {
    share(amount, 1, 1)
}

/// `parts / whole` of an amount, rounded once, to cents; a half goes to the even one. `whole` is not 0. Saturates where
/// no amount of dollars reaches.
pub(crate) fn share(amount: Usd, parts: u64, whole: u64) -> Usd {
    let scaled = amount.pico.saturating_mul(i128::from(parts));
    let unit = CENT.saturating_mul(i128::from(whole.max(1)));
    Usd { pico: nearest(scaled, unit).saturating_mul(CENT) }
}

/// The greatest whole number of cents that is not more.
pub(crate) const fn floor_cents(amount: Usd) -> Usd {
    Usd { pico: amount.pico.div_euclid(CENT).saturating_mul(CENT) }
}

/// `numerator / unit` to the nearest whole number, half to even.
fn nearest(numerator: i128, unit: i128) -> i128 {
    let (whole, rest) = (numerator.div_euclid(unit), numerator.rem_euclid(unit));
    // Compared with what is missing: twice the rest could overflow.
    let up = match rest.cmp(&(unit - rest)) {
        Ordering::Less => 0,
        Ordering::Equal => whole.rem_euclid(2),
        Ordering::Greater => 1,
    };
    whole.saturating_add(up)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn usd(text: &str) -> Usd {
        text.parse().unwrap_or_default()
    }

    #[test]
    fn a_half_goes_to_the_even_cent() {
        let cases = [
            ("0.005", "0"),
            ("0.015", "0.02"),
            ("0.025", "0.02"),
            ("0.025000000001", "0.03"),
            ("0.024999999999", "0.02"),
            ("-0.005", "0"),
            ("-0.015", "-0.02"),
            ("-0.025000000001", "-0.03"),
            ("7", "7"),
        ];
        for (exact, rounded) in cases {
            assert_eq!(to_cents(usd(exact)).to_string(), rounded, "{exact}");
        }
    }

    #[test]
    fn shares_are_rounded_once() {
        assert_eq!(share(usd("10.00"), 19_000, 100_000).to_string(), "1.9");
        // 12.5 % of 0.20 is 0.025: to the even cent. Rounding the rate or the product first would say otherwise.
        assert_eq!(share(usd("0.20"), 125, 1_000).to_string(), "0.02");
        assert_eq!(share(usd("0.60"), 125, 1_000).to_string(), "0.08");
        assert_eq!(floor_cents(usd("1.019999")).to_string(), "1.01");
        assert_eq!(floor_cents(usd("-0.001")).to_string(), "-0.01");
    }

    proptest! {
        #[test]
        fn rounding_moves_by_half_a_cent_at_most(pico in -10_i128.pow(30)..10_i128.pow(30)) {
            let rounded = to_cents(Usd { pico }).pico;
            prop_assert_eq!(rounded % CENT, 0);
            prop_assert!((rounded - pico).abs() * 2 <= CENT);
            if (rounded - pico).abs() * 2 == CENT {
                prop_assert_eq!((rounded / CENT) % 2, 0);
            }
            prop_assert_eq!(to_cents(Usd { pico: -pico }).pico, -rounded, "the same for credits");
        }

        #[test]
        fn a_share_and_what_is_left_make_the_whole(cents in 0_i128..10_i128.pow(12), parts in 0_u64..=1_000) {
            let whole = Usd { pico: cents * CENT };
            let part = share(whole, parts, 1_000);
            prop_assert!((Usd::ZERO..=whole).contains(&part));
        }
    }
}
