//! The node agent against real parts: sockets, certificates, a link server, processes and llama.cpp.
#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests fail loudly")]

mod drain;
mod engines;
mod front;
mod harness;
mod ledger;
#[cfg(feature = "builtin-engine")]
mod llamacpp;
mod supervise;
mod tls;
