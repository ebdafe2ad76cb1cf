//! The GPU node agent: fronts an inference engine, watches it, reports it, drains it.
//!
//! observe → plan → act → report: `observe` looks at engine and GPUs, `status` decides what state the node is in,
//! `server` and `queue` act on it, `report` tells the control plane. The agent holds no routing and no keys: edges send
//! it requests that they have already authenticated and admitted, and it either answers them or refuses them in a way
//! that lets another node take them.

mod account;
mod admin;
mod agent;
#[cfg(feature = "builtin-engine")]
pub mod builtin;
mod echo;
mod engine;
mod gpu;
mod ledger;
mod listener;
mod metrics;
mod observe;
mod openai;
mod queue;
mod report;
mod server;
mod settings;
mod status;
mod supervise;

pub use agent::{Agent, Error, run};
pub use settings::Settings;
