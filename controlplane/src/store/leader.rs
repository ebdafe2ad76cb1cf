//! Which control plane runs what must run once: an advisory lock, held by a transaction of its own.

use super::{Store, StoreError, Tx};

/// Closing months («closing» in ASCII).
pub(crate) const CLOSING: i64 = 0x0063_6c6f_7369_6e67;

/// Collecting money («collect» in ASCII).
pub(crate) const COLLECTING: i64 = 0x0063_6f6c_6c65_6374;

/// Copying the request log into ClickHouse («copy_log» in ASCII).
pub(crate) const COPYING: i64 = 0x636f_7079_5f6c_6f67;

/// Comparing the books of a day («reconcil» in ASCII).
pub(crate) const RECONCILE: i64 = 0x7265_636f_6e63_696c;

/// Looking after rollouts («rollout» in ASCII).
pub(crate) const ROLLOUT: i64 = 0x0072_6f6c_6c6f_7574;

/// The right to run something, until it is dropped or the connection is lost.
pub(crate) struct Leading(Tx);

impl Leading {
    /// Gives it back.
    pub(crate) async fn end(self) -> Result<(), StoreError> {
        Ok(self.0.rollback().await?)
    }
}

/// Takes the right if nobody has it.
pub(crate) async fn try_lead(store: &Store, what: i64) -> Result<Option<Leading>, StoreError> {
    let mut tx = store.begin().await?;
    let won: bool = sqlx::query_scalar("SELECT pg_try_advisory_xact_lock($1)").bind(what).fetch_one(&mut *tx).await?;
    Ok(won.then_some(Leading(tx)))
}
