//! Opened invoices go to Stripe, and so does what becomes of them here.

use super::{CollectError, failure, outcome};
use crate::context::Context;
use crate::invoicing::{CENT, Document, percent_text};
use crate::store::invoices::{self, OPEN, PAID, UNCOLLECTIBLE, VOID};
use crate::store::stripe::{self as store, Account, Due};
use crate::store::{StoreError, billing, invoices::Invoice as Ours};
use crate::stripe::{Client, Customer, Form, Invoice, InvoiceItem, List, Stripe};
use chrono::Utc;
use serde::de::DeserializeOwned;
use sha2::{Digest as _, Sha256};
use std::collections::BTreeSet;
use turnpike_config::Usd;

/// Invoices told in one run.
const MOST: i64 = 50;
/// Entries asked for at once: Stripe's most.
const PAGE: usize = 100;
/// Pages read of one list at most.
const MAX_PAGES: usize = 50;

/// Tells Stripe of what it does not know.
pub(super) async fn reconcile(context: &Context, stripe: &Stripe) -> Result<(), StoreError> {
    let due = store::due(&mut *context.store.read().await?, MOST).await?;
    for due in due {
        let told = if due.finalized {
            update(context, &stripe.client, &due).await
        } else {
            send(context, &stripe.client, &due).await
        };
        if let Some(reason) = failure(context, "invoice", due.invoice_id, told)? {
            let noted = store::failed(&mut *context.store.read().await?, due.invoice_id, &reason).await;
            failure(context, "invoice", due.invoice_id, noted.map_err(CollectError::from))?;
        }
    }
    Ok(())
}

async fn ours(context: &Context, due: &Due) -> Result<Ours, CollectError> {
    let invoice = invoices::get(&mut *context.store.read().await?, due.invoice_id).await?;
    invoice.ok_or_else(|| CollectError::Mismatch(format!("invoice {} is gone", due.invoice_id)))
}

/// Makes and finalizes an invoice at Stripe. Wherever it breaks off, it goes on from there.
async fn send(context: &Context, client: &Client, due: &Due) -> Result<(), CollectError> {
    let ours = ours(context, due).await?;
    if !ours.verified() {
        return Err(CollectError::Mismatch(format!("{} does not match its checksum", ours.invoice_number)));
    }
    let document = ours.document();
    let account = account(context, ours.organization_id).await?;
    let customer = customer(context, client, &account).await?;
    let stripe_id = match &ours.stripe_invoice_id {
        Some(id) => id.clone(),
        None => {
            let id = make(client, &ours, &document, &account, &customer).await?;
            store::name(&mut *context.store.read().await?, ours.id, &id).await?;
            id
        }
    };
    let path = format!("/v1/invoices/{stripe_id}");
    let mut theirs: Invoice = client.get(&path, &Form::new()).await?;
    if theirs.status.as_deref() == Some("draft") {
        add_items(client, &ours, &document, &customer, &stripe_id).await?;
        theirs = client.get(&path, &Form::new()).await?;
        // Not what is due there: that is nothing below what Stripe charges at least, and knows the customer's balance.
        let (wanted, there) = (cents(document.amount_due), theirs.total);
        if wanted != there {
            let number = &ours.invoice_number;
            return Err(CollectError::Mismatch(format!(
                "{number}: {wanted} cents are due, at Stripe the total is {there}"
            )));
        }
        let form = Form::new().with("auto_advance", true);
        theirs = client.post(&format!("{path}/finalize"), &form, &format!("invoice-{}-finalize", ours.id)).await?;
    }
    take_in(context, &ours, &theirs).await
}

