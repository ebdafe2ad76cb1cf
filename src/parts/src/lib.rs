//! Where the real parts come from: finds, fetches and starts the servers that Turnpike stands on.
//!
//! The one place that knows how a part is had on a machine; `turnpike up` and the tests both use it. One module per
//! part, and [`process`] for what they share: a child that never outlives us, run as an unprivileged user.
//!
//! Everything here blocks (it waits for processes): from async code that has other work to do, call it inside
//! `spawn_blocking`.

pub mod account;
pub mod cache;
pub mod clickhouse;
mod home;
pub mod port;
pub mod postgres;
pub mod process;
pub mod redis;
