//! Nodes that are named by their hosts: names are resolved beside everything else, so that no push waits for it, and
//! again from time to time.

use super::adopt::Adopter;
use crate::live::resolve;
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use turnpike_config::{Change, NodeRecord, NodeUrl};

/// Between looks at names that were resolved before.
const EVERY: Duration = Duration::from_secs(30);

/// Waits until there are names to be resolved.
pub(super) async fn due(adopter: &Adopter) {
    let _ = tokio::time::timeout(EVERY, adopter.names.notified()).await;
}

/// Resolves all names, and takes those that have moved.
pub(super) async fn resolve_again(adopter: &Arc<Adopter>) {
    let adopter = Arc::clone(adopter);
    let resolving = tokio::task::spawn_blocking(move || {
        let snapshot = adopter.edge.snapshot.load_full();
        let mut found: HashMap<String, Option<IpAddr>> = HashMap::new();
        let mut moved = |record: &NodeRecord| {
            let url = NodeUrl::parse(&record.url).filter(|url| crate::live::literal(url).is_none())?;
            // Nodes may share a host, and one name may take a while.
            let ip = *found.entry(url.host.clone()).or_insert_with(|| resolve(&url).map(|address| address.ip()));
            let address = SocketAddr::new(ip?, url.port);
            let known = snapshot.node(&record.name).map(|node| node.address);
            (known != Some(address)).then(|| Change::PutNode(record.clone()))
        };
        let moved: Vec<Change> = snapshot.node_records().filter_map(&mut moved).collect();
        if !moved.is_empty() {
            let known = |url: &NodeUrl| Some(SocketAddr::new((*found.get(&url.host)?)?, url.port));
            adopter.put_again(&moved, &known);
        }
        let lost: Vec<_> = adopter.edge.snapshot.load().astray().map(|node| node.name.clone()).collect();
        if !lost.is_empty() {
            tracing::warn!(nodes = ?lost, "nodes left out: their addresses do not resolve");
        }
    });
    // It only fails by panicking, which has been reported.
    let _ = resolving.await;
}
