//! Until when a node may take.

use pingora::{Error, ErrorType};
use std::time::Instant;

/// `None` is forever.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Deadlines {
    pub(crate) first_byte: Option<Instant>,
    pub(crate) end: Option<Instant>,
}

/// A node did not begin its answer in time.
pub(crate) const LATE_FIRST_BYTE: ErrorType = ErrorType::Custom("the node did not begin in time");
/// A node did not end its answer in time.
pub(crate) const LATE_END: ErrorType = ErrorType::Custom("the node did not end in time");

impl Deadlines {
    /// What comes first of these and of a node's silence until `silent`, and what that is then.
    pub(crate) fn first(&self, silent: Instant) -> (Instant, ErrorType) {
        let late = [(self.end, LATE_END), (self.first_byte, LATE_FIRST_BYTE), (Some(silent), ErrorType::ReadTimedout)];
        let known = late.into_iter().filter_map(|(at, what)| Some((at?, what)));
        known.min_by_key(|(at, _)| *at).unwrap_or((silent, ErrorType::ReadTimedout))
    }

    /// The error for a deadline that has passed.
    pub(crate) fn passed(what: ErrorType) -> Box<Error> {
        Error::new_up(what)
    }
}
