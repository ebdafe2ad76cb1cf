//! A stand-in for Stripe: form-encoded requests, objects, lists, errors and idempotency as its documentation has them.

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use hmac::{Hmac, Mac as _};
use reqwest::{Method, StatusCode};
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::net::TcpListener;

pub(crate) const KEY: &str = "sk_test_for_tests_only";
pub(crate) const WEBHOOK_SECRET: &str = "whsec_for_tests_only";

/// The least that is charged, cents.
const LEAST: i64 = 50;

/// What goes wrong with the next request that makes something at a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// 429, nothing is done.
    TooMany,
    /// 500, nothing is done.
    Broken,
    /// It is done, and the answer does not come in time.
    Silent,
    /// The card is declined.
    Declined,
    /// Somebody adds a cent by hand.
    Meddled,
    /// A payment is begun and comes in later.
    Processing,
}

#[derive(Default)]
struct Books {
    /// By id, in the order of their making.
    objects: BTreeMap<String, Value>,
    /// What was answered to a key, and what it was asked with.
    answered: HashMap<String, (String, StatusCode, Value)>,
    faults: Vec<(&'static str, Fault)>,
    /// What is made there is made, and the answer never comes.
    muted: Option<&'static str>,
    requests: Vec<String>,
    made: u64,
}

#[derive(Clone)]
pub(crate) struct StripeServer {
    pub(crate) address: SocketAddr,
    books: Arc<Mutex<Books>>,
}

type Params = BTreeMap<String, String>;

impl StripeServer {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = Self { address: listener.local_addr().unwrap(), books: Arc::default() };
        let router = Router::new().fallback(answer).with_state(server.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        server
    }

    /// The next request to make something whose path ends so fails so.
    pub(crate) fn fail(&self, path: &'static str, fault: Fault) {
        self.books.lock().unwrap().faults.push((path, fault));
    }

    /// From now on, what is made at this path is made and the answer never comes; `None`: all is well again.
    pub(crate) fn mute(&self, path: Option<&'static str>) {
        self.books.lock().unwrap().muted = path;
    }

    /// Every object of a kind, the oldest first.
    pub(crate) fn all(&self, kind: &str) -> Vec<Value> {
        self.books.lock().unwrap().objects.values().filter(|object| object["object"] == kind).cloned().collect()
    }

    /// Requests so far whose «METHOD path» contains a text.
    pub(crate) fn asked(&self, text: &str) -> usize {
        self.books.lock().unwrap().requests.iter().filter(|request| request.contains(text)).count()
    }

    /// Changes an object behind the client's back.
    pub(crate) fn set(&self, id: &str, field: &str, value: Value) {
        self.books.lock().unwrap().objects.get_mut(id).unwrap()[field] = value;
    }
}

async fn answer(State(server): State<StripeServer>, request: axum::extract::Request) -> Response {
    let (parts, body) = request.into_parts();
    let body = axum::body::to_bytes(body, 1 << 20).await.unwrap_or_default();
    let header = |name: &str| parts.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let path = parts.uri.path().to_owned();
    let problem = if header("authorization") != format!("Bearer {KEY}") {
        Some((StatusCode::UNAUTHORIZED, "Invalid API Key provided"))
    } else if header("stripe-version").is_empty() {
        Some((StatusCode::BAD_REQUEST, "no version"))
    } else if parts.method == Method::POST && header("content-type") != "application/x-www-form-urlencoded" {
        Some((StatusCode::BAD_REQUEST, "not a form"))
    } else if parts.method == Method::POST && header("idempotency-key").is_empty() {
        Some((StatusCode::BAD_REQUEST, "no idempotency key"))
    } else {
        None
    };
    if let Some((status, message)) = problem {
        return reply(status, &error("invalid_request_error", None, message));
    }
    let text = if parts.method == Method::GET {
        parts.uri.query().unwrap_or_default().to_owned()
    } else {
        String::from_utf8_lossy(&body).into_owned()
    };
    let (status, value, silent) = server.carry_out(&parts.method, &path, &text, header("idempotency-key"));
    if silent {
        tokio::time::sleep(Duration::from_secs(30)).await;
    }
    reply(status, &value)
}

fn reply(status: StatusCode, value: &Value) -> Response {
    (status, [("content-type", "application/json")], Bytes::from(value.to_string())).into_response()
}

fn error(kind: &str, code: Option<&str>, message: &str) -> Value {
    json!({"error": {"type": kind, "code": code, "message": message}})
}

fn decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let (mut out, mut at) = (Vec::new(), 0);
    while at < bytes.len() {
        match bytes[at] {
            b'%' => {
                out.push(u8::from_str_radix(&text[at + 1..at + 3], 16).unwrap());
                at += 2;
            }
            b'+' => out.push(b' '),
            byte => out.push(byte),
        }
        at += 1;
    }
    String::from_utf8(out).unwrap()
}

fn params(text: &str) -> Params {
    let pairs = text.split('&').filter_map(|pair| pair.split_once('='));
    pairs.map(|(name, value)| (decode(name), decode(value))).collect()
}

