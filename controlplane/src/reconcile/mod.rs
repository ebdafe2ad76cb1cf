//! The books of a day compared with each other: what edges counted themselves, what nodes wrote down, the usage ledger,
//! the daily sums, and invoices. Equal means equal, to the pico-dollar.

mod daily;
mod nodes;

pub(crate) use daily::run;
pub(crate) use nodes::Nodes;

use crate::context::Context;
use crate::ledger::{Ledger, LedgerError};
use crate::store::reconcile::{self as store, Apart, By, Sums};
use crate::store::{PgConnection, StoreError, rollup};
use chrono::{DateTime, Days, NaiveDate, NaiveTime, TimeDelta, Utc};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use turnpike_config::Usd;
use utoipa::ToSchema;

/// Rows of a kind that are shown one by one.
const SHOWN: usize = 10;
/// Hours of a UTC day.
const HOURS: i64 = 24;
/// Events are compared one by one for so many minutes at once, so that a busy day fits into memory.
const SLICE_MINUTES: i64 = 5;

/// One thing of which a book says something else than the usage ledger.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub(crate) struct Row {
    /// An edge, or an organization's id and a model.
    pub(crate) of: String,
    /// By the book.
    pub(crate) sums: Sums,
    /// By the usage ledger.
    pub(crate) ledger: Sums,
}

/// A book beside the usage ledger.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, ToSchema)]
pub(crate) struct Book {
    /// What it says.
    pub(crate) sums: Sums,
    /// By how much that is more than the usage ledger says.
    pub(crate) difference: Sums,
    /// How many rows are not equal.
    pub(crate) unequal: i64,
    /// The first ten of them.
    pub(crate) first: Vec<Row>,
    #[serde(skip)]
    apart: Apart,
}

/// An invoice beside the daily sums of all its days.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub(crate) struct Invoice {
    /// Its number.
    pub(crate) invoice_number: String,
    /// What its lines add up to, exact decimal dollars.
    #[schema(value_type = String)]
    pub(crate) charged: Usd,
    /// What `usage_records` of its period and the adjustments that it takes up add up to.
    #[schema(value_type = String)]
    pub(crate) booked: Usd,
    /// By how much more is charged.
    #[schema(value_type = String)]
    pub(crate) difference: Usd,
}

/// What the books of a UTC day say of each other.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub(crate) struct Report {
    /// The day.
    pub(crate) day: NaiveDate,
    /// Every edge has shipped all usage of the day; otherwise differences may pass.
    pub(crate) complete: bool,
    /// All books are equal.
    pub(crate) equal: bool,
    /// The usage ledger, which is what is billed.
    pub(crate) ledger: Sums,
    /// What edges counted themselves.
    pub(crate) edges: Book,
    /// The daily sums, and what came after an invoice.
    pub(crate) usage_records: Book,
    /// What nodes wrote down.
    pub(crate) nodes: Nodes,
    /// Invoices that cover the day.
    pub(crate) invoices: Vec<Invoice>,
}

/// Compares the books of a day, as they are at one moment.
///
/// # Errors
/// The ledger or the database refuses or does not answer.
pub(crate) async fn compare(context: &Context, day: NaiveDate) -> Result<Report, LedgerError> {
    // Each takes memory, and reads a whole day of the ledger.
    let _turn = context.comparing.lock().await;
    let ledger = &*context.ledger;
    // The daily sums follow the ledger within moments.
    context.rollup.settle().await;
    let mut tx = context.store.begin_snapshot().await?;
    let connection = &mut *tx;
    store::take_time(connection).await?;
    let complete = is_complete(connection, day, Utc::now()).await?;
    let by_edge = ledger.sums_by(connection, By::Edge, day).await?;
    let sums = by_edge.iter().fold(Sums::default(), |all, (_, sums)| all.plus(*sums));
    let edges = Book::new(store::booked(connection, By::Edge, day).await?, by_edge);
    let by_model = ledger.sums_by(connection, By::Model, day).await?;
    let usage_records = Book::new(store::booked(connection, By::Model, day).await?, by_model);
    let nodes = compare_nodes(ledger, connection, day).await?;
    let invoices = store::invoices(connection, day).await?.iter().map(Invoice::new).collect();
    tx.rollback().await.map_err(StoreError::from)?;
    let mut report = Report { day, complete, equal: false, ledger: sums, edges, usage_records, nodes, invoices };
    report.equal = report.apart() == Apart::default();
    Ok(report)
}

/// Whether every edge has shipped all usage of a day, which is over at the moment `now`, and all of it is added up.
async fn is_complete(connection: &mut PgConnection, day: NaiveDate, now: DateTime<Utc>) -> Result<bool, StoreError> {
    let end = midnight(day) + TimeDelta::hours(HOURS);
    Ok(end <= now
        && store::edges_behind(connection, end).await? == 0
        && !rollup::is_due_between(connection, midnight(day), end).await?)
}

/// When a UTC day begins.
const fn midnight(day: NaiveDate) -> DateTime<Utc> {
    day.and_time(NaiveTime::MIN).and_utc()
}

