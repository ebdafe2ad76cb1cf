//! Who is asking: a bearer key, and whether it may.

use crate::live::Key;
use crate::reject::Reject;
use http::HeaderMap;
use http::header::AUTHORIZATION;
use turnpike_config::{KeyDigest, Permissions};

/// Longest key worth hashing, bytes. Ours have 49.
const MAX_KEY: usize = 256;

/// The digest of the key that was sent.
pub(crate) fn presented(headers: &HeaderMap) -> Result<KeyDigest, Reject> {
    bearer(headers).map(KeyDigest::of)
}

/// Refuses a key that nobody knows.
pub(crate) fn unknown(headers: &HeaderMap) -> Reject {
    match bearer(headers) {
        Ok(key) => Reject::UnknownKey { shown: redact(key) },
        Err(reject) => reject,
    }
}

/// Checks that a known key is alive.
pub(crate) fn accept(key: &Key, now_unix_ms: u64) -> Result<(), Reject> {
    if !key.record.active {
        return Err(Reject::KeyDisabled);
    }
    if key.record.expires_at_ms.is_some_and(|expiry| expiry <= now_unix_ms) {
        return Err(Reject::KeyExpired);
    }
    Ok(())
}

/// Checks that a live key may do what is asked.
pub(crate) fn authorize(key: &Key, needed: Permissions) -> Result<(), Reject> {
    if key.record.permissions.allows(needed) {
        return Ok(());
    }
    Err(Reject::MissingPermission { permission: needed.name() })
}

fn bearer(headers: &HeaderMap) -> Result<&str, Reject> {
    let value = headers.get(AUTHORIZATION).ok_or(Reject::MissingKey)?;
    let text = value.to_str().map_err(|_| Reject::UnknownKey { shown: redact("") })?;
    let (scheme, key) = text.split_once(' ').ok_or(Reject::MissingKey)?;
    let key = key.trim();
    if !scheme.eq_ignore_ascii_case("bearer") || key.is_empty() {
        return Err(Reject::MissingKey);
    }
    if key.len() > MAX_KEY {
        return Err(Reject::UnknownKey { shown: redact(key) });
    }
    Ok(key)
}

/// Enough of a wrong key to recognise it by, and no more.
fn redact(key: &str) -> String {
    let shown: String = key.chars().take(6).collect();
    if key.len() < 20 { "***".to_owned() } else { format!("{shown}***") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::live::fixtures;
    use turnpike_config::Change;

    fn ask(header: Option<&str>, now: u64, change: impl FnOnce(&mut turnpike_config::KeyRecord)) -> Result<(), Reject> {
        let mut routing = fixtures::routing();
        let mut record = routing.keys.values().next().unwrap().clone();
        change(&mut record);
        routing.apply(Change::PutKey(record));
        let snapshot = fixtures::compiled(&routing);
        let mut headers = HeaderMap::new();
        if let Some(value) = header {
            headers.insert(AUTHORIZATION, value.parse().unwrap());
        }
        let presented = presented(&headers)?;
        let Some(key) = snapshot.key(&presented) else { return Err(unknown(&headers)) };
        accept(&key, now)?;
        authorize(&key, Permissions::INFERENCE)
    }

    #[test]
    fn only_a_live_key_with_the_permission_passes() {
        let bearer = format!("Bearer {}", fixtures::KEY);
        assert_eq!(ask(Some(&bearer), 0, |_| ()), Ok(()));
        assert_eq!(ask(Some(&bearer.replace("Bearer", "bearer")), 0, |_| ()), Ok(()));
        assert_eq!(ask(Some(&bearer), 0, |k| k.active = false), Err(Reject::KeyDisabled));
        assert_eq!(ask(Some(&bearer), 9, |k| k.expires_at_ms = Some(10)), Ok(()));
        assert_eq!(ask(Some(&bearer), 10, |k| k.expires_at_ms = Some(10)), Err(Reject::KeyExpired));
        let denied = ask(Some(&bearer), 0, |k| k.permissions = Permissions::MODELS_READ);
        assert_eq!(denied, Err(Reject::MissingPermission { permission: "inference" }));
    }

    #[test]
    fn what_is_no_key_is_refused_and_not_repeated() {
        assert_eq!(ask(None, 0, |_| ()), Err(Reject::MissingKey));
        assert_eq!(ask(Some("Basic abc"), 0, |_| ()), Err(Reject::MissingKey));
        assert_eq!(ask(Some("Bearer "), 0, |_| ()), Err(Reject::MissingKey));
        let wrong = "sk-tp-abcdefghijklmnopqrstuvwxyz";
        match ask(Some(&format!("Bearer {wrong}")), 0, |_| ()) {
            Err(Reject::UnknownKey { shown }) => assert_eq!(shown, "sk-tp-***"),
            other => panic!("{other:?}"),
        }
    }
}
