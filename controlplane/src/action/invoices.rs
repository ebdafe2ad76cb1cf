//! Invoices: reading them, closing months, and what becomes of an invoice afterwards.

use super::{ActionError, Checks, Operator, Reader};
use crate::closing::{self, By, CloseError, Closed, Until};
use crate::context::Context;
use crate::invoicing::Document;
use crate::store::invoices::{self, DRAFT, Filter, Invoice, OPEN, PAID, STATUSES, UNCOLLECTIBLE, VOID};
use crate::store::partitions::Month;
use crate::store::{PgConnection, billing, charges};
use chrono::{DateTime, NaiveDate, Utc};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tracing::error;
use turnpike_config::Usd;
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

/// An invoice.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct InvoiceView {
    /// Identity.
    pub(crate) id: Uuid,
    /// `draft`, `open`, `paid`, `void` or `uncollectible`.
    pub(crate) status: String,
    /// What it says; frozen once it is not a draft any more.
    #[serde(flatten)]
    pub(crate) document: Document,
    /// What credit notes take back of it, dollars.
    #[schema(value_type = String, example = "0")]
    credited_amount: Usd,
    /// What is still to be paid of an open one: `amount_due`, less credit notes that did not go into the ledger of money
    /// paid ahead.
    #[schema(value_type = String, example = "107.1")]
    remaining_due: Usd,
    /// SHA-256 of its canonical form, once it is not a draft any more.
    pub(crate) checksum: Option<String>,
    /// Whether it still says what it said when it was opened. False: somebody changed the row.
    pub(crate) checksum_valid: bool,
    /// At Stripe.
    stripe_invoice_id: Option<String>,
    /// When the draft was made.
    created_at: DateTime<Utc>,
    /// When it was paid.
    paid_at: Option<DateTime<Utc>>,
    /// When it was voided.
    voided_at: Option<DateTime<Utc>>,
    /// When it was given up.
    uncollectible_at: Option<DateTime<Utc>>,
}

/// Which months to close.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct CloseMonth {
    /// A calendar month (UTC) that is over.
    #[schema(example = "2026-01")]
    month: String,
    /// Only of this organization; of all that used something if absent.
    organization_id: Option<Uuid>,
    /// Only show what would be invoiced; also of the month that goes on.
    #[serde(default)]
    dry_run: bool,
    /// Make drafts, to be looked at and opened one by one.
    #[serde(default)]
    draft: bool,
    /// Also when edges may still ship usage of the month: what comes later goes on the next invoice.
    #[serde(default)]
    force: bool,
}

/// What closing came to.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Closings {
    /// An entry for each organization.
    data: Vec<Closing>,
}

/// What closing an organization's month came to.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Closing {
    /// Whose.
    organization_id: Uuid,
    /// `made` (or with `dry_run`, would be), `already` invoiced, `nothing` to charge, or `refused`.
    outcome: &'static str,
    /// Why it was refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    /// The invoice.
    #[serde(skip_serializing_if = "Option::is_none")]
    invoice: Option<InvoiceView>,
}

impl From<CloseError> for ActionError {
    fn from(error: CloseError) -> Self {
        match error {
            CloseError::Store(error) => error.into(),
            CloseError::Internal(reason) => Self::Internal(reason),
            CloseError::NoOrganization(id) => Self::not_found("organization", id),
            refused => Self::Conflict(refused.to_string()),
        }
    }
}

/// Who acts, for the books.
pub(super) fn by(operator: Operator) -> By {
    By { actor: operator.name(), role: operator.role.name() }
}

fn view(context: &Context, invoice: Invoice) -> InvoiceView {
    let checksum_valid = invoice.verified();
    if !checksum_valid {
        context.metrics.invoice_checksum_failures.inc();
        error!(invoice = %invoice.id, number = invoice.invoice_number, "an invoice does not match its checksum");
    }
    InvoiceView {
        document: invoice.document(),
        credited_amount: invoice.credited(),
        remaining_due: if [OPEN, UNCOLLECTIBLE].contains(&invoice.status.as_str()) {
            invoice.remaining()
        } else {
            Usd::ZERO
        },
        id: invoice.id,
        status: invoice.status,
        checksum: invoice.checksum,
        checksum_valid,
        stripe_invoice_id: invoice.stripe_invoice_id,
        created_at: invoice.created_at,
        paid_at: invoice.paid_at,
        voided_at: invoice.voided_at,
        uncollectible_at: invoice.uncollectible_at,
    }
}

