//! Money collected through Stripe, against a stand-in that fails as Stripe may.

use crate::invoices::{close, first_of, spending};
use crate::peers::Meter;
use crate::plane::{Plane, Tenant, eventually, id};
use crate::prepaid::{balance, top_up};
use crate::stripe_server::{Fault, KEY, StripeServer, WEBHOOK_SECRET, sign};
use chrono::{Days, NaiveTime, Utc};
use reqwest::Method;
use serde_json::{Value, json};

struct Collected {
    plane: Plane,
    stripe: StripeServer,
    _secrets: tempfile::TempDir,
}

impl Collected {
    async fn start() -> Self {
        let stripe = StripeServer::start().await;
        let secrets = tempfile::TempDir::new().unwrap();
        let file = |name: &str, text: &str| {
            let path = secrets.path().join(name);
            std::fs::write(&path, format!("{text}\n")).unwrap();
            path
        };
        let settings = format!(
            "stripe.url = \"http://{}\"\nstripe.secret_key_file = {:?}\nstripe.webhook_secret_file = {:?}\n\
             stripe.timeout = \"300ms\"\nstripe.every = \"100ms\"\n",
            stripe.address,
            file("key", KEY),
            file("webhook", WEBHOOK_SECRET),
        );
        let plane = Plane::start_with(&settings).await;
        plane.model("m").await;
        Self { plane, stripe, _secrets: secrets }
    }

    /// An organization with an invoice of last month over 12.00.
    async fn invoiced(&self, slug: &str) -> (Tenant, Value) {
        let tenant = self.plane.tenant(slug).await;
        let terms = json!({"tax_rate": "20", "discount_permille": 100, "billing_email": format!("pay@{slug}.example")});
        self.patch(&tenant, terms).await;
        let at = (first_of(1) + Days::new(3)).and_time(NaiveTime::MIN).and_utc();
        Meter::connect(&self.plane, slug).await.ship(1, 0, &[spending(&tenant, "m", at, "11.1100000001")]).await;
        let invoice = close(&self.plane, &tenant, 1).await["invoice"].clone();
        assert_eq!(invoice["amount_due"], "12");
        (tenant, invoice)
    }

    async fn patch(&self, tenant: &Tenant, body: Value) {
        let path = format!("/organizations/{}/billing", tenant.organization);
        self.plane.call(Method::PATCH, &path, Some(body)).await;
    }

    /// Our invoice once Stripe has it, finalized.
    async fn sent(&self, invoice: &Value) -> Value {
        let path = format!("/invoices/{}", id(invoice));
        let finalized = "SELECT count(*) FROM stripe_invoices WHERE invoice_id = $1 AND finalized_at IS NOT NULL";
        eventually("the invoice at Stripe", || async {
            let count: i64 = sqlx::query_scalar(finalized)
                .bind(id(invoice).parse::<uuid::Uuid>().unwrap())
                .fetch_one(&self.plane.pool)
                .await
                .unwrap();
            (count == 1).then_some(())
        })
        .await;
        self.plane.get(&path).await
    }

    /// What failed waits; it is made to wait no longer until something happens.
    async fn without_patience<T, F: Future<Output = Option<T>>>(&self, what: &str, mut done: impl FnMut() -> F) -> T {
        loop {
            sqlx::query("UPDATE stripe_invoices SET retry_at = NULL").execute(&self.plane.pool).await.unwrap();
            sqlx::query("UPDATE stripe_credit_notes SET retry_at = NULL").execute(&self.plane.pool).await.unwrap();
            sqlx::query("UPDATE recharges SET retry_at = NULL").execute(&self.plane.pool).await.unwrap();
            let done = tokio::time::timeout(std::time::Duration::from_secs(1), eventually(what, &mut done)).await;
            if let Ok(value) = done {
                return value;
            }
        }
    }