/// Slice by slice: an event and its entries have the same time.
async fn compare_nodes(ledger: &Ledger, connection: &mut PgConnection, day: NaiveDate) -> Result<Nodes, LedgerError> {
    let mut nodes = Nodes::default();
    let slice = TimeDelta::minutes(SLICE_MINUTES);
    for number in 0..HOURS * 60 / SLICE_MINUTES {
        let from = midnight(day) + TimeDelta::minutes(number * SLICE_MINUTES);
        let span = from..from + slice;
        let events = ledger.events(connection, &span).await?;
        let entries = store::entries(connection, &span).await?;
        nodes.compare(&events, &entries);
    }
    Ok(nodes)
}

impl Report {
    /// By how much the books differ, all differences taken together without their signs.
    pub(crate) fn apart(&self) -> Apart {
        let nodes = &self.nodes;
        let charged =
            self.invoices.iter().fold(0_i128, |all, invoice| all.saturating_add(magnitude(invoice.difference)));
        let mut apart = Apart { cost: Usd { pico: charged }, ..nodes.apart() };
        for book in [&self.edges, &self.usage_records] {
            apart = add(apart, book.apart);
        }
        apart
    }
}

impl Book {
    fn new(says: Vec<(String, Sums)>, ledger: Vec<(String, Sums)>) -> Self {
        let (says, ledger): (BTreeMap<_, _>, BTreeMap<_, _>) =
            (says.into_iter().collect(), ledger.into_iter().collect());
        let names: BTreeSet<&String> = says.keys().chain(ledger.keys()).collect();
        let mut book = Self::default();
        for name in names {
            let of = |book: &BTreeMap<String, Sums>| book.get(name).copied().unwrap_or_default();
            let (sums, ledger) = (of(&says), of(&ledger));
            let difference = sums.minus(ledger);
            book.sums = book.sums.plus(sums);
            book.difference = book.difference.plus(difference);
            if difference == Sums::default() {
                continue;
            }
            book.unequal += 1;
            book.apart = add(book.apart, apart_of(difference));
            if book.first.len() < SHOWN {
                book.first.push(Row { of: name.clone(), sums, ledger });
            }
        }
        book
    }
}

impl Invoice {
    fn new(invoiced: &store::Invoiced) -> Self {
        let (charged, booked) = (invoiced.charged(), invoiced.booked());
        let difference = Usd { pico: charged.pico.saturating_sub(booked.pico) };
        Self { invoice_number: invoiced.invoice_number.clone(), charged, booked, difference }
    }
}

impl Nodes {
    fn apart(&self) -> Apart {
        let found = [&self.unlike, &self.entries_without_event, &self.events_without_entry];
        let events = found.iter().fold(0_i64, |all, found| all.saturating_add(found.count));
        Apart { events, tokens: self.tokens_apart, cost: Usd::ZERO }
    }
}

fn apart_of(difference: Sums) -> Apart {
    let tokens =
        difference.prompt_tokens.saturating_abs().saturating_add(difference.completion_tokens.saturating_abs());
    let cost = Usd { pico: magnitude(difference.cost_usd) };
    Apart { events: difference.requests.saturating_abs(), tokens, cost }
}

fn add(one: Apart, other: Apart) -> Apart {
    Apart {
        events: one.events.saturating_add(other.events),
        tokens: one.tokens.saturating_add(other.tokens),
        cost: Usd { pico: one.cost.pico.saturating_add(other.cost.pico) },
    }
}

const fn magnitude(amount: Usd) -> i128 {
    amount.pico.saturating_abs()
}

/// The UTC day before a moment's own.
fn day_before(now: DateTime<Utc>) -> NaiveDate {
    now.date_naive().checked_sub_days(Days::new(1)).unwrap_or(NaiveDate::MIN)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sums(requests: i64, prompt_tokens: i64, pico: i128) -> Sums {
        Sums { requests, prompt_tokens, completion_tokens: 1, cost_usd: Usd { pico } }
    }

    #[test]
    fn differences_that_make_up_for_each_other_are_differences() {
        let ledger = vec![("e1".to_owned(), sums(2, 10, 5)), ("e2".to_owned(), sums(2, 10, 5))];
        let says = vec![("e1".to_owned(), sums(2, 11, 5)), ("e2".to_owned(), sums(2, 9, 5))];
        let book = Book::new(says, ledger.clone());
        assert_eq!((book.difference, book.unequal), (Sums::default(), 2));
        assert_eq!((book.apart.tokens, book.first[0].of.as_str()), (2, "e1"));
        assert_eq!(Book::new(ledger.clone(), ledger).unequal, 0);
    }

    #[test]
    fn a_pico_dollar_and_a_missing_row_are_seen() {
        let ledger = vec![("e1".to_owned(), sums(2, 10, 5))];
        let book = Book::new(vec![("e1".to_owned(), sums(2, 10, 4))], ledger.clone());
        assert_eq!((book.difference.cost_usd.pico, book.apart.cost.pico), (-1, 1));
        let book = Book::new(Vec::new(), ledger);
        assert_eq!((book.difference.requests, book.apart.events, book.apart.tokens), (-2, 2, 11));
    }
}
