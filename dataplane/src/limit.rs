//! Whether the caller may spend this much now: requests and tokens are reserved before dispatch, settled after.

use crate::bucket::Bucket;
use crate::live::Key;
use crate::reject::{LimitKind, Reject};
use std::sync::Arc;

/// What a request has reserved; settled once with what it used.
#[derive(Debug)]
pub(crate) struct Reservation {
    key: Arc<Key>,
    tokens: u64,
}

/// Takes one request and `tokens` (prompt estimate plus longest answer) from the key's limits, or nothing.
///
/// `least_tokens` is what the request needs at the least: an answer without a stated length reserves no more than the
/// whole limit, instead of being refused for what it may not even use.
pub(crate) fn reserve(key: &Arc<Key>, least_tokens: u64, tokens: u64, now_ns: u64) -> Result<Reservation, Reject> {
    let over = |limit, allowed, wait_ns: u64| Reject::OverLimit {
        limit,
        allowed,
        key: key.record.id.to_string(),
        retry_after_ms: wait_ns.div_ceil(1_000_000),
    };
    if let Some(bucket) = &key.requests {
        bucket.take(1, now_ns).map_err(|wait| over(LimitKind::Requests, bucket.per_minute(), wait.0))?;
    }
    let Some(bucket) = &key.tokens else {
        return Ok(Reservation { key: Arc::clone(key), tokens: 0 });
    };
    let allowed = u64::from(bucket.per_minute());
    let taken = tokens.min(allowed);
    let outcome = if least_tokens > allowed {
        Err(Reject::LargerThanLimit { allowed: bucket.per_minute(), wanted: least_tokens })
    } else {
        bucket.take(taken, now_ns).map_err(|wait| over(LimitKind::Tokens, bucket.per_minute(), wait.0))
    };
    if let Err(reject) = outcome {
        if let Some(requests) = &key.requests {
            requests.give_back(1);
        }
        return Err(reject);
    }
    Ok(Reservation { key: Arc::clone(key), tokens: taken })
}

/// The key's limits as OpenAI's `x-ratelimit-*` headers tell them: name, units.
pub(crate) fn headers(key: &Key, now_ns: u64) -> impl Iterator<Item = (&'static str, u64)> {
    let pair = |bucket: &Option<Arc<Bucket>>, limit, remaining| {
        bucket.as_ref().map(|b| [(limit, u64::from(b.per_minute())), (remaining, b.remaining(now_ns))])
    };
    let requests = pair(&key.requests, "x-ratelimit-limit-requests", "x-ratelimit-remaining-requests");
    let tokens = pair(&key.tokens, "x-ratelimit-limit-tokens", "x-ratelimit-remaining-tokens");
    [requests, tokens].into_iter().flatten().flatten()
}

impl Reservation {
    /// Corrects the reservation to what was used.
    pub(crate) fn settle(self, used_tokens: u64, now_ns: u64) {
        let Some(bucket) = &self.key.tokens else { return };
        match used_tokens.checked_sub(self.tokens) {
            Some(excess) => bucket.take_anyway(excess, now_ns),
            None => bucket.give_back(self.tokens - used_tokens),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::live::fixtures;
    use turnpike_config::KeyDigest;

    fn key() -> Arc<Key> {
        Arc::clone(fixtures::snapshot().key(&KeyDigest::of(fixtures::KEY)).unwrap())
    }

    #[test]
    fn requests_are_counted_and_unused_tokens_come_back() {
        let key = key();
        let first = reserve(&key, 10, 900, 0).unwrap();
        assert!(matches!(reserve(&key, 10, 900, 0), Err(Reject::OverLimit { limit: LimitKind::Tokens, .. })));
        first.settle(50, 0);
        let second = reserve(&key, 10, 900, 0).unwrap();
        second.settle(50, 0);
        assert!(matches!(reserve(&key, 1, 1, 0), Err(Reject::OverLimit { limit: LimitKind::Requests, .. })));
    }

    #[test]
    fn an_open_ended_answer_fits_a_small_limit_but_a_huge_prompt_does_not() {
        let key = key();
        assert!(reserve(&key, 10, 100_000, 0).is_ok());
        assert_eq!(
            reserve(&key, 2_000, 2_000, 0).unwrap_err(),
            Reject::LargerThanLimit { allowed: 1000, wanted: 2_000 }
        );
    }

    #[test]
    fn overuse_is_paid_later() {
        let key = key();
        reserve(&key, 1, 1, 0).unwrap().settle(1_500, 0);
        assert!(reserve(&key, 1, 1, 0).is_err());
        assert!(reserve(&key, 1, 1, 31_000_000_000).is_ok());
    }
}
