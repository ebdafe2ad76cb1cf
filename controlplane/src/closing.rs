//! Closing months: from the books to invoices, an organization's invoice in one transaction.

use crate::context::Context;
use crate::invoicing::{Document, Line, floor_cents};
use crate::settings::Invoicing;
use crate::store::invoices::{self, DRAFT, Invoice, PAID, VOID};
use crate::store::partitions::Month;
use crate::store::prepaid::{self, Kind, NewEntry};
use crate::store::{PgConnection, StoreError, audit, billing, charges, rollup};
use chrono::{DateTime, Days, Utc};
use serde_json::{Value, json};
use turnpike_config::Usd;
use uuid::Uuid;

/// The one currency that usage is priced in.
const CURRENCY: &str = "USD";
/// Who writes ledger entries that follow from an invoice.
const ACTOR: &str = "invoicing";

/// Why a month was not closed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CloseError {
    /// It goes on.
    #[error("{0} is not over yet (UTC)")]
    NotOver(Month),
    /// There is no such organization.
    #[error("organization {0} does not exist")]
    NoOrganization(Uuid),
    /// Lines and daily books differ. Nothing is invoiced until they agree.
    #[error(
        "organization {organization}, {month}: the lines add up to {lines} dollars and the daily books to {books}; no \
         invoice is made until they agree: look for usage that is being summed anew, then close the month again"
    )]
    Differs {
        /// Whose.
        organization: Uuid,
        /// Which month.
        month: Month,
        /// What the invoice would charge.
        lines: Usd,
        /// What `usage_records` and open `usage_adjustments` say.
        books: Usd,
    },
    /// Usage of the month may still come.
    #[error(
        "{month} cannot be closed yet: edges {} may still ship usage of it; wait for them, or close it with `force` and \
         what they ship later goes on the next invoice", .edges.join(", ")
    )]
    Behind {
        /// Which month.
        month: Month,
        /// Which edges.
        edges: Vec<String>,
    },
    /// Usage of the month has come and is not added up yet.
    #[error(
        "{0} cannot be closed yet: usage of it has come and is not added up; that takes about a second, unless the ledger \
         of usage does not answer: see the control plane's log"
    )]
    Unsummed(Month),
    /// It is not what was looked at.
    #[error("usage or terms changed since the draft was made: it is drawn up anew; look at it and open it")]
    Changed,
    /// More was taken back than was used.
    #[error(
        "organization {0}, {1}: corrections of earlier months are more than what was used, so that there is nothing to \
         invoice; they stay open and come off the next month that they fit into: close that one, then this one. A credit \
         note for them would take them off twice"
    )]
    Negative(Uuid, Month),
    /// The database refused or does not answer.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Anything else is a defect.
    #[error("{0}")]
    Internal(String),
}

/// How far a month is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Until {
    /// Only looked at.
    DryRun,
    /// A draft is made, or made anew.
    Draft,
    /// The invoice is opened: numbered and frozen.
    Open,
    /// Its draft is opened if it still says what it said, and made anew if not.
    OpenDraft,
}

/// What closing a month came to.
#[derive(Debug)]
pub(crate) enum Closed {
    /// Nothing was used that costs anything.
    Nothing,
    /// There was an opened invoice already.
    Already(Box<Invoice>),
    /// The invoice that was made, or would be.
    Made(Box<Invoice>),
}

/// Who acts, for the books.
#[derive(Clone, Debug)]
pub(crate) struct By {
    /// Such as `token:owner`.
    pub(crate) actor: String,
    /// With which role.
    pub(crate) role: &'static str,
}

/// Whether all usage of a month is in the books.
///
/// # Errors
/// [`CloseError::Behind`], [`CloseError::Unsummed`]
pub(crate) async fn ready(connection: &mut PgConnection, month: Month) -> Result<(), CloseError> {
    let end = month.plus(1).start();
    let edges = charges::edges_behind(connection, end).await?;
    if !edges.is_empty() {
        return Err(CloseError::Behind { month, edges });
    }
    if rollup::is_due_before(connection, end).await? { Err(CloseError::Unsummed(month)) } else { Ok(()) }
}

/// Writes an audit entry about an invoice, in the transaction of the change.
pub(crate) async fn note(
    connection: &mut PgConnection,
    by: &By,
    action: &str,
    invoice: Uuid,
    details: Value,
) -> Result<(), StoreError> {
    let entry = audit::Entry {
        actor: &by.actor,
        role: by.role,
        action,
        resource_type: "invoice",
        resource_id: &invoice.to_string(),
        details: &details,
    };
    audit::append(connection, entry).await
}

