//! Whether a request takes part in the cache: its model's policy, its own wishes, and whether its answer is the same
//! every time.

use http::HeaderMap;
use http::header::CACHE_CONTROL;
use turnpike_config::{CachePolicy, Endpoint, headers};

/// What the body says that matters here.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Facts {
    /// `temperature`; `None` if absent or null. Anything but a number has no plan: the node refuses it.
    pub(crate) temperature: Option<f64>,
}

/// What to do with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Plan {
    /// Answer from the cache, or from the answer that an equal request is getting now.
    pub(crate) lookup: bool,
    /// Keep the answer, and let equal requests share it.
    pub(crate) store: bool,
    /// Oldest answer that will do, seconds, at least 1; `None`: any that is still kept.
    pub(crate) max_age_s: Option<u32>,
    /// Send a cached stream at the speed of a model, not at once. Only with `lookup`.
    pub(crate) paced: bool,
}

impl Plan {
    /// The cache takes no part.
    pub(crate) const BYPASS: Self = Self { lookup: false, store: false, max_age_s: None, paced: false };
}

/// Decides about a request.
///
/// `x-turnpike-cache` holds `on`, `off` and `paced`, with commas between; of `Cache-Control`, `no-store`, `no-cache` and
/// `max-age` are heeded. What contradicts itself or cannot be understood is taken as the wish for a fresher answer.
pub(crate) fn plan(policy: &CachePolicy, headers: &HeaderMap, endpoint: Endpoint, facts: Facts) -> Plan {
    let (Some(wish), Some(control)) = (Wish::read(headers), Control::read(headers)) else { return Plan::BYPASS };
    let wanted = wish.on || (policy.enabled && repeats(endpoint, facts));
    if wish.off || control.no_store || !wanted || policy.ttl_s == 0 {
        return Plan::BYPASS;
    }
    let lookup = !control.no_cache && control.max_age_s != Some(0);
    let max_age_s = control.max_age_s.filter(|_| lookup);
    Plan { lookup, store: true, max_age_s, paced: wish.paced && lookup }
}

/// Whether the same request has the same answer every time, as far as an engine can promise that. A temperature left out
/// is 1. A seed does not matter: who samples wants the sample, not an old one.
fn repeats(endpoint: Endpoint, facts: Facts) -> bool {
    match endpoint {
        Endpoint::Chat | Endpoint::Completion => facts.temperature == Some(0.0),
        Endpoint::Embedding | Endpoint::Moderation => true,
    }
}

/// The words of `x-turnpike-cache`.
#[derive(Clone, Copy, Debug, Default)]
struct Wish {
    on: bool,
    off: bool,
    paced: bool,
}

impl Wish {
    /// `None` if a value is no text.
    fn read(headers: &HeaderMap) -> Option<Self> {
        let mut wish = Self::default();
        for value in headers.get_all(headers::CACHE) {
            directives(value.to_str().ok()?).for_each(|word| wish.add(word));
        }
        Some(wish)
    }

    fn add(&mut self, word: &str) {
        match word {
            _ if word.eq_ignore_ascii_case("on") => self.on = true,
            _ if word.eq_ignore_ascii_case("paced") => self.paced = true,
            // Also any word that is not known: nobody is surprised by a fresh answer.
            _ => self.off = true,
        }
    }
}

/// The directives of `Cache-Control` that a request can bind us with.
#[derive(Clone, Copy, Debug, Default)]
struct Control {
    no_store: bool,
    no_cache: bool,
    max_age_s: Option<u32>,
}

impl Control {
    /// `None` if a value is no text.
    fn read(headers: &HeaderMap) -> Option<Self> {
        let mut control = Self::default();
        for value in headers.get_all(CACHE_CONTROL) {
            directives(value.to_str().ok()?).for_each(|directive| control.add(directive));
        }
        Some(control)
    }

    /// Directives that are not known are passed over, as RFC 9111 demands.
    fn add(&mut self, directive: &str) {
        let (name, argument) = directive.split_once('=').unwrap_or((directive, ""));
        match name.trim() {
            name if name.eq_ignore_ascii_case("no-store") => self.no_store = true,
            name if name.eq_ignore_ascii_case("no-cache") => self.no_cache = true,
            name if name.eq_ignore_ascii_case("max-age") => {
                let age = seconds(argument);
                self.max_age_s = Some(self.max_age_s.map_or(age, |other| other.min(age)));
            }
            _ => {}
        }
    }
}

/// Seconds of a directive; 0 if it is no number, the largest number if it is larger.
fn seconds(argument: &str) -> u32 {
    let digits = argument.trim().trim_matches('"');
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return 0;
    }
    digits.parse().unwrap_or(u32::MAX)
}

