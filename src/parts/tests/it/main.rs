//! Starts the real parts.
#![expect(clippy::unwrap_used, reason = "tests fail loudly")]

mod postgres;
mod redis;
