//! What is limited: keys, organizations, and models within them, each with its shares.

use super::ask::Floor;
use super::servers::slot_of;
use super::share::{Kind, Share};
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use tokio::sync::Notify;
use turnpike_config::{Budget, KeyId, ModelLimits, OrgId, Prepaid, RateLimits, Usd};

/// Whose limit it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Owner {
    Key(KeyId),
    Organization(OrgId),
}

impl Owner {
    /// The hash tag of all its buckets, so that a cluster keeps them together.
    fn tag(self) -> String {
        match self {
            Self::Key(id) => id.to_string(),
            Self::Organization(id) => format!("org:{id}"),
        }
    }
}

impl std::fmt::Display for Owner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Key(id) => write!(f, "API key {id}"),
            Self::Organization(id) => write!(f, "organization {id}"),
        }
    }
}

/// One limit of one subject.
#[derive(Debug)]
pub(crate) struct Limit {
    pub(crate) owner: Owner,
    /// The model within which it holds; `None` is all of them.
    pub(crate) model: Option<String>,
    pub(crate) share: Share,
    /// Its bucket in Redis.
    pub(super) key: String,
    pub(super) slot: u16,
    /// Who holds what this share borrows: this edge, this process, this share.
    pub(super) holder: String,
    /// Units that requests wait for.
    pub(super) waiting: AtomicU64,
    /// An ask of this share was answered, or will not be.
    pub(super) changed: Notify,
    /// The limiter looks after it.
    pub(super) active: AtomicBool,
    floor_units: AtomicU64,
    floor_complete_to: AtomicI64,
    /// Money that other regions have: it may come here.
    elsewhere: AtomicU64,
}

/// A limit on money, which is set anew while it is spent, with what it is to be once it is served by.
#[derive(Clone, Debug)]
pub(crate) struct Money {
    pub(crate) limit: Arc<Limit>,
    units: u64,
    floor: Floor,
    elsewhere: u64,
}

impl Money {
    /// The limit of the same period is kept.
    fn new(before: Option<&Self>, owner: Owner, period: &str, units: u64, floor: Floor, elsewhere: u64) -> Self {
        if let Some(Self { limit, .. }) = before.filter(|before| before.limit.key.ends_with(period)) {
            return Self { limit: Arc::clone(limit), units, floor, elsewhere };
        }
        let limit = Arc::new(Limit::new(owner, None, Kind::Spend, units, period));
        let new = Self { limit, units, floor, elsewhere };
        // Nobody has it yet.
        new.take_effect();
        new
    }

    /// For all who spend of it, those among them whose requests began by another routing.
    fn take_effect(&self) {
        let Self { limit, units, floor, elsewhere } = self;
        limit.share.set_limit(*units);
        limit.floor_units.store(floor.units.to_bits(), Ordering::Release);
        limit.floor_complete_to.store(floor.complete_to, Ordering::Release);
        limit.elsewhere.store(*elsewhere, Ordering::Release);
    }
}

/// Tells the shares of this process from those of the one before it.
static PROCESS: LazyLock<u32> = LazyLock::new(rand_u32);
static SHARES: AtomicU64 = AtomicU64::new(0);

fn rand_u32() -> u32 {
    uuid::Uuid::new_v4().as_fields().0
}

impl Limit {
    fn new(owner: Owner, model: Option<&str>, kind: Kind, units: u64, period: &str) -> Self {
        let tag = owner.tag();
        let name = match kind {
            Kind::Requests => "rate_limit",
            Kind::Tokens => "token_limit",
            Kind::Concurrent => "concurrency",
            Kind::Spend => "budget",
        };
        let within = model.map(|model| format!(":{model}")).unwrap_or_default();
        Self {
            owner,
            model: model.map(str::to_owned),
            share: Share::new(kind, units),
            key: format!("{name}:{{{tag}}}:{period}{within}"),
            slot: slot_of(&tag),
            holder: format!("{:08x}.{:x}", *PROCESS, SHARES.fetch_add(1, Ordering::Relaxed)),
            waiting: AtomicU64::new(0),
            changed: Notify::new(),
            active: AtomicBool::new(false),
            floor_units: AtomicU64::new(0),
            floor_complete_to: AtomicI64::new(0),
            elsewhere: AtomicU64::new(0),
        }
    }

    /// Whether it is on money paid ahead.
    pub(crate) fn is_prepaid(&self) -> bool {
        self.share.kind() == Kind::Spend && self.key.ends_with(PREPAID)
    }

    /// Whether so many units are more than there is, here and elsewhere, as far as is known.
    pub(crate) fn is_beyond(&self, units: u64) -> bool {
        let most = self.share.limit().saturating_add(self.elsewhere.load(Ordering::Acquire));
        self.floor().units + units as f64 > most as f64
    }

    /// What is known to be used up from elsewhere.
    pub(crate) fn floor(&self) -> Floor {
        Floor {
            units: f64::from_bits(self.floor_units.load(Ordering::Acquire)),
            complete_to: self.floor_complete_to.load(Ordering::Acquire),
        }
    }
}

