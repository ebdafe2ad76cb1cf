//! What was measured.

use crate::percentile;
use serde::Serialize;
use std::io::Write;
use std::time::Duration;

/// Milliseconds.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Latency {
    pub(crate) p50_ms: f64,
    pub(crate) p99_ms: f64,
    pub(crate) max_ms: f64,
}

impl Latency {
    /// Of at least one.
    pub(crate) fn of(mut all: Vec<Duration>) -> Self {
        all.sort_unstable();
        let at = |permille| percentile::of(&all, permille) * 1e3;
        Self { p50_ms: at(500), p99_ms: at(990), max_ms: at(1000) }
    }
}

/// What goes to one edge.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Wire {
    pub(crate) keys: u32,
    /// In UDP datagrams, for a change of one key, acknowledgements and all.
    pub(crate) udp_bytes: u64,
    /// Of the frame alone.
    pub(crate) frame_bytes: usize,
    /// Of the frames that bring the whole state.
    pub(crate) snapshot_bytes: u64,
    /// From before the handshake until the whole state is there.
    pub(crate) snapshot_s: f64,
}

/// All of it.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Figures {
    pub(crate) subscribers: u32,
    pub(crate) changes: u32,
    pub(crate) cores: usize,
    /// Until all are linked and have the whole state.
    pub(crate) connect_s: f64,
    pub(crate) change: Latency,
    pub(crate) revocation: Latency,
    /// The control plane's, microseconds; what its idle links cost meanwhile is in it.
    pub(crate) cpu_us_per_delivery: f64,
    /// The share of a core that the control plane takes while nothing changes.
    pub(crate) idle_cpu: f64,
    /// What the control plane's memory grew by.
    pub(crate) bytes_per_idle_subscriber: u64,
    pub(crate) wire: Vec<Wire>,
}

impl Figures {
    /// As a table.
    pub(crate) fn print(&self, to: &mut impl Write) -> std::io::Result<()> {
        let Self { subscribers, changes, cores, .. } = self;
        writeln!(
            to,
            "{subscribers} edges linked in {:.1} s, {changes} changes, {cores} cores for all",
            self.connect_s
        )?;
        writeln!(to, "{:<36} {:>10} {:>10} {:>10}", "", "p50", "p99", "longest")?;
        for (what, latency) in [("change asked for → applied, ms", self.change), ("revocation, ms", self.revocation)]
        {
            let Latency { p50_ms, p99_ms, max_ms } = latency;
            writeln!(to, "{what:<36} {p50_ms:>10.1} {p99_ms:>10.1} {max_ms:>10.1}")?;
        }
        let mut line = |what: &str, value: String| writeln!(to, "{what:<36} {value:>10}");
        line("control plane's CPU per delivery, µs", format!("{:.1}", self.cpu_us_per_delivery))?;
        line("its CPU while nothing changes, cores", format!("{:.3}", self.idle_cpu))?;
        line("its memory per idle edge, bytes", self.bytes_per_idle_subscriber.to_string())?;
        for wire in &self.wire {
            let keys = wire.keys;
            line(&format!("one key of {keys}, UDP bytes"), wire.udp_bytes.to_string())?;
            line(&format!("one key of {keys}, frame's bytes"), wire.frame_bytes.to_string())?;
            line(&format!("all of {keys} keys, bytes"), wire.snapshot_bytes.to_string())?;
            line(&format!("all of {keys} keys, s"), format!("{:.3}", wire.snapshot_s))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_of_what_was_seen() {
        let latency = Latency::of((1..=1000).rev().map(Duration::from_millis).collect());
        assert_eq!((latency.p50_ms, latency.p99_ms, latency.max_ms), (500.0, 990.0, 1000.0));
        let latency = Latency::of(vec![Duration::from_millis(7)]);
        assert_eq!((latency.p50_ms, latency.p99_ms), (7.0, 7.0));
    }
}
