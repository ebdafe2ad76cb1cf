//! How often the edge was started by one state without having served by it for long.

use crate::files::write_atomically;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use turnpike_config::log::Position;

/// What was written down about starts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Noted {
    /// The state that was started from.
    at: Position,
    /// Starts from it that came to nothing so far.
    starts: u32,
    /// The state that was given up.
    distrusted: Option<Position>,
}

/// Counts starts.
#[derive(Debug)]
pub(crate) struct Starts {
    path: PathBuf,
    noted: Noted,
}

impl Starts {
    pub(super) fn read(directory: &Path) -> Self {
        let path = directory.join("starts.json");
        // What cannot be read is as good as a first start.
        let text = std::fs::read(&path).unwrap_or_default();
        let noted = serde_json::from_slice(&text).unwrap_or_default();
        Self { path, noted }
    }

    /// Whether the edge died by this state too often.
    pub(super) fn is_deadly(&self, newest: Position, give_up_after: u32) -> bool {
        give_up_after > 0 && newest.version > 0 && self.noted.at == newest && self.noted.starts >= give_up_after
    }

    /// The edge starts from a state, having given up another one.
    pub(super) fn begin(&mut self, at: Position, given_up: Option<Position>) {
        let distrusted = given_up.or(self.noted.distrusted).filter(|it| it.version > at.version);
        let starts = if self.noted.at == at { self.noted.starts + 1 } else { 1 };
        self.note(Noted { at, starts, distrusted });
    }

    /// It has served for a while, or was stopped in order.
    pub(super) fn succeeded(&mut self) {
        self.note(Noted { starts: 0, ..self.noted.clone() });
    }

    /// The state that is not to be taken again.
    pub(super) const fn distrusted(&self) -> Option<Position> {
        self.noted.distrusted
    }

    fn note(&mut self, noted: Noted) {
        if noted != self.noted {
            self.noted = noted;
            let text = serde_json::to_vec(&self.noted).unwrap_or_default();
            if let Err(error) = write_atomically(&self.path, &text) {
                tracing::error!(file = %self.path.display(), %error, "it cannot be noted how often this edge starts");
            }
        }
    }
}