/// A month as `2026-01`.
pub(crate) fn month(field: &str, text: &str) -> Result<Month, ActionError> {
    let day = NaiveDate::parse_from_str(&format!("{text}-01"), "%Y-%m-%d").ok().filter(|_| text.len() == 7);
    day.map(Month::of_day).ok_or_else(|| ActionError::field(field, "expected a month such as \"2026-01\""))
}

/// One invoice.
pub(crate) async fn get(context: &Context, reader: Reader, id: Uuid) -> Result<InvoiceView, ActionError> {
    Ok(view(context, shown(&mut *context.store.read().await?, reader, id).await?))
}

/// An invoice that a reader may see. A draft is none yet for who would have to pay it.
pub(super) async fn shown(connection: &mut PgConnection, reader: Reader, id: Uuid) -> Result<Invoice, ActionError> {
    let found = invoices::get(connection, id).await?;
    let is_shown = |invoice: &Invoice| {
        reader == Reader::Operator || reader.may_see(invoice.organization_id) && invoice.status != DRAFT
    };
    found.filter(is_shown).ok_or_else(|| ActionError::not_found("invoice", id))
}

/// Which invoices are wanted.
#[derive(Clone, Debug, Default)]
pub(crate) struct InvoiceQuery {
    /// Only of this organization.
    pub(crate) organization: Option<Uuid>,
    /// Only with this status.
    pub(crate) status: Option<String>,
    /// Only of this month.
    pub(crate) month: Option<String>,
}

/// A page of invoices, the newest first. `before` is the last id of the page before.
pub(crate) async fn list(
    context: &Context,
    reader: Reader,
    query: InvoiceQuery,
    before: Option<Uuid>,
    limit: i64,
) -> Result<Vec<InvoiceView>, ActionError> {
    if let Some(status) = &query.status {
        let mut checks = Checks::default();
        checks.one_of("status", status, &STATUSES);
        checks.finish()?;
    }
    let month = query.month.map(|text| month("month", &text)).transpose()?.map(Month::first_day);
    let drafts = reader == Reader::Operator;
    let filter = Filter { organization: query.organization, status: query.status, month, drafts };
    let found = invoices::list(&mut *context.store.read().await?, &filter, before, limit).await?;
    Ok(found.into_iter().map(|invoice| view(context, invoice)).collect())
}

/// Closes a month: for one organization, or for all that used something.
pub(crate) async fn close(
    context: &Context,
    operator: Operator,
    input: CloseMonth,
    now: DateTime<Utc>,
) -> Result<Closings, ActionError> {
    let month = month("month", &input.month)?;
    let until = match (input.dry_run, input.draft) {
        (true, _) => Until::DryRun,
        (false, true) => Until::Draft,
        (false, false) => Until::Open,
    };
    closing::check_over(month, until, now)?;
    context.rollup.settle().await;
    let due = {
        let mut connection = context.store.read().await?;
        if until == Until::Open && !input.force {
            closing::ready(&mut connection, month).await?;
        }
        match input.organization_id {
            Some(organization) => vec![organization],
            None => charges::due(&mut connection, month, true).await?,
        }
    };
    let mut data = Vec::with_capacity(due.len());
    for organization in due {
        let closed = closing::close(context, organization, month, until, &by(operator), now).await;
        // One organization's books must not keep the others from their invoices.
        data.push(match closed {
            Err(error) if input.organization_id.is_some() => return Err(error.into()),
            Err(CloseError::Store(error)) => return Err(error.into()),
            Err(error) => Closing {
                organization_id: organization,
                outcome: "refused",
                reason: Some(error.to_string()),
                invoice: None,
            },
            Ok(closed) => closing_view(context, organization, closed),
        });
    }
    Ok(Closings { data })
}

fn closing_view(context: &Context, organization_id: Uuid, closed: Closed) -> Closing {
    let (outcome, invoice) = match closed {
        Closed::Nothing => ("nothing", None),
        Closed::Already(invoice) => ("already", Some(view(context, *invoice))),
        Closed::Made(invoice) => ("made", Some(view(context, *invoice))),
    };
    Closing { organization_id, outcome, reason: None, invoice }
}

/// How a draft is opened.
#[derive(Clone, Copy, Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct OpenDraft {
    /// Also when edges may still ship usage of the month: what comes later goes on the next invoice.
    #[serde(default)]
    force: bool,
}

