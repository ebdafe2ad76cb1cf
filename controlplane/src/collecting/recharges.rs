//! Money is asked for when little is left, once; what came in is credited, once.

use super::invoices::{account, cents, customer};
use super::{ACTOR, CollectError, failure};
use crate::context::Context;
use crate::invoicing::CENT;
use crate::store::partitions::Month;
use crate::store::prepaid::{self, Kind, NewEntry};
use crate::store::recharges::{self as store, Recharge};
use crate::store::{PgConnection, StoreError, billing};
use crate::stripe::{Client, ClientError, Form, PaymentIntent, Stripe};
use chrono::{DateTime, TimeDelta, Utc};
use turnpike_config::Usd;
use uuid::Uuid;

/// Stripe forgets idempotency keys after a day: a request that nobody has answered until then is given up.
const GIVE_UP: TimeDelta = TimeDelta::hours(23);

/// Asks for what is missing, and follows what was asked for.
pub(super) async fn reconcile(context: &Context, stripe: &Stripe, now: DateTime<Utc>) -> Result<(), StoreError> {
    let candidates = store::candidates(&mut *context.store.read().await?).await?;
    let month = Month::of(now);
    let standings = billing::standings(&mut *context.store.read().await?, month, Some(&candidates)).await?;
    for standing in standings {
        let wanted = standing.account();
        let (Some(left), Some(threshold), Some(amount)) =
            (standing.prepaid_balance(), wanted.auto_recharge_threshold, wanted.auto_recharge_amount)
        else {
            continue;
        };
        if left >= threshold {
            continue;
        }
        let organization = standing.organization_id;
        let opened = open(context, &stripe.client, organization, amount).await;
        failure(context, "recharge", organization, opened)?;
    }
    for recharge in store::all_open(&mut *context.store.read().await?).await? {
        let followed = follow(context, &stripe.client, &recharge, now).await;
        failure(context, "recharge", recharge.id, followed)?;
    }
    Ok(())
}

/// Notes the request before it is made: one that was made is known, whatever happens next.
async fn open(context: &Context, client: &Client, organization: Uuid, amount: Usd) -> Result<(), CollectError> {
    let account = account(context, organization).await?;
    let customer = customer(context, client, &account).await?;
    let mut connection = context.store.read().await?;
    store::open(&mut connection, organization, amount, &customer, account.payment_method.as_deref()).await?;
    Ok(())
}

/// Asks for an open request's money, or how it stands.
async fn follow(
    context: &Context,
    client: &Client,
    recharge: &Recharge,
    now: DateTime<Utc>,
) -> Result<(), CollectError> {
    let asked = match &recharge.provider_id {
        Some(id) => client.get(&format!("/v1/payment_intents/{id}"), &Form::new()).await,
        None if now.signed_duration_since(recharge.created_at) > GIVE_UP => {
            let reason = "no answer from Stripe within 23 h; should the money have come in all the same, its webhook \
                          credits it";
            return end(context, recharge, reason, now).await;
        }
        None => ask(client, recharge).await,
    };
    match asked {
        Ok(intent) => take_in(context, &intent, now).await,
        // Another form with the same key: that one's outcome comes by webhook.
        Err(ClientError::Refused { error, .. })
            if recharge.provider_id.is_none() && error.kind != "idempotency_error" =>
        {
            end(context, recharge, &error.to_string(), now).await
        }
        Err(error) => Err(error.into()),
    }
}

async fn ask(client: &Client, recharge: &Recharge) -> Result<PaymentIntent, ClientError> {
    let form = Form::new()
        .with("amount", cents(recharge.amount()))
        .with("currency", "usd")
        .maybe("customer", recharge.customer.as_deref())
        .maybe("payment_method", recharge.payment_method.as_deref())
        .with("confirm", true)
        .with("off_session", true)
        .with("metadata[recharge_id]", recharge.id)
        .with("metadata[organization_id]", recharge.organization_id);
    client.post("/v1/payment_intents", &form, &format!("recharge-{}", recharge.id)).await
}

async fn end(context: &Context, recharge: &Recharge, reason: &str, now: DateTime<Utc>) -> Result<(), CollectError> {
    tracing::warn!(organization = %recharge.organization_id, reason, "a recharge failed");
    Ok(store::fail(&mut *context.store.read().await?, recharge.id, reason, now).await?)
}

async fn take_in(context: &Context, intent: &PaymentIntent, now: DateTime<Utc>) -> Result<(), CollectError> {
    let mut tx = context.store.begin().await?;
    let organization = settle(&mut tx, intent, now).await?;
    tx.commit().await.map_err(StoreError::from)?;
    context.spending.tell(organization);
    Ok(())
}

/// Brings a request in line with what Stripe says of it: what came in is credited once, by whichever way it is heard of,
/// also if it had been given up. Gives the organization if its money has moved.
pub(super) async fn settle(
    connection: &mut PgConnection,
    intent: &PaymentIntent,
    now: DateTime<Utc>,
) -> Result<Option<Uuid>, StoreError> {
    let Some(id) = intent.metadata.get("recharge_id").and_then(|id| id.parse::<Uuid>().ok()) else { return Ok(None) };
    // The account first: whoever moves its ledger takes the locks in this order.
    let Some(recharge) = store::get(connection, id).await? else { return Ok(None) };
    let organization = recharge.organization_id;
    billing::lock(connection, organization).await?;
    store::name(connection, id, &intent.id).await?;
    match intent.status.as_str() {
        "succeeded" => {
            let amount = Usd { pico: i128::from(intent.amount_received) * CENT };
            prepaid::open(connection, organization, now.date_naive(), ACTOR).await?;
            let (key, note) = (format!("recharge:{id}"), Some(intent.id.as_str()));
            let entry = NewEntry { kind: Kind::Recharge, amount, key: &key, actor: ACTOR, note };
            let new = prepaid::append(connection, organization, &entry).await?.is_some();
            store::succeed(connection, id, now).await?;
            Ok(new.then_some(organization))
        }
        "requires_payment_method" | "canceled" => {
            let reason = intent.last_payment_error.as_ref().map_or_else(|| intent.status.clone(), ToString::to_string);
            store::fail(connection, id, &reason, now).await?;
            Ok(None)
        }
        // It goes on.
        _ => Ok(None),
    }
}
