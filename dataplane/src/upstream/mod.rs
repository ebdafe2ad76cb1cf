//! Connections to nodes: HTTP/1.1 over TCP, or over TLS with certificates on both ends.
//!
//! Nodes are few and known, and every connection has one request at a time: what a general client does beyond that costs
//! more than the request itself.

mod body;
mod connection;
mod head;
mod pool;

use connection::Connection;
pub(crate) use head::{Head, is_for_one_hop};
pub(crate) use pool::Connector;