    async fn deliver(&self, event: &Value) -> u16 {
        let body = event.to_string();
        let signature = sign(&body, Utc::now().timestamp(), WEBHOOK_SECRET);
        self.plane.webhook(&body, &signature).await
    }

    async fn status(&self, invoice: &Value) -> String {
        self.plane.get(&format!("/invoices/{}", id(invoice))).await["status"].as_str().unwrap().to_owned()
    }
}

fn event(name: &str, kind: &str, object: &Value) -> Value {
    let created = Utc::now().timestamp() - 5;
    json!({"id": name, "object": "event", "type": kind, "created": created, "data": {"object": object}})
}

#[tokio::test]
async fn an_invoice_reaches_stripe_once_whatever_fails_on_the_way() {
    let to = Collected::start().await;
    for (path, fault) in [
        ("/customers", Fault::TooMany),
        ("/customers", Fault::Silent),
        ("/invoices", Fault::Broken),
        ("/invoices", Fault::Silent),
        ("/invoiceitems", Fault::Silent),
        ("/invoiceitems", Fault::Broken),
        ("/finalize", Fault::Silent),
        ("/finalize", Fault::TooMany),
    ] {
        to.stripe.fail(path, fault);
    }
    let (tenant, invoice) = to.invoiced("acme").await;
    let ours = to.sent(&invoice).await;
    let (customers, theirs) = (to.stripe.all("customer"), to.stripe.all("invoice"));
    assert_eq!((customers.len(), theirs.len()), (1, 1));
    assert_eq!(customers[0]["metadata"]["organization_id"], json!(tenant.organization));
    assert_eq!((&theirs[0]["id"], &theirs[0]["status"]), (&ours["stripe_invoice_id"], &json!("open")));
    assert_eq!((&theirs[0]["amount_due"], &theirs[0]["number"]), (&json!(1200), &ours["invoice_number"]));
    assert_eq!(theirs[0]["metadata"]["invoice_id"], ours["id"]);
    let items: Vec<_> = to.stripe.all("invoiceitem").iter().map(|item| item["amount"].as_i64().unwrap()).collect();
    assert_eq!(items, [1111, -111, 200], "the line, the discount and the tax");
    assert_eq!(ours["checksum_valid"], true);
    // Runs go on, and nothing is asked for again.
    let asked = to.stripe.asked("POST");
    let (_, second) = to.invoiced("other").await;
    to.sent(&second).await;
    assert!(to.stripe.asked("POST") > asked);
    assert_eq!((to.stripe.all("customer").len(), to.stripe.all("invoice").len()), (2, 2));

    // What becomes of it here is told.
    to.plane.call(Method::POST, &format!("/invoices/{}/pay", id(&invoice)), None).await;
    to.plane.call(Method::POST, &format!("/invoices/{}/void", id(&second)), None).await;
    eventually("both steps at Stripe", || async {
        let statuses: Vec<_> = to.stripe.all("invoice").iter().map(|invoice| invoice["status"].clone()).collect();
        (statuses == [json!("paid"), json!("void")]).then_some(())
    })
    .await;
}

#[tokio::test]
async fn an_invoice_that_stripe_has_and_nobody_noted_is_found() {
    let mut to = Collected::start().await;
    // It is made, and neither the first attempt nor those after it hear of it.
    to.stripe.mute(Some("/v1/invoices"));
    let (tenant, invoice) = to.invoiced("acme").await;
    eventually("the invoice at Stripe", || async { (to.stripe.all("invoice").len() == 1).then_some(()) }).await;
    to.plane.stop().await;
    assert_eq!(
        sqlx::query_scalar::<_, Option<String>>("SELECT stripe_invoice_id FROM invoices")
            .fetch_one(&to.plane.pool)
            .await
            .unwrap(),
        None
    );
    // Asked for anew it would be another request: another key.
    sqlx::query("UPDATE billing_accounts SET payment_method_id = 'pm_other'").execute(&to.plane.pool).await.unwrap();
    to.stripe.mute(None);
    to.plane.restart_stopped().await;
    to.without_patience("it is finalized", || async {
        (to.stripe.all("invoice")[0]["status"] == "open").then_some(())
    })
    .await;
    let ours = to.sent(&invoice).await;
    assert_eq!((to.stripe.all("invoice").len(), &ours["organization_id"]), (1, &json!(tenant.organization)));
}