/// A month that goes on can only be looked at.
///
/// # Errors
/// [`CloseError::NotOver`]
pub(crate) fn check_over(month: Month, until: Until, now: DateTime<Utc>) -> Result<(), CloseError> {
    let last = if until == Until::DryRun { Month::of(now) } else { Month::of(now).plus(-1) };
    if month > last { Err(CloseError::NotOver(month)) } else { Ok(()) }
}

/// Closes an organization's month: all of its invoice, or nothing. Again, it changes nothing more.
pub(crate) async fn close(
    context: &Context,
    organization: Uuid,
    month: Month,
    until: Until,
    by: &By,
    now: DateTime<Utc>,
) -> Result<Closed, CloseError> {
    check_over(month, until, now)?;
    let mut tx = context.store.begin().await?;
    if !billing::exists(&mut tx, organization).await? {
        return Err(CloseError::NoOrganization(organization));
    }
    billing::lock(&mut tx, organization).await?;
    let before = invoices::of_month(&mut tx, organization, month).await?;
    let draft = match before {
        Some(invoice) if invoice.status != DRAFT => return Ok(Closed::Already(Box::new(invoice))),
        draft => draft,
    };
    charges::hold(&mut tx).await?;
    // Under the lock: what is read from here on is all that has come.
    if rollup::is_due_before(&mut tx, month.plus(1).start()).await? {
        return Err(CloseError::Unsummed(month));
    }
    let id = draft.as_ref().map_or_else(Uuid::now_v7, |draft| draft.id);
    let drawn = draw_up(&mut tx, &context.invoicing, organization, month, id).await;
    if let Err(CloseError::Differs { .. }) = &drawn {
        context.metrics.closing_mismatches.inc();
    }
    let Some(mut document) = drawn? else {
        if draft.is_some() {
            invoices::delete_draft(&mut tx, id).await?;
            commit(tx, until).await?;
        }
        return Ok(Closed::Nothing);
    };
    invoices::put_draft(&mut tx, id, &document).await?;
    if until == Until::OpenDraft {
        // As they are stored: what is read back is what was looked at.
        let drawn = invoices::get(&mut tx, id).await?.map(|drawn| drawn.document());
        if drawn != draft.map(|draft| draft.document()) {
            note(&mut tx, by, "invoice.draft", id, json!({"month": month.to_string()})).await?;
            commit(tx, until).await?;
            return Err(CloseError::Changed);
        }
    }
    let opens = matches!(until, Until::Open | Until::OpenDraft);
    if opens {
        open(&mut tx, &context.invoicing, month, id, &mut document, now).await?;
    }
    let made = invoices::get(&mut tx, id).await?;
    let made = made.ok_or_else(|| CloseError::Internal(format!("invoice {id} is gone from its own transaction")))?;
    let action = if opens { "invoice.open" } else { "invoice.draft" };
    let details = json!({"number": document.invoice_number, "month": month.to_string()});
    note(&mut tx, by, action, id, details).await?;
    commit(tx, until).await?;
    // What is settled may have moved the balance by less than a cent.
    context.spending.tell([organization]);
    Ok(Closed::Made(Box::new(made)))
}

async fn commit(tx: crate::store::Tx, until: Until) -> Result<(), StoreError> {
    if until == Until::DryRun { Ok(tx.rollback().await?) } else { Ok(tx.commit().await?) }
}

/// What the invoice says, before it has a number; `None` if there is nothing to charge.
async fn draw_up(
    connection: &mut PgConnection,
    settings: &Invoicing,
    organization: Uuid,
    month: Month,
    id: Uuid,
) -> Result<Option<Document>, CloseError> {
    let lines: Vec<Line> =
        charges::of_month(connection, organization, month).await?.into_iter().map(Line::from).collect();
    let payer = invoices::payer(connection, organization).await?;
    let payer = payer.ok_or_else(|| CloseError::Internal(format!("organization {organization} has no account")))?;
    let mut document = Document {
        invoice_number: format!("draft-{id}"),
        organization_id: organization,
        billing_account_id: payer.account,
        period_start: month.first_day(),
        period_end: month.plus(1).first_day() - Days::new(1),
        issued_on: None,
        due_date: None,
        currency: CURRENCY.to_owned(),
        seller: settings.seller.clone(),
        buyer: payer.party(),
        ..Document::default()
    };
    document.charge(lines, payer.terms());
    let books = charges::booked(connection, organization, month).await?;
    if document.exact_total != books {
        return Err(CloseError::Differs { organization, month, lines: document.exact_total, books });
    }
    if document.total_amount < Usd::ZERO {
        return Err(CloseError::Negative(organization, month));
    }
    let free = document.line_items.iter().all(|line| line.exact_amount == Usd::ZERO);
    Ok((!free).then_some(document))
}