fn metadata(params: &Params) -> Value {
    let inside = params.iter().filter_map(|(name, value)| {
        Some((name.strip_prefix("metadata[")?.strip_suffix(']')?.to_owned(), json!(value)))
    });
    Value::Object(inside.collect::<Map<_, _>>())
}

fn number(object: &Value, field: &str) -> i64 {
    object[field].as_i64().unwrap()
}

fn add(object: &mut Value, field: &str, cents: i64) {
    object[field] = json!(number(object, field) + cents);
}

impl StripeServer {
    /// Status, body, and whether nobody is to hear of it.
    fn carry_out(&self, method: &Method, path: &str, text: &str, key: &str) -> (StatusCode, Value, bool) {
        let mut books = self.books.lock().unwrap();
        books.requests.push(format!("{method} {path}"));
        let params = params(text);
        if *method == Method::GET {
            let (status, value) = books.read(path, &params);
            return (status, value, false);
        }
        let muted = books.muted == Some(path);
        if let Some((asked, status, value)) = books.answered.get(key) {
            if *asked != format!("{path}?{text}") {
                let message = "Keys for idempotent requests can only be used with the same parameters";
                return (StatusCode::BAD_REQUEST, error("idempotency_error", None, message), false);
            }
            return (*status, value.clone(), muted);
        }
        let fault = books.faults.iter().position(|(at, _)| path.ends_with(at)).map(|at| books.faults.remove(at).1);
        match fault {
            Some(Fault::TooMany) => {
                return (StatusCode::TOO_MANY_REQUESTS, error("invalid_request_error", Some("rate_limit"), ""), false);
            }
            Some(Fault::Broken) => return (StatusCode::INTERNAL_SERVER_ERROR, error("api_error", None, ""), false),
            _ => {}
        }
        let (status, value) = books.write(path, &params, fault);
        books.answered.insert(key.to_owned(), (format!("{path}?{text}"), status, value.clone()));
        (status, value, muted || fault == Some(Fault::Silent))
    }
}

impl Books {
    fn read(&self, path: &str, params: &Params) -> (StatusCode, Value) {
        let (kind, id) = match path.strip_prefix("/v1/").unwrap_or_default().split_once('/') {
            Some((kind, id)) => (kind, Some(id)),
            None => (path.strip_prefix("/v1/").unwrap_or_default(), None),
        };
        if let Some(id) = id {
            return match self.objects.get(id) {
                Some(object) => (StatusCode::OK, object.clone()),
                None => (StatusCode::NOT_FOUND, error("invalid_request_error", Some("resource_missing"), "")),
            };
        }
        let object = kind.trim_end_matches('s');
        let fits = |value: &&Value| {
            value["object"] == object
                && ["customer", "invoice"]
                    .iter()
                    .all(|name| params.get(*name).is_none_or(|wanted| value[*name].as_str() == Some(wanted.as_str())))
        };
        // The newest first, as Stripe does; pages of two, to be read on.
        let found: Vec<&Value> = self.objects.values().rev().filter(fits).collect();
        let after = params.get("starting_after");
        let from = after.map_or(0, |id| found.iter().position(|v| v["id"] == **id).map_or(found.len(), |at| at + 1));
        let page: Vec<&Value> = found.iter().skip(from).take(2).copied().collect();
        let has_more = from + page.len() < found.len();
        (StatusCode::OK, json!({"object": "list", "url": path, "data": page, "has_more": has_more}))
    }

    fn insert(&mut self, prefix: &str, mut object: Value) -> (StatusCode, Value) {
        self.made += 1;
        let id = format!("{prefix}_{:06}", self.made);
        object["id"] = json!(id);
        self.objects.insert(id, object.clone());
        (StatusCode::OK, object)
    }

    /// What is due of a draft: with the customer's balance, and nothing below the least that is charged. What is then not
    /// charged goes to the balance when it is finalized.
    fn reckon(&mut self, id: &str) {
        let balance = self.objects[id]["customer"].as_str().map_or(0, |id| number(&self.objects[id], "balance"));
        let invoice = self.objects.get_mut(id).unwrap();
        let due = number(invoice, "total") + balance;
        let due = if due < LEAST { 0 } else { due };
        invoice["amount_due"] = json!(due);
        invoice["amount_remaining"] = json!(due);
    }

