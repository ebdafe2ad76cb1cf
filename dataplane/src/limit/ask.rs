//! What edges and the region's buckets say to each other.

use super::clock::{ServerTime, Vouch};

/// Terms of a limit, the same for every edge: how much at once, and how fast it comes back.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Terms {
    /// Units that may be out or used up at once.
    pub(crate) capacity: f64,
    /// How used units come back.
    pub(crate) refill: Refill,
}

/// How used units come back.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Refill {
    /// So many a second.
    PerSecond(f64),
    /// When whoever has them lets go of them: requests that run at the same time.
    OnRelease,
    /// Not at all: money.
    Never,
}

impl Refill {
    /// Units per microsecond; negative for [`Refill::OnRelease`]. As the script takes it.
    pub(crate) fn per_us(self) -> f64 {
        match self {
            Self::PerSecond(rate) => rate / 1e6,
            Self::OnRelease => -1.0,
            Self::Never => 0.0,
        }
    }
}

/// What is known to have been spent of a budget from the books, which are behind but lose nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Floor {
    /// Units.
    pub(crate) units: f64,
    /// Everything spent up to then is counted in it.
    pub(crate) complete_to: ServerTime,
}

/// An edge asks a bucket for units, gives units back, and says what it still holds.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Ask {
    /// Terms of the limit.
    pub(crate) terms: Terms,
    /// Units wanted; less may be granted.
    pub(crate) want: u64,
    /// Units that the edge does not need after all.
    pub(crate) give_back: u64,
    /// Units that the edge holds beside those: not spent, or spent on what may still give some back.
    pub(crate) outstanding: u64,
    /// How long the edge holds on to anything without asking again, microseconds.
    pub(crate) life_us: i64,
    /// Which life of the bucket `give_back` and `outstanding` are from; empty if from none.
    pub(crate) generation: String,
    /// Units that the edge has spent on its own account while it could not reach the bucket.
    pub(crate) spent: u64,
    /// What the bucket had been credited when the edge last heard of it.
    pub(crate) credited: f64,
    /// Units that are used up whatever the bucket remembers.
    pub(crate) floor: Floor,
    /// What the edge knows of the server's clock.
    pub(crate) vouch: Vouch,
}

impl Ask {
    /// As `bucket.lua` takes it, for a holder.
    pub(crate) fn arguments(&self, holder: &str) -> Vec<String> {
        // Enough digits for any double to come back as it was.
        let exact = |x: f64| format!("{x:.17e}");
        vec![
            exact(self.terms.capacity),
            exact(self.terms.refill.per_us()),
            self.want.to_string(),
            self.give_back.to_string(),
            self.outstanding.to_string(),
            self.life_us.to_string(),
            self.generation.clone(),
            self.spent.to_string(),
            exact(self.credited),
            exact(self.floor.units),
            self.floor.complete_to.to_string(),
            self.vouch.from.to_string(),
            self.vouch.not_after.to_string(),
            holder.to_owned(),
        ]
    }
}

/// The bucket's answer.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Grant {
    /// Units that the edge may spend, at most as many as it wanted.
    pub(crate) granted: u64,
    /// Units left in the bucket; negative if more were used up than there were.
    pub(crate) left: f64,
    /// The server's clock.
    pub(crate) at: ServerTime,
    /// The bucket's life; a new one begins when the server lost its data.
    pub(crate) generation: String,
    /// All refill that the bucket was ever credited in this life, units.
    pub(crate) credited: f64,
}
