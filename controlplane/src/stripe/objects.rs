//! Stripe's objects, as far as they are read. Unknown fields are skipped.

use serde::Deserialize;
use serde_json::Value;
use std::collections::BTreeMap;

/// `customer`
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Customer {
    /// `cus_…`
    pub(crate) id: String,
}

/// `credit_note`
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct CreditNote {
    /// `cn_…`
    pub(crate) id: String,
    /// What was said when it was made.
    #[serde(default)]
    pub(crate) metadata: BTreeMap<String, String>,
}

/// `list`
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct List<T> {
    /// A page.
    pub(crate) data: Vec<T>,
    /// There are more behind the last.
    #[serde(default)]
    pub(crate) has_more: bool,
}

/// `invoice`
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Invoice {
    /// `in_…`
    pub(crate) id: String,
    /// `draft`, `open`, `paid`, `uncollectible` or `void`.
    #[serde(default)]
    pub(crate) status: Option<String>,
    /// Cents of all that is on it.
    #[serde(default)]
    pub(crate) total: i64,
    /// Cents to be paid at once: with the customer's balance, and 0 below what Stripe charges at least.
    #[serde(default)]
    pub(crate) amount_due: i64,
    /// Cents of them that are not paid yet.
    #[serde(default)]
    pub(crate) amount_remaining: i64,
    /// Cents that credit notes took off before it was paid.
    #[serde(default)]
    pub(crate) pre_payment_credit_notes_amount: i64,
    /// Cents that credit notes gave back after it was paid.
    #[serde(default)]
    pub(crate) post_payment_credit_notes_amount: i64,
    /// What was said when it was made.
    #[serde(default)]
    pub(crate) metadata: BTreeMap<String, String>,
    /// When it was paid.
    #[serde(default)]
    pub(crate) status_transitions: Transitions,
}

/// `invoice.status_transitions`
#[derive(Clone, Debug, Default, Deserialize)]
pub(crate) struct Transitions {
    /// Unix seconds.
    #[serde(default)]
    pub(crate) paid_at: Option<i64>,
}

/// `invoiceitem`
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct InvoiceItem {
    /// `ii_…`
    pub(crate) id: String,
    /// What was said when it was made.
    #[serde(default)]
    pub(crate) metadata: BTreeMap<String, String>,
}

/// `payment_intent`
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct PaymentIntent {
    /// `pi_…`
    pub(crate) id: String,
    /// Such as `succeeded`, `processing`, `requires_action`, `requires_payment_method` or `canceled`.
    pub(crate) status: String,
    /// Cents that came in.
    #[serde(default)]
    pub(crate) amount_received: i64,
    /// What was said when it was made.
    #[serde(default)]
    pub(crate) metadata: BTreeMap<String, String>,
    /// Why the last attempt failed.
    #[serde(default)]
    pub(crate) last_payment_error: Option<ErrorBody>,
}

/// `event`
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Event {
    /// `evt_…`
    pub(crate) id: String,
    /// Such as `invoice.paid`.
    #[serde(rename = "type")]
    pub(crate) kind: String,
    /// Unix seconds.
    #[serde(default)]
    pub(crate) created: i64,
    /// What it is about.
    pub(crate) data: EventData,
}

/// `event.data`
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct EventData {
    object: Value,
}

/// What an event is about, as far as it concerns us.
#[derive(Clone, Debug)]
pub(crate) enum EventObject {
    /// Of an `invoice.…` event.
    Invoice(Invoice),
    /// Of a `payment_intent.…` event.
    PaymentIntent(PaymentIntent),
    /// Anything else.
    Other,
}

impl Event {
    /// The object of a kind of event that is known.
    pub(crate) fn object(&self) -> Result<EventObject, serde_json::Error> {
        match self.kind.split('.').next() {
            Some("invoice") => Invoice::deserialize(&self.data.object).map(EventObject::Invoice),
            Some("payment_intent") => PaymentIntent::deserialize(&self.data.object).map(EventObject::PaymentIntent),
            _ => Ok(EventObject::Other),
        }
    }
}

/// The body of an answer that says no.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct ErrorAnswer {
    pub(super) error: ErrorBody,
}

/// `error`
#[derive(Clone, Debug, Default, Deserialize)]
pub(crate) struct ErrorBody {
    /// Such as `card_error` or `idempotency_error`.
    #[serde(rename = "type", default)]
    pub(crate) kind: String,
    /// Such as `card_declined`.
    #[serde(default)]
    pub(crate) code: Option<String>,
    /// For people.
    #[serde(default)]
    pub(crate) message: Option<String>,
}

impl std::fmt::Display for ErrorBody {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let code = self.code.as_deref().unwrap_or("no code");
        write!(f, "{} ({code}): {}", self.kind, self.message.as_deref().unwrap_or("no message"))
    }
}