#[tokio::test]
async fn a_credit_note_is_not_asked_for_at_stripe_any_more() {
    let to = Collected::start().await;
    let (_, invoice) = to.invoiced("acme").await;
    to.sent(&invoice).await;
    to.stripe.fail("/credit_notes", Fault::Silent);
    let path = format!("/invoices/{}/credit_notes", id(&invoice));
    let note = |amount: &str, to_prepaid: bool| {
        json!({"amount": amount, "reason": "an outage", "idempotency_key": amount,
        "to_prepaid": to_prepaid})
    };
    to.plane.post(&path, note("2", false)).await;
    eventually("the note", || async { (to.stripe.all("credit_note").len() == 1).then_some(()) }).await;
    assert_eq!(to.stripe.all("invoice")[0]["amount_due"], 1000);
    to.plane.post(&path, note("1", true)).await;
    let open = to.plane.get(&format!("/invoices/{}", id(&invoice))).await;
    assert_eq!((&open["credited_amount"], &open["remaining_due"]), (&json!("3"), &json!("10")));
    to.plane.refused(Method::POST, &path, &note("10", false).to_string(), 409).await;
    to.plane.post(&path, note("9", false)).await;
    eventually("the third note", || async { (to.stripe.all("credit_note").len() == 2).then_some(()) }).await;
    assert_eq!(to.stripe.all("invoice")[0]["amount_due"], 100, "what went into the ledger is to be paid");
    // Of a paid one, what is credited goes back by other ways; all of an open one, and nothing is left to pay.
    let (_, paid) = to.invoiced("paid").await;
    let (_, whole) = to.invoiced("whole").await;
    to.sent(&paid).await;
    to.sent(&whole).await;
    to.plane.call(Method::POST, &format!("/invoices/{}/pay", id(&paid)), None).await;
    eventually("it is paid there", || async { (to.stripe.all("invoice")[1]["status"] == "paid").then_some(()) }).await;
    to.plane.post(&format!("/invoices/{}/credit_notes", id(&paid)), note("12", false)).await;
    to.plane.post(&format!("/invoices/{}/credit_notes", id(&whole)), note("12", false)).await;
    eventually("both notes", || async { (to.stripe.all("credit_note").len() == 4).then_some(()) }).await;
    assert_eq!((to.status(&paid).await.as_str(), to.status(&whole).await.as_str()), ("paid", "paid"));
}

#[tokio::test]
async fn a_sum_that_differs_at_stripe_is_not_finalized() {
    let to = Collected::start().await;
    to.stripe.fail("/invoiceitems", Fault::Meddled);
    let (_, invoice) = to.invoiced("acme").await;
    eventually("the refusal", || async {
        let error: Option<Option<String>> =
            sqlx::query_scalar("SELECT error FROM stripe_invoices").fetch_optional(&to.plane.pool).await.unwrap();
        error.flatten().filter(|error| error.contains("1200 cents are due, at Stripe the total is 1201"))
    })
    .await;
    let theirs = to.stripe.all("invoice")[0].clone();
    assert_eq!((&theirs["status"], to.stripe.asked("/finalize")), (&json!("draft"), 0));
    assert!(to.plane.metric("turnpike_controlplane_stripe_failures_total").await.is_some_and(|count| count >= 1.0));
    to.stripe.set(theirs["id"].as_str().unwrap(), "total", json!(1200));
    to.without_patience("it goes on", || async { (to.stripe.all("invoice")[0]["status"] == "open").then_some(()) })
        .await;
    assert_eq!(to.status(&invoice).await, "open");
}

