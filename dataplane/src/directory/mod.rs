//! What the edges of a region tell each other in Redis: keys, models, and who serves them.
//!
//! An edge that has just been told something by the control plane writes it there ([`writer`]); one that is asked for a
//! key or a model that its own routing does not have looks there ([`reader`]). So a key that was made a moment ago, or
//! while an edge had lost its link, works at once in the whole region. Best effort: the routing is what counts, and what
//! cannot be looked up is unknown.

mod news;
mod reader;
mod records;
mod writer;

use crate::clock::Clock;
use crate::metrics::Metrics;
use crate::redis_client::RedisClient;
pub(crate) use news::Step;
use reader::Reader;
use std::sync::Arc;
use writer::Writer;

/// Both sides of it.
pub(crate) struct Directory {
    pub(crate) reader: Reader,
    pub(crate) writer: Writer,
}

impl Directory {
    pub(crate) fn new(client: RedisClient, clock: Clock, metrics: Arc<Metrics>) -> Self {
        Self { reader: Reader::new(client.clone(), clock, metrics), writer: Writer::new(client) }
    }
}
