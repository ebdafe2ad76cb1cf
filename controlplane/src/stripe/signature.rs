//! The signature of webhooks: `Stripe-Signature: t=<unix seconds>,v1=<hex HMAC-SHA256 of "t.body">[,v1=…]`.

use super::Secret;
use chrono::{DateTime, TimeDelta, Utc};
use hmac::{Hmac, Mac as _};
use sha2::Sha256;

/// How far the time of a signature may be from now, either way.
const TOLERANCE: TimeDelta = TimeDelta::minutes(5);

/// Why a webhook is not believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BadSignature {
    /// No header, or not of the form.
    #[error("expected a header Stripe-Signature: t=…,v1=…")]
    Malformed,
    /// Signed too long ago, or ahead of our clock.
    #[error("the signature's time is more than 5 minutes from now; is this machine's clock right?")]
    Stale,
    /// Signed with another secret, or for another body.
    #[error("the signature does not fit the body; is stripe.webhook_secret_file that of this endpoint?")]
    Wrong,
}

/// Whether a body was signed with the secret, recently.
pub(crate) fn verify(secret: &Secret, header: &str, body: &[u8], now: DateTime<Utc>) -> Result<(), BadSignature> {
    let mut time = None;
    let mut signatures = Vec::new();
    for (name, value) in header.split(',').filter_map(|part| part.trim().split_once('=')) {
        match name {
            "t" => time = Some(value),
            "v1" => signatures.extend(unhex(value)),
            // Schemes of the past and the future.
            _ => {}
        }
    }
    let time = time.ok_or(BadSignature::Malformed)?;
    let at =
        time.parse().ok().and_then(|seconds| DateTime::from_timestamp(seconds, 0)).ok_or(BadSignature::Malformed)?;
    if signatures.is_empty() {
        return Err(BadSignature::Malformed);
    }
    let mac = Hmac::<Sha256>::new_from_slice(secret.0.as_bytes()).map_err(|_| BadSignature::Malformed)?;
    let mac = mac.chain_update(time).chain_update(".").chain_update(body);
    // In constant time. More than one: the secret is being rolled.
    if !signatures.iter().any(|signature| mac.clone().verify_slice(signature).is_ok()) {
        return Err(BadSignature::Wrong);
    }
    if now.signed_duration_since(at).abs() > TOLERANCE { Err(BadSignature::Stale) } else { Ok(()) }
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    if !text.is_ascii() || !text.len().is_multiple_of(2) {
        return None;
    }
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(text.get(at..at + 2)?, 16).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    // HMAC-SHA256("whsec_test", "1700000000.{}"), by `openssl dgst -sha256 -hmac whsec_test`.
    const SIGNED: &str = "35495024f4ef3f94e5a93e22221544c4b75e9a42300cd965ab81cb85cd994e91";

    #[test]
    fn only_what_was_signed_recently_is_believed() {
        let secret = Secret("whsec_test".to_owned());
        let at = |seconds: i64| DateTime::from_timestamp(1_700_000_000 + seconds, 0).unwrap_or_default();
        let header = format!("t=1700000000,v0=00,v1={SIGNED}");
        let check = |header: &str, body: &str, seconds| verify(&secret, header, body.as_bytes(), at(seconds));
        assert_eq!(check(&header, "{}", 0), Ok(()));
        assert_eq!(check(&header, "{}", 300), Ok(()));
        assert_eq!(check(&header, "{}", 301), Err(BadSignature::Stale));
        assert_eq!(check(&header, "{}", -301), Err(BadSignature::Stale));
        assert_eq!(check(&header, "{ }", 0), Err(BadSignature::Wrong));
        assert_eq!(check(&header.replace("t=1700000000", "t=1700000001"), "{}", 0), Err(BadSignature::Wrong));
        let rolled = format!("t=1700000000,v1={},v1={SIGNED}", "00".repeat(32));
        assert_eq!(check(&rolled, "{}", 0), Ok(()));
        for bad in ["", "t=1700000000", "v1=00", "t=x,v1=00", "t=1700000000,v1=zz", "t=1700000000,v0=00"] {
            assert_eq!(check(bad, "{}", 0), Err(BadSignature::Malformed), "{bad}");
        }
        assert_eq!(check("t=1700000000,v1=00", "{}", 0), Err(BadSignature::Wrong));
        let other = verify(&Secret("whsec_other".to_owned()), &header, b"{}", at(0));
        assert_eq!(other, Err(BadSignature::Wrong));
    }

    #[test]
    fn a_secret_is_not_printed() {
        assert!(!format!("{:?}", Secret("whsec_test".to_owned())).contains("whsec"));
    }
}
