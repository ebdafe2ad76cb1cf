//! Limits as answers tell them.

use super::subject::{Limit, Limits, Rates};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};
use std::sync::Arc;

/// How a kind of limit is called.
struct Named {
    limit: HeaderName,
    remaining: HeaderName,
    reset: HeaderName,
    /// What comes before its number in the IETF's two headers.
    policy: &'static str,
    left: &'static str,
}

const REQUESTS: Named = Named {
    limit: HeaderName::from_static("x-ratelimit-limit-requests"),
    remaining: HeaderName::from_static("x-ratelimit-remaining-requests"),
    reset: HeaderName::from_static("x-ratelimit-reset-requests"),
    policy: "\"requests\";q=",
    left: "\"requests\";r=",
};
const TOKENS: Named = Named {
    limit: HeaderName::from_static("x-ratelimit-limit-tokens"),
    remaining: HeaderName::from_static("x-ratelimit-remaining-tokens"),
    reset: HeaderName::from_static("x-ratelimit-reset-tokens"),
    policy: "\"tokens\";q=",
    left: "\"tokens\";r=",
};
/// Both headers of the IETF have room in it.
const LONGEST: usize = 96;
const POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
const LEFT: HeaderName = HeaderName::from_static("ratelimit");

/// The state of a limit, as answers tell it.
struct State {
    limit: u64,
    remaining: u64,
    reset_s: f64,
}

/// Tells limits: OpenAI's `x-ratelimit-*`, and `RateLimit` with `RateLimit-Policy` as the IETF's draft has them. Of
/// several limits of a kind it is the one with the least left that counts. What
/// stands there by these names, a node's own, is not the client's.
pub(crate) fn tell(headers: &mut HeaderMap, model: Option<&str>, key: &Limits, organization: &Limits, now_ns: u64) {
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
    let (mut policies, mut lefts) = (String::with_capacity(LONGEST), String::with_capacity(LONGEST));
    // Text in, and of numbers: a value can be made of it.
    let value =
        |text: String| HeaderValue::from_maybe_shared(Bytes::from(text)).unwrap_or(HeaderValue::from_static(""));
    for (named, state) in [(REQUESTS, least(|r| &r.requests)), (TOKENS, least(|r| &r.tokens))] {
        let Some(State { limit, remaining, reset_s }) = state else { continue };
        headers.insert(named.limit, HeaderValue::from(limit));
        headers.insert(named.remaining, HeaderValue::from(remaining));
        headers.insert(named.reset, value(reset(reset_s)));
        if !policies.is_empty() {
            policies.push_str(", ");
            lefts.push_str(", ");
        }
        write(&mut policies, named.policy, limit);
        policies.push_str(";w=60");
        write(&mut lefts, named.left, remaining);
        write(&mut lefts, ";t=", whole(reset_s));
    }
    if !policies.is_empty() {
        headers.insert(POLICY, value(policies));
        headers.insert(LEFT, value(lefts));
    }
}

/// A duration as OpenAI writes it: `17ms`, `6.1s`, `1m2s`.
fn reset(seconds: f64) -> String {
    let mut text = String::with_capacity(16);
    if seconds < 1.0 {
        write(&mut text, "", whole(seconds * 1_000.0));
        text.push('m');
    } else if seconds < 60.0 {
        let tenths = whole(seconds * 10.0);
        write(&mut text, "", tenths / 10);
        if !tenths.is_multiple_of(10) {
            write(&mut text, ".", tenths % 10);
        }
    } else {
        let seconds = whole(seconds);
        write(&mut text, "", seconds / 60);
        write(&mut text, "m", seconds % 60);
    }
    text.push('s');
    text
}

/// Adds a number and what comes before it. Every answer has several: the formatter would take ten times as long.
fn write(text: &mut String, before: &str, number: u64) {
    text.push_str(before);
    text.push_str(itoa::Buffer::new().format(number));
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
