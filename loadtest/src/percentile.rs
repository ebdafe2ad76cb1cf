//! What so many of a thousand are not above.

use std::time::Duration;

/// Seconds, of a sorted list; not a number of an empty one.
pub(crate) fn of(sorted: &[Duration], permille: usize) -> f64 {
    let index = (sorted.len() * permille).div_ceil(1000).saturating_sub(1);
    sorted.get(index).map_or(f64::NAN, Duration::as_secs_f64)
}

/// The middle, and what only one in a hundred is above; microseconds.
pub(crate) fn p50_p99_us(mut all: Vec<Duration>) -> [f64; 2] {
    all.sort_unstable();
    [500, 990].map(|permille| of(&all, permille) * 1e6)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_of_what_was_seen() {
        let all: Vec<_> = (1..=1000).map(Duration::from_secs).collect();
        assert_eq!([500, 990, 1000].map(|permille| of(&all, permille)), [500.0, 990.0, 1000.0]);
        assert_eq!([500, 990].map(|permille| of(&all[..7], permille)), [4.0, 7.0]);
        assert!(of(&[], 500).is_nan());
    }
}
