//! Money, exactly: whole pico-dollars, never a float on the way to an invoice.

use minicbor::{Decode, Decoder, Encode, Encoder, decode, encode};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::str::FromStr;

/// Decimal places of a dollar that [`Usd`] resolves. A token at $0.02 per million costs 20,000 pico-dollars.
const PLACES: usize = 12;
const PICO_PER_DOLLAR: i128 = 1_000_000_000_000;

/// An amount of US dollars in pico-dollars (10⁻¹² $). Negative amounts are credits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Usd {
    /// Whole pico-dollars.
    pub pico: i128,
}

impl Usd {
    /// No money.
    pub const ZERO: Self = Self { pico: 0 };

    /// The sum, or `None` beyond ±1.7 × 10²⁶ dollars.
    pub fn checked_add(self, other: Self) -> Option<Self> {
        self.pico.checked_add(other.pico).map(|pico| Self { pico })
    }

    /// So many thousandths of it, rounded towards zero.
    #[must_use]
    pub fn permille(self, thousandths: u32) -> Self {
        Self { pico: self.pico.saturating_mul(i128::from(thousandths)) / 1_000 }
    }
}

/// Why a text is no amount of money.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("«{0}» is not an amount: expected a decimal number with at most 12 places, such as 0.000002")]
pub struct BadAmount(String);

impl FromStr for Usd {
    type Err = BadAmount;

    fn from_str(text: &str) -> Result<Self, BadAmount> {
        parse_scaled(text).map(|pico| Self { pico }).ok_or_else(|| BadAmount(text.to_owned()))
    }
}

/// Decimal text (`-12.5`, `2e-6`) to 10⁻¹² units; `None` if it is malformed, too precise or too large.
fn parse_scaled(text: &str) -> Option<i128> {
    let (mantissa, exponent) = match text.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, exponent.parse::<i32>().ok()?),
        None => (text, 0),
    };
    let (negative, digits) = match mantissa.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, mantissa),
    };
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    if whole.is_empty() && fraction.is_empty() || !whole.bytes().chain(fraction.bytes()).all(|c| c.is_ascii_digit()) {
        return None;
    }
    let significant: i128 = [whole, fraction].concat().parse().ok()?;
    // value = significant × 10^(exponent − |fraction|), wanted in units of 10^−12
    let shift = exponent.checked_sub(i32::try_from(fraction.len()).ok()?)?.checked_add(i32::try_from(PLACES).ok()?)?;
    let power = 10_i128.checked_pow(shift.unsigned_abs())?;
    let scaled = if shift >= 0 {
        significant.checked_mul(power)?
    } else if significant % power == 0 {
        significant / power
    } else {
        return None;
    };
    Some(if negative { -scaled } else { scaled })
}

impl std::fmt::Display for Usd {
    /// Shortest exact decimal: `0.000002`, `12.5`, `-3`.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let sign = if self.pico < 0 { "-" } else { "" };
        let magnitude = self.pico.unsigned_abs();
        let (whole, fraction) =
            (magnitude / PICO_PER_DOLLAR.unsigned_abs(), magnitude % PICO_PER_DOLLAR.unsigned_abs());
        if fraction == 0 {
            return write!(f, "{sign}{whole}");
        }
        let places = format!("{fraction:0PLACES$}");
        write!(f, "{sign}{whole}.{}", places.trim_end_matches('0'))
    }
}

impl Serialize for Usd {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Usd {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
    }
}

// On the wire: 16 bytes, big endian two's complement.
impl<C> Encode<C> for Usd {
    fn encode<W: encode::Write>(&self, e: &mut Encoder<W>, _: &mut C) -> Result<(), encode::Error<W::Error>> {
        e.bytes(&self.pico.to_be_bytes())?.ok()
    }
}

impl<'b, C> Decode<'b, C> for Usd {
    fn decode(d: &mut Decoder<'b>, _: &mut C) -> Result<Self, decode::Error> {
        let position = d.position();
        let bytes: [u8; 16] =
            d.bytes()?.try_into().map_err(|_| decode::Error::message("an amount has 16 bytes").at(position))?;
        Ok(Self { pico: i128::from_be_bytes(bytes) })
    }
}

/// What a model's tokens cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Encode, Decode, Serialize, Deserialize)]
pub struct Price {
    /// Dollars per prompt token.
    #[n(0)]
    pub input_token: Usd,
    /// Dollars per generated token.
    #[n(1)]
    pub output_token: Usd,
}

