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

// On the wire and in journals: big endian two's complement in as few bytes as hold it; small amounts are the many.
impl<C> Encode<C> for Usd {
    fn encode<W: encode::Write>(&self, e: &mut Encoder<W>, _: &mut C) -> Result<(), encode::Error<W::Error>> {
        let bytes = self.pico.to_be_bytes();
        let sign = if self.pico < 0 { 0xff } else { 0 };
        // A byte may go if the next one still shows the sign.
        let spare = bytes.windows(2).take_while(|pair| pair[0] == sign && (pair[0] ^ pair[1]) & 0x80 == 0).count();
        e.bytes(&bytes[spare..])?.ok()
    }
}

impl<'b, C> Decode<'b, C> for Usd {
    fn decode(d: &mut Decoder<'b>, _: &mut C) -> Result<Self, decode::Error> {
        let position = d.position();
        let bytes = d.bytes()?;
        let (Some(first), 1..=16) = (bytes.first(), bytes.len()) else {
            return Err(decode::Error::message("an amount has 1 to 16 bytes").at(position));
        };
        let mut whole = if first & 0x80 == 0 { [0; 16] } else { [0xff; 16] };
        whole[16 - bytes.len()..].copy_from_slice(bytes);
        Ok(Self { pico: i128::from_be_bytes(whole) })
    }
}

/// What one request used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Encode, Decode, Serialize, Deserialize)]
pub struct Tokens {
    /// Of the prompt, those that were cached included.
    #[n(0)]
    pub prompt: u32,
    /// Of the prompt, those that the engine had from an earlier one; at most `prompt`.
    #[n(1)]
    pub cached: u32,
    /// Generated.
    #[n(2)]
    pub completion: u32,
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
    /// Dollars per prompt token that the engine had from an earlier prompt; as any other if `None`.
    #[n(2)]
    #[serde(default)]
    pub cached_input_token: Option<Usd>,
    /// Dollars per request that was answered, in whole or in part.
    #[n(3)]
    #[serde(default)]
    pub request: Option<Usd>,
}

/// A price and the time from which on it is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode, Serialize, Deserialize)]
pub struct PriceVersion {
    /// Number of the price within its model, from 1 on.
    #[n(0)]
    pub version: u32,
    /// Requests that begin at this time (Unix milliseconds) or later are asked it.
    #[n(1)]
    pub from_ms: u64,
    /// The price.
    #[n(2)]
    pub price: Price,
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
    /// A price for one must be a whole number of pico-dollars.
    #[error("pricing.{field}: {amount} for {per} is not a whole number of pico-dollars for one, or is negative")]
    Inexact {
        /// Such as `input_tokens`.
        field: &'static str,
        /// The amount as written.
        amount: String,
        /// The number of tokens or requests that it buys.
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
            cached_input_tokens: Option<serde_json::Value>,
            per_request: Option<serde_json::Value>,
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
        let each = |field, value: &serde_json::Value, per: u64| {
            let amount = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            amount
                .parse::<Usd>()
                .ok()
                .filter(|usd| usd.pico >= 0 && per > 0 && usd.pico % i128::from(per) == 0)
                .map(|usd| Usd { pico: usd.pico / i128::from(per) })
                .ok_or(BadPrice::Inexact { field, amount, per })
        };
        let per = pricing.per_tokens;
        let cached = pricing.cached_input_tokens.as_ref();
        let request = pricing.per_request.as_ref();
        Ok(Self {
            input_token: each("input_tokens", &pricing.input_tokens, per)?,
            output_token: each("output_tokens", &pricing.output_tokens, per)?,
            cached_input_token: cached.map(|amount| each("cached_input_tokens", amount, per)).transpose()?,
            request: request.map(|amount| each("per_request", amount, 1)).transpose()?,
        })
    }

    /// The cost of a request; nothing was answered where no tokens were used. Saturates far beyond any real amount instead
    /// of wrapping.
    pub fn cost(&self, tokens: Tokens) -> Usd {
        if tokens == Tokens::default() {
            return Usd::ZERO;
        }
        let cached = tokens.cached.min(tokens.prompt);
        let times = |amount: Usd, count: u32| amount.pico.saturating_mul(i128::from(count));
        let parts = [
            times(self.input_token, tokens.prompt - cached),
            times(self.cached_input_token.unwrap_or(self.input_token), cached),
            times(self.output_token, tokens.completion),
            self.request.map_or(0, |amount| amount.pico),
        ];
        Usd { pico: parts.into_iter().fold(0, i128::saturating_add) }
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
        assert_eq!(
            price,
            Ok(Price {
                input_token: Usd { pico: 10_000_000 },
                output_token: Usd { pico: 30_000_000 },
                ..Price::default()
            })
        );
        let tokens = Tokens { prompt: 100, cached: 0, completion: 10 };
        assert_eq!(price.map(|p| p.cost(tokens).to_string()), Ok("0.0013".to_owned()));
    }

    #[test]
    fn cached_tokens_and_requests_have_prices_of_their_own() {
        let document =
            json!({"input_tokens": 1, "output_tokens": 3, "cached_input_tokens": "0.25", "per_request": 0.5});
        let price = Price::from_pricing(&document).unwrap();
        let cost = |prompt, cached, completion| price.cost(Tokens { prompt, cached, completion }).to_string();
        assert_eq!(cost(1_000, 0, 0), "1.5");
        assert_eq!(cost(1_000, 400, 1_000), "4.2");
        assert_eq!(cost(1_000, 4_000, 0), "0.75", "no more can be cached than there are");
        assert_eq!(cost(0, 0, 0), "0", "what was not answered costs nothing");
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

        #[test]
        fn an_amount_survives_the_wire_in_few_bytes(pico: i128, shift in 0..128_u32) {
            let usd = Usd { pico: pico >> shift };
            let mut bytes = Vec::new();
            prop_assert!(minicbor::encode(usd, &mut bytes).is_ok());
            prop_assert_eq!(minicbor::decode::<Usd>(&bytes).ok(), Some(usd));
            let bits = 129 - usd.pico.unsigned_abs().leading_zeros();
            prop_assert!(bytes.len() <= 1 + bits.div_ceil(8) as usize, "{} bytes for {} bits", bytes.len(), bits);
        }
    }
}
