//! Money paid ahead: what is in its ledger, and what operators append to it.

use super::standing::standing;
use super::{ActionError, Checks, Operator, audit};
use crate::budgets;
use crate::context::Context;
use crate::store::partitions::Month;
use crate::store::prepaid::{self, Entry, Kind, NewEntry};
use crate::store::{PgConnection, billing};
use chrono::{DateTime, Days, NaiveDate, Utc};
use serde::{Deserialize, Serialize};
use serde_json::json;
use turnpike_config::Usd;
use utoipa::ToSchema;
use uuid::Uuid;

/// Longest key, characters: with room for the prefix that keeps operators' keys apart from our own.
const MAX_KEY: usize = 150;
/// First amount that an entry cannot have, pico-dollars: 10¹² dollars.
pub(super) const LIMIT: i128 = 10_i128.pow(24);
/// Keeps keys that operators choose apart from our own.
const OPERATOR: &str = "operator:";
/// What operators may append.
const KINDS: [&str; 3] = ["top_up", "refund", "adjustment"];

/// An entry of the ledger. Amounts are exact decimal dollars.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct PrepaidEntry {
    /// Its place in the ledger.
    id: i64,
    /// `opening`, `top_up`, `recharge`, `adjustment`, `usage`, `invoice`, `credit`, `refund` or `rounding`.
    kind: String,
    /// What it added to the balance; negative took away.
    #[schema(value_type = String, example = "-1.0042")]
    amount: Usd,
    /// The same key again is the same entry.
    idempotency_key: String,
    /// The UTC day of the usage that it covers.
    day: Option<NaiveDate>,
    /// Who wrote it.
    actor: String,
    /// In words.
    note: Option<String>,
    /// When.
    created_at: DateTime<Utc>,
}

impl PrepaidEntry {
    /// Its place in the ledger.
    pub(crate) const fn id(&self) -> i64 {
        self.id
    }
}

impl From<Entry> for PrepaidEntry {
    fn from(entry: Entry) -> Self {
        // As its operator chose it, also one that begins like the prefix.
        let key = &entry.idempotency_key;
        let key = key.strip_prefix(OPERATOR).unwrap_or(key).to_owned();
        Self {
            amount: entry.amount(),
            id: entry.id,
            kind: entry.kind,
            idempotency_key: key,
            day: entry.day,
            actor: entry.actor,
            note: entry.note,
            created_at: entry.created_at,
        }
    }
}

/// Money that came in, went back, or was counted wrongly.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct CreatePrepaidEntry {
    /// `top_up` (money came in), `refund` (money went back to the customer) or `adjustment`.
    kind: String,
    /// Decimal dollars, not 0, at most 12 places: above 0 for `top_up`, below 0 for `refund`.
    #[schema(example = "50.00")]
    amount: String,
    /// Chosen by the caller, 1 to 150 characters: a second call with the same key appends nothing.
    #[schema(example = "wire-2026-01-17")]
    idempotency_key: String,
    /// In words.
    note: Option<String>,
}

fn check(input: &CreatePrepaidEntry) -> Result<(Kind, Usd), ActionError> {
    let mut checks = Checks::default();
    checks.one_of("kind", &input.kind, &KINDS);
    checks.text("idempotency_key", &input.idempotency_key, MAX_KEY);
    checks.optional_text("note", input.note.as_deref(), 1000);
    let (kind, sign) = match input.kind.as_str() {
        "top_up" => (Kind::TopUp, Some(1)),
        "refund" => (Kind::Refund, Some(-1)),
        _ => (Kind::Adjustment, None),
    };
    let fits = |usd: &Usd| usd.pico != 0 && usd.pico.abs() < LIMIT && sign.is_none_or(|sign| usd.pico.signum() == sign);
    let amount = input.amount.parse::<Usd>().ok().filter(fits);
    checks.require(
        amount.is_some(),
        "amount",
        "expected dollars such as \"50.00\": not 0, below 1000000000000, at most 12 decimal places; \
         above 0 for a top_up, below 0 for a refund",
    );
    checks.finish()?;
    Ok((kind, amount.unwrap_or_default()))
}

