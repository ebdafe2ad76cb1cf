//! What several rounds gave.

use serde::Serialize;

/// The middle, the least and the most.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(super) struct Spread {
    pub(super) median: f64,
    pub(super) min: f64,
    pub(super) max: f64,
}

impl Spread {
    /// `None` of nothing.
    pub(super) fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut all: Vec<f64> = values.into_iter().collect();
        all.sort_unstable_by(f64::total_cmp);
        let (min, max) = (*all.first()?, *all.last()?);
        let middle = all.len() / 2;
        let median = if all.len() % 2 == 1 { all[middle] } else { f64::midpoint(all[middle - 1], all[middle]) };
        Some(Self { median, min, max })
    }

    /// For a table.
    pub(super) fn show(self, decimals: usize) -> String {
        let Self { median, min, max } = self;
        format!("{median:.decimals$} ({min:.decimals$}–{max:.decimals$})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_middle_is_between_two_if_it_must() {
        assert_eq!(Spread::of([]), None);
        assert_eq!(Spread::of([2.0, 1.0]), Some(Spread { median: 1.5, min: 1.0, max: 2.0 }));
        assert_eq!(Spread::of([9.0, 1.0, 2.0]).map(|spread| spread.show(1)), Some("2.0 (1.0–9.0)".to_owned()));
    }
}
