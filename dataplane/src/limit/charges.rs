//! What a request has taken from its limits: all it needs, or nothing.

use super::limiter::{Denied, Limiter};
use super::share::{Kind, Take, Taken};
use super::subject::{Limit, Limits, Rates};
use futures::future::join_all;
use serde::Serialize;
use std::sync::Arc;

/// Charges of one request, to be settled once. Dropped unsettled, they give back what was taken.
#[derive(Default)]
pub(crate) struct Charges {
    limiter: Option<Arc<Limiter>>,
    taken: Vec<(Arc<Limit>, Taken)>,
    /// What a request takes within its model has been taken.
    entered: bool,
}

/// What a request takes from the limits within a model.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Need {
    /// Tokens needed at the least: the prompt, and the answer if its length was asked for.
    pub(crate) least_tokens: u64,
    /// Tokens that the answer may come to, with the prompt; at most [`Within::most_tokens`].
    pub(crate) tokens: u64,
    /// Millionths of a dollar that those may cost.
    pub(crate) spend: u64,
}

/// Why a limit does not let a request pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    /// Not now. `subject` says whose limit it is; `allowed` is per minute, at once, or in micro-dollars per month.
    Over { kind: Kind, subject: String, allowed: u64, retry_after_ms: u64 },
    /// Not now: the budget is not spent as far as is known, but what is left may be reserved or spent already.
    Unsure { subject: String, retry_after_ms: u64 },
    /// Never: it needs more tokens than the limit lets pass in one minute.
    TooLarge { subject: String, allowed: u64, wanted: u64 },
}

/// The limits that a request to a model meets.
pub(crate) struct Within<'a> {
    pub(crate) model: &'a str,
    pub(crate) key: &'a Limits,
    pub(crate) organization: &'a Limits,
}

/// Limits with what is wanted of each.
type Wants = Vec<(Arc<Limit>, u64)>;

impl Within<'_> {
    /// Tokens that may be reserved at most; `None` where they are not limited.
    ///
    /// An answer without a stated length reserves no more than the whole limit, instead of being refused for what it may
    /// not even use.
    pub(crate) fn most_tokens(&self) -> Option<u64> {
        self.tokens().map(|limit| limit.share.most_at_once()).min()
    }

    /// Tokens that are left now, as far as is known; `None` where they are not limited.
    pub(crate) fn tokens_left(&self, now_ns: u64) -> Option<u64> {
        self.tokens().map(|limit| limit.share.remaining(now_ns)).min()
    }

    fn models(&self) -> impl Iterator<Item = &Rates> {
        [self.key.within(self.model), self.organization.within(self.model)].into_iter().flatten()
    }

    fn tokens(&self) -> impl Iterator<Item = &Arc<Limit>> {
        [&self.key.own, &self.organization.own]
            .into_iter()
            .chain(self.models())
            .filter_map(|rates| rates.tokens.as_ref())
    }

    fn once(&self) -> Wants {
        self.models().flat_map(once_per_request).collect()
    }

    fn answer(&self, need: Need) -> Result<Wants, Refused> {
        if let Some(limit) = self.tokens().find(|limit| limit.share.most_at_once() < need.least_tokens) {
            let allowed = limit.share.limit();
            return Err(Refused::TooLarge { subject: subject(limit), allowed, wanted: need.least_tokens });
        }
        let tokens = self.tokens().map(|limit| (Arc::clone(limit), need.tokens));
        let spend = self.organization.money().map(|limit| (Arc::clone(limit), need.spend));
        Ok(tokens.chain(spend).filter(|(_, units)| *units > 0).collect())
    }
}

impl Charges {
    /// Takes what does not depend on the model: a request, and a place among those that run.
    pub(crate) async fn admit(limiter: &Arc<Limiter>, key: &Limits, organization: &Limits) -> Result<Self, Refused> {
        let mut charges = Self { limiter: Some(Arc::clone(limiter)), taken: Vec::new(), entered: false };
        let wants = [&key.own, &organization.own].into_iter().flat_map(once_per_request).collect();
        charges.take_all(wants).await?;
        Ok(charges)
    }

