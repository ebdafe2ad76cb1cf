//! Declared configuration: what there is to be, as documents in files, and the changes that lead there.
//!
//! A document names its record by what people call it (an organization's slug, a model's id), holds the fields that the
//! admin API takes, and leaves fields that it does not name as they are. Applying the same documents again changes nothing.

mod apply;
mod document;
mod export;
mod kinds;

pub(crate) use apply::{Apply, Outcome, PlannedStep, apply, plan};
pub(crate) use document::Documents;
pub(crate) use export::export;