#[tokio::test]
async fn what_stripe_does_not_charge_by_itself_is_carried_to_the_next_invoice() {
    let to = Collected::start().await;
    let tenant = to.plane.tenant("acme").await;
    let at = |back: u32| (first_of(back) + Days::new(3)).and_time(NaiveTime::MIN).and_utc();
    let events = [spending(&tenant, "m", at(2), "0.49"), spending(&tenant, "m", at(1), "12")];
    Meter::connect(&to.plane, "e1").await.ship(1, 0, &events).await;
    let small = close(&to.plane, &tenant, 2).await["invoice"].clone();
    assert_eq!(small["status"], "open");
    eventually("Stripe takes it for paid", || async { (to.status(&small).await == "paid").then_some(()) }).await;
    let details: Value = sqlx::query_scalar("SELECT details FROM audit_log WHERE action = 'invoice.paid'")
        .fetch_one(&to.plane.pool)
        .await
        .unwrap();
    assert_eq!(details["cents_to_customer_balance"], 49);
    assert_eq!(to.stripe.all("customer")[0]["balance"], 49);
    assert_eq!(to.deliver(&event("evt_1", "invoice.paid", &to.stripe.all("invoice")[0])).await, 200);
    let next = close(&to.plane, &tenant, 1).await["invoice"].clone();
    to.sent(&next).await;
    let theirs = to.stripe.all("invoice")[1].clone();
    assert_eq!(
        (&theirs["total"], &theirs["amount_due"], &theirs["status"]),
        (&json!(1200), &json!(1249), &json!("open"))
    );
    assert_eq!((to.status(&next).await.as_str(), to.stripe.asked("POST /v1/invoices/in_")), ("open", 2));
    assert_eq!(to.plane.metric("turnpike_controlplane_stripe_conflicts_total").await, Some(0.0));
}

#[tokio::test]
async fn a_credit_note_is_made_once_and_takes_off_what_is_left() {
    let to = Collected::start().await;
    let (_, invoice) = to.invoiced("acme").await;
    let (_, whole) = to.invoiced("whole").await;
    to.sent(&invoice).await;
    to.sent(&whole).await;
    let credit = async |invoice: &Value, amount: &str| {
        let body = json!({"amount": amount, "reason": "an outage", "idempotency_key": amount});
        to.plane.post(&format!("/invoices/{}/credit_notes", id(invoice)), body).await;
    };
    let told = async |wanted: i64| {
        to.without_patience("the notes", || async {
            let count: i64 = sqlx::query_scalar("SELECT count(*) FROM stripe_credit_notes WHERE stripe_id IS NOT NULL")
                .fetch_one(&to.plane.pool)
                .await
                .unwrap();
            (count == wanted).then_some(())
        })
        .await;
    };
    // A part was paid there from the customer's balance.
    to.stripe.set(to.stripe.all("invoice")[0]["id"].as_str().unwrap(), "amount_remaining", json!(300));
    credit(&invoice, "5").await;
    told(1).await;
    assert_eq!(to.stripe.all("credit_note")[0]["amount"], 300);
    // It is made, nobody hears of it, and the invoice is paid by it.
    to.stripe.mute(Some("/v1/credit_notes"));
    credit(&whole, "12").await;
    eventually("the failure is noted", || async {
        let failed = "SELECT count(*) FROM stripe_credit_notes WHERE error IS NOT NULL";
        let count: i64 = sqlx::query_scalar(failed).fetch_one(&to.plane.pool).await.unwrap();
        (count == 1).then_some(())
    })
    .await;
    to.stripe.mute(None);
    told(2).await;
    assert_eq!(to.stripe.all("credit_note").len(), 2);
}