    /// Takes what a request takes within its model, whoever answers it.
    pub(crate) async fn enter(&mut self, within: &Within<'_>) -> Result<(), Refused> {
        self.take_all(within.once()).await?;
        self.entered = true;
        Ok(())
    }

    /// Takes what the answer may come to, and at the same time what [`Charges::enter`] takes, if that has not been done.
    pub(crate) async fn reserve(&mut self, within: &Within<'_>, need: Need) -> Result<(), Refused> {
        let mut wants = if self.entered { Wants::new() } else { within.once() };
        wants.extend(within.answer(need)?);
        self.take_all(wants).await?;
        self.entered = true;
        Ok(())
    }

    /// Goes from one model to another: takes what there is to be taken within the other one, and gives back what was taken
    /// within the first. Nothing changes if the other's limits refuse.
    pub(crate) async fn go_over(&mut self, from: &str, to: &Within<'_>, tokens: u64) -> Result<(), Refused> {
        let mut wants = to.once();
        let of_model = to.models().filter_map(|rates| rates.tokens.as_ref());
        wants.extend(of_model.map(|limit| (Arc::clone(limit), tokens)).filter(|(_, units)| *units > 0));
        self.take_all(wants).await?;
        let Some(limiter) = self.limiter.clone() else { return Ok(()) };
        let now = limiter.now_ns();
        let is_left = |(limit, _): &(Arc<Limit>, Taken)| limit.model.as_deref() == Some(from);
        for (limit, taken) in self.taken.extract_if(.., |taken| is_left(taken)) {
            limiter.settle(&limit, taken, 0, now);
        }
        Ok(())
    }

    /// Takes from every limit, or from none. What has to be asked for is asked for at the same time.
    async fn take_all(&mut self, wants: Wants) -> Result<(), Refused> {
        let Some(limiter) = self.limiter.clone().filter(|_| !wants.is_empty()) else { return Ok(()) };
        let (before, now) = (self.taken.len(), limiter.now_ns());
        let mut asked = Vec::new();
        let mut refusal = None;
        for (limit, units) in wants {
            match limiter.try_take(&limit, units, now) {
                Take::Taken(taken) => self.taken.push((limit, taken)),
                Take::Denied { until_ns } => {
                    refusal = Some((limit, units, limiter.denied(until_ns)));
                    break;
                }
                Take::Ask => asked.push((limit, units)),
            }
        }
        if refusal.is_none() && !asked.is_empty() {
            let answers = asked.iter().map(|(limit, units)| limiter.wait(limit, *units));
            let answers = join_all(answers).await;
            for ((limit, units), answer) in asked.into_iter().zip(answers) {
                match answer {
                    Ok(taken) => self.taken.push((limit, taken)),
                    Err(denied) => refusal = Some((limit, units, denied)),
                }
            }
        }
        let Some((limit, units, denied)) = refusal else { return Ok(()) };
        let now = limiter.now_ns();
        for (limit, taken) in self.taken.drain(before..) {
            limiter.settle(&limit, taken, 0, now);
        }
        Err(refuse(&limit, units, denied))
    }

    /// Corrects what was taken to what was used. `spend` is in millionths of a dollar.
    pub(crate) fn settle(mut self, tokens: u64, spend: u64) {
        let Some(limiter) = self.limiter.take().filter(|_| !self.taken.is_empty()) else { return };
        let now = limiter.now_ns();
        for (limit, taken) in self.taken.drain(..) {
            let used = match limit.share.kind() {
                Kind::Requests => 1,
                Kind::Tokens => tokens,
                Kind::Concurrent => 0,
                Kind::Spend => spend,
            };
            limiter.settle(&limit, taken, used, now);
        }
    }
}

impl Drop for Charges {
    fn drop(&mut self) {
        let Some(limiter) = self.limiter.take().filter(|_| !self.taken.is_empty()) else { return };
        let now = limiter.now_ns();
        for (limit, taken) in self.taken.drain(..) {
            limiter.settle(&limit, taken, 0, now);
        }
    }
}

