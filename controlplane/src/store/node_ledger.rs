//! The nodes' own ledgers, as they send them.

use super::{PgConnection, StoreError};
use chrono::NaiveDate;
use turnpike_config::wire::{LedgerEntry, LedgerState};

/// An entry in the shape of its row.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LedgerRow {
    /// What the node sent.
    pub(crate) entry: LedgerEntry,
    /// UTC day of the time inside the event's id.
    pub(crate) day: NaiveDate,
}

/// Stores entries of a node, each event at most once in `rows`; the latest of an event is what counts.
pub(crate) async fn put(connection: &mut PgConnection, node: &str, rows: &[LedgerRow]) -> Result<(), StoreError> {
    macro_rules! column {
        ($row:ident => $value:expr) => {
            rows.iter().map(|$row| $value).collect::<Vec<_>>()
        };
    }
    sqlx::query(
        "INSERT INTO node_ledger AS held (day, event_id, node, state, prompt_tokens, cached_tokens, completion_tokens)
         SELECT day, event_id, $1, state, prompt_tokens, cached_tokens, completion_tokens
         FROM unnest($2::date[], $3::uuid[], $4::text[], $5::bigint[], $6::bigint[], $7::bigint[])
             AS e (day, event_id, state, prompt_tokens, cached_tokens, completion_tokens)
         ORDER BY day, event_id
         ON CONFLICT (day, event_id, node) DO UPDATE
             SET state = excluded.state, prompt_tokens = excluded.prompt_tokens, cached_tokens = excluded.cached_tokens,
                 completion_tokens = excluded.completion_tokens, received_at = now()
             WHERE (held.state, held.prompt_tokens, held.cached_tokens, held.completion_tokens) IS DISTINCT FROM
                 (excluded.state, excluded.prompt_tokens, excluded.cached_tokens, excluded.completion_tokens)",
    )
    .bind(node)
    .bind(column!(r => r.day))
    .bind(column!(r => r.entry.event.0))
    .bind(column!(r => name(r.entry.state)))
    .bind(column!(r => i64::from(r.entry.tokens.prompt)))
    .bind(column!(r => i64::from(r.entry.tokens.cached)))
    .bind(column!(r => i64::from(r.entry.tokens.completion)))
    .execute(connection)
    .await?;
    Ok(())
}

/// As in the table. What runs is not sent.
const fn name(state: LedgerState) -> &'static str {
    match state {
        LedgerState::Counted => "counted",
        LedgerState::Seen => "seen",
        LedgerState::Refused => "refused",
        LedgerState::Begun | LedgerState::Lost => "lost",
    }
}
