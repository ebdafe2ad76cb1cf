//! Numbers that are drawn from a seed.

/// SplitMix64.
#[derive(Clone)]
pub(in crate::limit) struct Random(pub(in crate::limit) u64);

impl Random {
    pub(in crate::limit) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    pub(in crate::limit) fn below(&mut self, n: u64) -> u64 {
        self.next() % n.max(1)
    }
    pub(super) fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }
    pub(super) fn one_of<T: Copy>(&mut self, of: &[T]) -> T {
        of[usize::try_from(self.below(of.len() as u64)).unwrap()]
    }
    /// Time to the next of events that come independently, at a rate per second.
    pub(super) fn wait(&mut self, per_s: f64) -> u64 {
        let seconds = -(1.0 - self.unit()).ln() / per_s;
        u64::try_from(std::time::Duration::from_secs_f64(seconds).as_nanos()).unwrap()
    }
}
