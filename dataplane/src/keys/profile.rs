//! What many keys have in common: kept once.

use minicbor::{Decode, Encode};
use std::collections::HashMap;
use std::hash::Hash;
use turnpike_config::{KeyRecord, ModelLimits, Permissions, RateLimits};

/// All of a key's record but what is its own.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct Profile {
    #[n(0)]
    pub(crate) permissions: Permissions,
    #[n(1)]
    pub(crate) limits: RateLimits,
    #[n(2)]
    pub(crate) models: Option<Vec<String>>,
    #[n(3)]
    pub(crate) active: bool,
    #[n(4)]
    pub(crate) model_limits: ModelLimits,
}

impl Profile {
    pub(crate) fn of(record: &KeyRecord) -> Self {
        Self {
            permissions: record.permissions,
            limits: record.limits,
            models: record.models.clone(),
            active: record.active,
            model_limits: record.model_limits.clone(),
        }
    }

    /// What tells it from others.
    pub(crate) fn name(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(32);
        // Writing into a Vec cannot fail.
        let _ = minicbor::encode(self, &mut bytes);
        bytes
    }
}

/// Gives equal things the same number.
pub(crate) struct Numbers<N, T> {
    pub(crate) all: Vec<T>,
    numbers: HashMap<N, u32>,
}

impl<N: Hash + Eq, T> Numbers<N, T> {
    /// Goes on from what has numbers already.
    pub(crate) fn new(all: Vec<T>, name: impl Fn(&T) -> N) -> Self {
        let numbers = (0..).zip(&all).map(|(number, one)| (name(one), number)).collect();
        Self { all, numbers }
    }

    /// The number of what has this name.
    pub(crate) fn of(&mut self, name: N, one: impl FnOnce() -> T) -> u32 {
        let next = u32::try_from(self.all.len()).unwrap_or(u32::MAX);
        *self.numbers.entry(name).or_insert_with(|| {
            self.all.push(one());
            next
        })
    }
}