/// Numbers and freezes a draft, settles it with money paid ahead, and takes up what came late.
async fn open(
    connection: &mut PgConnection,
    settings: &Invoicing,
    month: Month,
    id: Uuid,
    document: &mut Document,
    now: DateTime<Utc>,
) -> Result<(), CloseError> {
    let (organization, today) = (document.organization_id, now.date_naive());
    charges::take_up(connection, organization, month, id).await?;
    let settlement = settle(connection, document, month, id, now).await?;
    document.credit(settlement.credit);
    document.issued_on = Some(today);
    document.due_date = today.checked_add_days(Days::new(settings.due_days.into()));
    document.invoice_number = invoices::next_number(connection, &settings.number_prefix, today).await?;
    let checksum = document.checksum().map_err(|error| CloseError::Internal(error.to_string()))?;
    invoices::open(connection, id, document, &checksum).await?;
    for (kind, key, amount) in settlement.entries(id) {
        let note = Some(document.invoice_number.as_str());
        prepaid::append(connection, organization, &NewEntry { kind, amount, key: &key, actor: ACTOR, note }).await?;
    }
    if document.amount_due == Usd::ZERO {
        invoices::set_status(connection, id, PAID, now).await?;
    }
    Ok(())
}

/// How an invoice is settled with money paid ahead.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Settlement {
    /// What its usage was debited for, which comes back.
    debited: Usd,
    /// What is paid of it, which goes: at most what was debited, and what is waived.
    credit: Usd,
    /// What is waived of what its lines were rounded up by.
    rounding: Usd,
}

impl Settlement {
    /// `left`: in the ledger, if that is less than nothing; more may have been lent for requests that run.
    fn of(document: &Document, debited: Usd, left: Usd) -> Self {
        let available = Usd { pico: debited.pico.saturating_add(left.pico.min(0)) };
        let total = document.total_amount;
        let credit = floor_cents(available).clamp(Usd::ZERO, total);
        let rounded_up = document.lines_total.pico.saturating_sub(document.exact_total.pico);
        if debited < document.exact_total || rounded_up <= 0 || credit >= document.subtotal {
            return Self { debited, credit, rounding: Usd::ZERO };
        }
        // All of its usage was debited: no cent of it is due because lines are whole cents.
        let covered = floor_cents(Usd { pico: available.pico.saturating_add(rounded_up) });
        let credit = covered.clamp(credit, document.subtotal.max(credit));
        let rounding = Usd { pico: credit.pico.saturating_sub(available.pico).max(0) };
        Self { debited, credit, rounding: if credit == Usd::ZERO { Usd::ZERO } else { rounding } }
    }

    /// The ledger's entries: none if nothing was debited and nothing is paid.
    fn entries(self, invoice: Uuid) -> impl Iterator<Item = (Kind, String, Usd)> {
        let amount = Usd { pico: self.debited.pico.saturating_sub(self.credit.pico) };
        let settles = self.debited != Usd::ZERO || self.credit != Usd::ZERO;
        let settlement = settles.then(|| (Kind::Invoice, settlement_key(invoice), amount));
        let rounding = (self.rounding != Usd::ZERO).then(|| (Kind::Rounding, rounding_key(invoice), self.rounding));
        settlement.into_iter().chain(rounding)
    }
}

/// Posts what is left to post of an invoice's usage, and notes which of it the invoice settles.
async fn settle(
    connection: &mut PgConnection,
    document: &Document,
    month: Month,
    id: Uuid,
    now: DateTime<Utc>,
) -> Result<Settlement, CloseError> {
    let organization = document.organization_id;
    prepaid::post_usage(connection, organization, month.plus(1).first_day()).await?;
    let debited = prepaid::settle_days(connection, organization, month, id).await?;
    let standing = billing::standings(connection, Month::of(now), Some(&[organization])).await?;
    let left = standing.first().and_then(billing::Standing::prepaid_balance).unwrap_or_default();
    Ok(Settlement::of(document, debited, left))
}

