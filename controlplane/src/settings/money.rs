//! Settings of invoices and of who collects their money.

use crate::invoicing::Party;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;
use turnpike_config::settings::Fields;

/// Days from an invoice's date until it is due, unless set otherwise; a year at most.
const DEFAULT_DUE_DAYS: u32 = 14;
const MAX_DUE_DAYS: u32 = 366;
/// How long after a month's end it is closed, unless set otherwise.
const DEFAULT_CLOSE_AFTER: Duration = Duration::from_secs(24 * 3600);
/// Between two looks at whether a month is to be closed, unless set otherwise.
const DEFAULT_CLOSE_EVERY: Duration = Duration::from_secs(600);
/// How short and how long that may be.
const CLOSE_EVERY: RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(24 * 3600);
/// What invoice numbers begin with, unless set otherwise.
const DEFAULT_PREFIX: &str = "TP";

/// What invoices say beside usage, and when they are made.
#[derive(Clone, Debug)]
pub(crate) struct Invoicing {
    /// Who asks for the money.
    pub(crate) seller: Party,
    /// What numbers begin with.
    pub(crate) number_prefix: String,
    /// Days until an invoice is due.
    pub(crate) due_days: u32,
    /// How long after a month's end it is closed.
    pub(crate) close_after: Duration,
    /// Between two looks at whether a month is to be closed.
    pub(crate) close_every: Duration,
}

impl Invoicing {
    pub(super) fn from_fields(fields: &mut Fields<'_>) -> Self {
        let due_days = fields.or("billing.due_days", DEFAULT_DUE_DAYS);
        let close_every = fields.or("billing.close_every", DEFAULT_CLOSE_EVERY);
        let number_prefix = fields.or("billing.number_prefix", DEFAULT_PREFIX.to_owned());
        if due_days > MAX_DUE_DAYS {
            fields.mistake("billing.due_days", "expected 0 to 366");
        }
        if !CLOSE_EVERY.contains(&close_every) {
            fields.mistake("billing.close_every", "expected 100ms to 24h");
        }
        let short = (1..=10).contains(&number_prefix.len());
        if !short || !number_prefix.bytes().all(|c| c.is_ascii_uppercase() || c.is_ascii_digit()) {
            fields.mistake("billing.number_prefix", "expected 1 to 10 of A-Z and 0-9");
        }
        let address: Option<String> = fields.optional("billing.seller_address");
        let seller = Party {
            name: fields.or("billing.seller_name", String::new()),
            address: address.map(|text| text.lines().map(str::to_owned).collect()).unwrap_or_default(),
            tax_id: fields.optional("billing.seller_tax_id"),
            email: fields.optional("billing.seller_email"),
        };
        let close_after = fields.or("billing.close_after", DEFAULT_CLOSE_AFTER);
        Self { seller, number_prefix, due_days, close_after, close_every }
    }
}

/// Where Stripe is, unless set otherwise.
const STRIPE_URL: &str = "https://api.stripe.com";
/// Longest attempt of a call to Stripe, unless set otherwise.
const STRIPE_TIMEOUT: Duration = Duration::from_secs(20);
/// Between two looks at what is to be collected, unless set otherwise.
const STRIPE_EVERY: Duration = Duration::from_secs(5);

/// The Stripe account that collects the money.
#[derive(Clone, Debug)]
pub(crate) struct StripeSettings {
    /// Where it is.
    pub(crate) url: reqwest::Url,
    /// Holds the secret key.
    pub(crate) secret_key_file: PathBuf,
    /// Holds what webhooks are signed with.
    pub(crate) webhook_secret_file: PathBuf,
    /// Longest attempt of a call.
    pub(crate) timeout: Duration,
    /// Between two looks at what is to be collected.
    pub(crate) every: Duration,
}

impl StripeSettings {
    /// `None` unless `stripe.secret_key_file` is set.
    pub(super) fn from_fields(fields: &mut Fields<'_>) -> Option<Self> {
        let url = fields.or("stripe.url", STRIPE_URL.to_owned());
        let secret_key_file: Option<PathBuf> = fields.optional("stripe.secret_key_file");
        let webhook_secret_file: Option<PathBuf> = fields.optional("stripe.webhook_secret_file");
        let timeout = fields.or("stripe.timeout", STRIPE_TIMEOUT);
        let every = fields.or("stripe.every", STRIPE_EVERY);
        let url = reqwest::Url::parse(&url).ok().filter(|url| {
            let local = matches!(url.host_str(), Some("127.0.0.1" | "localhost" | "[::1]"));
            url.scheme() == "https" || url.scheme() == "http" && local
        });
        if url.is_none() {
            fields.mistake("stripe.url", "expected https://…, or http://… of this machine");
        }
        if secret_key_file.is_some() != webhook_secret_file.is_some() {
            fields.mistake("stripe", "secret_key_file and webhook_secret_file go together");
        }
        if !CLOSE_EVERY.contains(&every) {
            fields.mistake("stripe.every", "expected 100ms to 24h");
        }
        let (secret_key_file, webhook_secret_file) = secret_key_file.zip(webhook_secret_file)?;
        Some(Self { url: url?, secret_key_file, webhook_secret_file, timeout, every })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stripe_is_off_unless_it_has_its_secrets() {
        let stripe = |text: &str| {
            let mut fields = Fields::parse("t", text, &|_| None).expect("TOML");
            let settings = StripeSettings::from_fields(&mut fields);
            fields.finish(Some(settings)).map_err(|error| error.to_string())
        };
        assert!(stripe("").is_ok_and(|settings| settings.is_none()));
        let keys = "stripe.secret_key_file = \"k\"\nstripe.webhook_secret_file = \"w\"\n";
        let settings = stripe(keys).expect("valid").expect("on");
        assert_eq!(settings.url.as_str(), "https://api.stripe.com/");
        assert!(stripe("stripe.secret_key_file = \"k\"").is_err_and(|e| e.contains("go together")));
        let plain = format!("{keys}stripe.url = \"http://stripe.example\"");
        assert!(stripe(&plain).is_err_and(|e| e.contains("stripe.url")), "the key would go over the wire in the clear");
    }
}
