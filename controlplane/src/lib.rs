//! The control plane: owns the truth in PostgreSQL, pushes what edges need to know, and takes in what they used.
//!
//! An admin request goes handler (`api`) → rule (`action`) → SQL (`store`); whatever edges must know is committed
//! through the one change `feed`, which the link server (`links`) follows. Usage comes back through
//! `ingest` into the `ledger`, and the `rollup` adds it up.

mod action;
mod admission;
mod allotment;
mod api;
mod budgets;
mod closer;
mod closing;
mod collecting;
mod context;
mod copying;
mod feed;
mod ingest;
mod invoicing;
mod ledger;
mod links;
mod metrics;
mod notes;
mod partitions;
mod performance;
mod posting;
mod pricing;
mod reason;
mod reconcile;
mod rollout;
mod rollup;
mod roster;
mod service;
mod settings;
mod signing;
mod spending;
mod staging;
mod store;
mod stripe;
mod watermarks;

pub use service::{ControlPlane, Error, run};
pub use settings::Settings;