#[tokio::test]
async fn an_invoice_with_credit_notes_is_not_voided_from_either_side() {
    let to = Collected::start().await;
    let (_, invoice) = to.invoiced("acme").await;
    to.sent(&invoice).await;
    let body = json!({"amount": "2", "reason": "an outage", "idempotency_key": "a"});
    to.plane.post(&format!("/invoices/{}/credit_notes", id(&invoice)), body).await;
    let refused = to.plane.refused(Method::POST, &format!("/invoices/{}/void", id(&invoice)), "", 409).await;
    assert!(refused["detail"].as_str().unwrap().contains("credit note over the rest"), "{refused}");
    let theirs = to.stripe.all("invoice")[0].clone();
    to.stripe.set(theirs["id"].as_str().unwrap(), "status", json!("void"));
    assert_eq!(to.deliver(&event("evt_1", "invoice.voided", &theirs)).await, 200);
    assert_eq!(to.status(&invoice).await, "open");
    assert_eq!(to.plane.metric("turnpike_controlplane_stripe_conflicts_total").await, Some(1.0));
    // Nothing is tried that cannot succeed: neither now, nor once it is paid here.
    let told = async || {
        sqlx::query_as::<_, (String, Option<String>)>("SELECT told, error FROM stripe_invoices")
            .fetch_one(&to.plane.pool)
            .await
            .unwrap()
    };
    assert_eq!(told().await, ("open".to_owned(), None));
    to.plane.call(Method::POST, &format!("/invoices/{}/pay", id(&invoice)), None).await;
    eventually("it is given up", || async { (told().await == ("paid".to_owned(), None)).then_some(()) }).await;
    assert_eq!(to.plane.metric("turnpike_controlplane_stripe_conflicts_total").await, Some(2.0));
    assert_eq!(to.stripe.asked("/pay"), 0);
}

#[tokio::test]
async fn rows_that_cannot_be_written_do_not_stand_in_the_way_of_others() {
    let to = Collected::start().await;
    sqlx::raw_sql(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
             IF EXISTS (SELECT 1 FROM organizations WHERE id = new.organization_id AND slug = 'broken') THEN
                 RAISE EXCEPTION 'refused for a test';
             END IF;
             RETURN new;
         END $$;
         CREATE TRIGGER refuse BEFORE UPDATE OF stripe_customer_id ON billing_accounts
             FOR EACH ROW EXECUTE FUNCTION refuse();",
    )
    .execute(&to.plane.pool)
    .await
    .unwrap();
    let recharge =
        json!({"auto_recharge_enabled": true, "auto_recharge_threshold": "10", "auto_recharge_amount": "50"});
    let (broken, _) = to.invoiced("broken").await;
    let (sound, invoice) = to.invoiced("sound").await;
    for tenant in [&broken, &sound] {
        top_up(&to.plane, tenant, "1", "first").await;
        to.patch(tenant, recharge.clone()).await;
    }
    eventually("the other's money", || async { (balance(&to.plane, &sound).await == "51").then_some(()) }).await;
    to.sent(&invoice).await;
    assert_eq!(balance(&to.plane, &broken).await, "1");
}