fn floor(spent: Usd, as_of_ms: u64) -> Floor {
    #[expect(clippy::cast_precision_loss, reason = "millionths of dollars below 2^53")]
    let units = micros(spent.pico) as f64;
    Floor { units, complete_to: i64::try_from(as_of_ms.saturating_mul(1_000)).unwrap_or(i64::MAX) }
}

/// Limits on how many, how much and how many at once.
#[derive(Clone, Debug, Default)]
pub(crate) struct Rates {
    pub(crate) requests: Option<Arc<Limit>>,
    pub(crate) tokens: Option<Arc<Limit>>,
    pub(crate) concurrent: Option<Arc<Limit>>,
}

/// All limits of a subject.
#[derive(Clone, Debug, Default)]
pub(crate) struct Limits {
    pub(crate) own: Rates,
    within: HashMap<String, Rates>,
    budget: Option<Money>,
    /// The region's part of money paid ahead.
    prepaid: Option<Money>,
}

impl Limits {
    /// Indexes limits. Shares of limits that did not change are kept from `previous`, so that a push resets nothing.
    pub(crate) fn compile(owner: Owner, own: RateLimits, models: &ModelLimits, previous: Option<&Self>) -> Self {
        let within = models.iter().map(|(model, limits)| {
            let before = previous.and_then(|previous| previous.within.get(model));
            (model.clone(), Rates::compile(owner, Some(model), *limits, before))
        });
        Self {
            own: Rates::compile(owner, None, own, previous.map(|previous| &previous.own)),
            within: within.collect(),
            budget: None,
            prepaid: None,
        }
    }

    /// With an organization's budget.
    pub(crate) fn with_budget(mut self, owner: Owner, budget: Option<&Budget>, previous: Option<&Self>) -> Self {
        self.budget = budget.map(|budget| {
            let before = previous.and_then(|previous| previous.budget.as_ref());
            let (units, floor) = (micros(budget.monthly.pico), floor(budget.spent, budget.as_of_ms));
            Money::new(before, owner, &budget.month.to_string(), units, floor, 0)
        });
        self
    }

    /// Limits on money.
    pub(crate) fn money(&self) -> impl Iterator<Item = &Arc<Limit>> {
        [&self.budget, &self.prepaid].into_iter().flatten().map(|money| &money.limit)
    }

    /// They are served by from now on: what is shared with those before is set. Not sooner, since what is being made may
    /// yet be refused.
    pub(crate) fn take_effect(&self) {
        [&self.budget, &self.prepaid].into_iter().flatten().for_each(Money::take_effect);
    }

    /// Whether nobody else holds any of it: no request has something reserved, and the limiter looks after nothing.
    pub(crate) fn is_settled(&self) -> bool {
        let rates = std::iter::once(&self.own).chain(self.within.values());
        let limits = rates.flat_map(|rates| [&rates.requests, &rates.tokens, &rates.concurrent]);
        limits.flatten().chain(self.money()).all(|limit| Arc::strong_count(limit) == 1)
    }

    /// With what `region` may spend of an organization's money paid ahead: nothing, if it is not known to have a part.
    pub(crate) fn with_prepaid(
        mut self,
        owner: Owner,
        prepaid: Option<&Prepaid>,
        region: Option<&str>,
        previous: Option<&Self>,
    ) -> Self {
        self.prepaid = prepaid.map(|prepaid| {
            let before = previous.and_then(|previous| previous.prepaid.as_ref());
            let share = region.and_then(|region| prepaid.regions.get(region)).copied().unwrap_or_default();
            let here = share.cap.pico.saturating_sub(share.spent.pico).max(0);
            let elsewhere = whole_micros(prepaid.left.pico.saturating_sub(here));
            let floor = floor(share.spent, share.as_of_ms);
            Money::new(before, owner, PREPAID, whole_micros(share.cap.pico), floor, elsewhere)
        });
        self
    }

    /// Whether it matters what an answer costs.
    pub(crate) const fn counts_money(&self) -> bool {
        self.budget.is_some() || self.prepaid.is_some()
    }

    /// Limits within a model.
    pub(crate) fn within(&self, model: &str) -> Option<&Rates> {
        self.within.get(model)
    }
}

/// Whole millionths of a dollar from pico-dollars, upwards.
pub(crate) fn micros(pico: i128) -> u64 {
    u64::try_from(pico.max(0).unsigned_abs().div_ceil(1_000_000)).unwrap_or(u64::MAX)
}

/// And downwards: of what may be spent, so that all parts together are no more than the whole.
fn whole_micros(pico: i128) -> u64 {
    u64::try_from(pico.max(0) / 1_000_000).unwrap_or(u64::MAX)
}

const MINUTE: &str = "60s";
const PREPAID: &str = "prepaid";

