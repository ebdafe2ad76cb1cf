//! A client of Stripe's API, and the check of its webhooks' signatures. Nothing of it runs unless it is configured.

mod client;
mod form;
mod objects;
mod signature;

pub(crate) use client::{Client, ClientError};
pub(crate) use form::Form;
pub(crate) use objects::{CreditNote, Customer, Event, EventObject, Invoice, InvoiceItem, List, PaymentIntent};
pub(crate) use signature::verify;

use std::path::{Path, PathBuf};

/// Shortest secret that is one, characters.
const MIN_SECRET: usize = 8;

/// A secret that is never printed.
#[derive(Clone)]
pub(crate) struct Secret(String);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// Why a file holds no secret. The contents are not repeated.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BadSecret {
    /// Not readable.
    #[error("{setting} {}: {source}", .path.display())]
    File {
        /// Which setting names it.
        setting: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Not a secret.
    #[error("{setting} {}: expected one line of at least {MIN_SECRET} printable characters", .path.display())]
    Content {
        /// Which setting names it.
        setting: &'static str,
        /// The file.
        path: PathBuf,
    },
    /// The HTTP client cannot be made.
    #[error("stripe: {0}")]
    Client(reqwest::Error),
}

impl Secret {
    /// Reads one line.
    pub(crate) fn load(setting: &'static str, path: &Path) -> Result<Self, BadSecret> {
        let text = std::fs::read_to_string(path).map_err(|source| BadSecret::File {
            setting,
            path: path.to_owned(),
            source,
        })?;
        let text = text.trim();
        if text.len() < MIN_SECRET || !text.bytes().all(|c| c.is_ascii_graphic()) {
            return Err(BadSecret::Content { setting, path: path.to_owned() });
        }
        Ok(Self(text.to_owned()))
    }
}

/// What a configured Stripe account needs.
#[derive(Debug)]
pub(crate) struct Stripe {
    /// Asks it.
    pub(crate) client: Client,
    /// What its webhooks are signed with.
    pub(crate) webhook_secret: Secret,
}