fn once_per_request(rates: &Rates) -> impl Iterator<Item = (Arc<Limit>, u64)> {
    [rates.requests.as_ref(), rates.concurrent.as_ref()].into_iter().flatten().map(|limit| (Arc::clone(limit), 1))
}

/// Whose limit it is, for the client.
fn subject(limit: &Limit) -> String {
    match &limit.model {
        Some(model) => format!("{} and model {model}", limit.owner),
        None => limit.owner.to_string(),
    }
}

/// A budget that is being counted anew is not empty: worth another try after so long.
const COUNTED_IN_MS: u64 = 5_000;

fn refuse(limit: &Limit, units: u64, denied: Denied) -> Refused {
    if limit.share.kind() == Kind::Spend && !limit.is_beyond(units) {
        return Refused::Unsure { subject: subject(limit), retry_after_ms: COUNTED_IN_MS };
    }
    Refused::Over {
        kind: limit.share.kind(),
        subject: subject(limit),
        allowed: limit.share.limit(),
        retry_after_ms: denied.retry_after_ns.div_ceil(1_000_000),
    }
}

/// A limit as it is now, for operators.
#[derive(Debug, Serialize)]
pub(crate) struct LimitState {
    pub(crate) kind: &'static str,
    /// Whose, and within which model.
    pub(crate) of: String,
    /// Per minute, at once, or micro-dollars: a month's, or this region's part of those paid ahead.
    pub(crate) limit: u64,
    /// As far as this edge knows.
    pub(crate) remaining: u64,
}