impl Rates {
    fn compile(owner: Owner, model: Option<&str>, limits: RateLimits, previous: Option<&Self>) -> Self {
        let keep = |limit: Option<u32>, kind, period, before: Option<&Arc<Limit>>| {
            limit.map(|units| keep_or(before, owner, model, kind, units.into(), period))
        };
        let before = |of: fn(&Self) -> &Option<Arc<Limit>>| previous.and_then(|previous| of(previous).as_ref());
        Self {
            requests: keep(limits.requests_per_minute, Kind::Requests, MINUTE, before(|p| &p.requests)),
            tokens: keep(limits.tokens_per_minute, Kind::Tokens, MINUTE, before(|p| &p.tokens)),
            concurrent: keep(limits.concurrent_requests, Kind::Concurrent, "now", before(|p| &p.concurrent)),
        }
    }
}

fn keep_or(
    before: Option<&Arc<Limit>>,
    owner: Owner,
    model: Option<&str>,
    kind: Kind,
    units: u64,
    period: &str,
) -> Arc<Limit> {
    let kept = before.filter(|limit| limit.share.limit() == units);
    kept.map_or_else(|| Arc::new(Limit::new(owner, model, kind, units, period)), Arc::clone)
}

#[cfg(test)]
mod tests {
    use super::*;
    use turnpike_config::RegionShare;
    use uuid::Uuid;

    fn limits(per_minute: u32) -> RateLimits {
        RateLimits { requests_per_minute: Some(per_minute), ..RateLimits::default() }
    }

    #[test]
    fn keys_are_those_of_the_schema_with_the_subject_as_hash_tag() {
        let owner = Owner::Key(KeyId(Uuid::from_u128(7)));
        let models = ModelLimits::from([("m".to_owned(), RateLimits { tokens_per_minute: Some(5), ..limits(1) })]);
        let compiled = Limits::compile(owner, limits(3), &models, None);
        let own = compiled.own.requests.as_ref().unwrap();
        assert_eq!(own.key, "rate_limit:{00000000-0000-0000-0000-000000000007}:60s");
        let tokens = compiled.within("m").unwrap().tokens.as_ref().unwrap();
        assert_eq!(tokens.key, "token_limit:{00000000-0000-0000-0000-000000000007}:60s:m");
        assert_eq!(own.slot, tokens.slot);
    }

    #[test]
    fn what_did_not_change_is_kept() {
        let owner = Owner::Organization(OrgId(Uuid::from_u128(7)));
        let before = Limits::compile(owner, limits(3), &ModelLimits::new(), None);
        let same = Limits::compile(owner, limits(3), &ModelLimits::new(), Some(&before));
        let other = Limits::compile(owner, limits(4), &ModelLimits::new(), Some(&before));
        let share = |limits: &Limits| Arc::as_ptr(limits.own.requests.as_ref().unwrap());
        assert_eq!(share(&before), share(&same));
        assert_ne!(share(&before), share(&other));
    }

    #[test]
    fn a_budget_is_counted_in_millionths_and_anew_each_month() {
        let owner = Owner::Organization(OrgId(Uuid::from_u128(7)));
        let budget =
            |month| Budget { monthly: Usd { pico: 12_500_000_000_000 }, month, spent: Usd { pico: 1 }, as_of_ms: 5 };
        let first = Limits::default().with_budget(owner, Some(&budget(202_601)), None);
        let limit = first.money().next().unwrap();
        assert_eq!((limit.share.limit(), limit.floor()), (12_500_000, Floor { units: 1.0, complete_to: 5_000 }));
        let next = Limits::default().with_budget(owner, Some(&budget(202_602)), Some(&first));
        assert!(next.money().next().unwrap().key.ends_with(":202602"));
    }

    #[test]
    fn money_paid_ahead_is_what_the_own_region_has_of_it_and_is_set_anew_for_requests_that_run() {
        let owner = Owner::Organization(OrgId(Uuid::from_u128(7)));
        let usd = |pico| Usd { pico };
        let told = |cap| Prepaid {
            regions: [("eu".to_owned(), RegionShare { cap: usd(cap), spent: usd(1_000_001), as_of_ms: 5 })].into(),
            left: usd(9_000_000),
        };
        let compile = |prepaid: &Prepaid, region, before: Option<&Limits>| {
            Limits::default().with_prepaid(owner, Some(prepaid), region, before)
        };
        let first = compile(&told(5_999_999), Some("eu"), None);
        let limit = Arc::clone(first.money().next().unwrap());
        assert_eq!(limit.key, "budget:{org:00000000-0000-0000-0000-000000000007}:prepaid");
        assert_eq!(
            (limit.share.limit(), limit.floor()),
            (5, Floor { units: 2.0, complete_to: 5_000 }),
            "the safe side"
        );
        // Five here, four elsewhere, of which two are spent.
        assert!(!limit.is_beyond(7) && limit.is_beyond(8));
        let second = compile(&told(3_000_000), Some("eu"), Some(&first));
        assert_eq!(limit.share.limit(), 5, "it may yet be refused");
        second.take_effect();
        assert_eq!(limit.share.limit(), 3, "a request that pinned the first routing");
        assert!(Arc::ptr_eq(&limit, second.money().next().unwrap()));
        for region in [Some("us"), None] {
            let other = compile(&told(3_000_000), region, None);
            let other = other.money().next().unwrap();
            assert_eq!((other.share.limit(), other.is_beyond(9), other.is_beyond(10)), (0, false, true));
        }
    }
}