    fn write(&mut self, path: &str, params: &Params, fault: Option<Fault>) -> (StatusCode, Value) {
        let text = |name: &str| params.get(name).cloned();
        match path.trim_start_matches("/v1/").split('/').collect::<Vec<_>>()[..] {
            ["customers"] => self.insert(
                "cus",
                json!({"object": "customer", "name": text("name"), "email": text("email"), "balance": 0,
                    "metadata": metadata(params)}),
            ),
            ["invoices"] => self.insert(
                "in",
                json!({"object": "invoice", "customer": text("customer"), "status": "draft", "total": 0,
                    "amount_due": 0, "amount_remaining": 0, "pre_payment_credit_notes_amount": 0,
                    "post_payment_credit_notes_amount": 0,
                    "number": text("number"), "collection_method": text("collection_method"),
                    "metadata": metadata(params), "status_transitions": {"paid_at": null}}),
            ),
            ["invoiceitems"] => {
                let invoice = text("invoice").unwrap_or_default();
                let cents: i64 = text("amount").unwrap_or_default().parse().unwrap();
                let meddled = i64::from(fault == Some(Fault::Meddled));
                add(self.objects.get_mut(&invoice).unwrap(), "total", cents + meddled);
                self.reckon(&invoice);
                self.insert(
                    "ii",
                    json!({"object": "invoiceitem", "invoice": invoice, "amount": cents,
                        "description": text("description"), "metadata": metadata(params)}),
                )
            }
            ["invoices", id, step] => {
                if self.objects.contains_key(id) && step == "finalize" {
                    self.reckon(id);
                }
                let Some(invoice) = self.objects.get_mut(id) else {
                    return (StatusCode::NOT_FOUND, error("invalid_request_error", Some("resource_missing"), ""));
                };
                let from = invoice["status"].as_str().unwrap_or_default().to_owned();
                let to = match (from.as_str(), step) {
                    ("draft", "finalize") => "open",
                    ("open" | "uncollectible", "pay") => "paid",
                    ("open" | "uncollectible", "void") => "void",
                    ("open", "mark_uncollectible") => "uncollectible",
                    _ => return (StatusCode::BAD_REQUEST, error("invalid_request_error", None, "not in this status")),
                };
                let nothing_due = invoice["amount_due"] == 0;
                invoice["status"] = json!(if step == "finalize" && nothing_due { "paid" } else { to });
                if step == "pay" {
                    invoice["amount_remaining"] = json!(0);
                }
                let answer = invoice.clone();
                if step == "finalize" {
                    let customer = self.objects.get_mut(answer["customer"].as_str().unwrap()).unwrap();
                    let carried = if nothing_due { number(customer, "balance") + number(&answer, "total") } else { 0 };
                    customer["balance"] = json!(carried);
                }
                (StatusCode::OK, answer)
            }
            ["credit_notes"] => {
                let id = text("invoice").unwrap_or_default();
                let cents: i64 = text("amount").unwrap_or_default().parse().unwrap();
                let back: Option<i64> = text("out_of_band_amount").map(|cents| cents.parse().unwrap());
                let Some(invoice) = self.objects.get_mut(&id) else {
                    return (StatusCode::NOT_FOUND, error("invalid_request_error", Some("resource_missing"), ""));
                };
                let fits = match invoice["status"].as_str() {
                    Some("open") => back.is_none() && cents <= number(invoice, "amount_remaining"),
                    Some("paid") => {
                        let before = number(invoice, "pre_payment_credit_notes_amount")
                            + number(invoice, "post_payment_credit_notes_amount");
                        back == Some(cents) && cents <= number(invoice, "total") - before
                    }
                    _ => false,
                };
                if !fits {
                    return (StatusCode::BAD_REQUEST, error("invalid_request_error", None, "does not fit the invoice"));
                }
                if back.is_none() {
                    add(invoice, "amount_due", -cents);
                    add(invoice, "amount_remaining", -cents);
                    add(invoice, "pre_payment_credit_notes_amount", cents);
                    if invoice["amount_remaining"] == 0 {
                        invoice["status"] = json!("paid");
                    }
                } else {
                    add(invoice, "post_payment_credit_notes_amount", cents);
                }
                self.insert(
                    "cn",
                    json!({"object": "credit_note", "invoice": id, "amount": cents, "memo": text("memo"),
                        "metadata": metadata(params)}),
                )
            }
            ["payment_intents"] => {
                if fault == Some(Fault::Declined) {
                    return (StatusCode::PAYMENT_REQUIRED, error("card_error", Some("card_declined"), "Declined."));
                }
                let status = if fault == Some(Fault::Processing) { "processing" } else { "succeeded" };
                let cents: i64 = text("amount").unwrap_or_default().parse().unwrap();
                let received = if status == "succeeded" { cents } else { 0 };
                self.insert(
                    "pi",
                    json!({"object": "payment_intent", "status": status, "amount": cents, "amount_received": received,
                        "customer": text("customer"), "payment_method": text("payment_method"),
                        "metadata": metadata(params), "last_payment_error": null}),
                )
            }
            _ => (StatusCode::NOT_FOUND, error("invalid_request_error", None, "Unrecognized request URL")),
        }
    }
}

/// The `Stripe-Signature` of a body.
pub(crate) fn sign(body: &str, unix_seconds: i64, secret: &str) -> String {
    let mac = Hmac::<sha2::Sha256>::new_from_slice(secret.as_bytes()).unwrap();
    let mac = mac.chain_update(format!("{unix_seconds}.{body}")).finalize().into_bytes();
    let hex: String = mac.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("t={unix_seconds},v1={hex}")
}