/// Opens a draft. If usage or terms have changed since it was made, it is made anew and not opened.
pub(crate) async fn open(
    context: &Context,
    operator: Operator,
    id: Uuid,
    input: OpenDraft,
    now: DateTime<Utc>,
) -> Result<InvoiceView, ActionError> {
    context.rollup.settle().await;
    let (organization, month) = {
        let mut connection = context.store.read().await?;
        let draft = invoices::get(&mut connection, id).await?;
        let draft = draft.ok_or_else(|| ActionError::not_found("invoice", id))?;
        if draft.status != DRAFT {
            let reason = format!("invoice {} is {}, not a draft", draft.invoice_number, draft.status);
            return Err(ActionError::Conflict(reason));
        }
        let month = Month::of_day(draft.period_start);
        if !input.force {
            closing::ready(&mut connection, month).await?;
        }
        (draft.organization_id, month)
    };
    match closing::close(context, organization, month, Until::OpenDraft, &by(operator), now).await? {
        Closed::Made(invoice) | Closed::Already(invoice) => Ok(view(context, *invoice)),
        Closed::Nothing => Err(ActionError::Conflict("there is nothing to charge any more".to_owned())),
    }
}

/// What becomes of an opened invoice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// It was paid.
    Pay,
    /// It is paid from money paid ahead.
    PayFromPrepaid,
    /// It was a mistake.
    Void,
    /// It will not be paid.
    GiveUp,
}

impl Step {
    const fn status(self) -> &'static str {
        match self {
            Self::Pay | Self::PayFromPrepaid => PAID,
            Self::Void => VOID,
            Self::GiveUp => UNCOLLECTIBLE,
        }
    }
}

/// Takes an opened invoice a step further; the step that it has taken already is no mistake.
pub(crate) async fn step(
    context: &Context,
    operator: Operator,
    id: Uuid,
    step: Step,
    now: DateTime<Utc>,
) -> Result<InvoiceView, ActionError> {
    if step == Step::PayFromPrepaid {
        // So that all that came is counted before it is said what is left.
        context.rollup.settle().await;
    }
    let mut tx = context.store.begin().await?;
    let invoice = locked(&mut tx, id).await?;
    let by = by(operator);
    let status = step.status();
    if invoice.status != status {
        let legal = invoice.status == OPEN || invoice.status == UNCOLLECTIBLE && step != Step::GiveUp;
        if !legal {
            let reason = format!("invoice {} is {}: it cannot become {status}", invoice.invoice_number, invoice.status);
            return Err(ActionError::Conflict(reason));
        }
        if step == Step::Void && invoice.credited() != Usd::ZERO {
            let reason = format!(
                "invoice {} has credit notes over {} dollars, which would be lost: the month's next invoice charges \
                 everything anew. Instead of voiding it, give a credit note over the rest of it",
                invoice.invoice_number,
                invoice.credited()
            );
            return Err(ActionError::Conflict(reason));
        }
        match step {
            Step::Void => closing::void(&mut tx, &invoice, &by.actor, now).await?,
            Step::PayFromPrepaid => pay_from_prepaid(&mut tx, &invoice, &by, now).await?,
            Step::Pay | Step::GiveUp => invoices::set_status(&mut tx, id, status, now).await?,
        }
        let details = json!({"from": invoice.status, "from_prepaid": step == Step::PayFromPrepaid});
        closing::note(&mut tx, &by, &format!("invoice.{status}"), id, details).await?;
    }
    let after = invoices::get(&mut tx, id).await?.ok_or_else(|| ActionError::not_found("invoice", id))?;
    tx.commit().await.map_err(crate::store::StoreError::from)?;
    context.spending.tell([after.organization_id]);
    Ok(view(context, after))
}

async fn pay_from_prepaid(
    connection: &mut PgConnection,
    invoice: &Invoice,
    by: &By,
    now: DateTime<Utc>,
) -> Result<(), ActionError> {
    let paid = closing::pay_from_prepaid(connection, invoice, &by.actor, now).await?;
    paid.map_err(|left| {
        let (number, due) = (&invoice.invoice_number, invoice.remaining());
        ActionError::Conflict(format!(
            "invoice {number}: {due} dollars are due and {left} are left of what was paid ahead; take a payment in first, \
             or let it be paid otherwise"
        ))
    })
}

/// An invoice whose account nobody else moves until the transaction ends.
pub(super) async fn locked(connection: &mut PgConnection, id: Uuid) -> Result<Invoice, ActionError> {
    let missing = || ActionError::not_found("invoice", id);
    let organization = invoices::get(connection, id).await?.ok_or_else(missing)?.organization_id;
    billing::lock(connection, organization).await?;
    invoices::get(connection, id).await?.ok_or_else(missing)
}