/// Notes how an invoice stands there. One of which nothing is due there is paid as soon as it is finalized.
async fn take_in(context: &Context, ours: &Ours, theirs: &Invoice) -> Result<(), CollectError> {
    let (now, organization) = (Utc::now(), ours.organization_id);
    let mut tx = context.store.begin().await?;
    billing::lock(&mut tx, organization).await?;
    let ours = invoices::get(&mut tx, ours.id).await?;
    let ours = ours.ok_or_else(|| CollectError::Mismatch(format!("the invoice of {} is gone", theirs.id)))?;
    let moved = match outcome::known(theirs.status.as_deref()) {
        OPEN => {
            store::told(&mut tx, ours.id, OPEN, now).await?;
            false
        }
        step => outcome::take_in(context, &mut tx, &ours, theirs, step, now).await?,
    };
    tx.commit().await.map_err(StoreError::from)?;
    context.spending.tell(moved.then_some(organization));
    Ok(())
}

/// Tells Stripe what became of an invoice here.
async fn update(context: &Context, client: &Client, due: &Due) -> Result<(), CollectError> {
    let ours = ours(context, due).await?;
    let Some(stripe_id) = &ours.stripe_invoice_id else {
        return Err(CollectError::Mismatch(format!("{} has no name at Stripe", ours.invoice_number)));
    };
    let path = format!("/v1/invoices/{stripe_id}");
    let theirs: Invoice = client.get(&path, &Form::new()).await?;
    let there = outcome::known(theirs.status.as_deref());
    if ours.status == OPEN || [PAID, VOID].contains(&there) && there != ours.status {
        return take_in(context, &ours, &theirs).await;
    }
    if there != ours.status {
        let (step, form) = match ours.status.as_str() {
            PAID => ("pay", Form::new().with("paid_out_of_band", true)),
            VOID => ("void", Form::new()),
            UNCOLLECTIBLE => ("mark_uncollectible", Form::new()),
            other => return Err(CollectError::Mismatch(format!("{} is {other} again", ours.invoice_number))),
        };
        let key = format!("invoice-{}-{step}", ours.id);
        let _: Invoice = client.post(&format!("{path}/{step}"), &form, &key).await?;
    }
    store::told(&mut *context.store.read().await?, ours.id, &ours.status, Utc::now()).await?;
    Ok(())
}

pub(super) async fn account(context: &Context, organization: uuid::Uuid) -> Result<Account, CollectError> {
    let account = store::account(&mut *context.store.read().await?, organization).await?;
    account.ok_or_else(|| CollectError::Mismatch(format!("organization {organization} has no account")))
}

/// The customer of an account; makes it if there is none.
pub(super) async fn customer(context: &Context, client: &Client, account: &Account) -> Result<String, CollectError> {
    if let Some(customer) = &account.customer {
        return Ok(customer.clone());
    }
    let form = Form::new()
        .with("name", &account.name)
        .maybe("email", account.email.as_deref())
        .with("metadata[organization_id]", account.organization_id)
        .with("metadata[billing_account_id]", account.id);
    let made: Customer = client.post("/v1/customers", &form, &key("customer", account.id, &form)).await?;
    let mut connection = context.store.read().await?;
    store::set_customer(&mut connection, account.id, &made.id).await?;
    // Whoever was first: the first one stays.
    let noted = store::account(&mut connection, account.organization_id).await?.and_then(|account| account.customer);
    Ok(noted.unwrap_or(made.id))
}

/// A key for something whose form may change before it is made: another form is another request.
fn key(what: &str, id: uuid::Uuid, form: &Form) -> String {
    let digest = Sha256::digest(form.as_str());
    let short = digest.iter().take(6).fold(String::new(), |text, byte| format!("{text}{byte:02x}"));
    format!("{what}-{id}-{short}")
}

