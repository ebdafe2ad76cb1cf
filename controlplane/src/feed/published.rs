//! What edges are to serve by.

use super::compiled::Compiled;
use chrono::{DateTime, Utc};
use turnpike_config::log::Position;
use turnpike_config::signing::{Signature, Signer, Statement};
use turnpike_config::{Change, Routing};

/// A state that may be told to edges.
#[derive(Clone, Debug)]
pub(crate) struct Published {
    /// The state.
    pub(crate) compiled: Compiled,
    /// Edges that hold another log's version up to this may come back to this log.
    pub(crate) rewinds_from: u64,
    /// When the last change to it was made; `None` if it was read from the tables.
    pub(crate) made_at: Option<DateTime<Utc>>,
    /// Of its position.
    pub(crate) signature: Signature,
}

impl Published {
    /// Signs a state.
    pub(super) fn new(compiled: Compiled, rewinds_from: u64, made_at: Option<DateTime<Utc>>, signer: &Signer) -> Self {
        let signature = signer.sign(Statement::Head(compiled.at));
        Self { compiled, rewinds_from, made_at, signature }
    }

    /// Where in the log.
    pub(crate) const fn at(&self) -> Position {
        self.compiled.at
    }

    /// Whether some edges are told this apart from the others.
    pub(crate) fn is_staged(&self, change: &Change) -> bool {
        self.compiled.staged.has(change)
    }

    /// For edges that are in no audience.
    pub(crate) const fn routing(&self) -> &Routing {
        &self.compiled.routing
    }
}
