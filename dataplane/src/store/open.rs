//! Finds the newest state that can be read.

use super::base::{self, Base};
use super::checked::Damage;
use super::keeper::{Generations, Keeper};
use super::log::{Log, Reader};
use super::starts::Starts;
use crate::image::{Image, State};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use turnpike_config::log::Position;

/// What was found.
pub(crate) struct Opened {
    pub(crate) keeper: Keeper,
    /// `None`: nothing yet, or nothing that can be read.
    pub(crate) state: Option<Base>,
    /// The edge died by this state too often, and starts from the one before.
    pub(crate) given_up: Option<Position>,
    /// Not to be taken again.
    pub(crate) distrusted: Option<Position>,
}

/// Files of a generation.
pub(super) fn base_path(directory: &Path, generation: u64) -> PathBuf {
    directory.join(format!("base-{generation}"))
}

pub(super) fn log_path(directory: &Path, generation: u64) -> PathBuf {
    directory.join(format!("log-{generation}"))
}

/// The generations of which there are files, oldest first.
pub(super) fn generations(directory: &Path) -> std::io::Result<BTreeSet<u64>> {
    let mut found = BTreeSet::new();
    for entry in std::fs::read_dir(directory)? {
        let name = entry?.file_name();
        let number = name.to_str().and_then(|name| name.strip_prefix("base-").or(name.strip_prefix("log-")));
        found.extend(number.and_then(|number| number.parse::<u64>().ok()));
    }
    Ok(found)
}

/// A state that was read, and where its log goes on.
struct Found {
    at: Position,
    image: Image,
    /// The generation and how many bytes of its log were read; `None` if more has to be cut off than a log's tail.
    end: Option<(u64, u64)>,
    /// A newer whole state was damaged.
    is_second_choice: bool,
}

impl Found {
    fn new(at: Position, state: State, is_second_choice: bool) -> Self {
        Self { at, image: Image::of(state), end: None, is_second_choice }
    }
}

/// Opens the directory, which is made if it is not there.
pub(crate) fn open(directory: &Path) -> std::io::Result<Opened> {
    std::fs::create_dir_all(directory)?;
    let all = generations(directory)?;
    let mut starts = Starts::read(directory);
    let (mut found, mut given_up) = (newest(directory, &all, None), None);
    if let Some(deadly) = found.as_ref().map(|found| found.at).filter(|at| starts.is_deadly(*at)) {
        given_up = Some(deadly);
        found = newest(directory, &all, given_up);
        let version = found.as_ref().map_or(0, |found| found.at.version);
        tracing::error!(
            given_up = deadly.version,
            version,
            "this edge died again and again by its newest routing: starting from the one before"
        );
    }
    let at = found.as_ref().map(|found| found.at).unwrap_or_default();
    starts.begin(at, given_up);
    let distrusted = starts.distrusted();
    let last = all.last().copied().unwrap_or(0);
    let (state, generations) = match found {
        // The newest generation goes on as it is.
        Some(Found { at, image, end: Some((generation, good)), is_second_choice: false })
            if generation == last && given_up.is_none() =>
        {
            let log = Log::reopen(&log_path(directory, generation), good)?;
            (Some(Base::new(at, image.finish())), Generations::new(directory, generation, log, at))
        }
        // Something is damaged or given up: written down anew, so that nothing of that is read again.
        Some(Found { at, image, .. }) => {
            let base = Base::new(at, image.finish());
            (Some(base.clone()), Generations::afresh(directory, last + 1, Some(&base))?)
        }
        None => (None, Generations::afresh(directory, last + 1, None)?),
    };
    Ok(Opened { keeper: Keeper::start(generations, starts)?, state, given_up, distrusted })
}

/// The newest state that can be read, or the newest before `stop`.
fn newest(directory: &Path, all: &BTreeSet<u64>, stop: Option<Position>) -> Option<Found> {
    let mut damaged = false;
    for generation in all.iter().rev() {
        let path = base_path(directory, *generation);
        if !path.exists() {
            continue;
        }
        match base::load(&path) {
            Ok((at, _)) if Some(at) == stop => {}
            Ok((at, state)) => {
                let found = Found::new(at, state, damaged);
                return Some(replay(directory, all.range(generation..), found, stop));
            }
            Err(error) => {
                tracing::error!(file = %path.display(), %error, "a routing on disk cannot be used: trying the one before");
                damaged = true;
            }
        }
    }
    // Without a whole state, a first log may begin at nothing.
    let first = Found::new(Position::default(), State::default(), damaged);
    Some(replay(directory, all.iter(), first, stop)).filter(|found| found.at.version > 0)
}

/// Follows the logs as far as they lead on.
fn replay<'g>(
    directory: &Path,
    logs: impl Iterator<Item = &'g u64>,
    mut found: Found,
    stop: Option<Position>,
) -> Found {
    for generation in logs {
        let path = log_path(directory, *generation);
        match follow(&path, &mut found, stop) {
            Ok((good, true)) => found.end = Some((*generation, good)),
            Ok((good, false)) => {
                found.end = Some((*generation, good));
                break;
            }
            Err(Damage::Io(error)) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => {
                tracing::error!(file = %path.display(), %error, "a log of routing cannot be used");
                found.end = None;
                break;
            }
        }
    }
    found
}

/// Takes the records of a log; says how many of its bytes are good, and whether that was all.
fn follow(path: &Path, found: &mut Found, stop: Option<Position>) -> Result<(u64, bool), Damage> {
    let mut reader = Reader::open(path)?;
    loop {
        match reader.next() {
            Ok(None) => return Ok((reader.good, true)),
            Ok(Some((record, before))) if record.from != found.at || Some(record.to) == stop => {
                return Ok((before, false));
            }
            Ok(Some((record, _))) => {
                found.at = record.to;
                record.changes.into_iter().for_each(|change| found.image.apply(change));
            }
            Err(error) => {
                let version = found.at.version;
                tracing::warn!(file = %path.display(), %error, version, "a log of routing is torn: used up to there");
                return Ok((reader.good, false));
            }
        }
    }
}

/// The newest state, read from the files alone.
pub(super) fn reread(directory: &Path) -> std::io::Result<Base> {
    let found = newest(directory, &generations(directory)?, None);
    Ok(found.map(|found| Base::new(found.at, found.image.finish())).unwrap_or_default())
}
