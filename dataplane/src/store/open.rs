//! Opens what is kept.

use super::base::Base;
use super::generations::{Generations, generations, log_path};
use super::keeper::Keeper;
use super::log::Log;
use super::recover::{Early, Found, newest, records};
use super::starts::Starts;
use std::path::Path;
use turnpike_config::log::Position;

/// What was found.
pub(crate) struct Opened {
    pub(crate) keeper: Keeper,
    /// `None`: nothing yet, or nothing that can be read.
    pub(crate) state: Option<Base>,
    /// Changes from beyond its position that were served by already.
    pub(crate) early: Early,
    /// The edge died by this state too often, and starts from the one before.
    pub(crate) given_up: Option<Position>,
    /// Not to be taken again.
    pub(crate) distrusted: Option<Position>,
}

/// Opens the directory, which is made if it is not there. A state that the edge died by so often in a row is given up for
/// the one before, if there is one: serving by what may kill is better than not serving at all.
pub(crate) fn open(directory: &Path, give_up_after: u32) -> std::io::Result<Opened> {
    std::fs::create_dir_all(directory)?;
    let all = generations(directory)?;
    let mut starts = Starts::read(directory);
    let (mut found, mut given_up) = (newest(directory, &all, None), None);
    let deadly = found.as_ref().map(|found| found.at).filter(|at| starts.is_deadly(*at, give_up_after));
    if let Some(deadly) = deadly
        && let Some(before) = newest(directory, &all, Some(deadly)).filter(|before| before.at.version > 0)
    {
        tracing::error!(
            given_up = deadly.version,
            version = before.at.version,
            "this edge died again and again by its newest routing: starting from the one before"
        );
        (found, given_up) = (Some(before), Some(deadly));
    }
    let at = found.as_ref().map(|found| found.at).unwrap_or_default();
    starts.begin(at, given_up);
    let distrusted = starts.distrusted();
    let last = all.last().copied().unwrap_or(0);
    let early = found.as_mut().map(|found| std::mem::take(&mut found.early)).unwrap_or_default();
    let (state, generations) = match found {
        // The newest generation goes on as it is.
        Some(Found { at, image, end: Some((generation, good)), is_second_choice: false, .. })
            if generation == last && given_up.is_none() =>
        {
            let log = Log::reopen(&log_path(directory, generation), good)?;
            (Some(Base::new(at, image.finish())), Generations::new(directory, generation, log, at))
        }
        // Something is damaged or given up: written down anew, so that nothing of that is read again.
        Some(Found { at, image, .. }) => {
            let base = Base::new(at, image.finish());
            let mut generations = Generations::afresh(directory, last + 1, Some(&base))?;
            generations.log.append(&records(at, &early))?;
            (Some(base), generations)
        }
        None => (None, Generations::afresh(directory, last + 1, None)?),
    };
    Ok(Opened { keeper: Keeper::start(generations, starts)?, state, early, given_up, distrusted })
}
