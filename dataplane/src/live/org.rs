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
    /// Limits that did not change are kept from `previous`, and what is shared with it stays as it is until the new one
    /// [takes effect](Limits::take_effect).
    ///
    /// Without a region, money that is paid ahead is not spent: the control plane, which gives it out to regions, would
    /// not know of this edge.
    pub(super) fn new(record: OrgRecord, region: Option<&str>, previous: Option<&Self>) -> Self {
        let (owner, before) = (Owner::Organization(record.id), previous.map(|org| &org.limits));
        let limits = Limits::compile(owner, record.limits, &record.model_limits, before);
        let limits = limits.with_budget(owner, record.budget.as_ref(), before);
        let limits = limits.with_prepaid(owner, record.prepaid.as_ref(), region, before);
        Self { record, limits }
    }
}
