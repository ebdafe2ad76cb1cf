//! The control plane against a real PostgreSQL and real QUIC links with mutual TLS.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "tests fail loudly, and show figures"
)]

mod admin;
mod billing;
mod cache;
mod conservation;
mod customers;
mod declared;
mod feed;
mod invoices;
mod lifecycle;
mod limits;
mod log;
mod metering;
mod node_ledger;
mod nodes;
mod peers;
mod plane;
mod prepaid;
mod prices;
mod reconcile;
mod retired;
mod rollouts;
mod stripe;
mod stripe_server;
mod usage;