/// What is wrong with a `models.pricing` document.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum BadPrice {
    /// The document is not of the documented shape.
    #[error(
        "pricing must be an object such as {{\"input_tokens\": 0.01, \"output_tokens\": 0.03, \"currency\": \"USD\", \"per_tokens\": 1000}}: {0}"
    )]
    Shape(String),
    /// Only dollars are metered.
    #[error("pricing.currency «{0}» is not supported: use USD")]
    Currency(String),
    /// A price per token must be a whole number of pico-dollars.
    #[error(
        "pricing.{field}: {amount} per {per} tokens is not a whole number of pico-dollars per token, or is negative"
    )]
    Inexact {
        /// `input_tokens` or `output_tokens`.
        field: &'static str,
        /// The amount as written.
        amount: String,
        /// The number of tokens that it buys.
        per: u64,
    },
}

impl Price {
    /// Reads `models.pricing` as SCHEMA documents it: amounts are dollars per `per_tokens` tokens (default 1000).
    /// Numbers are taken from their decimal text, so that 0.01 means 0.01.
    pub fn from_pricing(document: &serde_json::Value) -> Result<Self, BadPrice> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Pricing {
            input_tokens: serde_json::Value,
            output_tokens: serde_json::Value,
            #[serde(default = "usd")]
            currency: String,
            #[serde(default = "thousand")]
            per_tokens: u64,
        }
        fn usd() -> String {
            "USD".to_owned()
        }
        const fn thousand() -> u64 {
            1000
        }

        let pricing = Pricing::deserialize(document).map_err(|e| BadPrice::Shape(e.to_string()))?;
        if pricing.currency != "USD" {
            return Err(BadPrice::Currency(pricing.currency));
        }
        let per_token = |field, value: &serde_json::Value| {
            let amount = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            let per = pricing.per_tokens;
            amount
                .parse::<Usd>()
                .ok()
                .filter(|usd| usd.pico >= 0 && per > 0 && usd.pico % i128::from(per) == 0)
                .map(|usd| Usd { pico: usd.pico / i128::from(per) })
                .ok_or(BadPrice::Inexact { field, amount, per })
        };
        Ok(Self {
            input_token: per_token("input_tokens", &pricing.input_tokens)?,
            output_token: per_token("output_tokens", &pricing.output_tokens)?,
        })
    }

    /// The cost of a request. Saturates far beyond any real amount instead of wrapping.
    pub fn cost(&self, prompt_tokens: u32, completion_tokens: u32) -> Usd {
        let input = self.input_token.pico.saturating_mul(i128::from(prompt_tokens));
        let output = self.output_token.pico.saturating_mul(i128::from(completion_tokens));
        Usd { pico: input.saturating_add(output) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn amounts_are_read_exactly_or_refused() {
        let pico = |text: &str| text.parse::<Usd>().map(|usd| usd.pico);
        assert_eq!(pico("0.01"), Ok(10_000_000_000));
        assert_eq!(pico("2e-6"), Ok(2_000_000));
        assert_eq!(pico("1.50e1"), Ok(15_000_000_000_000));
        assert_eq!(pico("-.5"), Ok(-500_000_000_000));
        assert_eq!(pico("0.0000000000010"), Ok(1));
        for bad in ["", ".", "1e-13", "1.2.3", "0x1", "--1", "1e999", "١"] {
            assert!(pico(bad).is_err(), "{bad:?} was accepted");
        }
    }

    #[test]
    fn a_part_of_an_amount_is_never_more_than_its_share() {
        let usd = |pico| Usd { pico };
        assert_eq!([0, 1, 500, 1_000].map(|n| usd(1_999).permille(n)), [usd(0), usd(1), usd(999), usd(1_999)]);
    }

    #[test]
    fn pricing_as_the_schema_writes_it() {
        let price = Price::from_pricing(
            &json!({"input_tokens": 0.01, "output_tokens": 0.03, "currency": "USD", "per_tokens": 1000}),
        );
        assert_eq!(price, Ok(Price { input_token: Usd { pico: 10_000_000 }, output_token: Usd { pico: 30_000_000 } }));
        assert_eq!(price.map(|p| p.cost(100, 10).to_string()), Ok("0.0013".to_owned()));
    }

    #[test]
    fn pricing_mistakes_are_named() {
        let message = |document| Price::from_pricing(&document).map_err(|e| e.to_string());
        assert!(message(json!({"input_tokens": 1})).is_err_and(|e| e.contains("output_tokens")));
        assert!(
            message(json!({"input_tokens": 1, "output_tokens": 1, "currency": "EUR"}))
                .is_err_and(|e| e.contains("EUR"))
        );
        assert!(message(json!({"input_tokens": 1, "output_tokens": 1, "per_tokens": 0})).is_err());
        assert!(message(json!({"input_tokens": -1, "output_tokens": 1})).is_err());
        assert!(message(json!({"input_tokens": 1, "output_tokens": 1, "per_tokens": 7})).is_err());
    }

    proptest! {
        #[test]
        fn display_and_parse_are_inverse(pico in -10_i128.pow(30)..10_i128.pow(30)) {
            let usd = Usd { pico };
            prop_assert_eq!(usd.to_string().parse::<Usd>(), Ok(usd));
        }
    }
}
