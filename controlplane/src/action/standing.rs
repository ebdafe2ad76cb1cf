//! How one organization stands with its money.

use super::ActionError;
use crate::store::PgConnection;
use crate::store::billing::{self, Standing};
use crate::store::partitions::Month;
use uuid::Uuid;

/// How an organization stands in a month.
pub(super) async fn standing(connection: &mut PgConnection, id: Uuid, month: Month) -> Result<Standing, ActionError> {
    let found = billing::standings(connection, month, Some(&[id])).await?;
    found.into_iter().next().ok_or_else(|| ActionError::not_found("organization", id))
}
