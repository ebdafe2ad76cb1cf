//! What limits add to a request.

use crate::clock::Clock;
use crate::limit::{Charges, Limiter, Limits, Need, Owner, Within};
use crate::metrics::Metrics;
use futures::FutureExt as _;
use std::sync::Arc;
use turnpike_config::{KeyId, ModelLimits, OrgId, RateLimits};
use uuid::Uuid;

/// A key and its organization, asked for one request after another.
pub struct Admission {
    limiter: Arc<Limiter>,
    key: Limits,
    organization: Limits,
}

impl Admission {
    /// With `limits` for the key and for its organization, and `within` a model for both.
    pub fn new(limits: RateLimits, within: RateLimits) -> Self {
        let models = ModelLimits::from([("m".to_owned(), within)]);
        let compile = |owner| Limits::compile(owner, limits, &models, None);
        Self {
            limiter: Arc::new(Limiter::alone(Clock, Arc::new(Metrics::new()))),
            key: compile(Owner::Key(KeyId(Uuid::from_u128(1)))),
            organization: compile(Owner::Organization(OrgId(Uuid::from_u128(2)))),
        }
    }

    /// Admits a request, reserves its tokens and settles it; false if it was refused or had to wait.
    pub fn request(&self) -> bool {
        let admitted = async {
            let mut charges = Charges::admit(&self.limiter, &self.key, &self.organization).await.ok()?;
            let need = Need { least_tokens: 100, tokens: 200, spend: 0 };
            let within = Within { model: "m", key: &self.key, organization: &self.organization };
            charges.reserve(&within, need).await.ok()?;
            charges.settle(150, 0);
            Some(())
        };
        admitted.now_or_never().flatten().is_some()
    }
}
