//! The last good state on disk: what an edge serves by when it starts without a control plane.
//!
//! A *generation* is a file with a whole state and a log of what came after. Two generations are kept: where the newest
//! cannot be read, the one before and both logs lead to the same state. A push of one key is one short record in the log;
//! once the log is long, a new generation is made from the files alone, beside everything else ([`keeper`]).
//!
//! An edge that died three times in a row by one state starts from the one before, and refuses that one state from then
//! on ([`starts`]).

mod base;
mod checked;
mod generations;
mod keeper;
mod log;
mod open;
mod queue;
mod recover;
mod starts;

pub(crate) use base::Base;
pub(crate) use keeper::Keeper;
pub(crate) use log::Record;
pub(crate) use open::open;

#[cfg(test)]
mod tests;
