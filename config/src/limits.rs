//! How much a key or an organization may use: rates, requests at once, money.

use crate::Usd;
use minicbor::{Decode, Encode};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Limits of one subject; `None` is unlimited. The JSON form is part of `api_keys.rate_limits` and of
/// `organizations.settings.rate_limits`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Encode, Decode, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RateLimits {
    /// Requests per minute, at least 1.
    #[n(0)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requests_per_minute: Option<u32>,
    /// Prompt and completion tokens per minute, at least 1.
    #[n(1)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens_per_minute: Option<u32>,
    /// Requests that run at the same time, at least 1.
    #[n(2)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub concurrent_requests: Option<u32>,
}

impl RateLimits {
    /// Whether one of the limits is 0, which admits nothing.
    pub fn has_zero(&self) -> bool {
        [self.requests_per_minute, self.tokens_per_minute, self.concurrent_requests].contains(&Some(0))
    }

    /// Whether there is no limit at all.
    pub fn is_unlimited(&self) -> bool {
        *self == Self::default()
    }
}

/// Limits within models, by model id. They hold beside the subject's own.
pub type ModelLimits = BTreeMap<String, RateLimits>;

/// `api_keys.rate_limits` and `organizations.settings.rate_limits` as a whole.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LimitSettings {
    /// See [`RateLimits::requests_per_minute`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requests_per_minute: Option<u32>,
    /// See [`RateLimits::tokens_per_minute`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens_per_minute: Option<u32>,
    /// See [`RateLimits::concurrent_requests`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub concurrent_requests: Option<u32>,
    /// Limits within models.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub models: ModelLimits,
}

impl LimitSettings {
    /// The opposite of [`LimitSettings::own`] and `models`.
    pub const fn new(own: RateLimits, models: ModelLimits) -> Self {
        let RateLimits { requests_per_minute, tokens_per_minute, concurrent_requests } = own;
        Self { requests_per_minute, tokens_per_minute, concurrent_requests, models }
    }

    /// The subject's own limits.
    pub const fn own(&self) -> RateLimits {
        RateLimits {
            requests_per_minute: self.requests_per_minute,
            tokens_per_minute: self.tokens_per_minute,
            concurrent_requests: self.concurrent_requests,
        }
    }
}

/// What an organization may spend in a calendar month (UTC), and what it is known to have spent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode, Serialize, Deserialize)]
pub struct Budget {
    /// `billing_accounts.monthly_budget`.
    #[n(0)]
    pub monthly: Usd,
    /// The month that `spent` is about, as `year × 100 + month`: 202601.
    #[n(1)]
    pub month: u32,
    /// What the usage recorded so far adds up to, in that month.
    #[n(2)]
    pub spent: Usd,
    /// Unix milliseconds up to which `spent` is known to be complete.
    #[n(3)]
    pub as_of_ms: u64,
}

/// Money paid ahead, as it is given out to regions. None of them knows what the others lend, so each has a bound of its
/// own, and all bounds together are no more than there is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode, Serialize, Deserialize)]
pub struct Prepaid {
    /// By region. One that is not here may spend nothing.
    #[n(0)]
    pub regions: BTreeMap<String, RegionShare>,
    /// What is left of it everywhere, as far as the books know; not negative.
    #[n(1)]
    pub left: Usd,
}

/// What a region may spend of the money paid ahead. Both sums go from the first day on that the account paid ahead, and
/// never begin anew: no turn of a month gives out twice what is lent already.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Encode, Decode, Serialize, Deserialize)]
pub struct RegionShare {
    /// What it may have spent in all.
    #[n(0)]
    pub cap: Usd,
    /// What it has spent, as far as the books know.
    #[n(1)]
    pub spent: Usd,
    /// Unix milliseconds up to which `spent` is known to be complete.
    #[n(2)]
    pub as_of_ms: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_read_as_the_schema_writes_them() {
        let text = r#"{"requests_per_minute": 1000, "models": {"m": {"tokens_per_minute": 5}}}"#;
        let settings: LimitSettings = serde_json::from_str(text).unwrap_or_default();
        assert_eq!(settings.own(), RateLimits { requests_per_minute: Some(1000), ..RateLimits::default() });
        assert_eq!(settings.models.get("m").and_then(|limits| limits.tokens_per_minute), Some(5));
        assert!(serde_json::from_str::<LimitSettings>(r#"{"requests_per_second": 1}"#).is_err());
    }
}
