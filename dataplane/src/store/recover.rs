//! Finds the newest state that can be read.

use super::base::{self, Base};
use super::checked::Damage;
use super::generations::{base_path, generations, log_path};
use super::log::{Reader, Record};
use crate::image::{Image, State};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use turnpike_config::Change;
use turnpike_config::log::Position;

/// Changes from beyond a position, by version.
pub(crate) type Early = BTreeMap<u64, Vec<Change>>;

/// Records that say the same.
pub(super) fn records(at: Position, early: &Early) -> Vec<Record> {
    let record = |(version, changes): (&u64, &Vec<Change>)| Record {
        from: at,
        to: at,
        changes: changes.clone(),
        early: Some(*version),
    };
    early.iter().map(record).collect()
}

/// A state that was read, and where its log goes on.
pub(super) struct Found {
    pub(super) at: Position,
    pub(super) image: Image,
    /// Changes from beyond the position, by version.
    pub(super) early: Early,
    /// The generation and how many bytes of its log were read; `None` if more has to be cut off than a log's tail.
    pub(super) end: Option<(u64, u64)>,
    /// A newer whole state was damaged.
    pub(super) is_second_choice: bool,
}

impl Found {
    fn new(at: Position, state: State, is_second_choice: bool) -> Self {
        Self { at, image: Image::of(state), early: Early::new(), end: None, is_second_choice }
    }

    /// Takes a record that follows.
    fn take(&mut self, record: Record) {
        let Record { to, changes, early, .. } = record;
        if let Some(version) = early {
            self.early.insert(version, changes);
            return;
        }
        self.at = to;
        self.early = self.early.split_off(&(to.version + 1));
        changes.into_iter().for_each(|change| self.image.apply(change));
    }
}

/// The newest state that can be read, or the newest before `stop`.
pub(super) fn newest(directory: &Path, all: &BTreeSet<u64>, stop: Option<Position>) -> Option<Found> {
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
            Ok(Some((record, _))) => found.take(record),
            Err(error) => {
                let version = found.at.version;
                tracing::warn!(file = %path.display(), %error, version, "a log of routing is torn: used up to there");
                return Ok((reader.good, false));
            }
        }
    }
}

/// The newest state, read from the files alone.
pub(super) fn reread(directory: &Path) -> std::io::Result<(Base, Early)> {
    let found = newest(directory, &generations(directory)?, None);
    Ok(found.map(|found| (Base::new(found.at, found.image.finish()), found.early)).unwrap_or_default())
}

/// A state with the steps that follow on it.
pub(super) fn folded(base: Base, early: Early, steps: Vec<Record>) -> (Base, Early) {
    let Base { at, records, keys, rests } = base;
    let (records, keys, rests) =
        (Arc::unwrap_or_clone(records), Arc::unwrap_or_clone(keys), Arc::unwrap_or_clone(rests));
    let mut found = Found { early, ..Found::new(at, State { records, keys, rests }, false) };
    steps.into_iter().for_each(|step| found.take(step));
    (Base::new(found.at, found.image.finish()), found.early)
}
