//! `recharges`: money that was asked for because little was left of what was paid ahead.

use super::amounts::{decimal, usd};
use super::{PgConnection, StoreError};
use chrono::{DateTime, Utc};
use rust_decimal::Decimal;
use turnpike_config::Usd;
use uuid::Uuid;

/// A request for money.
#[derive(Clone, Debug, sqlx::FromRow)]
pub(crate) struct Recharge {
    /// Identity; the provider is asked with it.
    pub(crate) id: Uuid,
    /// For whom.
    pub(crate) organization_id: Uuid,
    amount: Decimal,
    /// The provider's customer.
    pub(crate) customer: Option<String>,
    /// What is to be charged.
    pub(crate) payment_method: Option<String>,
    /// The provider's name for it, once it has answered.
    pub(crate) provider_id: Option<String>,
    /// When it was noted.
    pub(crate) created_at: DateTime<Utc>,
}

impl Recharge {
    /// How much.
    pub(crate) fn amount(&self) -> Usd {
        usd(self.amount)
    }
}

/// Organizations whose money is to be looked at: recharged by themselves, with no request open and none that failed so
/// recently that the next has to wait.
pub(crate) async fn candidates(connection: &mut PgConnection) -> Result<Vec<Uuid>, StoreError> {
    Ok(sqlx::query_scalar(
        "SELECT organization_id FROM billing_accounts a
         WHERE auto_recharge_enabled AND prepaid_since IS NOT NULL AND NOT EXISTS (
             SELECT 1 FROM recharges r WHERE r.organization_id = a.organization_id
                 AND (r.status = 'open' OR r.status = 'failed' AND r.retry_at > now()))
         ORDER BY 1",
    )
    .fetch_all(connection)
    .await?)
}

/// Notes that money is to be asked for. Does nothing if a request is open.
pub(crate) async fn open(
    connection: &mut PgConnection,
    organization: Uuid,
    amount: Usd,
    customer: &str,
    payment_method: Option<&str>,
) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO recharges (id, organization_id, amount, customer, payment_method) VALUES ($1, $2, $3, $4, $5)
         ON CONFLICT DO NOTHING",
    )
    .bind(Uuid::now_v7())
    .bind(organization)
    .bind(decimal(amount)?)
    .bind(customer)
    .bind(payment_method)
    .execute(connection)
    .await?;
    Ok(())
}

/// Every open request, the oldest first.
pub(crate) async fn all_open(connection: &mut PgConnection) -> Result<Vec<Recharge>, StoreError> {
    Ok(sqlx::query_as("SELECT * FROM recharges WHERE status = 'open' ORDER BY id").fetch_all(connection).await?)
}

/// One request.
pub(crate) async fn get(connection: &mut PgConnection, id: Uuid) -> Result<Option<Recharge>, StoreError> {
    Ok(sqlx::query_as("SELECT * FROM recharges WHERE id = $1").bind(id).fetch_optional(connection).await?)
}

/// Notes the provider's name for it.
pub(crate) async fn name(connection: &mut PgConnection, id: Uuid, provider_id: &str) -> Result<(), StoreError> {
    sqlx::query("UPDATE recharges SET provider_id = $2 WHERE id = $1 AND provider_id IS NULL")
        .bind(id)
        .bind(provider_id)
        .execute(connection)
        .await?;
    Ok(())
}

/// It came in.
pub(crate) async fn succeed(connection: &mut PgConnection, id: Uuid, at: DateTime<Utc>) -> Result<(), StoreError> {
    sqlx::query(
        "UPDATE recharges SET status = 'succeeded', ended_at = $2, retry_at = NULL, error = NULL WHERE id = $1",
    )
    .bind(id)
    .bind(at)
    .execute(connection)
    .await?;
    Ok(())
}

/// It did not come in, if it is open. The next is asked for an hour later, and twice as late after each failure in a
/// row, a day at most.
pub(crate) async fn fail(
    connection: &mut PgConnection,
    id: Uuid,
    reason: &str,
    at: DateTime<Utc>,
) -> Result<(), StoreError> {
    sqlx::query(
        "UPDATE recharges r SET status = 'failed', ended_at = $3, error = left($2, 1000),
             failures = before.failures + 1,
             retry_at = $3 + least(interval '1 hour' * power(2, least(before.failures, 10)), interval '24 hours')
         FROM (SELECT coalesce((SELECT CASE WHEN last.status = 'failed' THEN last.failures ELSE 0 END FROM recharges last
             JOIN recharges this ON this.id = $1 AND this.organization_id = last.organization_id
             WHERE last.id <> this.id AND last.created_at <= this.created_at ORDER BY last.id DESC LIMIT 1), 0)
             AS failures) AS before
         WHERE r.id = $1 AND r.status = 'open'",
    )
    .bind(id)
    .bind(reason)
    .bind(at)
    .execute(connection)
    .await?;
    Ok(())
}
