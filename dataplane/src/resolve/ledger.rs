//! Asks nodes what they did.

use crate::live::Snapshot;
use crate::node_client::NodeClients;
use reqwest::{Method, StatusCode};
use serde::Deserialize;
use std::time::Duration;
use tokio::sync::Semaphore;
use turnpike_config::link::{Identity, LinkError};
use turnpike_config::wire::LedgerState;
use turnpike_config::{EventId, Tokens};

/// Questions on their way at once, over all nodes.
const AT_ONCE: usize = 64;
/// For one answer.
const DEADLINE: Duration = Duration::from_secs(5);

/// The error code of a ledger that has no such event.
const UNKNOWN_EVENT: &str = "unknown_event";

/// What a node knows of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Known {
    Entry(LedgerState, Tokens),
    /// It never came there.
    Nothing,
}

/// Why a node did not say.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unknown {
    #[error("the routing has no such node")]
    NoNode,
    #[error("the node does not answer: {0}")]
    Unreachable(#[from] reqwest::Error),
    #[error("the node keeps no ledger; it is of an older version")]
    NoLedger,
    #[error("the node answers {0}")]
    Refused(StatusCode),
}

/// The nodes' ledgers.
pub(super) struct Ledgers {
    clients: NodeClients,
    /// Bounds how many questions are on their way at once.
    turns: Semaphore,
}

#[derive(Deserialize)]
struct Refusal {
    error: Code,
}

#[derive(Deserialize)]
struct Code {
    code: String,
}

#[derive(Deserialize)]
struct Answer {
    state: LedgerState,
    tokens: Tokens,
}

impl Ledgers {
    pub(super) fn new(identity: &Identity) -> Result<Self, LinkError> {
        Ok(Self { clients: NodeClients::new(identity)?, turns: Semaphore::new(AT_ONCE) })
    }

    pub(super) async fn ask(&self, snapshot: &Snapshot, node: &str, event: EventId) -> Result<Known, Unknown> {
        let node = snapshot.node(node).ok_or(Unknown::NoNode)?;
        // Never closed.
        let _turn = self.turns.acquire().await;
        let path = format!("/turnpike/ledger/{event}");
        let answer = self.clients.request(Method::GET, node, &path)?.timeout(DEADLINE).send().await?;
        match answer.status() {
            StatusCode::OK => {
                let Answer { state, tokens } = answer.json().await?;
                Ok(Known::Entry(state, tokens))
            }
            StatusCode::NOT_FOUND => {
                // Not every 404 is the ledger's: an older node has none.
                let Refusal { error } = answer.json().await?;
                if error.code == UNKNOWN_EVENT { Ok(Known::Nothing) } else { Err(Unknown::NoLedger) }
            }
            status => Err(Unknown::Refused(status)),
        }
    }
}
