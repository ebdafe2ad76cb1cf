//! The whole routing state, compiled from the tables.

use super::config_log::Head;
use super::{Store, StoreError, config_log, keys, models, nodes, organizations, prices, purges, routes, versions};
use turnpike_config::{Change, Routing};

/// Reads every record that edges must know, and where in the log they are, at one moment.
pub(crate) async fn load(store: &Store) -> Result<(Head, Routing), StoreError> {
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
    tx.rollback().await?;
    Ok((head, routing))
}
