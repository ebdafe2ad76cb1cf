//! Starts the real parts.
#![expect(clippy::unwrap_used, reason = "tests fail loudly")]

mod clickhouse;
mod postgres;
mod redis;
