//! What a share knows about its bucket and about the demand for it.

pub(super) const SECOND: f64 = 1e9;

/// Demand is averaged over about this time, seconds.
const DEMAND_S: f64 = 0.5;

#[expect(clippy::cast_precision_loss, reason = "units and nanoseconds are far below 2^53")]
pub(super) const fn real(n: u64) -> f64 {
    n as f64
}

/// What is known about the bucket; changed only with asks and grants.
#[derive(Debug, Default)]
pub(super) struct Known {
    pub(super) generation: String,
    pub(super) credited: f64,
    pub(super) asking: bool,
    pub(super) asked_ns: u64,
    /// Units ever wanted, and when: what demand is measured from.
    pub(super) wanted_then: u64,
    pub(super) measured_ns: u64,
    pub(super) demand_per_s: f64,
    /// When the share was last seen to change.
    pub(super) active_ns: u64,
}

impl Known {
    /// Averages the demand since it was last measured.
    pub(super) fn measure(&mut self, wanted: u64, now_ns: u64) {
        let new = wanted.wrapping_sub(self.wanted_then);
        if new > 0 || self.measured_ns == 0 {
            self.active_ns = now_ns;
        }
        let elapsed = real(now_ns.saturating_sub(self.measured_ns)) / SECOND;
        if self.measured_ns == 0 || elapsed < 0.005 {
            self.measured_ns = if self.measured_ns == 0 { now_ns } else { self.measured_ns };
            return;
        }
        let weight = 1.0 - (-elapsed / DEMAND_S).exp();
        self.demand_per_s += (real(new) / elapsed - self.demand_per_s) * weight;
        self.wanted_then = wanted;
        self.measured_ns = now_ns;
    }
}