/// Appends an entry; an organization that paid afterwards pays ahead from then on. Edges are told in the same
/// transaction. The flag says whether the entry is new.
pub(crate) async fn create(
    context: &Context,
    operator: Operator,
    id: Uuid,
    input: CreatePrepaidEntry,
    now: DateTime<Utc>,
) -> Result<(PrepaidEntry, bool), ActionError> {
    let (kind, amount) = check(&input)?;
    context.rollup.settle().await;
    let key = format!("{OPERATOR}{}", input.idempotency_key);
    let actor = operator.name();
    let mut edit = context.feed.edit(actor.clone()).await?;
    standing(edit.connection(), id, Month::of(now)).await?;
    billing::lock(edit.connection(), id).await?;
    if let Some(entry) = prepaid::by_key(edit.connection(), id, &key).await? {
        if entry.kind != kind.name() || entry.amount() != amount {
            return Err(ActionError::Conflict(format!(
                "idempotency_key «{}» was used for another entry: {} {}",
                input.idempotency_key,
                entry.kind,
                entry.amount()
            )));
        }
        return Ok((entry.into(), false));
    }
    prepaid::open(edit.connection(), id, now.date_naive(), &actor).await?;
    let note = input.note.as_deref();
    let entry = NewEntry { kind, amount, key: &key, actor: &actor, note };
    let entry = append(edit.connection(), id, &entry).await?;
    let details = json!({"kind": kind.name(), "amount": amount, "entry": entry.id});
    audit(&mut edit, operator, "prepaid.append", ("organization", &id.to_string()), details).await?;
    budgets::tell_if_due(&mut edit, &context.spending.demand, &[id], now).await?;
    edit.commit().await?;
    Ok((entry.into(), true))
}

async fn append(connection: &mut PgConnection, id: Uuid, entry: &NewEntry<'_>) -> Result<Entry, ActionError> {
    let appended = prepaid::append(connection, id, entry).await?;
    appended.ok_or_else(|| ActionError::Internal(format!("the ledger of {id} has an entry {} already", entry.key)))
}

/// Makes `balance` what is left, by an adjustment; `None`: it pays afterwards from now on. The caller holds the
/// account's lock.
pub(super) async fn set(
    connection: &mut PgConnection,
    operator: Operator,
    id: Uuid,
    balance: Option<Usd>,
    now: DateTime<Utc>,
) -> Result<(), ActionError> {
    let (today, actor) = (now.date_naive(), operator.name());
    if balance.is_some() {
        prepaid::open(connection, id, today, &actor).await?;
    } else {
        prepaid::post_usage(connection, id, today + Days::new(1)).await?;
    }
    let left = standing(connection, id, Month::of(now)).await?.prepaid_balance();
    let amount = Usd { pico: balance.unwrap_or_default().pico.saturating_sub(left.unwrap_or_default().pico) };
    if amount != Usd::ZERO {
        let (key, note) = (format!("set:{}", Uuid::now_v7()), Some("the balance was set"));
        let entry = NewEntry { kind: Kind::Adjustment, amount, key: &key, actor: &actor, note };
        append(connection, id, &entry).await?;
    }
    if balance.is_none() {
        prepaid::close(connection, id).await?;
    }
    Ok(())
}

/// A page of an organization's ledger, the newest first.
pub(crate) async fn list(
    context: &Context,
    id: Uuid,
    before: Option<i64>,
    limit: i64,
) -> Result<Vec<PrepaidEntry>, ActionError> {
    let mut connection = context.store.read().await?;
    standing(&mut connection, id, Month::of(Utc::now())).await?;
    Ok(prepaid::list(&mut connection, id, before, limit).await?.into_iter().map(PrepaidEntry::from).collect())
}
