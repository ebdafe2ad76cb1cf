//! Sends the ledger to the control plane, which acknowledges what it has stored.

use super::files::Position;
use super::record::Outcome;
use super::shared::Shared;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use turnpike_config::link::{Link, LinkError, read_frame, write_frame};
use turnpike_config::wire::{LedgerAck, LedgerBatch, LedgerEntry, MAX_LEDGER_ENTRIES, Open};

/// Between two batches, unless the first was full: nobody waits for these, and fewer are cheaper.
const PAUSE: Duration = Duration::from_millis(250);

/// Sends what ended, in order, from where the last acknowledgement left off.
#[derive(Clone, Debug)]
pub(crate) struct Shipper {
    shared: Arc<Shared>,
}

impl Shipper {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// Sends until the link is lost (`Err`), or until `stop` and all is sent.
    pub(crate) async fn run(&self, link: &Link, stop: &CancellationToken) -> Result<(), LinkError> {
        let (mut send, mut receive) = link.open().await?;
        write_frame(&mut send, &Open::Ledger).await?;
        let mut synced = self.shared.synced();
        let mut position = Position::from_u64(self.shared.shipped.load(Ordering::Acquire));
        loop {
            let to = *synced.borrow_and_update();
            let (entries, next) = self.read(position, to).await.map_err(|error| unreadable(&error))?;
            let is_full = entries.len() == MAX_LEDGER_ENTRIES;
            if !entries.is_empty() {
                let batch = LedgerBatch { position: position.as_u64(), entries };
                write_frame(&mut send, &batch).await?;
                match read_frame::<LedgerAck>(&mut receive).await? {
                    Some(ack) if ack.position == batch.position => {}
                    Some(ack) => return Err(LinkError::Lost(format!("acked {} of the ledger", ack.position))),
                    None => return Err(LinkError::Lost("the control plane ended the ledger's stream".to_owned())),
                }
            }
            if next > position {
                let shared = Arc::clone(&self.shared);
                let noted = tokio::task::spawn_blocking(move || shared.note_shipped(next)).await;
                if let Err(error) = noted.map_err(io::Error::other).flatten() {
                    tracing::warn!(%error, "how far the ledger is shipped could not be noted; it will be sent again");
                }
                position = next;
            }
            let is_behind = position.as_u64() < self.shared.written.load(Ordering::Acquire);
            if stop.is_cancelled() && !is_behind {
                send.finish().await;
                return Ok(());
            }
            if is_full {
                continue;
            }
            if !is_behind {
                tokio::select! {
                    _ = synced.changed() => {}
                    () = stop.cancelled() => continue,
                }
            }
            tokio::select! {
                () = tokio::time::sleep(PAUSE) => {}
                () = stop.cancelled(), if !stop.is_cancelled() => {}
                // Until what was written is synced.
                _ = synced.changed(), if stop.is_cancelled() => {}
            }
        }
    }

    async fn read(&self, from: Position, to: Position) -> io::Result<(Vec<LedgerEntry>, Position)> {
        let shared = Arc::clone(&self.shared);
        let read = move || shared.archive.ended(from, to, MAX_LEDGER_ENTRIES);
        let (ended, next) = tokio::task::spawn_blocking(read).await.map_err(io::Error::other)??;
        let entry =
            |(event, outcome): (_, Outcome)| LedgerEntry { event, tokens: outcome.tokens, state: outcome.state };
        Ok((ended.into_iter().map(entry).collect(), next))
    }
}

fn unreadable(error: &io::Error) -> LinkError {
    LinkError::Lost(format!("the ledger cannot be read: {error}"))
}
