//! The `clickhouse` section.

use crate::ledger::Options;
use http::Uri;
use std::ops::RangeInclusive;
use std::time::Duration;
use turnpike_config::settings::Fields;

const DEFAULT_DATABASE: &str = "turnpike";
/// Days that events are kept unless set otherwise: as long as the request log.
const DEFAULT_KEEP_DAYS: u32 = 400;
/// An invoice's month and the one before it are to be there when it is made; ten years are enough for anyone.
const KEEP_DAYS: RangeInclusive<u32> = 62..=3660;
/// Longest insert unless set otherwise.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);
const TIMEOUT: RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(600);

/// Reads the section; `None` if no URL is set, or it cannot be used and that was noted.
pub(super) fn read(fields: &mut Fields<'_>) -> Option<Options> {
    let url: Option<String> = fields.optional("clickhouse.url");
    let database: String = fields.or("clickhouse.database", DEFAULT_DATABASE.to_owned());
    let cluster: Option<String> = fields.optional("clickhouse.cluster");
    let keep_days = fields.or("clickhouse.keep_days", DEFAULT_KEEP_DAYS);
    let timeout = fields.or("clickhouse.timeout", DEFAULT_TIMEOUT);
    for (path, name) in [("clickhouse.database", Some(&database)), ("clickhouse.cluster", cluster.as_ref())] {
        if name.is_some_and(|name| !is_name(name)) {
            fields.mistake(path, "expected 1 to 63 of a-z, A-Z, 0-9 and _, not starting with a digit");
        }
    }
    if database == "default" {
        fields.mistake("clickhouse.database", "expected a database of Turnpike's own, not `default`");
    }
    if !KEEP_DAYS.contains(&keep_days) {
        fields.mistake("clickhouse.keep_days", "expected 62 to 3660");
    }
    if !TIMEOUT.contains(&timeout) {
        fields.mistake("clickhouse.timeout", "expected 100ms to 600s");
    }
    let Some(address) = address(&url?) else {
        // The value is not repeated: it may hold a password.
        fields.mistake("clickhouse.url", "expected a URL such as http://user:password@host:8123 or https://…:8443");
        return None;
    };
    let Address { url, user, password, target } = address;
    Some(Options { url, user, password, target, database, cluster, keep_days, timeout })
}

fn is_name(text: &str) -> bool {
    let plain = text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    plain && (1..=63).contains(&text.len()) && !text.starts_with(|c: char| c.is_ascii_digit())
}

#[derive(Debug, PartialEq, Eq)]
struct Address {
    url: String,
    user: Option<String>,
    password: Option<String>,
    target: String,
}

/// Takes the login out of a URL.
fn address(text: &str) -> Option<Address> {
    let uri: Uri = text.parse().ok()?;
    let scheme = uri.scheme_str().filter(|scheme| matches!(*scheme, "http" | "https"))?;
    let authority = uri.authority()?.as_str();
    let (login, target) = authority.rsplit_once('@').map_or((None, authority), |(login, host)| (Some(login), host));
    if target.is_empty() || !matches!(uri.path(), "" | "/") || uri.query().is_some() {
        return None;
    }
    let (user, password) = login.map_or((None, None), |login| match login.split_once(':') {
        Some((user, password)) => (Some(user), Some(password)),
        None => (Some(login), None),
    });
    let decode = |part: Option<&str>| part.map(percent_decoded).map_or(Some(None), |decoded| decoded.map(Some));
    let (user, password) = (decode(user)?, decode(password)?);
    Some(Address { url: format!("{scheme}://{target}"), user, password, target: target.to_owned() })
}

/// `a%20b` → `a b`
fn percent_decoded(text: &str) -> Option<String> {
    let mut bytes = text.bytes();
    let mut decoded = Vec::with_capacity(text.len());
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            decoded.push(byte);
            continue;
        }
        let digit = |byte: Option<u8>| char::from(byte?).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
        let (high, low) = (digit(bytes.next())?, digit(bytes.next())?);
        decoded.push(high << 4 | low);
    }
    String::from_utf8(decoded).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_login_is_taken_out_of_the_url() {
        let found = address("https://me:p%40ss%2F:word@ch.internal:8443/").expect("a URL");
        assert_eq!((found.url.as_str(), found.target.as_str()), ("https://ch.internal:8443", "ch.internal:8443"));
        assert_eq!((found.user.as_deref(), found.password.as_deref()), (Some("me"), Some("p@ss/:word")));
        let open = address("http://127.0.0.1:8123").expect("a URL");
        assert_eq!((open.user, open.password), (None, None));
        for wrong in ["tcp://h:9000", "127.0.0.1:8123", "http://h/x", "http://h?database=x", "http://a%zz@h", ""] {
            assert_eq!(address(wrong), None, "{wrong}");
        }
    }
}
