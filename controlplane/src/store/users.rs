//! `users`.

use super::{PgConnection, StoreError};
use chrono::{DateTime, Utc};
use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

/// A member of an organization.
#[derive(Clone, Debug, Serialize, ToSchema, sqlx::FromRow)]
pub(crate) struct User {
    /// Identity.
    pub(crate) id: Uuid,
    /// The organization that the user belongs to.
    pub(crate) organization_id: Uuid,
    /// Unique address.
    pub(crate) email: String,
    /// First name.
    pub(crate) first_name: Option<String>,
    /// Last name.
    pub(crate) last_name: Option<String>,
    /// `owner`, `admin`, `member` or `viewer`.
    pub(crate) role: String,
    /// False once switched off.
    pub(crate) is_active: bool,
    /// Whether the address was confirmed.
    pub(crate) email_verified: bool,
    /// Last sign-in.
    pub(crate) last_login_at: Option<DateTime<Utc>>,
    /// When the user was made.
    pub(crate) created_at: DateTime<Utc>,
    /// When the user was last changed.
    pub(crate) updated_at: DateTime<Utc>,
}

/// Stores a new user.
pub(crate) async fn insert(connection: &mut PgConnection, user: &User) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO users (id, organization_id, email, first_name, last_name, role, is_active, email_verified,
             created_at, updated_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)",
    )
    .bind(user.id)
    .bind(user.organization_id)
    .bind(&user.email)
    .bind(&user.first_name)
    .bind(&user.last_name)
    .bind(&user.role)
    .bind(user.is_active)
    .bind(user.email_verified)
    .bind(user.created_at)
    .bind(user.updated_at)
    .execute(connection)
    .await?;
    Ok(())
}

/// Writes the fields that an operator may change.
pub(crate) async fn update(connection: &mut PgConnection, user: &User) -> Result<(), StoreError> {
    sqlx::query(
        "UPDATE users SET email = $2, first_name = $3, last_name = $4, role = $5, is_active = $6, updated_at = now()
         WHERE id = $1",
    )
    .bind(user.id)
    .bind(&user.email)
    .bind(&user.first_name)
    .bind(&user.last_name)
    .bind(&user.role)
    .bind(user.is_active)
    .execute(connection)
    .await?;
    Ok(())
}

/// One user.
pub(crate) async fn get(connection: &mut PgConnection, id: Uuid) -> Result<Option<User>, StoreError> {
    Ok(sqlx::query_as("SELECT * FROM users WHERE id = $1").bind(id).fetch_optional(connection).await?)
}

/// One user by the address.
pub(crate) async fn named(connection: &mut PgConnection, email: &str) -> Result<Option<User>, StoreError> {
    Ok(sqlx::query_as("SELECT * FROM users WHERE email = $1").bind(email).fetch_optional(connection).await?)
}

/// Every user.
pub(crate) async fn all(connection: &mut PgConnection) -> Result<Vec<User>, StoreError> {
    Ok(sqlx::query_as("SELECT * FROM users ORDER BY id").fetch_all(connection).await?)
}

/// Users after `after` in the order of their ids, at most `limit`, of one organization if given.
pub(crate) async fn list(
    connection: &mut PgConnection,
    organization: Option<Uuid>,
    after: Option<Uuid>,
    limit: i64,
) -> Result<Vec<User>, StoreError> {
    Ok(sqlx::query_as(
        "SELECT * FROM users WHERE ($1::uuid IS NULL OR organization_id = $1) AND ($2::uuid IS NULL OR id > $2)
         ORDER BY id LIMIT $3",
    )
    .bind(organization)
    .bind(after)
    .bind(limit)
    .fetch_all(connection)
    .await?)
}
