//! What operators can do: rules and transactions, without HTTP and without SQL.

pub(crate) mod billing;
pub(crate) mod cache;
pub(crate) mod config;
pub(crate) mod credit_notes;
pub(crate) mod declared;
pub(crate) mod invoices;
pub(crate) mod keys;
mod limits;
pub(crate) mod models;
pub(crate) mod nodes;
pub(crate) mod organizations;
pub(crate) mod prepaid;
pub(crate) mod prices;
pub(crate) mod rollout_steps;
pub(crate) mod rollouts;
pub(crate) mod routes;
mod standing;
pub(crate) mod usage;
pub(crate) mod users;
pub(crate) mod versions;

use crate::admission::Role;
use crate::feed::{Edit, FeedError};
use crate::ledger::LedgerError;
use crate::reason;
use crate::store::{ConstraintKind, StoreError, audit};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;
use utoipa::ToSchema;
use uuid::Uuid;

/// Who acts.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Operator {
    /// What they may do.
    pub(crate) role: Role,
}

impl Operator {
    /// As written to the change and audit logs.
    pub(crate) fn name(self) -> String {
        format!("token:{}", self.role.name())
    }
}

/// Who reads what belongs to organizations, and so of which.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reader {
    /// Of all.
    Operator,
    /// Of its own.
    Customer(Uuid),
}

impl Reader {
    /// Which organization to show something of: a customer's own, whether or not it asked for it. Another's is as good as
    /// one that does not exist.
    pub(crate) fn only(self, asked: Option<Uuid>) -> Result<Option<Uuid>, ActionError> {
        match (self, asked) {
            (Self::Operator, asked) => Ok(asked),
            (Self::Customer(own), None) => Ok(Some(own)),
            (Self::Customer(own), Some(asked)) if own == asked => Ok(Some(own)),
            (Self::Customer(_), Some(asked)) => Err(ActionError::not_found("organization", asked)),
        }
    }

    /// Whether something of this organization may be shown.
    pub(crate) fn may_see(self, organization: Uuid) -> bool {
        self.only(Some(organization)).is_ok()
    }
}

/// A field that cannot be accepted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub(crate) struct FieldError {
    /// Dotted path of the field, or the name of a query parameter.
    #[schema(example = "rate_limits.requests_per_minute")]
    pub(crate) field: String,
    /// What is wrong with it.
    pub(crate) detail: String,
}

/// Why an action did nothing.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ActionError {
    /// Fields cannot be accepted.
    #[error("{} fields are not valid", .0.len())]
    Invalid(Vec<FieldError>),
    /// There is no such thing.
    #[error("{what} {id} does not exist")]
    NotFound {
        /// Kind of thing.
        what: &'static str,
        /// Which one.
        id: String,
    },
    /// The present state does not allow it.
    #[error("{0}")]
    Conflict(String),
    /// The operator's role does not allow it.
    #[error("this needs the role {}", .0.name())]
    Forbidden(Role),
    /// Not yet: what it needs is being made.
    #[error("{0}")]
    NotYet(String),
    /// The database refused or does not answer.
    #[error(transparent)]
    Store(StoreError),
    /// Anything else is a defect.
    #[error("{0}")]
    Internal(String),
}

impl ActionError {
    /// There is no such thing.
    pub(crate) fn not_found(what: &'static str, id: impl std::fmt::Display) -> Self {
        Self::NotFound { what, id: id.to_string() }
    }

    /// One field cannot be accepted.
    pub(crate) fn field(field: &str, detail: impl Into<String>) -> Self {
        Self::Invalid(vec![FieldError { field: field.to_owned(), detail: detail.into() }])
    }
}

impl From<StoreError> for ActionError {
    fn from(error: StoreError) -> Self {
        let StoreError::Constraint { kind, constraint } = &error else { return Self::Store(error) };
        let known = match constraint.as_str() {
            "idx_organizations_slug" => Some("slug: another organization has it"),
            "idx_users_email" => Some("email: another user has it"),
            "models_pkey" => Some("id: another model has it"),
            "model_routes_name_organization_key" => Some("name: there is a route of this name"),
            "model_versions_model_id_version_key" => Some("version: the model has one of this name"),
            _ => None,
        };
        Self::Conflict(known.map_or_else(
            || match kind {
                ConstraintKind::Unique => format!("the value is taken ({constraint})"),
                ConstraintKind::Reference => {
                    format!("something that is referred to does not exist, or is still in use ({constraint})")
                }
                ConstraintKind::Check => format!("a value is outside of what is allowed ({constraint})"),
            },
            str::to_owned,
        ))
    }
}

impl From<LedgerError> for ActionError {
    fn from(error: LedgerError) -> Self {
        match error {
            LedgerError::Postgres(error) => error.into(),
            LedgerError::Copying(_) => Self::NotYet(error.to_string()),
            LedgerError::ClickHouse { .. } => Self::Store(StoreError::Unavailable(error.to_string())),
        }
    }
}

impl From<FeedError> for ActionError {
    fn from(error: FeedError) -> Self {
        match error {
            FeedError::Store(error) => error.into(),
            FeedError::Faults(_) | FeedError::UnderRollout(_) => Self::Conflict(error.to_string()),
        }
    }
}

/// Gathers what is wrong with an input, to report it all at once.
#[derive(Default)]
struct Checks(Vec<FieldError>);

impl Checks {
    fn require(&mut self, holds: bool, field: &str, detail: &str) {
        if !holds {
            self.0.push(FieldError { field: field.to_owned(), detail: detail.to_owned() });
        }
    }

    fn push(&mut self, error: FieldError) {
        self.0.push(error);
    }

    /// A text of 1 to `most` characters, none of them a control character.
    fn text(&mut self, field: &str, text: &str, most: usize) {
        let fits = !text.trim().is_empty() && text.chars().count() <= most && !text.chars().any(char::is_control);
        self.require(fits, field, &format!("expected 1 to {most} printable characters"));
    }

    fn optional_text(&mut self, field: &str, text: Option<&str>, most: usize) {
        if let Some(text) = text {
            self.text(field, text, most);
        }
    }

    fn one_of(&mut self, field: &str, text: &str, allowed: &[&str]) {
        self.require(allowed.contains(&text), field, &format!("expected one of {}", allowed.join(", ")));
    }

    fn object(&mut self, field: &str, value: &Value) {
        self.require(value.is_object(), field, "expected an object");
    }

    fn finish(self) -> Result<(), ActionError> {
        if self.0.is_empty() { Ok(()) } else { Err(ActionError::Invalid(self.0)) }
    }
}

/// A reason inside a body, as one in the header would be.
fn sound_reason(reason: Option<&str>) -> Result<Option<String>, ActionError> {
    let sound = |said| reason::sound(said).ok_or_else(|| ActionError::field("reason", reason::EXPECTED));
    Ok(reason.map(sound).transpose()?.map(|reason| reason.to_string()))
}

/// A patch's field: absent leaves it, null clears it.
fn nullable<'de, D: Deserializer<'de>, T: Deserialize<'de>>(d: D) -> Result<Option<Option<T>>, D::Error> {
    Option::<T>::deserialize(d).map(Some)
}

/// Writes an audit entry in the transaction of the change.
async fn audit(
    edit: &mut Edit<'_>,
    operator: Operator,
    action: &str,
    resource: (&str, &str),
    details: Value,
) -> Result<(), StoreError> {
    let actor = operator.name();
    let entry = audit::Entry {
        actor: &actor,
        role: operator.role.name(),
        action,
        resource_type: resource.0,
        resource_id: resource.1,
        details: &details,
    };
    audit::append(edit.connection(), entry).await
}
