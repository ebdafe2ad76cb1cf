//! Whether the caller may spend this much now: keys, organizations, models within them; requests, tokens, requests at
//! once, money.
//!
//! Units are borrowed from the region's buckets and spent locally ([`share`], pure), so that most requests ask nobody; the
//! [`limiter`] talks to the buckets ([`ledger`] here, `bucket.lua` in Redis). A request reserves, and settles at its end.

mod ask;
mod charges;
mod clock;
#[cfg(test)]
mod contract;
mod headers;
mod held;
mod known;
mod ledger;
mod limiter;
mod memory;
mod reach;
mod servers;
mod share;
#[cfg(test)]
mod simulation;
mod subject;

pub(crate) use charges::{Charges, LimitState, Need, Refused, Within, states};
pub(crate) use headers::tell;
pub(crate) use limiter::{Limiter, Terms};
pub(crate) use memory::Memory;
pub(crate) use share::Kind;
pub(crate) use subject::{Limits, Owner, micros};