#[tokio::test]
async fn webhooks_are_believed_by_their_signature_and_counted_once() {
    let to = Collected::start().await;
    let (_, invoice) = to.invoiced("acme").await;
    to.sent(&invoice).await;
    let theirs = to.stripe.all("invoice")[0].clone();
    let paid = event("evt_1", "invoice.paid", &theirs);
    let (body, now) = (paid.to_string(), Utc::now().timestamp());
    for (signature, why) in [
        (String::new(), "none"),
        (sign(&body, now, "whsec_another_one"), "another secret"),
        (sign(&body, now - 301, WEBHOOK_SECRET), "too old"),
        (sign(&body, now + 400, WEBHOOK_SECRET), "of the future"),
        (sign("{}", now, WEBHOOK_SECRET), "of another body"),
    ] {
        assert_eq!(to.plane.webhook(&body, &signature).await, 400, "{why}");
    }
    assert_eq!(to.status(&invoice).await, "open");
    // Before it was paid, a payment failed; Stripe says so later.
    assert_eq!(to.deliver(&paid).await, 200);
    assert_eq!(to.status(&invoice).await, "paid");
    let paid_at = to.plane.get(&format!("/invoices/{}", id(&invoice))).await["paid_at"].clone();
    for late in [
        paid.clone(),
        event("evt_2", "invoice.paid", &theirs),
        event("evt_3", "invoice.payment_failed", &theirs),
        event("evt_4", "invoice.marked_uncollectible", &theirs),
        event("evt_5", "invoice.voided", &theirs),
        event("evt_6", "customer.created", &json!({"id": "cus_x", "object": "customer"})),
        event("evt_7", "invoice.paid", &json!({"id": "in_unknown", "object": "invoice"})),
    ] {
        assert_eq!(to.deliver(&late).await, 200, "{late}");
        let now = to.plane.get(&format!("/invoices/{}", id(&invoice))).await;
        assert_eq!((&now["status"], &now["paid_at"], &now["checksum_valid"]), (&json!("paid"), &paid_at, &json!(true)));
    }
    assert_eq!(to.plane.metric("turnpike_controlplane_stripe_conflicts_total").await, Some(1.0), "void after paid");
    assert_eq!(to.deliver(&json!({"id": "evt_8"})).await, 400);
    let actions: Vec<String> = sqlx::query_scalar("SELECT action FROM audit_log WHERE actor = 'stripe' ORDER BY id")
        .fetch_all(&to.plane.pool)
        .await
        .unwrap();
    assert_eq!(actions, ["invoice.paid", "invoice.payment_failed"]);

    // The other ways, and many deliveries at once.
    let (_, second) = to.invoiced("other").await;
    to.sent(&second).await;
    let theirs = to.stripe.all("invoice")[1].clone();
    let given_up = event("evt_20", "invoice.marked_uncollectible", &theirs);
    let statuses = futures::future::join_all((0..8).map(|_| to.deliver(&given_up))).await;
    assert!(statuses.iter().all(|status| *status == 200), "{statuses:?}");
    assert_eq!(to.status(&second).await, "uncollectible");
    assert_eq!(to.deliver(&event("evt_21", "invoice.voided", &theirs)).await, 200);
    assert_eq!(to.status(&second).await, "void");
    assert_eq!(to.deliver(&event("evt_22", "invoice.paid", &theirs)).await, 200);
    assert_eq!(to.status(&second).await, "void", "money for a void invoice is for people to look at");
}

