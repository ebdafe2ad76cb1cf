//! The units of one limit that an edge holds, as one word: what can be spent, what is reserved, and in which tenure.
//!
//! One atomic word, so that whoever reads it sees units either in the one place or in the other, never in none.

use std::sync::atomic::{AtomicU64, Ordering};

const FIELD: u32 = 28;
const FIELD_MASK: u64 = (1 << FIELD) - 1;
/// Most units that can be free, or reserved, at once: 134 million.
pub(crate) const MOST: i64 = (1 << (FIELD - 1)) - 1;

/// What the word says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct View {
    /// Units that can be spent; negative: so many were spent too much.
    pub(crate) free: i64,
    /// Units spent that may yet give some back.
    pub(crate) reserved: i64,
    /// Grows each time that everything held is let go of. Wraps.
    pub(crate) tenure: u8,
}

impl View {
    #[expect(clippy::cast_sign_loss, reason = "packs two's complement")]
    const fn pack(self) -> u64 {
        ((self.tenure as u64) << (2 * FIELD))
            | (((self.reserved as u64) & FIELD_MASK) << FIELD)
            | (self.free as u64 & FIELD_MASK)
    }

    #[expect(clippy::cast_possible_wrap, reason = "unpacks two's complement")]
    const fn unpack(word: u64) -> Self {
        // Shifting up and down again extends the sign.
        let free = ((word << (64 - FIELD)) as i64) >> (64 - FIELD);
        let reserved = ((word >> FIELD) & FIELD_MASK) as i64;
        Self { free, reserved, tenure: (word >> (2 * FIELD)) as u8 }
    }
}

/// See [`View`].
#[derive(Debug, Default)]
pub(crate) struct Held(AtomicU64);

impl Held {
    /// What is held now.
    pub(crate) fn view(&self) -> View {
        View::unpack(self.0.load(Ordering::Acquire))
    }

    /// Spends `units` if so many are free. `reserve`: they may come back in part.
    pub(crate) fn spend(&self, units: i64, reserve: bool) -> Result<View, View> {
        self.change(|view| {
            let reserved = if reserve { view.reserved + units } else { view.reserved };
            (view.free >= units && reserved <= MOST).then_some(View { free: view.free - units, reserved, ..view })
        })
    }

    /// Ends a reservation of `units`, of which `used` were used. In another tenure than its own it has no effect.
    pub(crate) fn settle(&self, units: i64, used: i64, tenure: u8) -> Result<View, View> {
        self.change(|view| {
            let free = (view.free + units - used).clamp(-MOST, MOST);
            (view.tenure == tenure).then_some(View { free, reserved: (view.reserved - units).max(0), ..view })
        })
    }

    /// Adds units that were granted.
    pub(crate) fn add(&self, units: i64) {
        // The closure never refuses.
        let _ = self.change(|view| Some(View { free: (view.free + units).clamp(-MOST, MOST), ..view }));
    }

    /// Takes free units out, at most `units`; says how many.
    pub(crate) fn take_out(&self, units: i64) -> i64 {
        let mut taken = 0;
        let _ = self.change(|view| {
            taken = units.min(view.free).max(0);
            Some(View { free: view.free - taken, ..view })
        });
        taken
    }

    /// Lets go of everything, or of everything but what is reserved. What was spent too much stays owed.
    pub(crate) fn let_go(&self, keep_reserved: bool) {
        let _ = self.change(|view| {
            let free = view.free.min(0);
            Some(if keep_reserved {
                View { free, ..view }
            } else {
                View { free, reserved: 0, tenure: view.tenure.wrapping_add(1) }
            })
        });
    }

    fn change(&self, mut with: impl FnMut(View) -> Option<View>) -> Result<View, View> {
        let mut word = self.0.load(Ordering::Acquire);
        loop {
            let view = View::unpack(word);
            let Some(next) = with(view) else { return Err(view) };
            match self.0.compare_exchange_weak(word, next.pack(), Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return Ok(next),
                Err(seen) => word = seen,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn units_move_between_free_and_reserved_and_none_get_lost() {
        let held = Held::default();
        assert!(held.spend(1, false).is_err());
        held.add(100);
        let spent = held.spend(30, true).unwrap();
        assert_eq!(spent, View { free: 70, reserved: 30, tenure: 0 });
        assert_eq!(held.settle(30, 10, spent.tenure).unwrap(), View { free: 90, reserved: 0, tenure: 0 });
        assert_eq!(held.take_out(1_000), 90);
        assert_eq!(held.take_out(1), 0);
    }

    #[test]
    fn what_was_let_go_of_cannot_be_settled_and_debts_stay() {
        let held = Held::default();
        held.add(10);
        let spent = held.spend(10, true).unwrap();
        held.settle(10, 15, spent.tenure).unwrap();
        let view = held.view();
        assert_eq!((view.free, view.reserved), (-5, 0));
        held.let_go(false);
        assert_eq!(held.view(), View { free: -5, reserved: 0, tenure: 1 });
        assert!(held.settle(10, 0, spent.tenure).is_err());
    }

    proptest! {
        #[test]
        fn a_view_survives_its_word(free in -MOST..=MOST, reserved in 0..=MOST, tenure: u8) {
            let view = View { free, reserved, tenure };
            prop_assert_eq!(View::unpack(view.pack()), view);
        }
    }
}