fn directives(value: &str) -> impl Iterator<Item = &str> {
    value.split(',').map(str::trim).filter(|directive| !directive.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::{HeaderName, HeaderValue};

    const ON: CachePolicy = CachePolicy { enabled: true, ttl_s: 60, public: false, price_permille: 0, generation: 0 };
    const OFF: CachePolicy = CachePolicy { enabled: false, ..ON };
    const FULL: Plan = Plan { lookup: true, store: true, max_age_s: None, paced: false };
    const STORE: Plan = Plan { lookup: false, ..FULL };
    const PACED: Plan = Plan { paced: true, ..FULL };
    const COLD: Option<f64> = Some(0.0);

    const fn aged(seconds: u32) -> Plan {
        Plan { max_age_s: Some(seconds), ..FULL }
    }

    fn with(
        policy: &CachePolicy,
        lines: &[(&'static str, &str)],
        endpoint: Endpoint,
        temperature: Option<f64>,
    ) -> Plan {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(HeaderName::from_static(name), HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        plan(policy, &headers, endpoint, Facts { temperature })
    }

    #[test]
    fn policy_temperature_and_the_request_decide() {
        use Endpoint::{Chat, Completion, Embedding, Moderation};
        for (policy, header, endpoint, temperature, expected) in [
            (&ON, "", Chat, COLD, FULL),
            (&ON, "", Chat, Some(-0.0), FULL),
            (&ON, "", Completion, COLD, FULL),
            (&ON, "", Chat, None, Plan::BYPASS),
            (&ON, "", Chat, Some(0.1), Plan::BYPASS),
            (&ON, "", Chat, Some(-1.0), Plan::BYPASS),
            (&ON, "", Chat, Some(f64::NAN), Plan::BYPASS),
            (&ON, "", Completion, None, Plan::BYPASS),
            (&ON, "", Embedding, None, FULL),
            (&ON, "", Moderation, None, FULL),
            (&ON, "on", Chat, None, FULL),
            (&ON, "on", Chat, Some(1.5), FULL),
            (&ON, "off", Chat, COLD, Plan::BYPASS),
            (&ON, "on,off", Chat, COLD, Plan::BYPASS),
            (&ON, "off, on", Embedding, None, Plan::BYPASS),
            (&ON, "paced", Chat, COLD, PACED),
            (&ON, "paced", Chat, None, Plan::BYPASS),
            (&ON, "on, paced", Chat, None, PACED),
            (&ON, " ON ,, Paced ", Chat, None, PACED),
            (&ON, "no", Chat, COLD, Plan::BYPASS),
            (&ON, "on; paced", Chat, COLD, Plan::BYPASS),
            (&ON, "\u{e9}", Chat, COLD, Plan::BYPASS),
            (&OFF, "", Chat, COLD, Plan::BYPASS),
            (&OFF, "", Embedding, None, Plan::BYPASS),
            (&OFF, "paced", Chat, COLD, Plan::BYPASS),
            (&OFF, "on", Chat, COLD, FULL),
            (&OFF, "on", Chat, Some(1.0), FULL),
            (&OFF, "on", Embedding, None, FULL),
            (&CachePolicy { ttl_s: 0, ..ON }, "on", Chat, COLD, Plan::BYPASS),
        ] {
            let got = with(policy, &[(headers::CACHE, header)], endpoint, temperature);
            assert_eq!(got, expected, "{policy:?} {header} {endpoint:?} {temperature:?}");
        }
    }

    #[test]
    fn cache_control_binds() {
        for (control, expected) in [
            ("", FULL),
            ("no-store", Plan::BYPASS),
            ("No-Store, max-age=5", Plan::BYPASS),
            ("no-cache", STORE),
            ("NO-CACHE", STORE),
            ("no-cache=\"x\"", STORE),
            ("max-age=0", STORE),
            ("max-age = 7", aged(7)),
            ("MAX-AGE=\"7\"", aged(7)),
            ("max-age=9, max-age=7", aged(7)),
            ("max-age=7, no-cache", STORE),
            ("max-age=99999999999", aged(u32::MAX)),
            ("max-age=-1", STORE),
            ("max-age=+1", STORE),
            ("max-age=soon", STORE),
            ("max-age", STORE),
            ("max-age=", STORE),
            ("max-age=1.5", STORE),
            ("only-if-cached, max-stale, no-transform", FULL),
            ("\u{e9}", Plan::BYPASS),
        ] {
            let got = with(&ON, &[("cache-control", control)], Endpoint::Chat, COLD);
            assert_eq!(got, expected, "{control}");
        }
    }

    #[test]
    fn headers_given_twice_add_up() {
        let twice = [("x-turnpike-cache", "on"), ("x-turnpike-cache", "paced"), ("cache-control", "max-age=3")];
        assert_eq!(with(&OFF, &twice, Endpoint::Chat, None), Plan { max_age_s: Some(3), ..PACED });
        let off = [("x-turnpike-cache", "on"), ("x-turnpike-cache", "off")];
        assert_eq!(with(&ON, &off, Endpoint::Chat, COLD), Plan::BYPASS);
        let fresh = [("x-turnpike-cache", "on, paced"), ("cache-control", "no-cache")];
        assert_eq!(with(&ON, &fresh, Endpoint::Chat, None), STORE);
        let none = [("cache-control", "max-age=3"), ("cache-control", "no-store")];
        assert_eq!(with(&ON, &none, Endpoint::Chat, COLD), Plan::BYPASS);
    }
}
