//! Limits as answers tell them.

use super::subject::{Limit, Limits, Rates};
use bytes::Bytes;
use http::{HeaderName, HeaderValue};
use std::fmt::Write as _;
use std::sync::Arc;

const OF_REQUESTS: [HeaderName; 3] = [
    HeaderName::from_static("x-ratelimit-limit-requests"),
    HeaderName::from_static("x-ratelimit-remaining-requests"),
    HeaderName::from_static("x-ratelimit-reset-requests"),
];
const OF_TOKENS: [HeaderName; 3] = [
    HeaderName::from_static("x-ratelimit-limit-tokens"),
    HeaderName::from_static("x-ratelimit-remaining-tokens"),
    HeaderName::from_static("x-ratelimit-reset-tokens"),
];
const POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
const LEFT: HeaderName = HeaderName::from_static("ratelimit");

/// The state of a limit, as answers tell it.
struct State {
    limit: u64,
    remaining: u64,
    reset_s: f64,
}

/// Limits as headers: OpenAI's `x-ratelimit-*`, and `RateLimit` with `RateLimit-Policy` as the IETF's draft has them. Of
/// several limits of a kind it is the one with the least left that counts.
pub(crate) fn headers(
    model: Option<&str>,
    key: &Limits,
    organization: &Limits,
    now_ns: u64,
) -> Vec<(HeaderName, HeaderValue)> {
    let within = |limits| model.and_then(|model| Limits::within(limits, model));
    let rates: [Option<&Rates>; 4] = [Some(&key.own), Some(&organization.own), within(key), within(organization)];
    let least = |of: fn(&Rates) -> &Option<Arc<Limit>>| {
        let limits = rates.iter().flatten().filter_map(|rates| of(rates).as_ref());
        let states = limits.map(|limit| State {
            limit: limit.share.limit(),
            remaining: limit.share.remaining(now_ns),
            reset_s: limit.share.full_in_s(now_ns),
        });
        states.min_by_key(|state| state.remaining)
    };
    let mut headers = Vec::with_capacity(8);
    let (mut policies, mut lefts) = (String::new(), String::new());
    // Text in, and of numbers: a value can be made of it.
    let value =
        |text: String| HeaderValue::from_maybe_shared(Bytes::from(text)).unwrap_or(HeaderValue::from_static(""));
    for (name, named, state) in
        [("requests", OF_REQUESTS, least(|r| &r.requests)), ("tokens", OF_TOKENS, least(|r| &r.tokens))]
    {
        let Some(State { limit, remaining, reset_s }) = state else { continue };
        let [its_limit, its_rest, its_reset] = named;
        headers.push((its_limit, HeaderValue::from(limit)));
        headers.push((its_rest, HeaderValue::from(remaining)));
        headers.push((its_reset, value(reset(reset_s))));
        let comma = if policies.is_empty() { "" } else { ", " };
        // Writing into a String cannot fail.
        let _ = write!(policies, "{comma}\"{name}\";q={limit};w=60");
        let _ = write!(lefts, "{comma}\"{name}\";r={remaining};t={}", whole(reset_s));
    }
    if !policies.is_empty() {
        headers.push((POLICY, value(policies)));
        headers.push((LEFT, value(lefts)));
    }
    headers
}

/// A duration as OpenAI writes it: `17ms`, `6.1s`, `1m2s`.
fn reset(seconds: f64) -> String {
    if seconds < 1.0 {
        return format!("{}ms", whole(seconds * 1_000.0));
    }
    if seconds < 60.0 {
        let tenths = whole(seconds * 10.0);
        return match tenths % 10 {
            0 => format!("{}s", tenths / 10),
            rest => format!("{}.{rest}s", tenths / 10),
        };
    }
    let seconds = whole(seconds);
    format!("{}m{}s", seconds / 60, seconds % 60)
}

/// The next whole number, which is written in a fifth of the time.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "saturates, and times are not negative")]
const fn whole(number: f64) -> u64 {
    number.ceil() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_written_as_openai_does() {
        assert_eq!([0.0, 0.0171, 6.04, 60.0, 61.2].map(reset), ["0ms", "18ms", "6.1s", "1m0s", "1m2s"]);
    }
}
