//! Everything that can be declared, as documents.

use super::document::Documents;
use super::kinds::{Names, of_key, of_model, of_node, of_org, of_route, of_user, of_version};
use crate::action::ActionError;
use crate::context::Context;
use crate::store::{PgConnection, keys, models, nodes, organizations, routes, users, versions};

/// The documents that declare what there is now, at one moment.
pub(crate) async fn export(context: &Context) -> Result<Documents, ActionError> {
    let mut tx = context.store.begin_snapshot().await?;
    let documents = documents(&mut tx).await?;
    tx.rollback().await.map_err(crate::store::StoreError::from)?;
    Ok(documents)
}

async fn documents(connection: &mut PgConnection) -> Result<Documents, ActionError> {
    let names = names(connection).await?;
    let users = users::all(connection).await?;
    let keys = keys::all_live(connection).await?;
    let routes = routes::all(connection).await?;
    Ok(Documents {
        organization: organizations::all(connection).await?.iter().map(of_org).collect(),
        user: users.iter().map(|user| of_user(user, &names)).collect(),
        model: models::all(connection).await?.iter().map(of_model).collect(),
        version: versions::all(connection).await?.iter().map(of_version).collect(),
        key: keys.iter().map(|key| of_key(key, &names)).collect(),
        route: routes.iter().map(|route| of_route(route, &names)).collect(),
        node: nodes::all(connection).await?.iter().map(of_node).collect(),
    })
}

/// What documents call organizations and users.
pub(super) async fn names(connection: &mut PgConnection) -> Result<Names, ActionError> {
    let mut names = Names::default();
    organizations::all(connection).await?.iter().for_each(|org| names.know_org(org));
    users::all(connection).await?.iter().for_each(|user| names.know_user(user));
    Ok(names)
}
