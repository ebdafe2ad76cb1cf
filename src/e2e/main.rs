//! The whole product as its users meet it: the real binary, a real PostgreSQL, the official SDK, a real Prometheus.
#![expect(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "tests fail loudly, and with logs")]

mod billing;
mod books;
mod cache;
mod chaos;
mod engine;
mod faults;
mod harness;
mod invoices;
mod lifecycle;
mod limits;
mod links;
mod metering;
mod observability;
mod prepaid;
mod protocol;
mod push;
mod quotas;
mod readme;
mod region;
mod routes;
mod shadows;
mod wire;
