//! An organization with its limits.

use crate::limit::{Limits, Owner};
use turnpike_config::OrgRecord;

/// An organization with its limits.
#[derive(Debug)]
pub(crate) struct Org {
    pub(crate) record: OrgRecord,
    pub(crate) limits: Limits,
}

impl Org {
    /// Limits that did not change are kept from `previous`.
    pub(super) fn new(record: OrgRecord, previous: Option<&Self>) -> Self {
        let (owner, before) = (Owner::Organization(record.id), previous.map(|org| &org.limits));
        let limits = Limits::compile(owner, record.limits, &record.model_limits, before);
        let limits = limits.with_budget(owner, record.budget.as_ref(), before);
        Self { record, limits }
    }
}
