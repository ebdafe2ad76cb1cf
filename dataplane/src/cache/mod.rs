//! Answers that may be given again: what they are known by, when they may be used, how they are kept and shared.
//!
//! [`key`] says which requests are equal, [`policy`] whether a request takes part, [`answer`] turns what a node sent into
//! whichever form a client wants, [`memory`] keeps answers here and [`shared`] in the region, and [`flight`] lets equal
//! requests at the same time share one. [`responses`] is all of it together.

mod answer;
mod assemble;
mod chunks;
mod complete;
mod flight;
mod json;
mod key;
mod memory;
mod policy;
mod responses;
mod shared;
mod sse;

pub(crate) use answer::{MAX_BODY, StoredAnswer};
pub(crate) use complete::is_complete_stream;
pub(crate) use flight::{Audience, FlightEvent, Follower, Join, LeaderGuard};
pub(crate) use key::{Scope, key};
pub(crate) use policy::{Facts, Plan, plan};
pub(crate) use responses::{ResponseCache, Wanted};
pub(crate) use shared::{Fence, SharedAnswers};
