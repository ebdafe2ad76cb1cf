//! Bootstrap settings of the control plane.

mod clickhouse;
mod money;

pub(crate) use money::{Invoicing, StripeSettings};

use crate::ledger::Options;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;
use turnpike_config::link::TlsFiles;
use turnpike_config::settings::{BadSettings, Fields};

/// Connections to PostgreSQL unless set otherwise.
const DEFAULT_CONNECTIONS: u32 = 10;
/// Fewest that still leave room beside the listener's own connection and those that say who leads.
const MIN_CONNECTIONS: u32 = 6;
/// Months of request log kept unless set otherwise: a full year beside the current month.
const DEFAULT_KEEP_MONTHS: u32 = 13;
/// Longest request log, months.
const MAX_KEEP_MONTHS: u32 = 120;

/// Between two looks at what organizations with a budget have spent, unless set otherwise.
const DEFAULT_RECONCILE: Duration = Duration::from_secs(5);
/// How short and how long that may be: the sums cost the database work, and edges spend on what they were told.
const RECONCILE: RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(60);

/// What the control plane must know to start.
#[derive(Clone, Debug)]
pub struct Settings {
    pub(crate) region: String,
    pub(crate) http_listen: SocketAddr,
    pub(crate) link_listen: SocketAddr,
    pub(crate) tls: TlsFiles,
    pub(crate) signing_key: PathBuf,
    pub(crate) postgres: DatabaseUrl,
    pub(crate) max_connections: u32,
    pub(crate) token_file: PathBuf,
    pub(crate) keep_months: u32,
    pub(crate) log_sample: f64,
    pub(crate) clickhouse: Option<Options>,
    pub(crate) reconcile_every: Duration,
    pub(crate) invoicing: Invoicing,
    pub(crate) stripe: Option<StripeSettings>,
}

impl Settings {
    /// Reads a TOML document with overrides from the environment; reports all mistakes at once.
    ///
    /// # Errors
    /// Missing, malformed and unknown fields, a line each.
    pub fn load(
        source_name: &str,
        text: &str,
        environment: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Self, BadSettings> {
        let mut fields = Fields::parse(source_name, text, environment)?;
        let region = fields.required("region");
        let http_listen = fields.required("http.listen");
        let link_listen = fields.required("link.listen");
        let tls = TlsFiles::from_fields(&mut fields);
        let signing_key = fields.required("signing.key");
        let url: Option<String> = fields.required("postgres.url");
        let max_connections = fields.or("postgres.max_connections", DEFAULT_CONNECTIONS);
        let token_file = fields.required("admin.token_file");
        let keep_months = fields.or("usage.keep_months", DEFAULT_KEEP_MONTHS);
        let log_sample = fields.or("usage.log_sample", 1.0);
        let clickhouse = clickhouse::read(&mut fields);
        let reconcile_every = fields.or("billing.reconcile_every", DEFAULT_RECONCILE);
        let invoicing = Invoicing::from_fields(&mut fields);
        let stripe = StripeSettings::from_fields(&mut fields);
        if url.as_deref().is_some_and(|url| !url.starts_with("postgres://") && !url.starts_with("postgresql://")) {
            // The value is not repeated: it may hold a password.
            fields.mistake("postgres.url", "expected a URL such as postgres://user@host:5432/database");
        }
        if max_connections < MIN_CONNECTIONS {
            fields.mistake("postgres.max_connections", "expected 6 or more");
        }
        if !(1..=MAX_KEEP_MONTHS).contains(&keep_months) {
            fields.mistake("usage.keep_months", "expected 1 to 120");
        }
        if !(0.0..=1.0).contains(&log_sample) {
            fields.mistake("usage.log_sample", "expected 0 to 1");
        } else if log_sample < 1.0 && clickhouse.is_none() {
            fields.mistake(
                "usage.log_sample",
                "expected 1: without clickhouse.url, usage is summed from the request log",
            );
        }
        if !RECONCILE.contains(&reconcile_every) {
            fields.mistake("billing.reconcile_every", "expected 100ms to 60s");
        }
        let settings = (|| {
            Some(Self {
                region: region?,
                http_listen: http_listen?,
                link_listen: link_listen?,
                tls: tls?,
                signing_key: signing_key?,
                postgres: DatabaseUrl(url?),
                max_connections,
                token_file: token_file?,
                keep_months,
                log_sample,
                clickhouse,
                reconcile_every,
                invoicing,
                stripe,
            })
        })();
        fields.finish(settings)
    }
}

/// A database URL that never prints its password.
#[derive(Clone)]
pub(crate) struct DatabaseUrl(pub(crate) String);

impl std::fmt::Debug for DatabaseUrl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("DatabaseUrl(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"
        region = "eu"
        http.listen = "127.0.0.1:0"
        link.listen = "127.0.0.1:0"
        tls = { ca = "ca.pem", cert = "cert.pem", key = "key.pem" }
        signing.key = "signing.key"
        postgres.url = "postgres://turnpike:hush@localhost/turnpike"
        admin.token_file = "token"
    "#;

    #[test]
    fn defaults_are_filled_in_and_the_password_is_never_shown() {
        let settings = Settings::load("t", TEXT, &|_| None).expect("valid settings");
        assert_eq!((settings.max_connections, settings.keep_months), (10, 13));
        assert!(!format!("{settings:?}").contains("hush"));
    }

    #[test]
    fn a_clickhouse_is_taken_as_it_is_set_and_its_password_never_shown() {
        let environment = |name: &str| match name {
            "TURNPIKE_CLICKHOUSE__URL" => Some("http://me:hush@ch:8123".to_owned()),
            "TURNPIKE_USAGE__LOG_SAMPLE" => Some("0.25".to_owned()),
            _ => None,
        };
        let settings = Settings::load("t", TEXT, &environment).expect("valid settings");
        let options = settings.clickhouse.as_ref().expect("a ClickHouse");
        assert_eq!((options.target.as_str(), options.database.as_str()), ("ch:8123", "turnpike"));
        assert_eq!((options.user.as_deref(), options.password.as_deref()), (Some("me"), Some("hush")));
        assert!(!format!("{settings:?}").contains("hush"));
        let text = format!(
            "{TEXT}\nclickhouse = {{ url = \"ftp://me:hush@ch\", database = \"a-b\", keep_days = 3 }}\nusage.log_sample = 0.5"
        );
        let mistakes = Settings::load("t", &text, &|_| None).expect_err("four mistakes").to_string();
        for field in ["clickhouse.url", "clickhouse.database", "clickhouse.keep_days", "usage.log_sample"] {
            assert!(mistakes.contains(field), "{field}: {mistakes}");
        }
        assert!(!mistakes.contains("hush"), "{mistakes}");
    }

    #[test]
    fn mistakes_are_named_without_the_value_of_a_secret() {
        let environment = |name: &str| match name {
            "TURNPIKE_POSTGRES__URL" => Some("mysql://u:hush@h/d".to_owned()),
            "TURNPIKE_USAGE__KEEP_MONTHS" => Some("0".to_owned()),
            "TURNPIKE_BILLING__RECONCILE_EVERY" => Some("5ms".to_owned()),
            _ => None,
        };
        let mistakes = Settings::load("t", TEXT, &environment).expect_err("three mistakes").to_string();
        assert!(mistakes.contains("postgres.url") && mistakes.contains("usage.keep_months"), "{mistakes}");
        assert!(mistakes.contains("billing.reconcile_every"), "{mistakes}");
        assert!(!mistakes.contains("hush"), "{mistakes}");
    }
}
