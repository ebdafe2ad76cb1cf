//! What every part of the running control plane shares.

use crate::feed::Feed;
use crate::ingest::Ingest;
use crate::ledger::Ledger;
use crate::metrics::Metrics;
use crate::notes::Notes;
use crate::performance::Reported;
use crate::rollup::Rollup;
use crate::roster::{EdgeLive, NodeLive, Roster};
use crate::settings::Invoicing;
use crate::spending::Spending;
use crate::store::Store;
use crate::stripe::Stripe;
use crate::watermarks::Watermarks;
use std::sync::Arc;
use tokio::sync::Mutex;
use uuid::Uuid;

/// Handles to the database, the feed and the connected peers.
#[derive(Debug)]
pub(crate) struct Context {
    /// Tells this process from other control planes on the same database.
    pub(crate) id: Uuid,
    /// The database.
    pub(crate) store: Store,
    /// The published routing, and the way to change it.
    pub(crate) feed: Arc<Feed>,
    /// Taking in usage.
    pub(crate) ingest: Ingest,
    /// Where usage is.
    pub(crate) ledger: Arc<Ledger>,
    /// What usage adds up to.
    pub(crate) rollup: Arc<Rollup>,
    /// How far the usage of connected edges is stored.
    pub(crate) watermarks: Watermarks,
    /// What nodes have reported and is not written yet.
    pub(crate) reported: Arc<Reported>,
    /// Who spent something just now.
    pub(crate) spending: Arc<Spending>,
    /// Connected edges.
    pub(crate) edges: Roster<EdgeLive>,
    /// What is new of edges and not written yet.
    pub(crate) notes: Notes,
    /// Connected nodes.
    pub(crate) nodes: Roster<NodeLive>,
    /// What invoices say beside usage.
    pub(crate) invoicing: Invoicing,
    /// Who collects the money, if somebody does.
    pub(crate) stripe: Option<Arc<Stripe>>,
    /// Held while a day's books are compared, one day at a time.
    pub(crate) comparing: Mutex<()>,
    /// Counters and gauges.
    pub(crate) metrics: Arc<Metrics>,
}