/// Makes the invoice, or finds it if an earlier run made it and did not live to note it.
async fn make(
    client: &Client,
    ours: &Ours,
    document: &Document,
    account: &Account,
    customer: &str,
) -> Result<String, CollectError> {
    let query = Form::new().with("customer", customer).with("created[gte]", ours.created_at.timestamp());
    let id = ours.id.to_string();
    let made = all(client, "/v1/invoices", &query, |invoice: &Invoice| invoice.id.clone()).await?;
    if let Some(found) = made.into_iter().find(|invoice| invoice.metadata.get("invoice_id") == Some(&id)) {
        return Ok(found.id);
    }
    let days = document.due_date.zip(document.issued_on).map_or(0, |(due, issued)| (due - issued).num_days());
    let form = Form::new()
        .with("customer", customer)
        .with("currency", document.currency.to_lowercase())
        .with("number", &document.invoice_number)
        .with("auto_advance", false)
        .with("pending_invoice_items_behavior", "exclude")
        .with("metadata[invoice_id]", ours.id)
        .with("metadata[organization_id]", ours.organization_id)
        .with("metadata[invoice_number]", &document.invoice_number);
    let form = match &account.payment_method {
        Some(method) => form.with("collection_method", "charge_automatically").with("default_payment_method", method),
        None => form.with("collection_method", "send_invoice").with("days_until_due", days),
    };
    let made: Invoice = client.post("/v1/invoices", &form, &key("invoice", ours.id, &form)).await?;
    Ok(made.id)
}

/// Whole cents; amounts of invoices are.
pub(super) fn cents(amount: Usd) -> i64 {
    i64::try_from(amount.pico / CENT).unwrap_or(i64::MAX)
}

/// What is to be on the invoice there: name, words and cents. They add up to what is due.
fn items(document: &Document) -> Vec<(String, String, i64)> {
    let lines = document.line_items.iter().enumerate();
    let mut items: Vec<_> =
        lines.map(|(at, line)| (format!("line-{at}"), line.description.clone(), cents(line.amount))).collect();
    let permille = document.discount_permille;
    let discount = format!("Discount {}.{} %", permille / 10, permille % 10);
    items.push(("discount".to_owned(), discount, -cents(document.discount_amount)));
    let tax = format!("Tax {} %", percent_text(document.tax_rate));
    items.push(("tax".to_owned(), tax, cents(document.tax_amount)));
    items.push(("credit".to_owned(), "Paid from prepaid credit".to_owned(), -cents(document.credit_applied)));
    items.retain(|(_, _, cents)| *cents != 0);
    items
}

/// Adds what is not there yet.
async fn add_items(
    client: &Client,
    ours: &Ours,
    document: &Document,
    customer: &str,
    stripe_id: &str,
) -> Result<(), CollectError> {
    let query = Form::new().with("invoice", stripe_id);
    let there = all(client, "/v1/invoiceitems", &query, |item: &InvoiceItem| item.id.clone()).await?;
    let there: BTreeSet<String> = there.into_iter().filter_map(|mut item| item.metadata.remove("item")).collect();
    for (name, description, cents) in items(document) {
        if there.contains(&name) {
            continue;
        }
        let form = Form::new()
            .with("customer", customer)
            .with("invoice", stripe_id)
            .with("currency", document.currency.to_lowercase())
            .with("amount", cents)
            .with("description", description)
            .with("metadata[item]", &name)
            .with("metadata[invoice_id]", ours.id);
        let key = format!("invoice-{}-{name}", ours.id);
        let _: InvoiceItem = client.post("/v1/invoiceitems", &form, &key).await?;
    }
    Ok(())
}

/// Every entry of a list.
pub(super) async fn all<T: DeserializeOwned>(
    client: &Client,
    path: &str,
    query: &Form,
    id: impl Fn(&T) -> String,
) -> Result<Vec<T>, CollectError> {
    let mut found: Vec<T> = Vec::new();
    for _ in 0..MAX_PAGES {
        let after = found.last().map(&id);
        let page: List<T> = client.get(path, &query.clone().with("limit", PAGE).maybe("starting_after", after)).await?;
        let more = page.has_more && !page.data.is_empty();
        found.extend(page.data);
        if !more {
            return Ok(found);
        }
    }
    Err(CollectError::Mismatch(format!("{path} has more than {} entries", MAX_PAGES * PAGE)))
}