/// Takes an invoice back: its settlement with money paid ahead is undone, so that its usage is debited as before, and what
/// came late is open again. The caller holds the account's lock.
pub(crate) async fn void(
    connection: &mut PgConnection,
    invoice: &Invoice,
    actor: &str,
    now: DateTime<Utc>,
) -> Result<(), StoreError> {
    invoices::set_status(connection, invoice.id, VOID, now).await?;
    charges::give_back(connection, invoice.id).await?;
    let settled = (Kind::Credit, settlement_key(invoice.id), format!("void:{}", invoice.id));
    let waived = rounding_key(invoice.id);
    let undone = format!("void:{waived}");
    for (kind, done, key) in [settled, (Kind::Rounding, waived, undone)] {
        let Some(entry) = prepaid::by_key(connection, invoice.organization_id, &done).await? else { continue };
        let amount = Usd { pico: entry.amount().pico.saturating_neg() };
        let note = Some(invoice.invoice_number.as_str());
        let entry = NewEntry { kind, amount, key: &key, actor, note };
        prepaid::append(connection, invoice.organization_id, &entry).await?;
    }
    Ok(())
}

/// Pays what is still due of an opened invoice from money paid ahead. Gives how much is left there instead if that is
/// less. The caller holds the account's lock.
pub(crate) async fn pay_from_prepaid(
    connection: &mut PgConnection,
    invoice: &Invoice,
    actor: &str,
    now: DateTime<Utc>,
) -> Result<Result<(), Usd>, StoreError> {
    let (organization, due) = (invoice.organization_id, invoice.remaining());
    let standing = billing::standings(connection, Month::of(now), Some(&[organization])).await?;
    let left = standing.first().and_then(billing::Standing::prepaid_balance).unwrap_or_default();
    if left < due {
        return Ok(Err(left));
    }
    let (key, note) = (format!("payment:{}", invoice.id), Some(invoice.invoice_number.as_str()));
    let amount = Usd { pico: due.pico.saturating_neg() };
    prepaid::append(connection, organization, &NewEntry { kind: Kind::Invoice, amount, key: &key, actor, note })
        .await?;
    invoices::set_status(connection, invoice.id, PAID, now).await?;
    Ok(Ok(()))
}

/// The key of the ledger's entry that settles an invoice.
fn settlement_key(invoice: Uuid) -> String {
    format!("invoice:{invoice}")
}

/// The key of the ledger's entry that waives what an invoice's lines were rounded up by.
fn rounding_key(invoice: Uuid) -> String {
    format!("rounding:{invoice}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn usd(text: &str) -> Usd {
        text.parse().unwrap()
    }

    /// Exact, lines, subtotal, total, debited, left; and what is paid and waived.
    #[test]
    fn what_was_all_debited_is_paid_whole_and_what_was_not_is_due() {
        for (what, [exact, lines, subtotal, total, debited, left], [credit, rounding]) in [
            ("rounded up", ["1.006", "1.01", "1.01", "1.01", "1.006", "0"], ["1.01", "0.004"]),
            ("rounded down", ["1.004", "1", "1", "1", "1.004", "5"], ["1", "0"]),
            ("less than a cent", ["0.006", "0.01", "0.01", "0.01", "0.006", "0"], ["0.01", "0.004"]),
            ("many lines", ["0.018", "0.03", "0.03", "0.03", "0.018", "0.1"], ["0.03", "0.012"]),
            ("tax is due", ["1.006", "1.01", "1.01", "1.21", "1.006", "9"], ["1.01", "0.004"]),
            ("a discount leaves enough", ["1.006", "1.01", "0.91", "0.91", "1.006", "0"], ["0.91", "0"]),
            ("more was used than was there", ["1.006", "1.01", "1.01", "1.01", "1.006", "-0.5"], ["0.51", "0.004"]),
            ("nothing was there", ["0.006", "0.01", "0.01", "0.01", "0.006", "-0.006"], ["0", "0"]),
            ("a part was debited", ["2.006", "2.01", "2.01", "2.01", "1.003", "0"], ["1", "0"]),
            ("nothing was debited", ["1.006", "1.01", "1.01", "1.01", "0", "7"], ["0", "0"]),
        ] {
            let document = Document {
                exact_total: usd(exact),
                lines_total: usd(lines),
                subtotal: usd(subtotal),
                total_amount: usd(total),
                ..Document::default()
            };
            let settlement = Settlement::of(&document, usd(debited), usd(left));
            let expected = Settlement { debited: usd(debited), credit: usd(credit), rounding: usd(rounding) };
            assert_eq!(settlement, expected, "{what}");
            let moved: i128 = settlement.entries(Uuid::nil()).map(|(_, _, amount)| amount.pico).sum();
            assert!(moved >= 0, "{what}: an invoice takes nothing that edges may have lent");
        }
    }
}
