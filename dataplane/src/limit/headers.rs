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

static REQUESTS: Named = Named {
    limit: HeaderName::from_static("x-ratelimit-limit-requests"),
    remaining: HeaderName::from_static("x-ratelimit-remaining-requests"),
    reset: HeaderName::from_static("x-ratelimit-reset-requests"),
    policy: "\"requests\";q=",
    left: "\"requests\";r=",
};
static TOKENS: Named = Named {
    limit: HeaderName::from_static("x-ratelimit-limit-tokens"),
    remaining: HeaderName::from_static("x-ratelimit-remaining-tokens"),
    reset: HeaderName::from_static("x-ratelimit-reset-tokens"),
    policy: "\"tokens\";q=",
    left: "\"tokens\";r=",
};
/// Room for all values of an answer, bytes.
const LONGEST: usize = 256;
static POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
static LEFT: HeaderName = HeaderName::from_static("ratelimit");

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
    let states = [(&REQUESTS, least(|r| &r.requests)), (&TOKENS, least(|r| &r.tokens))];
    let told = || states.iter().filter_map(|(named, state)| Some((named, state.as_ref()?)));
    let mut values = Values::default();
    for (named, state) in told() {
        values.add(&named.limit, |text| write(text, "", state.limit));
        values.add(&named.remaining, |text| write(text, "", state.remaining));
        values.add(&named.reset, |text| reset(text, state.reset_s));
    }
    if told().next().is_some() {
        values.add(&POLICY, |text| {
            for (nth, (named, state)) in told().enumerate() {
                text.push_str(if nth == 0 { "" } else { ", " });
                write(text, named.policy, state.limit);
                text.push_str(";w=60");
            }
        });
        values.add(&LEFT, |text| {
            for (nth, (named, state)) in told().enumerate() {
                text.push_str(if nth == 0 { "" } else { ", " });
                write(text, named.left, state.remaining);
                write(text, ";t=", whole(state.reset_s));
            }
        });
    }
    values.insert_into(headers);
}

/// Headers whose values lie in one piece of memory: every answer has eight of them.
struct Values<'a> {
    text: String,
    /// Where each value ends.
    ends: Vec<(&'a HeaderName, usize)>,
}

impl Default for Values<'_> {
    fn default() -> Self {
        Self { text: String::with_capacity(LONGEST), ends: Vec::with_capacity(8) }
    }
}

impl<'a> Values<'a> {
    fn add(&mut self, name: &'a HeaderName, write: impl FnOnce(&mut String)) {
        write(&mut self.text);
        self.ends.push((name, self.text.len()));
    }

    fn insert_into(self, headers: &mut HeaderMap) {
        let (text, mut start) = (Bytes::from(self.text), 0);
        for (name, end) in self.ends {
            // Text in, and of numbers: a value can be made of it.
            let value = HeaderValue::from_maybe_shared(text.slice(start..end));
            headers.insert(name, value.unwrap_or(HeaderValue::from_static("")));
            start = end;
        }
    }
}

/// A duration as OpenAI writes it: `17ms`, `6.1s`, `1m2s`.
fn reset(text: &mut String, seconds: f64) {
    if seconds < 1.0 {
        write(text, "", whole(seconds * 1_000.0));
        text.push('m');
    } else if seconds < 60.0 {
        let tenths = whole(seconds * 10.0);
        write(text, "", tenths / 10);
        if !tenths.is_multiple_of(10) {
            write(text, ".", tenths % 10);
        }
    } else {
        let seconds = whole(seconds);
        write(text, "", seconds / 60);
        write(text, "m", seconds % 60);
    }
    text.push('s');
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
        let written = [0.0, 0.0171, 6.04, 60.0, 61.2].map(|seconds| {
            let mut text = String::new();
            reset(&mut text, seconds);
            text
        });
        assert_eq!(written, ["0ms", "18ms", "6.1s", "1m0s", "1m2s"]);
    }
}