/// Every limit that a request meets.
pub(crate) fn states(within: &Within<'_>, now_ns: u64) -> Vec<LimitState> {
    let rates = [&within.key.own, &within.organization.own].into_iter().chain(within.models());
    let limits = rates.flat_map(|rates| [&rates.requests, &rates.tokens, &rates.concurrent]).flatten();
    let state = |limit: &Arc<Limit>| LimitState {
        kind: match limit.share.kind() {
            Kind::Requests => "requests per minute",
            Kind::Tokens => "tokens per minute",
            Kind::Concurrent => "requests at once",
            Kind::Spend if limit.is_prepaid() => "micro-dollars paid ahead",
            Kind::Spend => "micro-dollars a month",
        },
        of: subject(limit),
        limit: limit.share.limit(),
        remaining: limit.share.remaining(now_ns),
    };
    limits.chain(within.organization.money()).map(state).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;
    use crate::limit::Owner;
    use crate::metrics::Metrics;
    use turnpike_config::{Budget, KeyId, ModelLimits, OrgId, Prepaid, RateLimits, RegionShare, Usd};
    use uuid::Uuid;

    fn limiter() -> Arc<Limiter> {
        Arc::new(Limiter::alone(Clock, Arc::new(Metrics::new())))
    }

    fn key(own: RateLimits, within: RateLimits) -> Limits {
        let models = ModelLimits::from([("m".to_owned(), within)]);
        Limits::compile(Owner::Key(KeyId(Uuid::from_u128(1))), own, &models, None)
    }

    /// Enters a model and reserves; how much was reserved.
    async fn reserve_of(
        charges: &mut Charges,
        model: &str,
        key: &Limits,
        organization: &Limits,
        least_tokens: u64,
        most: u64,
    ) -> Result<u64, Refused> {
        let within = Within { model, key, organization };
        let tokens = within.most_tokens().map_or(most, |allowed| allowed.min(most));
        charges.reserve(&within, Need { least_tokens, tokens, spend: 0 }).await.map(|()| tokens)
    }

    const NONE: RateLimits =
        RateLimits { requests_per_minute: None, tokens_per_minute: None, concurrent_requests: None };

    #[tokio::test]
    async fn requests_are_counted_and_unused_tokens_come_back() {
        let (limiter, org) = (limiter(), Limits::default());
        let key = key(RateLimits { requests_per_minute: Some(2), tokens_per_minute: Some(1000), ..NONE }, NONE);
        let mut first = Charges::admit(&limiter, &key, &org).await.unwrap();
        assert_eq!(reserve_of(&mut first, "m", &key, &org, 10, 900).await, Ok(900));
        let mut second = Charges::admit(&limiter, &key, &org).await.unwrap();
        let denied = reserve_of(&mut second, "m", &key, &org, 10, 900).await.unwrap_err();
        assert!(matches!(denied, Refused::Over { kind: Kind::Tokens, allowed: 1000, .. }), "{denied:?}");
        // It came to nothing, so its request does not count.
        drop(second);
        first.settle(50, 0);
        let mut third = Charges::admit(&limiter, &key, &org).await.unwrap();
        assert!(reserve_of(&mut third, "m", &key, &org, 10, 900).await.is_ok());
        third.settle(50, 0);
        let denied = Charges::admit(&limiter, &key, &org).await.err().unwrap();
        assert!(matches!(denied, Refused::Over { kind: Kind::Requests, allowed: 2, .. }), "{denied:?}");
    }

    #[tokio::test]
    async fn an_open_ended_answer_fits_a_small_limit_but_a_huge_prompt_does_not() {
        let (limiter, org) = (limiter(), Limits::default());
        let key = key(RateLimits { tokens_per_minute: Some(1000), ..NONE }, NONE);
        let mut charges = Charges::admit(&limiter, &key, &org).await.unwrap();
        assert_eq!(reserve_of(&mut charges, "m", &key, &org, 10, 100_000).await, Ok(983));
        let mut charges = Charges::admit(&limiter, &key, &org).await.unwrap();
        let denied = reserve_of(&mut charges, "m", &key, &org, 2_000, 2_000).await.unwrap_err();
        assert!(matches!(denied, Refused::TooLarge { allowed: 1000, wanted: 2_000, .. }), "{denied:?}");
    }

    #[tokio::test]
    async fn all_limits_hold_beside_each_other_and_the_refusal_says_which() {
        let limiter = limiter();
        let limits = RateLimits { concurrent_requests: Some(1), ..NONE };
        let key = key(RateLimits { requests_per_minute: Some(100), ..NONE }, limits);
        let owner = Owner::Organization(OrgId(Uuid::from_u128(2)));
        let org =
            Limits::compile(owner, RateLimits { requests_per_minute: Some(3), ..NONE }, &ModelLimits::new(), None);
        let mut running = Charges::admit(&limiter, &key, &org).await.unwrap();
        reserve_of(&mut running, "m", &key, &org, 1, 1).await.unwrap();
        let mut other = Charges::admit(&limiter, &key, &org).await.unwrap();
        match reserve_of(&mut other, "m", &key, &org, 1, 1).await.unwrap_err() {
            Refused::Over { kind: Kind::Concurrent, allowed: 1, subject, .. } => {
                assert!(subject.ends_with("and model m"), "{subject}");
            }
            other => panic!("{other:?}"),
        }
        // Another model is another limit, and so is this one once the first request has ended.
        reserve_of(&mut other, "n", &key, &org, 1, 1).await.unwrap();
        running.settle(1, 0);
        let mut third = Charges::admit(&limiter, &key, &org).await.unwrap();
        reserve_of(&mut third, "m", &key, &org, 1, 1).await.unwrap();
        match Charges::admit(&limiter, &key, &org).await.err().unwrap() {
            Refused::Over { kind: Kind::Requests, allowed: 3, subject, .. } => {
                assert!(subject.starts_with("organization"), "{subject}");
            }
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn going_over_to_another_model_takes_there_and_gives_back_here() {
        let limiter = limiter();
        let rates = |requests, tokens| RateLimits {
            requests_per_minute: Some(requests),
            tokens_per_minute: Some(tokens),
            concurrent_requests: Some(1),
        };
        let models = ModelLimits::from([("a".to_owned(), rates(5, 500)), ("b".to_owned(), rates(1, 500))]);
        let key = Limits::compile(Owner::Key(KeyId(Uuid::from_u128(1))), NONE, &models, None);
        let organization = Limits::default();
        let within = |model| Within { model, key: &key, organization: &organization };
        let left = |model: &str| {
            let (rates, now) = (key.within(model).unwrap(), limiter.now_ns());
            let left = |limit: &Option<Arc<Limit>>| limit.as_ref().unwrap().share.remaining(now);
            // Of what is lent and given back, a share knows only nearly how much is left.
            (left(&rates.requests), (left(&rates.tokens) + 25) / 50 * 50, left(&rates.concurrent))
        };
        let need = Need { least_tokens: 10, tokens: 100, spend: 0 };
        let mut charges = Charges::admit(&limiter, &key, &organization).await.unwrap();
        charges.reserve(&within("a"), need).await.unwrap();
        assert_eq!((left("a"), left("b")), ((4, 400, 0), (1, 500, 1)));
        charges.go_over("a", &within("b"), 100).await.unwrap();
        assert_eq!((left("a"), left("b")), ((5, 500, 1), (0, 400, 0)));
        charges.settle(50, 0);
        assert_eq!((left("a"), left("b")), ((5, 500, 1), (0, 450, 1)));

        let mut second = Charges::admit(&limiter, &key, &organization).await.unwrap();
        second.reserve(&within("a"), need).await.unwrap();
        assert!(second.go_over("a", &within("b"), 100).await.is_err(), "b takes one request a minute");
        assert_eq!((left("a"), left("b")), ((4, 400, 0), (0, 450, 1)));
    }

    #[tokio::test]
    async fn a_budget_that_is_raised_lets_requests_in_at_once() {
        let owner = Owner::Organization(OrgId(Uuid::from_u128(2)));
        let budget = |dollars: i128| {
            let monthly = Usd { pico: dollars * 1_000_000_000_000 };
            // The books are complete beyond the edge's start.
            Budget { monthly, month: 202_601, spent: Usd::ZERO, as_of_ms: crate::request::unix_ms() + 60_000 }
        };
        let (limiter, key) = (limiter(), Limits::default());
        let reserve = async |organization: &Limits| {
            let mut charges = Charges::admit(&limiter, &key, organization).await?;
            let within = Within { model: "m", key: &key, organization };
            charges.reserve(&within, Need { least_tokens: 1, tokens: 1, spend: 12_000_000 }).await
        };
        let little = Limits::default().with_budget(owner, Some(&budget(5)), None);
        for _ in 0..2 {
            assert!(reserve(&little).await.is_err());
        }
        let enough = Limits::default().with_budget(owner, Some(&budget(1_000)), Some(&little));
        enough.take_effect();
        assert_eq!(reserve(&enough).await, Ok(()));
    }

    #[test]
    fn operators_are_shown_every_limit_that_holds() {
        let owner = Owner::Organization(OrgId(Uuid::from_u128(2)));
        let usd = |pico| Usd { pico };
        let budget = Budget { monthly: usd(7_000_000), month: 202_601, spent: Usd::ZERO, as_of_ms: 0 };
        let share = RegionShare { cap: usd(5_000_000), spent: Usd::ZERO, as_of_ms: 0 };
        let prepaid = Prepaid { regions: [("eu".to_owned(), share)].into(), left: usd(5_000_000) };
        let organization = Limits::default().with_budget(owner, Some(&budget), None);
        let organization = organization.with_prepaid(owner, Some(&prepaid), Some("eu"), None);
        let key = key(RateLimits { requests_per_minute: Some(2), ..NONE }, NONE);
        let within = Within { model: "m", key: &key, organization: &organization };
        let shown: Vec<_> = states(&within, 0).into_iter().map(|state| (state.kind, state.limit)).collect();
        assert_eq!(shown, [("requests per minute", 2), ("micro-dollars a month", 7), ("micro-dollars paid ahead", 5)]);
    }
}
