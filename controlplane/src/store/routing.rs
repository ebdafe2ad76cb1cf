//! The whole routing state, compiled from the tables.

use super::config_log::Head;
use super::{
    Store, StoreError, config_log, keys, models, nodes, organizations, prices, purges, rollouts, routes, versions,
};
use turnpike_config::log::Audience;
use turnpike_config::{Change, Routing};

/// The state at one moment.
#[derive(Debug)]
pub(crate) struct Loaded {
    /// Where in the log.
    pub(crate) head: Head,
    /// What all edges are told.
    pub(crate) routing: Routing,
    /// What some are told instead, by a rollout under way.
    pub(crate) staged: Vec<(Audience, Change)>,
}

/// Reads every record that edges must know, and where in the log they are, at one moment.
pub(crate) async fn load(store: &Store) -> Result<Loaded, StoreError> {
    let mut tx = store.begin_snapshot().await?;
    let head = config_log::head(&mut tx).await?;
    let mut routing = Routing { version: head.at.version, ..Routing::default() };
    for org in organizations::all(&mut tx).await? {
        routing.apply(Change::PutOrg(org.record()));
    }
    for key in keys::all_live(&mut tx).await? {
        routing.apply(Change::PutKey(key.record()?));
    }
    let versions = versions::all(&mut tx).await?;
    let prices = prices::pushed(&mut tx, None).await?;
    for model in models::all(&mut tx).await? {
        routing.apply(Change::PutModel(model.record(&versions, &prices)?));
    }
    for route in routes::all(&mut tx).await? {
        routing.apply(Change::PutRoute(route.record()));
    }
    for node in nodes::all(&mut tx).await? {
        routing.apply(Change::PutNode(node.record()?));
    }
    for (key, at_ms) in purges::all(&mut tx).await? {
        routing.apply(Change::PurgeAnswer { key, at_ms });
    }
    let staged = rollouts::under_way(&mut tx).await?.map(|rollout| rollout.staged()).unwrap_or_default();
    tx.rollback().await?;
    Ok(Loaded { head, routing, staged })
}
