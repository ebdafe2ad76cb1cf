//! `audit_log`: who changed what through the admin API.

use super::{PgConnection, StoreError};
use serde_json::Value;

/// One accepted change.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Entry<'a> {
    /// Who, such as `token:owner`.
    pub(crate) actor: &'a str,
    /// With which role.
    pub(crate) role: &'a str,
    /// What was done, such as `api_key.rotate`.
    pub(crate) action: &'a str,
    /// Kind of the thing it was done to.
    pub(crate) resource_type: &'a str,
    /// Which one.
    pub(crate) resource_id: &'a str,
    /// What else is worth keeping; never a secret.
    pub(crate) details: &'a Value,
}

/// Appends an entry, in the transaction of the change itself.
pub(crate) async fn append(connection: &mut PgConnection, entry: Entry<'_>) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO audit_log (actor, role, action, resource_type, resource_id, details, success)
         VALUES ($1, $2, $3, $4, $5, $6, true)",
    )
    .bind(entry.actor)
    .bind(entry.role)
    .bind(entry.action)
    .bind(entry.resource_type)
    .bind(entry.resource_id)
    .bind(entry.details)
    .execute(connection)
    .await?;
    Ok(())
}