#[tokio::test]
async fn little_money_is_recharged_once_and_credited_once() {
    let to = Collected::start().await;
    let tenant = to.plane.tenant("acme").await;
    top_up(&to.plane, &tenant, "12", "first").await;
    let recharge = json!({"auto_recharge_enabled": true, "auto_recharge_threshold": "10", "auto_recharge_amount": "50",
        "payment_method_id": "pm_card"});
    to.patch(&tenant, recharge.clone()).await;
    let mut meter = Meter::connect(&to.plane, "e1").await;
    meter.ship(1, 0, &[spending(&tenant, "m", Utc::now(), "2")]).await;
    // When another one's money has come, this one's has been looked at.
    let poor = to.plane.tenant("poor").await;
    top_up(&to.plane, &poor, "9.99", "first").await;
    to.patch(&poor, recharge).await;
    eventually("the other's money", || async { (balance(&to.plane, &poor).await == "59.99").then_some(()) }).await;
    assert_eq!(to.stripe.all("payment_intent").len(), 1, "10 is not less than 10");
    to.stripe.fail("/payment_intents", Fault::Silent);
    meter.ship(1, 1, &[spending(&tenant, "m", Utc::now(), "0.000000000001")]).await;
    let credited = async |wanted: &str| {
        eventually("the money", || async { (balance(&to.plane, &tenant).await == wanted).then_some(()) }).await;
    };
    // The first attempt was carried out and not heard of: the second one asks with the same key.
    credited("59.999999999999").await;
    let intents = to.stripe.all("payment_intent");
    assert_eq!((intents.len(), &intents[1]["amount"]), (2, &json!(5000)));
    assert_eq!((&intents[1]["payment_method"], intents[1]["customer"].is_string()), (&json!("pm_card"), true));
    for name in ["evt_1", "evt_2"] {
        assert_eq!(to.deliver(&event(name, "payment_intent.succeeded", &intents[1])).await, 200);
    }
    credited("59.999999999999").await;

    // One that takes its time: no second one meanwhile, and it is credited when Stripe says so.
    to.stripe.fail("/payment_intents", Fault::Processing);
    meter.ship(1, 2, &[spending(&tenant, "m", Utc::now(), "55")]).await;
    let begun = eventually("the second request", || async { to.stripe.all("payment_intent").get(2).cloned() }).await;
    let polls = to.stripe.asked("GET /v1/payment_intents");
    eventually("a look at how it stands", || async {
        (to.stripe.asked("GET /v1/payment_intents") > polls + 2).then_some(())
    })
    .await;
    assert_eq!(to.stripe.all("payment_intent").len(), 3);
    assert_eq!(balance(&to.plane, &tenant).await, "4.999999999999");
    let mut done = begun;
    done["status"] = json!("succeeded");
    done["amount_received"] = json!(5000);
    assert_eq!(to.deliver(&event("evt_3", "payment_intent.succeeded", &done)).await, 200);
    assert_eq!(balance(&to.plane, &tenant).await, "54.999999999999");
    let failed = event(
        "evt_4",
        "payment_intent.payment_failed",
        &json!({"id": done["id"], "object": "payment_intent",
        "status": "requires_payment_method", "metadata": done["metadata"]}),
    );
    assert_eq!(to.deliver(&failed).await, 200, "an older word on what has come in since");
    assert_eq!(balance(&to.plane, &tenant).await, "54.999999999999");
}

#[tokio::test]
async fn a_declined_card_is_not_tried_again_at_once() {
    let to = Collected::start().await;
    let tenant = to.plane.tenant("acme").await;
    to.stripe.fail("/payment_intents", Fault::Declined);
    top_up(&to.plane, &tenant, "1", "first").await;
    let recharge =
        json!({"auto_recharge_enabled": true, "auto_recharge_threshold": "10", "auto_recharge_amount": "50"});
    to.patch(&tenant, recharge).await;
    let (error, minutes): (String, f64) = eventually("the failure", || async {
        sqlx::query_as(
            "SELECT error, (extract(epoch FROM retry_at - ended_at) / 60)::float8 FROM recharges
             WHERE status = 'failed'",
        )
        .fetch_optional(&to.plane.pool)
        .await
        .unwrap()
    })
    .await;
    assert!(error.contains("card_declined") && (59.0..61.0).contains(&minutes), "{error} {minutes}");
    let asked = to.stripe.asked("POST /v1/payment_intents");
    let (_, invoice) = to.invoiced("other").await;
    to.sent(&invoice).await;
    assert_eq!(to.stripe.asked("POST /v1/payment_intents"), asked);
    assert_eq!(balance(&to.plane, &tenant).await, "1");
    to.without_patience("the next one", || async { (balance(&to.plane, &tenant).await == "51").then_some(()) }).await;
    let incomplete = json!({"auto_recharge_enabled": true, "auto_recharge_amount": null}).to_string();
    let path = format!("/organizations/{}/billing", tenant.organization);
    to.plane.refused(Method::PATCH, &path, &incomplete, 422).await;
}

#[tokio::test]
async fn nothing_is_there_unless_it_is_configured() {
    let plane = Plane::start().await;
    assert_eq!(plane.webhook("{}", &sign("{}", Utc::now().timestamp(), WEBHOOK_SECRET)).await, 404);
}
